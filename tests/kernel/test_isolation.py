"""Isolated targets: who has a route to one is dropped and counted, and is answered through the mapping.

It must not know how the table says so, but for the counters by name. The one idea: the same question past the mapping
and through it, from every place around the host and from the host itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import dropin, mapping
from tests.kernel.test_flows import OTHERS, OWN, to
from tests.kernel.test_lifecycle import handles, rules
from tests.lab import Daemon, Lab, address

Publish = Callable[..., None]
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
#: Seconds in which nothing must come.
SHORT = 0.2
FAMILIES, PROTOCOLS = (4, 6), ("tcp", "udp")


def web(name: str = "web", listen: int = 8080, target: str = "t1", **more: str) -> str:
    keys = {"protocol": "[tcp, udp]", "isolate": "true", **more}
    return mapping(name, listen, to(target, 4), to(target, 6), **keys)


OPEN = web(isolate="false")


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """One for all: each test publishes what it needs."""
    lab.bridge_netfilter(False)
    running = Daemon(lab)
    running.start()
    yield running
    running.stop()
    lab.daemons.remove(running)
    lab.reset()


@pytest.fixture
def publish(daemon: Daemon) -> Publish:
    """Make these mappings all that is published."""

    def these(*mappings: str) -> None:
        assert "applied: " in daemon.write("web.yaml", dropin(*mappings))

    return these


@pytest.fixture(params=FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=PROTOCOLS)
def proto(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def bypassed(daemon: Daemon) -> dict[int, int]:
    counters = daemon.objects("counter")
    return {family: int(counters[f"bypassed{family}"]["packets"]) for family in FAMILIES}


def test_past_the_mapping_is_dropped_and_counted(
    lab: Lab, daemon: Daemon, publish: Publish, family: int, proto: str
) -> None:
    target = address("t1", family)
    publish(OPEN)
    assert lab.outside.ask(target, 80, proto).target == "t1"
    before = bypassed(daemon)

    publish(web())

    assert lab.outside.ask(target, 80, proto, timeout=SHORT).outcome == "timeout"
    assert bypassed(daemon) == {**before, family: before[family] + 1}
    assert lab.outside.ask(OWN[family], 8080, proto).source == address("outside", family)
    publish()
    assert lab.outside.ask(target, 80, proto).target == "t1"


@pytest.mark.parametrize("masquerade", ["auto", "always", "never"])
def test_through_the_mapping_everybody_is_answered(
    lab: Lab, daemon: Daemon, publish: Publish, family: int, masquerade: str
) -> None:
    """From loopback and by hairpin as well."""
    publish(web(masquerade=masquerade))
    before = bypassed(daemon)

    for proto in PROTOCOLS:
        for space in (lab.client, lab.outside, lab.t3, *(() if masquerade == "never" else (lab.t1, lab.t2))):
            assert space.ask(OWN[family], 8080, proto).target == "t1"
        for own in (LOOPBACK[family], OWN[family], OTHERS[family]):
            assert lab.host.ask(own, 8080, proto).target == "t1"
    assert bypassed(daemon) == before


def test_this_host_goes_through_the_mapping_too(
    lab: Lab, daemon: Daemon, publish: Publish, family: int, proto: str
) -> None:
    publish(web())
    before = bypassed(daemon)

    assert not lab.host.ask(address("t1", family), 80, proto, timeout=SHORT)
    assert bypassed(daemon)[family] > before[family]
    assert lab.host.ask(LOOPBACK[family], 8080, proto).target == "t1"


def test_other_ports_protocols_and_targets_are_left_alone(lab: Lab, publish: Publish, family: int) -> None:
    publish(web(protocol="tcp"))

    for space in (lab.outside, lab.host):
        assert space.ask(address("t1", family), 81).outcome == "refused"
        assert space.ask(address("t1", family), 80, "udp").target == "t1"
        assert space.ask(address("t2", family), 80).target == "t2"


def test_what_an_isolated_target_asks_of_others_is_answered(
    lab: Lab, publish: Publish, family: int, proto: str
) -> None:
    """Also what ICMP has to say of it."""
    publish(web())

    assert lab.t1.ask(address("lan", family), 80, proto).target == "lan"
    assert lab.t1.ask(address("lan", family), 81, proto).outcome == "refused"


def test_a_direct_flow_from_before_goes_on(lab: Lab, publish: Publish, family: int, proto: str) -> None:
    target = address("t1", family)
    publish(OPEN)
    with lab.outside.talk(target, 80, proto) as direct, lab.host.talk(target, 80, proto) as own:
        assert (direct.ask().target, own.ask().target) == ("t1", "t1")
        publish(web())
        assert (direct.ask().target, own.ask().target) == ("t1", "t1")
        assert not lab.outside.ask(target, 80, proto, timeout=SHORT)


def test_the_last_of_two_mappings_opens_their_target(lab: Lab, publish: Publish, family: int) -> None:
    target = address("t1", family)
    publish(web(), web("other", 8081))

    publish(web("other", 8081))
    assert not lab.outside.ask(target, 80, timeout=SHORT)
    assert lab.outside.ask(OWN[family], 8081).target == "t1"
    publish()
    assert lab.outside.ask(target, 80).target == "t1"


def test_a_mapping_without_the_option_leads_there_all_the_same(lab: Lab, publish: Publish, family: int) -> None:
    publish(web(), web("other", 8081, isolate="false"))

    assert lab.outside.ask(OWN[family], 8081).target == "t1"
    assert not lab.outside.ask(address("t1", family), 80, timeout=SHORT)


def test_what_another_program_translates_came_through_a_mapping(lab: Lab, publish: Publish, family: int) -> None:
    name = {4: "ip", 6: "ip6"}[family]
    publish(web())
    lab.host.nft(
        f"table {name} other {{\n  chain prerouting {{\n    type nat hook prerouting priority -105;\n"
        f"    {name} daddr {OWN[family]} tcp dport 9090 dnat to {to('t1', family)}\n  }}\n}}\n"
    )
    try:
        assert lab.outside.ask(OWN[family], 9090).target == "t1"
    finally:
        lab.host.nft(f"delete table {name} other\n")


def test_untracked_packets_do_not_slip_through(lab: Lab, publish: Publish, family: int) -> None:
    publish(web())
    lab.host.nft(
        "table inet other {\n  chain raw {\n    type filter hook prerouting priority raw;\n"
        '    iifname "out0" th dport 80 notrack\n  }\n}\n'
    )
    try:
        assert not lab.outside.ask(address("t1", family), 80, "udp", timeout=SHORT)
        assert lab.outside.ask(address("t2", family), 80, "udp").target == "t2"
    finally:
        lab.host.nft("delete table inet other\n")


def test_a_target_that_is_an_address_of_this_host(lab: Lab, publish: Publish, family: int, proto: str) -> None:
    service = lab.host.serve([6200])
    try:
        endpoints = f"{OTHERS[4]}:6200", f"[{OTHERS[6]}]:6200"
        publish(mapping("own", 8080, *endpoints, protocol="[tcp, udp]", isolate="true"))
        for space in (lab.outside, lab.host):
            assert not space.ask(OTHERS[family], 6200, proto, timeout=SHORT)
            assert space.ask(OWN[family], 6200, proto).target == "host"
            assert space.ask(OWN[family], 8080, proto).target == "host"
        assert lab.host.ask(LOOPBACK[family], 8080, proto).target == "host"
    finally:
        service.close()


@pytest.mark.parametrize("on", [False, True], ids=["off", "on"])
def test_neighbours_on_a_bridge_pass_this_host_only_with_br_netfilter(
    lab: Lab, publish: Publish, family: int, on: bool
) -> None:
    publish(web())
    lab.bridge_netfilter(on)
    try:
        assert bool(lab.t2.ask(address("t1", family), 80, timeout=SHORT)) is not on
    finally:
        lab.bridge_netfilter(False)


def needed(daemon: Daemon) -> list[str]:
    """The rules but for those that an earlier mapping has brought and `web` does not need."""
    later = ("\tchain dispatch_addr ", "\tchain masquerade_")
    return [chain for chain in rules(daemon) if not chain.startswith(later)]


def test_a_table_from_before_isolation_gets_it_and_nothing_is_lost(lab: Lab, daemon: Daemon, publish: Publish) -> None:
    publish(web())
    text = needed(daemon)
    daemon.kill9()
    assert not lab.outside.ask(address("t1", 4), 80, timeout=SHORT)
    chains = ["isolation_forward", "isolation_output", "isolation_input", "isolation"]
    lines = [f"{verb} chain inet nfportd {chain}" for verb in ("flush", "delete") for chain in chains]
    lines += [f"delete set inet nfportd isolated{f}\ndelete counter inet nfportd bypassed{f}" for f in FAMILIES]
    lab.host.nft("\n".join(lines) + "\n")
    before = handles(daemon)
    with lab.outside.talk(address("t1", 6), 80) as direct, lab.outside.talk(OWN[6], 8080) as mapped:
        assert (direct.ask().target, mapped.ask().target) == ("t1", "t1")

        daemon.start()

        assert (direct.ask().target, mapped.ask().target) == ("t1", "t1")
    for family in FAMILIES:
        assert not lab.outside.ask(address("t1", family), 80, timeout=SHORT)
        assert lab.outside.ask(OWN[family], 8080).target == "t1"
    assert (sorted(needed(daemon)), before.items() <= handles(daemon).items()) == (sorted(text), True)
    assert daemon.counters("any6")["tcp . 8080"] == 2

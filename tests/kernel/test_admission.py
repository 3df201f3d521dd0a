"""Who may connect: sources that are allowed are answered, all others are dropped and counted, and lose their flows.

It must not know how the table says so, but for the counters by name. The one idea: the same question from several
places around the host, before and after a change of `sources:`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.conftest import dropin, mapping
from tests.kernel.test_flows import OTHERS, OWN, entries, to
from tests.kernel.test_lifecycle import Monitor, handles, rules, without_owner
from tests.lab import Daemon, Lab, address

Start = Callable[..., Daemon]
#: What holds `client` and `lan`, but not `outside`.
NEAR = {4: "192.0.2.0/24", 6: "2001:db8::/64"}
FAR = {4: "198.51.100.10", 6: "2001:db8:1::/64"}
SHORT = 0.3


def only(*prefixes: str) -> str:
    return json.dumps(prefixes)


def web(family: int, *prefixes: str, listen: int | str = 8080, target: str = "t1", proto: str = "tcp") -> str:
    more = {"sources": only(*prefixes)} if prefixes else {}
    return mapping(f"web-{listen}".translate({ord(c): "-" for c in ".:[]"}), listen, to(target, family),
                   protocol=proto, **more)  # fmt: skip


def blocked(daemon: Daemon) -> dict[int, int]:
    counters = daemon.objects("counter")
    return {family: int(counters[f"blocked{family}"]["packets"]) for family in (4, 6)}


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["tcp", "udp"])
def proto(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("own", [False, True], ids=["any", "address"])
def test_others_are_dropped_and_counted(lab: Lab, start: Start, family: int, proto: str, own: bool) -> None:
    listen = f"{OWN[4]}:8080" if family == 4 else f"[{OWN[6]}]:8080"
    daemon = start({"web.yaml": dropin(web(family, NEAR[family], listen=listen if own else 8080, proto=proto))})

    assert lab.client.ask(OWN[family], 8080, proto).target == "t1"
    assert lab.client.ask(OWN[family], 8080, proto).source == address("client", family)
    assert blocked(daemon) == {4: 0, 6: 0}
    assert lab.outside.ask(OWN[family], 8080, proto, timeout=SHORT).outcome == "timeout"
    assert blocked(daemon) == {family: 1, 10 - family: 0}
    assert list(daemon.counters(f"{'addr' if own else 'any'}{family}").values()) == [2]


def test_several_prefixes_and_single_addresses(lab: Lab, start: Start, family: int) -> None:
    start({"web.yaml": dropin(web(family, FAR[family], address("lan", family)))})

    assert lab.outside.ask(OWN[family], 8080).target == "t1"
    assert lab.lan.ask(OWN[family], 8080).target == "t1"
    assert lab.client.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0"])
def test_everybody_of_a_family_and_nobody_of_the_other(lab: Lab, start: Start, everybody: str) -> None:
    both = mapping("web", 8080, to("t1", 4), to("t1", 6), sources=only(everybody))
    daemon = start({"web.yaml": dropin(both)})
    may, may_not = (6, 4) if ":" in everybody else (4, 6)

    assert lab.outside.ask(OWN[may], 8080).target == "t1"
    assert lab.outside.ask(OWN[may_not], 8080, timeout=SHORT).outcome == "timeout"
    assert blocked(daemon) == {may: 0, may_not: 1}


def test_every_port_of_a_range_and_no_other(lab: Lab, start: Start, family: int) -> None:
    service = lab.t1.serve(range(6310, 6313), ["tcp"])
    try:
        guarded = mapping("range", "8080-8082", to("t1", family, "6310-6312"), sources=only(NEAR[family]))
        start({"web.yaml": dropin(guarded, web(family, listen=8083))})
        for port in range(8080, 8083):
            assert lab.client.ask(OWN[family], port).port == port - 8080 + 6310
            assert lab.outside.ask(OWN[family], port, timeout=SHORT).outcome == "timeout"
        assert lab.outside.ask(OWN[family], 8083).target == "t1"
    finally:
        service.close()


def at(place: dict[int, str], family: int) -> str:
    return f"{place[4]}:8080" if family == 4 else f"[{place[6]}]:8080"


def test_a_guarded_wildcard_leaves_a_listen_address_open(lab: Lab, start: Start, family: int) -> None:
    one = web(family, listen=at(OTHERS, family), target="t2")
    start({"web.yaml": dropin(web(family, NEAR[family]), one)})

    assert lab.outside.ask(OTHERS[family], 8080).target == "t2"
    assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    assert (lab.client.ask(OTHERS[family], 8080).target, lab.client.ask(OWN[family], 8080).target) == ("t2", "t1")


def test_a_guarded_listen_address_leaves_the_wildcard_open(lab: Lab, start: Start, family: int) -> None:
    one = web(family, NEAR[family], listen=at(OTHERS, family), target="t2")
    start({"web.yaml": dropin(web(family), one)})

    assert lab.outside.ask(OWN[family], 8080).target == "t1"
    assert lab.outside.ask(OTHERS[family], 8080, timeout=SHORT).outcome == "timeout"
    assert (lab.client.ask(OTHERS[family], 8080).target, lab.client.ask(OWN[family], 8080).target) == ("t2", "t1")


def test_a_wildcard_and_a_listen_address_each_have_sources_of_their_own(lab: Lab, start: Start, family: int) -> None:
    one = web(family, FAR[family], listen=at(OTHERS, family), target="t2")
    start({"web.yaml": dropin(web(family, NEAR[family]), one)})

    assert lab.outside.ask(OTHERS[family], 8080).target == "t2"
    assert lab.client.ask(OWN[family], 8080).target == "t1"
    assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    assert lab.client.ask(OTHERS[family], 8080, timeout=SHORT).outcome == "timeout"


def test_a_container_is_a_source_like_any_other(lab: Lab, start: Start, family: int) -> None:
    start({"web.yaml": dropin(web(family, address("t2", family)), web(family, NEAR[family], listen=8081))})

    assert lab.t2.ask(OWN[family], 8080).target == "t1"
    assert lab.t1.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    assert lab.t2.ask(OWN[family], 8081, timeout=SHORT).outcome == "timeout"


def test_the_host_itself_is_not_restricted(lab: Lab, start: Start, family: int, proto: str) -> None:
    lab.bridge_netfilter(False)
    daemon = start({"web.yaml": dropin(web(family, FAR[family], proto=proto))})

    for own in ("127.0.0.1" if family == 4 else "::1", OWN[family], OTHERS[family]):
        assert lab.host.ask(own, 8080, proto).target == "t1"
    assert blocked(daemon) == {4: 0, 6: 0}


def test_what_passes_through_the_host_is_not_looked_at(lab: Lab, start: Start, family: int) -> None:
    service = lab.t2.serve([8080], ["tcp", "udp"])
    try:
        daemon = start({"web.yaml": dropin(web(family, NEAR[family]))})
        assert lab.outside.ask(address("t2", family), 8080).target == "t2"
        assert blocked(daemon) == {4: 0, 6: 0}
    finally:
        service.close()


@pytest.mark.parametrize("before", ["both", "all"])
@pytest.mark.parametrize("own", [False, True], ids=["any", "address"])
def test_a_source_that_loses_its_right_loses_its_flows(
    lab: Lab, start: Start, family: int, proto: str, before: str, own: bool
) -> None:
    listen = at(OWN, family) if own else 8080
    some = (NEAR[family], FAR[family]) if before == "both" else ()
    daemon = start({"web.yaml": dropin(web(family, *some, listen=listen, proto=proto))})
    with (
        lab.client.talk(OWN[family], 8080, proto, source_port=4000) as near,
        lab.outside.talk(OWN[family], 8080, proto, source_port=4001) as far,
        lab.host.talk(OWN[family], 8080, proto, source_port=4002) as host,
    ):
        assert [talk.ask().target for talk in (near, far, host)] == ["t1"] * 3
        kept = {port: entries(lab, family, f"sport={port}").keys() for port in (4000, 4002)}
        daemon.write("web.yaml", dropin(web(family, NEAR[family], listen=listen, proto=proto)))
        assert far.ask(SHORT).outcome in ("timeout", "reset")
        assert blocked(daemon)[family] > 0
        assert (near.ask().target, host.ask().target) == ("t1", "t1")
        assert {port: entries(lab, family, f"sport={port}").keys() for port in kept} == kept
    assert all(kept.values())


def test_flows_of_others_on_the_same_port_stay(lab: Lab, start: Start, family: int) -> None:
    service, own = lab.t2.serve([8080], ["tcp"]), lab.host.serve([8090], ["tcp"])
    open_one = web(family, listen=at(OTHERS, family), target="t2")
    daemon = start({"web.yaml": dropin(web(family), open_one)})
    try:
        with (
            lab.outside.talk(OTHERS[family], 8080, source_port=4000) as narrower,
            lab.outside.talk(address("t2", family), 8080, source_port=4001) as routed,
            lab.outside.talk(OWN[family], 8090, source_port=4002) as hosts,
            lab.outside.talk(OWN[family], 8080, source_port=4003) as far,
        ):
            assert all(talk.ask() for talk in (narrower, routed, hosts, far))
            kept = {port: entries(lab, family, f"sport={port}").keys() for port in range(4000, 4003)}
            daemon.write("web.yaml", dropin(web(family, NEAR[family]), open_one))
            assert far.ask(SHORT).outcome in ("timeout", "reset")
            assert {port: entries(lab, family, f"sport={port}").keys() for port in kept} == kept
            assert [talk.ask().target for talk in (narrower, routed, hosts)] == ["t2", "t2", "host"]
    finally:
        service.close()
        own.close()


def test_a_flow_to_an_older_target_is_cut_too(lab: Lab, start: Start, family: int) -> None:
    daemon = start({"web.yaml": dropin(web(family))})
    with lab.outside.talk(OWN[family], 8080) as far, lab.client.talk(OWN[family], 8080) as near:
        assert (far.ask().target, near.ask().target) == ("t1", "t1")
        daemon.write("web.yaml", dropin(web(family, target="t3")))
        assert (far.ask().target, near.ask().target) == ("t1", "t1")
        daemon.write("web.yaml", dropin(web(family, NEAR[family], target="t3")))
        assert far.ask(SHORT).outcome in ("timeout", "reset")
        assert near.ask().target == "t1"


def test_without_sources_a_mapping_is_open_again(lab: Lab, start: Start, family: int) -> None:
    daemon = start({"web.yaml": dropin(web(family, NEAR[family]))})
    assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    with lab.client.talk(OWN[family], 8080) as near:
        assert near.ask().target == "t1"
        daemon.write("web.yaml", dropin(web(family)))
        assert near.ask().target == "t1"
    assert lab.outside.ask(OWN[family], 8080).target == "t1"
    daemon.remove("web.yaml")
    assert lab.outside.ask(OWN[family], 8080).outcome == "refused"


def test_a_mapping_that_goes_leaves_nothing_to_the_next(lab: Lab, start: Start, family: int) -> None:
    daemon = start({"web.yaml": dropin(web(family, NEAR[family])), "next.yaml": dropin(web(family, target="t3"))})
    assert lab.outside.ask(OWN[family], 8080).target == "t3"  # next.yaml comes first
    daemon.remove("next.yaml")
    assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    daemon.write("next.yaml", dropin(web(family, FAR[family], target="t3")))
    assert lab.outside.ask(OWN[family], 8080).target == "t3"
    assert lab.client.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    daemon.remove("next.yaml")
    daemon.remove("web.yaml")
    full = [name for kind in ("set", "map") for name, each in daemon.objects(kind).items() if each.get("elem")]
    assert full == ["fingerprint"]


def test_a_start_after_kill_9_writes_nothing_and_keeps_the_counts(lab: Lab, start: Start, family: int) -> None:
    own = web(family, listen=at(OTHERS, family))
    daemon = start({"web.yaml": dropin(web(family, NEAR[family], address("t2", family)), own)})
    assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    with lab.client.talk(OWN[family], 8080) as near:
        assert near.ask().target == "t1"
        daemon.kill9()
        assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
        before = lab.host.nft("list ruleset")
        monitor = Monitor(lab)
        daemon.start()
        assert [line for line in monitor.end() if not line.startswith("add table inet nfportd")] == []
        assert without_owner(lab.host.nft("list ruleset")) == without_owner(before)
        assert near.ask().target == "t1"
    assert blocked(daemon)[family] == 2


def test_a_right_that_was_lost_while_the_daemon_was_away(lab: Lab, start: Start, family: int) -> None:
    daemon = start({"web.yaml": dropin(web(family))})
    with lab.outside.talk(OWN[family], 8080) as far, lab.client.talk(OWN[family], 8080) as near:
        assert (far.ask().target, near.ask().target) == ("t1", "t1")
        daemon.kill9()
        daemon.write("web.yaml", dropin(web(family, NEAR[family])), wait=False)
        daemon.start()
        assert far.ask(SHORT).outcome in ("timeout", "reset")
        assert near.ask().target == "t1"


def test_a_table_from_before_admission_gets_it(lab: Lab, start: Start, family: int) -> None:
    daemon = start({"web.yaml": dropin(web(family, NEAR[family]))})
    text = rules(daemon)
    daemon.kill9()
    flush, chains, sets = [], [], []
    for name in handles(daemon):
        kind, _, each = name.partition(" ")
        if each.startswith("admi"):
            flush.append(f"flush chain inet nfportd {each}")
            chains.append(f"delete chain inet nfportd {each}")
        if each.startswith(("guarded", "allowed", "open")):
            sets.append(f"delete {kind} inet nfportd {each}")
    counters = [f"delete counter inet nfportd blocked{f}" for f in (4, 6)] + ["add counter inet nfportd older"]
    lab.host.nft("\n".join([*flush, *chains, *sets, *counters]) + "\n")
    assert lab.outside.ask(OWN[family], 8080).target == "t1"

    daemon.start()

    assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    assert lab.client.ask(OWN[family], 8080).target == "t1"
    assert (sorted(rules(daemon)), sorted(daemon.objects("counter"))) == (
        sorted(text),
        ["blocked4", "blocked6", "bypassed4", "bypassed6"],
    )
    assert blocked(daemon)[family] == 1


def test_a_start_takes_out_what_others_allowed(lab: Lab, start: Start, family: int) -> None:
    daemon = start({"web.yaml": dropin(web(family, NEAR[family]))})
    daemon.kill9()
    wide = {
        4: "198.51.0.0/16 . tcp . 8080, 198.51.100.1-198.51.100.99 . udp . 80-90",
        6: "2001:db8:1::/48 . tcp . 8080",
    }
    lab.host.nft(f"add element inet nfportd allowed_any{family} {{ {wide[family]} }}\n")
    assert lab.outside.ask(OWN[family], 8080).target == "t1"

    daemon.start()

    assert lab.outside.ask(OWN[family], 8080, timeout=SHORT).outcome == "timeout"
    assert len(daemon.objects("set")[f"allowed_any{family}"]["elem"]) == 1
    assert "refuse" not in daemon.log

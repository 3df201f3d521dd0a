"""Marks and masquerade: our one bit is ours, every other bit of meta mark and ct mark is somebody else's.

It must not know which rule sets the bit. The one idea: another program's table sets bits before us and counts
after us what it finds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import dropin, mapping
from tests.lab import LINK_OF, Daemon, Lab, address, endpoint, host_addresses

Start = Callable[..., Daemon]
OWN = {4: "192.0.2.1", 6: "2001:db8::1"}
ALL_BITS = 0xFFFFFFFF


def to(target: str, family: int) -> str:
    return endpoint(address(target, family), 80)


def foreign(bits: int, ours: int) -> str:
    """Another program's table: it sets bits early, and counts after source NAT what came of them."""
    return f"""
        table inet foreign {{
            counter kept {{ }}
            counter ours {{ }}
            counter lost {{ }}
            chain early {{
                type filter hook prerouting priority mangle; policy accept;
                meta l4proto tcp meta mark set meta mark | {bits:#x}
                meta l4proto tcp ct mark set ct mark | {bits:#x}
            }}
            chain local {{
                type route hook output priority mangle; policy accept;
                meta l4proto tcp meta mark set meta mark | {bits:#x}
                meta l4proto tcp ct mark set ct mark | {bits:#x}
            }}
            chain late {{
                type filter hook postrouting priority 200; policy accept;
                meta l4proto != tcp return
                tcp dport != 80 return
                meta mark & {ours:#x} != 0 counter name ours
                meta mark & {bits:#x} == {bits:#x} ct mark {bits:#x} counter name kept return
                counter name lost
            }}
        }}
        """


@pytest.fixture
def counted(lab: Lab) -> Iterator[Callable[[], dict[str, int]]]:
    """The counters of the foreign table; the table goes at the end."""

    def read() -> dict[str, int]:
        listed = json.loads(lab.host.run(["nft", "-j", "list", "counters", "table", "inet", "foreign"]).stdout)
        return {c["counter"]["name"]: c["counter"]["packets"] for c in listed["nftables"] if "counter" in c}

    yield read
    lab.host.nft("add table inet foreign; delete table inet foreign")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("client", "target"),
    [
        ("outside", "t1"),
        ("t1", "t1"),
        ("t2", "t1"),
        ("client", "lan"),
        ("t4", "t3"),
        ("loopback", "t1"),
        ("host", "t3"),
    ],
)
def test_the_bits_of_others_stay(
    lab: Lab, start: Start, counted: Callable[[], dict[str, int]], client: str, target: str, family: int
) -> None:
    lab.bridge_netfilter(False)
    lab.host.nft(foreign(ALL_BITS ^ 0x2000, 0x2000))
    start({"web.yaml": dropin(mapping("web", 8080, to(target, family)))})
    space = lab.host if client == "loopback" else lab.spaces[client]
    loopback = "127.0.0.1" if family == 4 else "::1"
    assert space.ask(loopback if client == "loopback" else OWN[family], 8080).target == target
    counters = counted()
    assert counters["kept"] > 0
    assert (counters["ours"], counters["lost"]) == (0, 0)


@pytest.mark.parametrize("bit", [0, 20, 31])
def test_the_bit_is_configurable(lab: Lab, start: Start, counted: Callable[[], dict[str, int]], bit: int) -> None:
    lab.bridge_netfilter(False)
    lab.host.nft(foreign(ALL_BITS ^ 1 << bit, 1 << bit))
    start({"web.yaml": dropin(mapping("web", 8080, to("t1", 4)))}, settings=f"mark_bit: {bit}\n")
    assert lab.outside.ask(OWN[4], 8080).source == address("outside", 4)  # 0x2000 is foreign now
    assert lab.t1.ask(OWN[4], 8080).source == host_addresses("br0", 4)[0]
    counters = counted()
    assert counters["kept"] > 0
    assert (counters["ours"], counters["lost"]) == (0, 0)


def test_a_bit_that_changes_is_taken_over_at_the_next_start(
    lab: Lab, start: Start, counted: Callable[[], dict[str, int]]
) -> None:
    web = dropin(mapping("web", 8080, to("t1", 4), masquerade="always"))
    daemon = start({"web.yaml": web})
    daemon.kill9()
    daemon.config.write_text("mark_bit: 20\n")
    daemon.start()
    lab.host.nft(foreign(ALL_BITS ^ 1 << 20, 1 << 20))
    assert lab.outside.ask(OWN[4], 8080).source == host_addresses("br0", 4)[0]
    assert (counted()["ours"], counted()["lost"]) == (0, 0)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("target", ["t1", "t3", "t4", "lan"])
def test_masquerade_always_shows_the_hosts_address(
    lab: Lab, start: Start, target: str, proto: str, family: int
) -> None:
    start({"web.yaml": dropin(mapping("web", 8080, to(target, family), protocol=proto, masquerade="always"))})
    for client in ("outside", "client", "t2"):
        answer = lab.spaces[client].ask(OWN[family], 8080, proto)
        assert answer.target == target
        assert answer.source in host_addresses(LINK_OF[target], family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("own", ["auto", "always"])
def test_each_mapping_on_a_port_has_a_masquerade_of_its_own(lab: Lab, start: Start, own: str, family: int) -> None:
    wildcard = "auto" if own == "always" else "always"
    start(
        {
            "any.yaml": dropin(mapping("any", 8080, to("t1", family), masquerade=wildcard)),
            "own.yaml": dropin(mapping("own", endpoint(OWN[family], 8080), to("t4", family), masquerade=own)),
        }
    )
    masqueraded = {"t1": host_addresses("br0", family), "t4": host_addresses("br1", family)}
    for to_address, target, how in (
        (OWN[family], "t4", own),
        (host_addresses("out0", family)[0], "t1", wildcard),
    ):
        answer = lab.outside.ask(to_address, 8080)
        assert answer.target == target
        if how == "always":
            assert answer.source in masqueraded[target]
        else:
            assert answer.source == address("outside", family)


@pytest.fixture
def bridged(lab: Lab) -> Iterator[None]:
    """The bridge passes its packets to conntrack: answers between siblings come back through the host."""
    lab.bridge_netfilter(True)
    yield
    lab.bridge_netfilter(False)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("listen", ["8080", "own"])
@pytest.mark.usefixtures("bridged")
def test_masquerade_never_shows_a_siblings_own_address(
    lab: Lab, start: Start, listen: str, proto: str, family: int
) -> None:
    listen = endpoint(OWN[family], 8080) if listen == "own" else listen
    daemon = start({"web.yaml": dropin(mapping("web", listen, to("t1", family), protocol=proto, masquerade="never"))})
    for client in ("t2", "outside", "t4"):
        answer = lab.spaces[client].ask(OWN[family], 8080, proto)
        assert (answer.target, answer.source) == ("t1", address(client, family))
    daemon.write("web.yaml", dropin(mapping("web", listen, to("t1", family), protocol=proto)))
    assert lab.t2.ask(OWN[family], 8080, proto).source == host_addresses("br0", family)[0]


@pytest.mark.parametrize("family", [4, 6])
def test_masquerade_never_leaves_loopback_working(
    lab: Lab, start: Start, counted: Callable[[], dict[str, int]], family: int
) -> None:
    lab.bridge_netfilter(False)
    lab.host.nft(foreign(ALL_BITS ^ 0x2000, 0x2000))
    start({"web.yaml": dropin(mapping("web", 8080, to("t1", family), masquerade="never"))})
    answer = lab.host.ask("127.0.0.1" if family == 4 else "::1", 8080)
    assert (answer.target, answer.source) == ("t1", host_addresses("br0", family)[0])
    assert lab.outside.ask(OWN[family], 8080).source == address("outside", family)
    counters = counted()
    assert counters["kept"] > 0
    assert (counters["ours"], counters["lost"]) == (0, 0)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("own", ["auto", "never"])
@pytest.mark.usefixtures("bridged")
def test_a_narrower_key_never_takes_the_wildcards_choice(lab: Lab, start: Start, own: str, family: int) -> None:
    wildcard = "auto" if own == "never" else "never"
    start(
        {
            "any.yaml": dropin(mapping("any", 8080, to("t1", family), masquerade=wildcard)),
            "own.yaml": dropin(mapping("own", endpoint(OWN[family], 8080), to("t1", family), masquerade=own)),
        }
    )
    for to_address, how in (OWN[family], own), (host_addresses("out0", family)[0], wildcard):
        seen = lab.t2.ask(to_address, 8080).source
        assert seen == (address("t2", family) if how == "never" else host_addresses("br0", family)[0])


def test_masquerade_that_changes_is_taken_over_live(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": dropin(mapping("web", 8080, to("t1", 4)))})
    assert lab.outside.ask(OWN[4], 8080).source == address("outside", 4)
    daemon.write("web.yaml", dropin(mapping("web", 8080, to("t1", 4), masquerade="always")))
    assert lab.outside.ask(OWN[4], 8080).source == host_addresses("br0", 4)[0]
    daemon.write("web.yaml", dropin(mapping("web", 8080, to("t1", 4), masquerade="auto")))
    assert lab.outside.ask(OWN[4], 8080).source == address("outside", 4)

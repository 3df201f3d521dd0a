"""Which way [::1] is served, and the elements that lead there.

It must not know the relay. The one idea: two mappings on one port, a host on which the kernel can or cannot take ::1 to
their targets, and what stands in the table then.
"""

from __future__ import annotations

import pytest

from nfportd import desired, loopback
from nfportd.desired import ABSENT, Claim, Desired, Slot
from nfportd.model import Endpoint, Key, Mapping, Protocol
from nfportd.topology import Link, Network, Route, Topology
from nfportd.traffic import packed
from tests.unit.reading import key, mapping

RELAY = {Protocol.TCP: Endpoint("::1", 40001), Protocol.UDP: Endpoint("::1", 40002)}
LINKS = (Link(1, "lo"), Link(2, "br0"), Link(3, "veth3"))
ROUTES = (Route(6, "fd88::/64", 2, 0, True), Route(6, "fd99::/64", 3, 0, True))
HERE = Slot("addr6", ("::1", "tcp", 8080))
ANYWHERE = Slot("any6", ("tcp", 8080))
BRIDGED, ROUTED = ("fd88::11", 80), ("fd99::11", 80)


def to(target: tuple[str, int], listen: object = 8080, **more: object) -> Mapping:
    return mapping(listen, f"[{target[0]}]:{target[1]}", **more)


def host(*mappings: Mapping, filtered: bool = True, own: str = "::1") -> tuple[Desired, Topology]:
    """A host with these mappings, each of an owner, and a bridge that calls ip6tables or not."""
    wanted = Desired()
    for number, each in enumerate(mappings):
        wanted.replace(f"file:{number}", {each: 1})
    network = Network(LINKS, ROUTES, frozenset({(6, own)}), frozenset({2} if filtered else ()))
    made = Topology(network, wanted.reached())
    wanted.relayed = made.relayed
    wanted.relay = RELAY if wanted.relayed else {}
    return wanted, made


def ways(*mappings: Mapping, **more: object) -> list[str]:
    wanted, topology = host(*mappings, **more)  # type: ignore[arg-type]
    return [loopback.way(Claim(f"file:{n}", 1, each), wanted, topology) for n, each in enumerate(mappings)]


@pytest.mark.parametrize(
    ("made", "way"),
    [
        (to(BRIDGED), "relay"),
        (to(BRIDGED, "[::1]:8080"), "relay"),
        (to(BRIDGED, protocol=["udp", "sctp"]), "relay"),
        (to(BRIDGED, protocol="sctp"), "no"),
        (to(BRIDGED, "[2001:db8::1]:8080"), "no"),
        (to(ROUTED), "kernel"),
        (to(ROUTED, protocol="sctp"), "kernel"),
        (to(("fd77::11", 80)), "no"),
        (mapping(8080, "10.88.0.11:80"), "no"),
    ],
)
def test_the_way_of_a_mapping(made: Mapping, way: str) -> None:
    assert ways(made) == [way]


def test_without_br_netfilter_the_kernel_serves_bridges_too() -> None:
    assert ways(to(BRIDGED), filtered=False) == ["kernel"]


def test_a_host_without_the_address_serves_nobody() -> None:
    assert ways(to(BRIDGED), own="2001:db8::1") == ["no"]


def test_a_relay_that_cannot_wait_serves_nobody() -> None:
    wanted, topology = host(to(BRIDGED))
    wanted.relay = {}

    assert loopback.way(Claim("file:0", 1, to(BRIDGED)), wanted, topology) == "no"
    assert wanted.wanted_of_all() == {ANYWHERE: BRIDGED}


def test_who_waits_or_is_hidden_or_blocked_is_not_served() -> None:
    assert ways(to(BRIDGED), to(ROUTED)) == ["relay", "no"]
    assert ways(to(BRIDGED), to(ROUTED, "[::1]:8080")) == ["no", "kernel"]
    wanted, topology = host(to(BRIDGED))
    wanted.block({key(family=6)}, {key(family=6): ("::", None)})

    assert loopback.way(Claim("file:0", 1, to(BRIDGED)), wanted, topology) == "no"
    assert set(wanted.wanted_of_all().values()) == {ABSENT}


@pytest.mark.parametrize(
    ("mappings", "elements"),
    [
        ([to(BRIDGED)], {ANYWHERE: BRIDGED, HERE: RELAY[Protocol.TCP]}),
        ([to(ROUTED)], {ANYWHERE: ROUTED, HERE: ABSENT}),
        ([to(BRIDGED), to(ROUTED, "[::1]:8080")], {ANYWHERE: BRIDGED, HERE: ROUTED}),
        ([to(ROUTED), to(BRIDGED, "[::1]:8080")], {ANYWHERE: ROUTED, HERE: RELAY[Protocol.TCP]}),
    ],
)
@pytest.mark.parametrize("touched", [key(family=6), key(address="::1")])
def test_the_element_on_loopback_follows_whichever_key_is_touched(
    mappings: list[Mapping], elements: dict[Slot, object], touched: Key
) -> None:
    # Another mapping, so that there is a relay in each case.
    wanted, _ = host(*mappings, to(BRIDGED, 9999))
    found = wanted.wanted({touched: None})

    assert found[HERE] == elements[HERE]
    assert {slot: value for slot, value in found.items() if slot in elements}.items() <= elements.items()


def test_where_an_earlier_relay_waited_is_told_by_the_elements() -> None:
    wanted, _ = host(to(BRIDGED, protocol=["tcp", "udp"]), to(ROUTED, "[::1]:9090"))
    elements: desired.Elements = {}
    desired.apply(elements, desired.delta({}, wanted.wanted_of_all()))

    assert (loopback.relays(elements), loopback.relays({})) == (RELAY, {})


def test_connections_are_counted_where_they_would_be_without_the_relay() -> None:
    wanted, _ = host(to(BRIDGED), to(BRIDGED, "[::1]:8081"))
    anywhere, here, own = (packed(each) for each in (key(family=6), key(address="::1"), key(8081, "::1")))

    assert loopback.folded({anywhere: 1, here: 2, own: 4}, wanted) == {anywhere: 3, own: 4}

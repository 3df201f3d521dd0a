"""What targets ask of the host by a given network: on-link prefixes, loopback, forwarding.

It must not ask the kernel. The one idea: a small network as values, one target, and what it needs.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from nfportd import topology
from nfportd.desired import Reached, Slot
from nfportd.kernel import routes as kernel_routes
from nfportd.netlink import attribute
from nfportd.notation import Family
from nfportd.topology import Forward, Link, Loopback, Need, Network, Route, Topology, Unreached

LO, UP0, BR0, VETH = Link(1, "lo"), Link(2, "up0"), Link(3, "br0"), Link(4, "veth3")
T1 = Reached(4, "10.88.0.11", False)
T1_LOOPBACK = T1._replace(loopback=True)
SIX = Reached(6, "fd88::11", False)


def route(prefix: str, link: Link = BR0, metric: int = 0, on_link: bool = True) -> Route:
    family: Family = 6 if ":" in prefix else 4
    return Route(family, prefix, link.index, metric, on_link)


DEFAULT = route("0.0.0.0/0", UP0, on_link=False)
BRIDGE = route("10.88.0.0/24")


def of(*routes: Route, links: tuple[Link, ...] = (LO, UP0, BR0, VETH)) -> Network:
    return Network(links, routes)


def onlink(prefix: str, link: Link = BR0) -> Slot:
    return Slot("onlink6" if ":" in prefix else "onlink4", (prefix, link.name))


def needs(network: Network, *targets: Reached) -> set[Need]:
    return set(Topology(network, targets).needs)


@pytest.mark.parametrize(
    ("network", "target", "expected"),
    [
        pytest.param(of(DEFAULT, BRIDGE), T1, {onlink("10.88.0.0/24")}, id="a bridge"),
        pytest.param(of(DEFAULT), T1, set(), id="behind a gateway nothing is on-link"),
        pytest.param(of(route("10.88.0.11/32", VETH)), T1, {onlink("10.88.0.11/32", VETH)}, id="a host route"),
        pytest.param(
            of(BRIDGE, route("10.88.0.11/32", VETH)),
            T1,
            {onlink("10.88.0.0/24"), onlink("10.88.0.11/32", VETH)},
            id="every link with a prefix that covers it",
        ),
        pytest.param(
            of(BRIDGE, route("192.0.2.0/24")),
            T1,
            {onlink("10.88.0.0/24"), onlink("192.0.2.0/24")},
            id="every on-link prefix of such a link, for its neighbours are answered past us",
        ),
        pytest.param(
            of(BRIDGE, route("fd88::/64"), route("192.0.2.0/24", on_link=False)),
            T1,
            {onlink("10.88.0.0/24")},
            id="but not those of the other family or behind a gateway",
        ),
        pytest.param(of(route("fd88::/64"), route("fe80::/64")), SIX, {onlink("fd88::/64")}, id="nor link-local ones"),
        pytest.param(
            of(BRIDGE, route("10.88.0.0/28", UP0, on_link=False)),
            T1,
            {onlink("10.88.0.0/24")},
            id="a longer route through a gateway takes nothing away",
        ),
        pytest.param(
            of(route("10.88.0.11/32"), BRIDGE, route("10.88.0.0/16")),
            T1,
            {onlink("10.88.0.0/16")},
            id="of nested prefixes on one link the widest, for the kernel refuses an interval inside another",
        ),
        pytest.param(
            of(BRIDGE, route("10.88.1.0/24", VETH)), T1, {onlink("10.88.0.0/24")}, id="other links do not count"
        ),
        pytest.param(
            of(BRIDGE, route("10.88.0.0/24", VETH, metric=100)),
            T1,
            {onlink("10.88.0.0/24"), onlink("10.88.0.0/24", VETH)},
            id="the same prefix on two links",
        ),
        pytest.param(of(route("fd88::/64")), SIX, {onlink("fd88::/64")}, id="IPv6"),
        pytest.param(of(route("fd88::11/128", VETH)), SIX, {onlink("fd88::11/128", VETH)}, id="an IPv6 host route"),
        pytest.param(of(route("::/0", UP0, on_link=False), DEFAULT), SIX, set(), id="an IPv6 default route"),
    ],
)
def test_what_is_on_link(network: Network, target: Reached, expected: set[Need]) -> None:
    assert needs(network, target) - {Forward(4), Forward(6)} == expected


@pytest.mark.parametrize(("target", "family"), [(T1, 4), (SIX, 6)])
def test_a_target_needs_its_family_forwarded(target: Reached, family: Family) -> None:
    assert [need for need in needs(of(), target) if isinstance(need, Forward)] == [Forward(family)]


@pytest.mark.parametrize(
    ("network", "target"),
    [
        (of(), T1),
        (of(route("10.88.1.0/24")), T1),
        (of(BRIDGE, DEFAULT), SIX),
    ],
)
def test_a_target_to_which_no_route_leads(network: Network, target: Reached) -> None:
    assert Unreached(target.address) in needs(network, target)


@pytest.mark.parametrize(
    ("network", "links"),
    [
        pytest.param(of(DEFAULT, BRIDGE), {BR0}, id="the longest prefix"),
        pytest.param(of(DEFAULT), {UP0}, id="a gateway's link"),
        pytest.param(of(BRIDGE, route("10.88.0.11/32", VETH)), {VETH}, id="a host route before a prefix"),
        pytest.param(of(BRIDGE, route("10.88.0.0/24", VETH, metric=100)), {BR0}, id="the least metric"),
        pytest.param(of(route("10.88.0.0/24", VETH, metric=100), BRIDGE), {BR0}, id="in any order"),
        pytest.param(of(BRIDGE, route("10.88.0.0/24", VETH)), {BR0, VETH}, id="all paths of a multipath route"),
        pytest.param(of(route("10.88.0.0/24", LO)), set(), id="not lo itself"),
    ],
)
def test_links_that_take_answers_to_loopback(network: Network, links: set[Link]) -> None:
    found = {need.link for need in needs(network, T1_LOOPBACK) if isinstance(need, Loopback)}

    assert found == links


def test_a_target_that_loopback_does_not_reach_opens_no_link() -> None:
    assert not [need for need in needs(of(BRIDGE), T1) if isinstance(need, Loopback)]


ODD = ["br 0", 'br"0', "br0;", "br{0", "br\u00e9", "$br", "*", ".", "-br0"]


@pytest.mark.parametrize("name", ODD)
def test_a_link_with_an_odd_name_is_left_out(name: str) -> None:
    network = of(BRIDGE, links=(LO, Link(BR0.index, name)))

    assert needs(network, T1_LOOPBACK) == {Forward(4)}


def test_odd_names_are_told() -> None:
    links = tuple(Link(index, name) for index, name in enumerate([*ODD, "br0"], start=2))

    assert topology.odd_names(Network(links)) == ODD


@pytest.mark.parametrize("name", ["eth0", "eth0.100", "br-3f2a", "wg_home", "veth@if2", "0", "fwd"])
def test_usual_names_are_taken(name: str) -> None:
    link = Link(BR0.index, name)

    assert needs(of(BRIDGE, links=(LO, link)), T1_LOOPBACK) == {
        Forward(4),
        onlink("10.88.0.0/24", link),
        Loopback(4, link),
    }


def test_a_route_on_a_link_that_has_gone_meanwhile() -> None:
    assert needs(of(BRIDGE, links=(LO,)), T1_LOOPBACK) == {Forward(4)}


def test_a_need_stays_as_long_as_one_target_has_it() -> None:
    found = Topology(of(BRIDGE), [T1, T1._replace(address="10.88.0.12")])
    found.remove(T1)
    halfway = set(found.needs)
    found.remove(T1._replace(address="10.88.0.12"))

    assert (halfway, set(found.needs)) == ({Forward(4), onlink("10.88.0.0/24")}, set())


def test_links_with_routes_from_router_advertisements() -> None:
    learned = Route(6, "::/0", UP0.index, 1024, False, advertised=True)

    assert topology.advertised_links(of(learned, BRIDGE)) == {"up0"}


def message(
    prefix: str, *said: bytes, family: int = 0, kind: int = 1, protocol: int = 2, table: int = 254
) -> memoryview:
    """A route as the kernel tells it: struct rtmsg and attributes (linux/rtnetlink.h)."""
    net = ipaddress.ip_network(prefix)
    family = family or (socket.AF_INET if net.version == 4 else socket.AF_INET6)
    head = struct.pack("=8BI", family, net.prefixlen, 0, 0, table, protocol, 0, kind, 0)
    to = attribute(RTA["DST"], net.network_address.packed) if net.prefixlen else b""
    return memoryview(head + to + b"".join(said))


RTA = {"DST": 1, "OIF": 4, "GATEWAY": 5, "PRIORITY": 6, "MULTIPATH": 9, "TABLE": 15, "VIA": 18}


def number(name: str, value: int) -> bytes:
    return attribute(RTA[name], struct.pack("=I", value))


def path(link: int, *said: bytes) -> bytes:
    inside = b"".join(said)
    return struct.pack("=HBBi", 8 + len(inside), 0, 0, link) + inside


THIRD = number("OIF", 3)
GATEWAY = attribute(RTA["GATEWAY"], bytes((192, 0, 2, 9)))


@pytest.mark.parametrize(
    ("told", "routes"),
    [
        pytest.param(message("10.88.0.0/24", THIRD), [Route(4, "10.88.0.0/24", 3, 0, True)], id="on-link"),
        pytest.param(
            message("10.88.0.0/24", THIRD, GATEWAY, number("PRIORITY", 7)),
            [Route(4, "10.88.0.0/24", 3, 7, False)],
            id="through a gateway",
        ),
        pytest.param(
            message("10.88.0.0/24", THIRD, attribute(RTA["VIA"], bytes((10, 0)) + bytes(16))),
            [Route(4, "10.88.0.0/24", 3, 0, False)],
            id="through an IPv6 gateway",
        ),
        pytest.param(message("0.0.0.0/0", THIRD, GATEWAY), [Route(4, "0.0.0.0/0", 3, 0, False)], id="default"),
        pytest.param(
            message("::/0", THIRD),
            [Route(6, "::/0", 3, 0, False)],
            id="a default route without a gateway is not on-link",
        ),
        pytest.param(
            message("10.88.0.0/24", attribute(RTA["MULTIPATH"], path(3) + path(4, GATEWAY))),
            [Route(4, "10.88.0.0/24", 3, 0, True), Route(4, "10.88.0.0/24", 4, 0, False)],
            id="each path of a multipath route",
        ),
        pytest.param(
            message("fd88::/64", THIRD, number("PRIORITY", 256), protocol=9),
            [Route(6, "fd88::/64", 3, 256, True, advertised=True)],
            id="learned from a router",
        ),
        pytest.param(message("10.88.0.0/24", THIRD, kind=6), [], id="blackhole"),
        pytest.param(message("10.88.0.0/24"), [], id="without an interface"),
        pytest.param(message("10.88.0.0/24", THIRD, family=28), [], id="MPLS"),
        pytest.param(message("10.88.0.0/24", THIRD, table=100), [], id="of another table"),
        pytest.param(message("10.88.0.0/24", THIRD, number("TABLE", 1000)), [], id="of a table with a long number"),
    ],
)
def test_routes_as_the_kernel_tells_them(told: memoryview, routes: list[Route]) -> None:
    assert kernel_routes.paths(told) == routes


@pytest.mark.parametrize("length", [0, 4, 7, 200])
def test_a_path_that_lies_about_its_length_is_refused(length: int) -> None:
    lies = length.to_bytes(2, "little") + path(3)[2:]

    with pytest.raises(ValueError, match="longer than what came"):
        kernel_routes.paths(message("10.88.0.0/24", attribute(RTA["MULTIPATH"], lies)))


@pytest.mark.parametrize(
    ("prefix", "target", "relayed"),
    [
        ("fd88::/64", SIX._replace(loopback=True), {"fd88::11"}),
        ("fd88::/64", SIX, set()),
        ("10.88.0.0/24", T1_LOOPBACK, set()),
    ],
)
def test_the_kernel_cannot_take_ipv6_loopback_through_a_bridge_that_calls_ip6tables(
    prefix: str, target: Reached, relayed: set[str]
) -> None:
    bridge = Network((LO, BR0), (route(prefix),), filtered=frozenset({BR0.index}))
    made = Topology(bridge, [target])

    assert made.relayed == relayed
    assert Topology(bridge, []).relayed == Topology(Network((LO, BR0), (route(prefix),)), [target]).relayed == set()
    made.remove(target)
    assert made.relayed == set()

"""Routes as administrators and routing daemons make them: what of them is on-link is seen, and nothing else.

It must not know how routes are read. The one idea: ip(8) makes odd routes in a namespace, one line says whether each
is on-link and where; what this kernel or this ip cannot make is left out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, strategies as st

from nfportd.kernel.network import NetworkWatch
from nfportd.topology import Network
from tests.fuzz.budget import tries
from tests.lab import Lab
from tests.netns import Namespace

#: What `ip` is told, and the on-link prefixes by link that follow.
ROUTES: tuple[tuple[str, set[tuple[str, str]]], ...] = (
    ("route add 203.0.113.0/24 dev d0", {("203.0.113.0/24", "d0")}),
    ("route add 203.0.113.0/24 dev d0 metric 5", {("203.0.113.0/24", "d0")}),
    ("route add 203.0.113.1 dev d1 proto 200 scope link src 10.0.0.1 mtu lock 1400", {("203.0.113.1/32", "d1")}),
    ("route add 203.0.113.0/24 via 10.0.0.2", set()),
    ("route add 203.0.113.0/24 via inet6 fd00::2 dev d0", set()),
    ("route add 203.0.113.0/24 via 192.0.2.77 dev d0 onlink", set()),
    ("route add blackhole 203.0.113.0/24", set()),
    ("route add unreachable 203.0.113.0/24 metric 7", set()),
    ("route add prohibit 203.0.113.0/24 tos 0x10", set()),
    ("route add throw 203.0.113.0/24", set()),
    ("route add multicast 224.0.0.0/4 dev d0", set()),
    ("route add broadcast 203.0.113.255 dev d0", set()),
    ("route add local 203.0.113.9 dev d0 table main", set()),
    ("route add 203.0.113.0/24 dev d0 table 100", set()),
    ("route add 203.0.113.0/24 nexthop via 10.0.0.2 dev d0 weight 3 nexthop via 10.0.1.2 dev d1", set()),
    (
        "route add 203.0.113.0/24 nexthop dev d0 nexthop dev d1",
        {("203.0.113.0/24", "d0"), ("203.0.113.0/24", "d1")},
    ),
    ("route add 203.0.113.0/24 nexthop dev d0 nexthop via inet6 fd00::2 dev d0", {("203.0.113.0/24", "d0")}),
    ("nexthop add id 1 via 10.0.0.2 dev d0\nroute add 203.0.113.0/24 nhid 1", set()),
    ("nexthop add id 2 dev d1\nroute add 203.0.113.0/24 nhid 2", {("203.0.113.0/24", "d1")}),
    ("nexthop add id 3 blackhole\nroute add 203.0.113.0/24 nhid 3", set()),
    (
        "nexthop add id 1 via 10.0.0.2 dev d0\nnexthop add id 4 via 10.0.1.2 dev d1\nnexthop add id 5 group 1/4\n"
        "route add 203.0.113.0/24 nhid 5",
        set(),
    ),
    ("route add 203.0.113.0/24 encap ip id 7 dst 192.0.2.9 dev d0", {("203.0.113.0/24", "d0")}),
    ("route add 203.0.113.0/24 encap mpls 100 via 10.0.0.2", set()),
    ("route add default dev d0", set()),
    ("route add default via 10.0.0.2 metric 4294967295", set()),
    ("route add 2001:db8:9::/48 dev d0", {("2001:db8:9::/48", "d0")}),
    ("route add 2001:db8:9::1 dev d1 metric 1 pref high", {("2001:db8:9::1/128", "d1")}),
    ("route add 2001:db8:9::/48 via fe80::1 dev d0 proto ra", set()),
    ("route add 2001:db8:9::/48 from fd00::/64 dev d0", {("2001:db8:9::/48", "d0")}),
    ("route add 2001:db8:9::/48 nexthop via fd00::2 dev d0 nexthop dev d1", {("2001:db8:9::/48", "d1")}),
    ("route add unreachable 2001:db8:9::/48 dev lo", set()),
    ("route add anycast 2001:db8:9::/48 dev d0 table main", set()),
    ("-6 nexthop add id 6 dev d0\nroute add 2001:db8:9::/48 nhid 6", {("2001:db8:9::/48", "d0")}),
    ("-6 route add default dev d0 expires 100", set()),
)
#: What follows from the addresses of the links.
_OWN = {("10.0.0.0/24", "d0"), ("10.0.1.0/24", "d1"), ("fd00::/64", "d0"), ("fd00:0:0:1::/64", "d1")}


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as lab:
        made, peer = lab.space("host"), lab.space("peer")
        for number, name in enumerate(("d0", "d1")):
            lab.link(made, name, peer, name)
            made.batch(f"addr add 10.0.{number}.1/24 dev {name}\naddr add fd00:0:0:{number}::1/64 dev {name} nodad\n")
        yield made


def snapshot(space: Namespace) -> Network:
    async def read() -> Network:
        watch = NetworkWatch(lambda: None)
        try:
            return await watch.snapshot()
        finally:
            watch.close()

    with space.entered():
        return asyncio.run(read())


def on_link(network: Network) -> set[tuple[str, str]]:
    names = {link.index: link.name for link in network.links}
    found = {(route.prefix, names[route.interface]) for route in network.routes if route.on_link}
    return {each for each in found if not each[0].startswith("fe80:")}


def clear(space: Namespace) -> None:
    nets = ("root 203.0.113.0/24", "root 2001:db8:9::/48", "exact default", "exact 224.0.0.0/4")
    for family, net in product(("-4", "-6"), nets):
        space.run(["ip", family, "route", "flush", "table", "all", *net.split()], check=False)
    space.run(["ip", "nexthop", "flush"], check=False)


@tries(8)
@given(chosen=st.lists(st.sampled_from(ROUTES), min_size=1, max_size=6, unique_by=lambda route: route[0]))
def test_odd_routes_are_seen_as_they_are(space: Namespace, chosen: list[tuple[str, set[tuple[str, str]]]]) -> None:
    expected = set(_OWN)
    for text, links in chosen:
        if all(space.run(["ip", *line.split()], check=False).returncode == 0 for line in text.splitlines()):
            expected |= links

    found = on_link(snapshot(space))
    clear(space)

    assert found == expected


@pytest.mark.parametrize(("text", "links"), ROUTES, ids=[text.splitlines()[-1] for text, _ in ROUTES])
def test_an_odd_route_is_seen_as_it_is(space: Namespace, text: str, links: set[tuple[str, str]]) -> None:
    made = all(space.run(["ip", *line.split()], check=False).returncode == 0 for line in text.splitlines())

    found = on_link(snapshot(space))
    clear(space)

    if not made:
        pytest.skip("this kernel or this ip cannot make it")
    assert found == _OWN | links

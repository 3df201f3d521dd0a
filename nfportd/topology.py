"""The host's network as a value: which interface reaches a target, what is on-link there, what the host must allow.

Must not ask the kernel: kernel/network.py does. The one idea: everything that depends on routes is a function of one
snapshot and the targets in use, so that it can be computed anew whenever either changes.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Set as AbstractSet
from dataclasses import dataclass

from nfportd.desired import Reached, Slot
from nfportd.notation import FAMILIES, Family

#: Names that can stand in nft's text and in /proc paths without a second thought; the kernel allows nearly anything.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table. A multipath route stands once for each path.

    `on_link`: neighbours in the prefix are reached without a gateway; a default route without one says nothing of
    the kind. `advertised`: learned from a router advertisement.
    """

    family: Family
    prefix: str
    interface: int
    metric: int
    on_link: bool
    advertised: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """A snapshot of links, routes and local addresses.

    `filtered`: links whose packets a bridge hands to ip6tables before IPv6 itself sees them.
    """

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    addresses: frozenset[tuple[Family, str]] = frozenset()
    filtered: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Loopback:
    """A link that must take answers to the host's loopback addresses of one family."""

    family: Family
    link: Link


@dataclass(frozen=True, slots=True)
class Forward:
    """A family that must be forwarded."""

    family: Family


@dataclass(frozen=True, slots=True)
class Unreached:
    """A target to which no route leads."""

    address: str


#: What one target asks of the host; a Slot is an element of an on-link set.
Need = Slot | Loopback | Forward | Unreached


class _Table:
    """Longest-prefix match over the routes of one family."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_length: dict[int, dict[int, list[Route]]] = {}
        self._width = 0
        for route in routes:
            network = ipaddress.ip_network(route.prefix)
            self._width = network.max_prefixlen
            nets = self._by_length.setdefault(network.prefixlen, {})
            nets.setdefault(int(network.network_address), []).append(route)
        self._lengths = sorted(self._by_length, reverse=True)

    def covering(self, address: str) -> Iterable[list[Route]]:
        """The routes that cover an address, the longest prefix first."""
        number = int(ipaddress.ip_address(address))
        for length in self._lengths:
            shift = self._width - length
            routes = self._by_length[length].get(number >> shift << shift)
            if routes:
                yield routes


@dataclass(frozen=True, slots=True)
class _Beside:
    """The neighbours of a target on a link; counted as one need, however many prefixes they have."""

    family: Family
    link: Link


class Topology:
    """What the targets in use ask of the host, by one snapshot of its network.

    Adding or removing a target costs the same at any number of them: each need is counted.
    """

    def __init__(self, network: Network, targets: Iterable[Reached] = ()) -> None:
        self.network = network
        self._links = {link.index: link for link in network.links if _PLAIN_NAME.fullmatch(link.name)}
        self._tables = {f: _Table(r for r in network.routes if r.family == f) for f in FAMILIES}
        self._neighbours = _neighbours(network.routes)
        #: The addresses of targets to which the kernel cannot take connections to [::1]: a process must.
        self.relayed: set[str] = set()
        self._needs: Counter[Need | _Beside] = Counter()
        self._listed: set[Need] | None = None
        for target in targets:
            self.add(target)

    @property
    def needs(self) -> AbstractSet[Need]:
        """Everything that is needed now."""
        if self._listed is None:
            beside = {need for need in self._needs if isinstance(need, _Beside)}
            self._listed = {need for need in self._needs if not isinstance(need, _Beside)}
            for each in beside:
                prefixes = self._neighbours[each.family, each.link.index]
                self._listed |= {Slot(f"onlink{each.family}", (prefix, each.link.name)) for prefix in prefixes}
        return self._listed

    def add(self, target: Reached) -> None:
        """Count what a target needs."""
        if self._takes_no_loopback(target):
            self.relayed.add(target.address)
        for need in self._of(target):
            self._needs[need] += 1
            if self._needs[need] == 1:
                self._listed = None

    def remove(self, target: Reached) -> None:
        """Let go what a target needed."""
        if self._takes_no_loopback(target):
            self.relayed.discard(target.address)
        for need in self._of(target):
            self._needs[need] -= 1
            if not self._needs[need]:
                del self._needs[need]
                self._listed = None

    def link_to(self, family: Family, address: str) -> str | None:
        """The name of the link by which an address is reached; the first of several."""
        for routes in self._tables[family].covering(address):
            link = self._links.get(min(routes, key=lambda route: route.metric).interface)
            return link.name if link else None
        return None

    def uplink(self, family: Family) -> str | None:
        """The name of the link by which most clients come: that of the default route."""
        return self.link_to(family, "0.0.0.0" if family == 4 else "::")

    def _takes_no_loopback(self, target: Reached) -> bool:
        """Whether answers to [::1] come by a bridge that undoes the translation before IPv6 looks at the packet.

        Then it drops the packet for the ::1 in its header (ip6_rcv_core in net/ipv6/ip6_input.c).
        """
        if not (self.network.filtered and target.loopback and target.family == 6):
            return False
        routes = next(iter(self._tables[6].covering(target.address)), [])
        best = min((route.metric for route in routes), default=0)
        return any(route.metric == best and route.interface in self.network.filtered for route in routes)

    def _of(self, target: Reached) -> set[Need | _Beside]:
        covering = list(self._tables[target.family].covering(target.address))
        needs: set[Need | _Beside] = {Forward(target.family)}
        if not covering:
            return needs | {Unreached(target.address)}
        if target.loopback:
            best = min(route.metric for route in covering[0])
            paths = {self._links.get(r.interface) for r in covering[0] if r.metric == best}
            needs |= {Loopback(target.family, link) for link in paths if link and link.name != "lo"}
        beside = {r.interface for routes in covering for r in routes if r.on_link and r.interface in self._links}
        return needs | {_Beside(target.family, self._links[index]) for index in beside}


def _neighbours(routes: Iterable[Route]) -> dict[tuple[Family, int], list[str]]:
    """The on-link prefixes of each link: whoever shares a link with a target may be answered past us.

    Without prefixes inside others, which an interval set refuses, and link-local ones, which are never forwarded.
    """
    prefixes: dict[tuple[Family, int], list[str]] = {}
    known: dict[tuple[Family, int], dict[int, set[int]]] = {}
    networks = [(ipaddress.ip_network(route.prefix), route) for route in routes if route.on_link]
    for network, route in sorted(networks, key=lambda each: each[0].prefixlen):
        if network.is_link_local:
            continue
        link = (route.family, route.interface)
        by_length = known.setdefault(link, {})
        number, width = int(network.network_address), network.max_prefixlen
        if not any(number >> (width - length) in heads for length, heads in by_length.items()):
            by_length.setdefault(network.prefixlen, set()).add(number >> (width - network.prefixlen))
            prefixes.setdefault(link, []).append(route.prefix)
    return prefixes


def odd_names(network: Network) -> list[str]:
    """Interfaces whose names cannot be written in a ruleset; their targets get no hairpin and no loopback."""
    return [link.name for link in network.links if not _PLAIN_NAME.fullmatch(link.name)]


def advertised_links(network: Network) -> set[str]:
    """Links whose IPv6 routes come from router advertisements, which a forwarding host ignores (ip-sysctl.rst)."""
    names = {link.index: link.name for link in network.links}
    return {names[r.interface] for r in network.routes if r.advertised and r.interface in names}

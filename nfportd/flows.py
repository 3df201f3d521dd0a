"""Which conntrack entries a delta makes stale, as filters that the kernel applies.

Must not talk to the kernel. The one idea: a flow belongs to a key by its original destination, and to the key's old
target by the source of its replies; both together leave alone what other keys and other software track. Flows whose
source lost its right are told by their original source, whatever target they once got.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from nfportd import desired
from nfportd.desired import LOOPBACK, Delta
from nfportd.model import Endpoint, Key, Mapping, Protocol
from nfportd.notation import Family


class StaleFlows(NamedTuple):
    """Conntrack entries: to an address (None: any) and port, answered by an endpoint (None: whoever but `spared`).

    `opening`: only those that nobody has answered yet; `attempts`: only those that have not come about.
    """

    family: Family
    protocol: Protocol
    address: str | None
    port: int
    answered_by: Endpoint | None
    spared: Endpoint | None = None
    opening: bool = False
    attempts: bool = False


class Moved(NamedTuple):
    """A key whose target changed, appeared (`before` is None) or vanished (`after` is None); `cut`: TCP flows too."""

    key: Key
    before: Endpoint | None
    after: Endpoint | None
    cut: bool


def stale(
    moved: Iterable[Moved],
    endpoint: Callable[[Key], Endpoint | None],
    local: Iterable[tuple[Family, str]],
) -> Iterator[StaleFlows]:
    """The flows to delete after these keys moved.

    UDP and SCTP flows would go on to the old target as long as the client keeps sending; TCP flows end by themselves,
    unless they are to be cut; what comes to the relay on [::1] or from it keeps its target. Those that the old target
    has not answered, for it may be dead, would keep the client there for two minutes, also when it tries again.
    `endpoint` tells where another key's connections go now, `local` lists the host's addresses.
    """
    addresses = {4: [a for f, a in local if f == 4], 6: [a for f, a in local if f == 6]}
    for key, before, after, cut in moved:
        if key.protocol is Protocol.TCP and any(each and each.address == LOOPBACK for each in (before, after)):
            # Its target is what it was. Who connects still is not answered, and would try again on the old way.
            yield _at(key, key.address, before, after)._replace(attempts=True)
            continue
        if key.protocol is Protocol.TCP and not cut:
            if before:
                yield StaleFlows(key.family, key.protocol, key.address, key.port, before, opening=True)
            continue
        if key.protocol is Protocol.TCP and not before:
            continue
        if key.address is not None:
            yield _at(key, key.address, before, after)
            continue
        narrower = [a for a in addresses[key.family] if endpoint(key._replace(address=a))]
        if before and not any(endpoint(key._replace(address=a)) == before for a in narrower):
            yield _at(key, None, before, after)
            continue
        # Whoever answered before the mapping; or only the old target, told from a narrower key with the same one.
        for address in addresses[key.family]:
            if address not in narrower:
                yield _at(key, address, before, after)


class Barred(NamedTuple):
    """The flows of a key, but for those from the host's `own` addresses and from the prefixes that it may `spare`.

    `narrower` are the listen addresses that have a key of their own on a wildcard's port.
    """

    key: Key
    target: Endpoint
    spare: tuple[str, ...]
    own: frozenset[str]
    narrower: frozenset[str]

    def bars(self, source: str, destination: str, answered_by: Endpoint) -> bool:
        """Whether a translated flow from a source to this key's port belongs to the key and may not go on."""
        if source in self.own or not self._takes(destination, answered_by):
            return False
        address = ipaddress.ip_address(source)
        return not address.is_loopback and not any(address in net for net in _networks(self.spare))

    def _takes(self, destination: str, answered_by: Endpoint) -> bool:
        if self.key.address is not None:
            return destination == self.key.address
        # A route can make a whole prefix local, of which the host lists no address.
        return destination not in self.narrower and (destination in self.own or answered_by == self.target)


@lru_cache(64)
def _networks(prefixes: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, prefixes))


def narrowed(change: Delta) -> set[Key]:
    """The keys on which a delta took the right from some source."""
    slots = [slot for slot in change.remove if slot.set.startswith("allowed_")]
    slots += [slot for slot in change.add if slot.set.startswith("guarded_")]
    return {key for slot in slots if (key := desired.key_of(slot))}


def barred(
    narrowed: Iterable[Key],
    mapping: Callable[[Key], Mapping | None],
    endpoint: Callable[[Key], Endpoint | None],
    local: Iterable[tuple[Family, str]],
) -> Iterator[Barred]:
    """The flows to look through after some source lost its right on these keys.

    A key that nobody has any more is not among them, for what runs there ends by itself; nor is one without sources.
    `mapping` and `endpoint` tell what a key follows now, `local` lists the host's addresses.
    """
    own = {4: frozenset(a for f, a in local if f == 4), 6: frozenset(a for f, a in local if f == 6)}
    for key in narrowed:
        follows, target = mapping(key), endpoint(key)
        if not follows or not follows.sources or not target:
            continue
        addresses = own[key.family]
        wildcard = key.address is None
        narrower = frozenset(a for a in addresses if wildcard and endpoint(key._replace(address=a)))
        yield Barred(key, target, desired.of_family(follows.sources, key.family), addresses, narrower)


def _at(key: Key, address: str | None, before: Endpoint | None, after: Endpoint | None) -> StaleFlows:
    # An element that somebody removed for a moment comes back: what still goes to its target is right.
    return StaleFlows(key.family, key.protocol, address, key.port, before, None if before else after)

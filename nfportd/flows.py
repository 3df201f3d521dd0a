"""Which conntrack entries a delta makes stale, as filters that the kernel applies.

Must not talk to the kernel. The one idea: a flow belongs to a key by its original destination, and to the key's old
target by the source of its replies; both together leave alone what other keys and other software track.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from nfportd.model import Endpoint, Key, Protocol
from nfportd.notation import Family


class StaleFlows(NamedTuple):
    """Conntrack entries: to an address (None: any) and port, answered by an endpoint (None: whoever)."""

    family: Family
    protocol: Protocol
    address: str | None
    port: int
    answered_by: Endpoint | None


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
    unless they are to be cut. `endpoint` tells where another key's connections go now, `local` lists the host's
    addresses.
    """
    addresses = {4: [a for f, a in local if f == 4], 6: [a for f, a in local if f == 6]}
    for key, before, _, cut in moved:
        if key.protocol is Protocol.TCP and not (before and cut):
            continue
        if key.address is not None:
            yield _at(key, key.address, before)
            continue
        narrower = [a for a in addresses[key.family] if endpoint(key._replace(address=a))]
        if before and not any(endpoint(key._replace(address=a)) == before for a in narrower):
            yield _at(key, None, before)
            continue
        # Whoever answered before the mapping; or only the old target, told from a narrower key with the same one.
        for address in addresses[key.family]:
            if address not in narrower:
                yield _at(key, address, before)


def _at(key: Key, address: str | None, answered_by: Endpoint | None) -> StaleFlows:
    return StaleFlows(key.family, key.protocol, address, key.port, answered_by)

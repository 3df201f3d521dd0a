"""Which way connections of this host to [::1] take to a mapping: through the kernel, through the relay, or none.

Must not ask the kernel. The one idea: it follows from who holds which key and from what the topology says of the
target, so that it can be said for any mapping at any time.
"""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping
from typing import Literal

from nfportd import traffic
from nfportd.desired import LOOPBACK, Claim, Desired, Elements, Slot, endpoint_in, key_of
from nfportd.model import Endpoint, Key, Protocol
from nfportd.topology import Topology, Unreached
from nfportd.traffic import Packed, unpacked

Way = Literal["kernel", "relay", "no"]


def way(claim: Claim, desired: Desired, topology: Topology) -> Way:
    """The way to the first port of a mapping; the relay, if it is the way of one protocol and not of another."""
    if not any(target.family == 6 for target in claim.mapping.targets):
        return "no"
    ways = {_way(claim, protocol, desired, topology) for protocol in claim.mapping.protocol}
    return "relay" if "relay" in ways else "kernel" if "kernel" in ways else "no"


def _way(claim: Claim, protocol: Protocol, desired: Desired, topology: Topology) -> Way:
    key = Key(6, LOOPBACK, protocol, claim.mapping.listen.ports.first)
    served = desired.served(key)
    if served is None or served[0] != claim or (6, LOOPBACK) not in topology.network.addresses:
        return "no"
    address = served[1].address
    if Unreached(address) in topology.needs:
        return "no"
    if address not in desired.relayed:
        return "kernel"
    return "relay" if desired.detour(key) else "no"


def folded(connections: AbstractMapping[Packed, int], desired: Desired) -> dict[Packed, int]:
    """Connections by key, with those to the relay counted where they would be without it."""
    found = dict(connections)
    for packed in connections if desired.relay else ():
        key = unpacked(packed)
        if key and key.address == LOOPBACK and not desired.holder(key):
            wildcard = traffic.packed(key._replace(address=None))
            found[wildcard] = found.get(wildcard, 0) + found.pop(packed)
    return found


def relays(elements: Elements) -> dict[Protocol, Endpoint]:
    """Where elements lead that lead to a relay, by protocol: no target is on [::1]."""
    found: dict[Protocol, Endpoint] = {}
    for parts in elements.get("addr6", ()):
        key = key_of(Slot("addr6", parts))
        endpoint = endpoint_in(elements, key) if key and key.address == LOOPBACK else None
        if key and endpoint and endpoint.address == LOOPBACK:
            found[key.protocol] = endpoint
    return found

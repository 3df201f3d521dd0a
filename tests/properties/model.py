"""What should hold, said once more in the plainest way: a few loops over all wishes, and nothing remembered.

It must not use the code under test but for its types. The one idea: slow and obvious against fast and clever.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping as AbstractMapping

from nfportd.desired import Elements
from nfportd.model import Endpoint, Key, Mapping
from tests.properties.strategies import Wishes

NAMES = tuple(f"{kind}{family}" for kind in ("any", "addr", "always_any", "always_addr", "onlink") for family in (4, 6))


def held(wishes: Wishes) -> dict[Key, tuple[str, Mapping, Endpoint]]:
    """Who holds each key: the first owner in lexical order."""
    found: dict[Key, tuple[str, Mapping, Endpoint]] = {}
    for owner in sorted(wishes):
        for mapping in wishes[owner]:
            for key, endpoint in mapping.endpoints():
                found.setdefault(key, (owner, mapping, endpoint))
    return found


def elements(wishes: Wishes, links: AbstractMapping[str, str] | None = None) -> Elements:
    """The table that follows from these wishes on a host with these on-link prefixes (and the link of each)."""
    found: Elements = {name: {} for name in NAMES}
    for key, (_, mapping, endpoint) in held(wishes).items():
        name = f"{'any' if key.address is None else 'addr'}{key.family}"
        parts = (key.protocol.value, key.port) if key.address is None else (key.address, key.protocol.value, key.port)
        found[name][parts] = (endpoint.address, endpoint.port)
        if mapping.masquerade == "always":
            found[f"always_{name}"][parts] = None
    for address in targets(wishes):
        covering = [
            (ipaddress.ip_network(prefix), link)
            for prefix, link in (links or {}).items()
            if ipaddress.ip_address(address) in ipaddress.ip_network(prefix)
        ]
        for link in {link for _, link in covering}:
            widest = min((net for net, of in covering if of == link), key=lambda net: net.prefixlen)
            found[f"onlink{widest.version}"][(str(widest), link)] = None
    return found


def targets(wishes: Wishes) -> Iterable[str]:
    """Every address to which some mapping sends, in force or waiting."""
    return {target.address for mappings in wishes.values() for mapping in mappings for target in mapping.targets}

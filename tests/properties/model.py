"""What should hold, said once more in the plainest way: a few loops over all wishes, and nothing remembered.

It must not use the code under test but for its types. The one idea: slow and obvious against fast and clever.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping as AbstractMapping

from nfportd.desired import Elements
from nfportd.model import Endpoint, Key, Mapping
from tests.properties.strategies import Wishes

KINDS = ("any", "addr", "always_any", "always_addr", "never_any", "never_addr", "guarded_any", "guarded_addr",
         "open_addr", "allowed_any", "allowed_addr", "isolated", "onlink")  # fmt: skip
NAMES = tuple(f"{kind}{family}" for kind in KINDS for family in (4, 6))


#: On-link prefixes of the host and their links: nested, side by side, and of full length.
LINKS = {
    "10.88.0.0/24": "br0",
    "10.88.0.11/32": "br0",
    "10.88.0.128/25": "br1",
    "10.88.1.2/32": "br1",
    "fd88::/64": "br0",
    "fd88:0:0:1::2/128": "br1",
}
NETWORK = """\
addr add 10.88.0.1/24 dev br0
addr add fd88::1/64 dev br0 nodad
route add 10.88.0.11/32 dev br0
route add 10.88.0.128/25 dev br1
route add 10.88.1.2/32 dev br1
route add fd88:0:0:1::2/128 dev br1
route add default via 10.88.0.254
route add default via fd88::fe
addr add 192.0.2.1/32 dev lo
addr add 2001:db8::1/128 dev lo
"""


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
        if mapping.masquerade != "auto":
            found[f"{mapping.masquerade}_{name}"][parts] = None
        if mapping.sources:
            found[f"guarded_{name}"][parts] = None
        elif key.address is not None:
            found[f"open_{name}"][parts] = None
        for source in map(ipaddress.ip_network, mapping.sources):
            if source.version == key.family:
                found[f"allowed_{name}"][str(source), *parts] = None
        if mapping.isolate:
            found[f"isolated{key.family}"][endpoint.address, key.protocol.value, endpoint.port] = None
    for name, prefix, link in on_link(targets(wishes), links or {}):
        found[name][prefix, link] = None
    return found


def targets(wishes: Wishes) -> Iterable[str]:
    """Every address to which some mapping sends, in force or waiting."""
    return {target.address for mappings in wishes.values() for mapping in mappings for target in mapping.targets}


def on_link(addresses: Iterable[str], links: AbstractMapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """All on-link prefixes of the links of these addresses, but for those inside a wider one of the same link."""
    prefixes = [(ipaddress.ip_network(prefix), link) for prefix, link in links.items()]
    for address in map(ipaddress.ip_address, addresses):
        beside = {link for net, link in prefixes if address in net}
        for net, link in prefixes:
            wider = any(net != other and of == link and net.network_address in other for other, of in prefixes)
            if link in beside and net.version == address.version and not wider:
                yield f"onlink{net.version}", str(net), link

"""Random mappings, owners and elements, small enough that they meet: few ports, few addresses, many clashes.

It must not know what is right. The one idea: values are drawn from small pools and read as a drop-in's text is.
"""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from nfportd.desired import Elements, Parts
from nfportd.model import Key, Mapping
from nfportd.notation import Family
from tests.unit.reading import mapping

PORTS = range(8000, 8012)
OWNERS = ("file:10-a.yaml", "file:20-b.yaml", "file:30-c.yaml")
LISTENS: dict[Family, tuple[str, ...]] = {
    4: ("0.0.0.0", "192.0.2.1", "127.0.0.1"),
    6: ("[::]", "[2001:db8::1]", "[::1]"),
}
TARGETS: dict[Family, tuple[str, ...]] = {
    4: ("10.88.0.11", "10.88.0.140", "10.88.1.2", "198.51.100.7"),
    6: ("[fd88::11]", "[fd88:0:0:1::2]", "[2001:db8:1::7]"),
}

Wishes = dict[str, dict[Mapping, int]]


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    """One mapping, of one family or both, a port or a range of up to four."""
    count = draw(st.integers(1, 4))
    first = draw(st.integers(PORTS.start, PORTS.stop - count))
    families: tuple[Family, ...] = draw(st.sampled_from([(4,), (6,), (4, 6)]))
    ports = f"{first}-{first + count - 1}" if count > 1 else f"{first}"
    listen = ports
    if len(families) == 1 and draw(st.booleans()):
        listen = f"{draw(st.sampled_from(LISTENS[families[0]]))}:{ports}"
    targets = []
    for family in families:
        to = draw(st.sampled_from([first, 80, 65535 - count + 1]))
        there = f"{to}-{to + count - 1}" if count > 1 else f"{to}"
        targets.append(f"{draw(st.sampled_from(TARGETS[family]))}:{there}")
    return mapping(
        listen,
        targets,
        protocol=draw(st.lists(st.sampled_from(["tcp", "udp", "sctp"]), min_size=1, unique=True)),
        masquerade=draw(st.sampled_from(["auto", "always", "never"])),
        on_change=draw(st.sampled_from(["keep", "cut"])),
        isolate=draw(st.booleans()),
        **draw(st.sampled_from([{}, {"sources": draw(sources())}])),
    )


def sources() -> st.SearchStrategy[list[str]]:
    """Prefixes of clients, of one family or both, also nested ones and everybody."""
    pool = ["192.0.2.0/24", "192.0.2.128/25", "192.0.2.7", "0.0.0.0/0", "2001:db8::/32", "2001:db8::7", "::/0"]
    return st.lists(st.sampled_from(pool), min_size=1, max_size=4, unique=True)


@st.composite
def files(draw: st.DrawFn, most: int = 5) -> dict[Mapping, int]:
    """What one drop-in may wish: no key twice, for such a file is refused."""
    found: dict[Mapping, int] = {}
    claimed: set[Key] = set()
    line = 2
    for each in draw(st.lists(mappings(), max_size=most)):
        keys = {key for key, _ in each.endpoints()}
        if not keys & claimed:
            claimed |= keys
            found[each] = line
            line += draw(st.integers(1, 3))
    return found


def changes() -> st.SearchStrategy[list[tuple[str, dict[Mapping, int]]]]:
    """Owners in turn, each with all that it wishes from then on."""
    return st.lists(st.tuples(st.sampled_from(OWNERS), files()), max_size=8)


_PORT = st.integers(1, 65535)
_PROTOCOL = st.sampled_from(["tcp", "udp", "sctp"])
_ADDRESS = {
    "4": st.integers(1, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n))),
    "6": st.one_of(
        st.integers(1, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n))),
        st.sampled_from(
            ["::1", "::ffff:192.0.2.1", "::192.0.2.1", "fe80::1", "2001:db8::", "1:0:2::", "::2:0:0:1"]
        ).map(lambda text: str(ipaddress.ip_address(text))),
    ),
}
_NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}", fullmatch=True) | st.sampled_from(
    ["fwd", "ip", "tcp", "and", "0", "1e3", "0x10", "eth0.100", "veth@if2"]
)


@st.composite
def prefixes(draw: st.DrawFn, family: str, most: int = 6, one_name: bool = False) -> dict[Parts, Parts | None]:
    """Prefixes of all lengths by interface, none inside another of the same interface."""
    found: dict[Parts, Parts | None] = {}
    kept: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str]] = []
    for _ in range(draw(st.integers(0, most))):
        address, length = draw(_ADDRESS[family]), draw(st.integers(1, 32 if family == "4" else 128))
        network, name = ipaddress.ip_network(f"{address}/{length}", strict=False), "" if one_name else draw(_NAME)
        if not any(name == other and network.overlaps(net) for net, other in kept):
            kept.append((network, name))
            found[(str(network), name)] = None
    return found


@st.composite
def allowed(draw: st.DrawFn, family: str, keys: st.SearchStrategy[Parts]) -> dict[Parts, Parts | None]:
    """Prefixes of sources in front of keys, none inside another of the same key."""
    found: dict[Parts, Parts | None] = {}
    for key in draw(st.lists(keys, max_size=3, unique=True)):
        found |= {(prefix, *key): None for prefix, _ in draw(prefixes(family, 3, one_name=True))}
    return found


def elements() -> st.SearchStrategy[Elements]:
    """Elements for all sets and maps of the table."""
    found: dict[str, st.SearchStrategy[dict[Parts, Parts | None]]] = {}
    for family, address in _ADDRESS.items():
        wild, one = st.tuples(_PROTOCOL, _PORT), st.tuples(address, _PROTOCOL, _PORT)
        endpoint = st.tuples(address, _PORT)
        found[f"any{family}"] = st.dictionaries(wild, endpoint, max_size=6)
        found[f"addr{family}"] = st.dictionaries(one, endpoint, max_size=6)
        found[f"always_any{family}"] = st.dictionaries(wild, st.none(), max_size=4)
        found[f"always_addr{family}"] = st.dictionaries(one, st.none(), max_size=4)
        found[f"never_any{family}"] = st.dictionaries(wild, st.none(), max_size=4)
        found[f"never_addr{family}"] = st.dictionaries(one, st.none(), max_size=4)
        found[f"isolated{family}"] = st.dictionaries(one, st.none(), max_size=4)
        found[f"onlink{family}"] = prefixes(family)
        found[f"guarded_any{family}"] = st.dictionaries(wild, st.none(), max_size=4)
        found[f"guarded_addr{family}"] = found[f"open_addr{family}"] = st.dictionaries(one, st.none(), max_size=4)
        found[f"allowed_any{family}"] = allowed(family, wild)
        found[f"allowed_addr{family}"] = allowed(family, one)
    return st.fixed_dictionaries(found)

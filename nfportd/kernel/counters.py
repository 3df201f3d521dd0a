"""The counters of our maps' elements: how many connections each key has accepted, asked of the kernel itself.

Must not know mappings. The one idea: of an element only its key and the packets of its counter are read, at fixed
places; libnftables makes text and JSON of everything (1.5 s for 60,000 elements, this 0.3 s), in the turn of changes.

NAT chains see the first packet of a connection only, so an element's packets are connections. Layout:
linux/netfilter/nf_tables.h; the order of an element's parts: nf_tables_fill_setelem in
net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nfportd.kernel.nft_elements import ElementsDump
from nfportd.netlink import attributes

_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ELEMENTS = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_EXPRESSION = 7  # NFTA_SET_ELEM_EXPR
_COUNTER = b"counter\0"


class _Shape(NamedTuple):
    """A map: the bytes of its key (each part is padded to four) and of its value, and what tells its family."""

    key: int
    value: int
    family: bytes

    @property
    def element(self) -> struct.Struct:
        """An element up to its counter: headers, key, headers and value, the expression's type, name, packets."""
        return struct.Struct(f">12x{self.key}s{8 + self.value}x2x2s4x8s16x4xQ")


_MAPS = {
    "any4": _Shape(8, 8, b"4"),
    "any6": _Shape(8, 20, b"6"),
    "addr4": _Shape(12, 8, b"4"),
    "addr6": _Shape(24, 20, b"6"),
}
_EXPRESSION_TYPES = (struct.pack("=H", _EXPRESSION), struct.pack("=H", _EXPRESSION | 0x8000))  # NLA_F_NESTED


class Counted(NamedTuple):
    """A reading of the counters.

    `connections`: by key, as `traffic.packed` writes keys, those that have accepted none left out. `complete`: whether
    nobody changed the ruleset meanwhile; else keys may be missing.
    """

    connections: dict[bytes, int]
    complete: bool


class Counters:
    """Asks for counters, in the network namespace of the first reading. Not for two threads at once."""

    def __init__(self) -> None:
        self._dump = ElementsDump()

    def close(self) -> None:
        """Close the socket; who asks later gets another one."""
        self._dump.close()

    def read(self) -> Counted:
        """All counters; nothing where there is no table. Blocks (5 microseconds an element). Raises OSError."""
        found: dict[bytes, int] = {}
        before = self._dump.generation()
        for name, shape in _MAPS.items():
            layout, family = shape.element, shape.family
            with contextlib.suppress(FileNotFoundError):
                for message in self._dump.of(name):
                    elements = dict(attributes(message)).get(_ELEMENTS, memoryview(b""))
                    found |= {family + key: packets for key, packets in _counted(elements, layout)}
        return Counted(found, complete=self._dump.generation() == before)


def _counted(elements: memoryview, layout: struct.Struct) -> Iterator[tuple[bytes, int]]:
    """Keys and packets of the elements that have counted any. What has no key (`*`) is not ours and is left out."""
    at, end = 0, len(elements) - layout.size
    header, unpack = _ATTRIBUTE.unpack_from, layout.unpack_from
    while at <= end:
        length, _ = header(elements, at)
        if length >= layout.size:
            key, kind, name, packets = unpack(elements, at)
            if packets and kind in _EXPRESSION_TYPES and name == _COUNTER:
                yield key, packets
        at += max((length + 3) & ~3, _ATTRIBUTE.size)

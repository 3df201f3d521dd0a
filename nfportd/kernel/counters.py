"""The counters of our maps' elements: how many connections each key has accepted, asked of the kernel itself.

Must not know mappings. The one idea: of an element only its key and the packets of its counter are read, at fixed
places; libnftables makes text and JSON of everything (1.5 s for 60,000 elements, this 0.3 s), in the turn of changes.

NAT chains see the first packet of a connection only, so an element's packets are connections. Layout:
linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h; the order of an element's parts: nf_tables_fill_setelem in
net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nfportd.ruleset import TABLE

_NETLINK_NETFILTER = 12  # linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_TYPE = 0x3FFF  # NLA_TYPE_MASK
_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_*
_GET_ELEMENTS, _GET_GENERATION = 10 << 8 | 13, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM, _GETGEN
_INET = 1  # NFPROTO_INET
_TABLE_NAME, _SET_NAME, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_EXPRESSION = 7  # NFTA_SET_ELEM_EXPR
_COUNTER = b"counter\0"
#: struct nfgenmsg and NFTA_GEN_ID.
_GENERATION = 12
_DATAGRAM = 1 << 16
#: Seconds for one datagram; the kernel answers at once.
_PATIENCE = 5.0


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
    """Asks for counters over one socket, which belongs to the network namespace in which this is made.

    Not for two threads at once.
    """

    def __init__(self) -> None:
        self._sock: socket.socket | None = None

    def close(self) -> None:
        """Close the socket; who asks later gets another one."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def read(self) -> Counted:
        """All counters; nothing where there is no table. Blocks (5 microseconds an element). Raises OSError."""
        found: dict[bytes, int] = {}
        try:
            if self._sock is None:
                self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
                self._sock.settimeout(_PATIENCE)
            before = _generation(self._sock)
            for name, shape in _MAPS.items():
                _read(self._sock, name, shape, found)
            # The kernel marks no dump of elements as interrupted (NLM_F_DUMP_INTR), so the ruleset's number tells.
            return Counted(found, complete=_generation(self._sock) == before)
        except BaseException:
            # An answer that comes late must not meet the next question.
            self.close()
            raise


def _read(sock: socket.socket, name: str, shape: _Shape, found: dict[bytes, int]) -> None:
    """Add what one map has counted."""
    _ask(sock, _GET_ELEMENTS, _REQUEST | _DUMP, _named(_TABLE_NAME, TABLE) + _named(_SET_NAME, name))
    layout, family = shape.element, shape.family
    while True:
        for kind, message in _messages(sock.recv(_DATAGRAM)):
            if kind in (_DONE, _ERROR):
                (code,) = struct.unpack_from("=i", message)
                if -code in (0, errno.ENOENT):
                    return
                raise OSError(-code, os.strerror(-code))
            for key, packets in _counted(_elements(message[_FAMILY.size :]), layout):
                found[family + key] = packets


def _generation(sock: socket.socket) -> bytes:
    """What is another after each change of the ruleset."""
    _ask(sock, _GET_GENERATION, _REQUEST)
    # The number and, of no use here, the process that asks.
    return sock.recv(_DATAGRAM)[_HEADER.size :][:_GENERATION]


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes = b"") -> None:
    length = _HEADER.size + _FAMILY.size + len(body)
    sock.send(_HEADER.pack(length, kind, flags, 1, 0) + _FAMILY.pack(_INET, 0, 0) + body)


def _named(kind: int, name: str) -> bytes:
    content = name.encode() + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + bytes(-len(content) % 4)


def _messages(datagram: bytes) -> Iterator[tuple[int, memoryview]]:
    view, at = memoryview(datagram), 0
    while at + _HEADER.size <= len(view):
        length, kind, *_ = _HEADER.unpack_from(view, at)
        yield kind, view[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _elements(message: memoryview) -> memoryview:
    """The list of elements in a message."""
    at = 0
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind & _TYPE == _ELEMENTS:
            return message[at + _ATTRIBUTE.size : at + length]
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return message[:0]


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

"""Netlink messages: cut them into their attributes, and make attributes.

Must not know what they mean. The one idea: bytes in, views of the same bytes out; whatever says that it is longer than
what came is refused.

Layout: linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_NESTED = 1 << 15  # NLA_F_NESTED


def request(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    """A message to the kernel; its answers bear the same sequence number."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(datagram: bytes) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each message. Raises ValueError."""
    rest = memoryview(datagram)
    while rest:
        length, kind = _cut(rest, _HEADER)
        yield kind, rest[_HEADER.size : length]
        rest = rest[_aligned(length) :]


def of_nftables(datagram: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Kind, family and attributes of each message of nf_tables. Raises ValueError."""
    for kind, content in messages(datagram):
        if kind >> 8 == _NFTABLES:
            if len(content) < _FAMILY.size:
                raise ValueError("a message of nf_tables without a family")
            yield kind & 0xFF, content[0], content[_FAMILY.size :]


def attributes(data: memoryview | bytes) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each attribute. Raises ValueError."""
    rest = memoryview(data)
    while rest:
        length, kind = _cut(rest, _ATTRIBUTE)
        yield kind & 0x3FFF, rest[_ATTRIBUTE.size : length]  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
        rest = rest[_aligned(length) :]


def _cut(data: memoryview, header: struct.Struct) -> tuple[int, int]:
    """Length and type, with which headers begin."""
    if len(data) < header.size:
        raise ValueError("a header that is cut off")
    length, kind, *_ = header.unpack_from(data)
    if not header.size <= length <= len(data):
        raise ValueError("something says that it is longer than what came")
    return int(length), int(kind)


def _aligned(length: int) -> int:
    """Where the next one begins."""
    return (length + 3) & ~3


def text(value: memoryview | bytes) -> str:
    """A string up to its zero byte; others' names may be of any bytes."""
    return bytes(value).split(b"\0", 1)[0].decode(errors="replace")


def attribute(kind: int, content: bytes) -> bytes:
    """An attribute in a request."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + bytes(-len(content) % 4)


def named(kind: int, name: str) -> bytes:
    """An attribute that is a string."""
    return attribute(kind, name.encode() + b"\0")


def nested(kind: int, *inside: bytes) -> bytes:
    """An attribute that is made of others."""
    return attribute(kind | _NESTED, b"".join(inside))

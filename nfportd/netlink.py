"""Netlink messages of nf_tables: cut them into their attributes.

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


def messages(datagram: bytes) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each message. Raises ValueError or struct.error."""
    rest = memoryview(datagram)
    while rest:
        length, kind, *_ = _HEADER.unpack_from(rest)
        if not _HEADER.size <= length <= len(rest):
            raise ValueError("a message says that it is longer than what came")
        yield kind, rest[_HEADER.size : length]
        rest = rest[aligned(length) :]


def of_nftables(datagram: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Kind, family and attributes of each message of nf_tables. Raises ValueError or struct.error."""
    for kind, content in messages(datagram):
        if kind >> 8 == _NFTABLES:
            family, *_ = _FAMILY.unpack_from(content)
            yield kind & 0xFF, family, content[_FAMILY.size :]


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each attribute. Raises ValueError or struct.error."""
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise ValueError("an attribute says that it is longer than what came")
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
        data = data[aligned(length) :]


def aligned(length: int) -> int:
    """Where the next one begins."""
    return (length + 3) & ~3


def text(value: memoryview) -> str:
    """A string up to its zero byte. Raises ValueError where it is not UTF-8."""
    return bytes(value).split(b"\0", 1)[0].decode()

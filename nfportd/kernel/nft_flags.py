"""The flags of an nftables table, asked of the kernel itself.

Must not know what they mean to us. The one idea: nft 1.0.6 writes a table that has one flag as JSON from memory that it
has freed (table_flags_json in its src/json.c), and does not know all flags; so whoever lists looks here first.

Layout: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

_NETLINK_NETFILTER = 12  # linux/netlink.h
_REQUEST, _ERROR = 1, 2  # NLM_F_REQUEST, NLMSG_ERROR
_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_INET = 1  # NFPROTO_INET
_NAME, _FLAGS = 1, 2  # NFTA_TABLE_*
_HEADERS = struct.Struct("=IHHIIBBH")  # struct nlmsghdr, struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")
_NAMES = {0x1: "dormant", 0x2: "owner", 0x4: "persist"}  # NFT_TABLE_F_*
_PATIENCE = 5.0


def of_table(name: str) -> tuple[str, ...] | None:
    """The flags of an inet table of this network namespace, as nft names them; None where there is no such table.

    Raises OSError.
    """
    written = name.encode() + b"\0"
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(written), _NAME) + written
    length = _HEADERS.size + len(attribute)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_PATIENCE)
        sock.bind((0, 0))
        sock.send(
            _HEADERS.pack(length, _GET_TABLE, _REQUEST, 1, 0, _INET, 0, 0)
            + attribute.ljust(-(-len(attribute) // 4) * 4, b"\0")
        )
        answer = sock.recv(8192)
    _, kind, *_ = _HEADERS.unpack_from(answer)
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", answer, 16)
        if -code == errno.ENOENT:
            return None
        raise OSError(-code, os.strerror(-code))
    flags = _attribute(answer[_HEADERS.size :], _FLAGS)
    return tuple(text for bit, text in _NAMES.items() if flags & bit)


def _attribute(rest: bytes, wanted: int) -> int:
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        if kind & 0x3FFF == wanted:
            return int.from_bytes(rest[_ATTRIBUTE.size : length], "big")
        rest = rest[max(_ATTRIBUTE.size, (length + 3) & ~3) :]
    return 0

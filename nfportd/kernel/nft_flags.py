"""The flags of the nftables tables, asked of the kernel itself.

Must not know what they mean to us. The one idea: nft 1.0.6 writes a table that has one flag as JSON from memory that it
has freed (table_flags_json in its src/json.c), and does not know all flags; so whoever lists looks here first.

Layout: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

_NETLINK_NETFILTER = 12  # linux/netlink.h
_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_*
_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_INET = 1  # NFPROTO_INET
_NAME, _FLAGS = 1, 2  # NFTA_TABLE_*
_HEADERS = struct.Struct("=IHHIIBBH")  # struct nlmsghdr, struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")
_NAMES = {0x1: "dormant", 0x2: "owner", 0x4: "persist"}  # NFT_TABLE_F_*
#: Seconds; the kernel answers at once.
_PATIENCE = 5.0


class Flags:
    """Asks for flags, over one socket: its end would wait until tables that were just deleted are freed, 10 to 20 ms
    (nft_rcv_nl_event in net/netfilter/nf_tables_api.c)."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None

    def close(self) -> None:
        """Close the socket; who asks later gets another one."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def of_tables(self) -> dict[str, tuple[str, ...]]:
        """The inet tables of the network namespace of the first call, each with its flags as nft names them, sorted.

        Raises OSError.
        """
        try:
            if self._sock is None:
                self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
                self._sock.settimeout(_PATIENCE)
            self._sock.send(_HEADERS.pack(_HEADERS.size, _GET_TABLE, _REQUEST | _DUMP, 1, 0, _INET, 0, 0))
            return dict(_tables(self._sock))
        except BaseException:
            # An answer that comes late must not meet the next question.
            self.close()
            raise


def _tables(sock: socket.socket) -> Iterator[tuple[str, tuple[str, ...]]]:
    while True:
        rest = sock.recv(65536)
        while len(rest) >= _HEADERS.size:
            length, kind, *_ = _HEADERS.unpack_from(rest)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", rest, 16)
                raise OSError(-code, os.strerror(-code))
            said = dict(_attributes(rest[_HEADERS.size : length]))
            bits = int.from_bytes(said.get(_FLAGS, b""), "big")
            yield said[_NAME].rstrip(b"\0").decode(), tuple(name for bit, name in _NAMES.items() if bits & bit)
            rest = rest[(length + 3) & ~3 :]


def _attributes(rest: bytes) -> Iterator[tuple[int, bytes]]:
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        yield kind & 0x3FFF, rest[_ATTRIBUTE.size : length]
        rest = rest[max(_ATTRIBUTE.size, (length + 3) & ~3) :]

"""The elements of our sets, asked of the kernel itself.

Must not know what they mean. The one idea: libnftables makes JSON of everything, which takes 3 s and 240 MB for 60,000
elements; the kernel hands them out in 0.1 s.

Layout: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from nfportd.netlink import messages
from nfportd.ruleset import TABLE

_NETLINK_NETFILTER = 12  # linux/netlink.h
_HEADERS = struct.Struct("=IHHIIBBH")  # struct nlmsghdr, struct nfgenmsg
_FAMILY = 4  # bytes of the latter
_NUMBER = struct.Struct("=i")  # of an NLMSG_ERROR or NLMSG_DONE: 0 or an error number, negative
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_*
_GET_ELEMENTS, _GET_GENERATION = 10 << 8 | 13, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_*
_INET = 1  # NFPROTO_INET
_TABLE, _SET = 1, 2  # NFTA_SET_ELEM_LIST_*
#: struct nlmsghdr, struct nfgenmsg and NFTA_GEN_ID.
_GENERATION = slice(16, 28)
_DATAGRAM = 1 << 16
#: Seconds for one datagram; the kernel answers at once.
_PATIENCE = 5.0


class ElementsDump:
    """Asks over one socket, which belongs to the network namespace in which this is made."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._sock.settimeout(_PATIENCE)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def generation(self) -> bytes:
        """What is another after each change of the ruleset. Raises OSError.

        The kernel marks no dump of elements as interrupted; so whoever reads asks for this before and after.
        """
        self._ask(_GET_GENERATION, 0, b"")
        return self._sock.recv(_DATAGRAM)[_GENERATION]

    def of(self, name: str) -> Iterator[memoryview]:
        """What the kernel says of a set's elements, as attributes of messages. Blocks. Raises OSError, ValueError."""
        self._ask(_GET_ELEMENTS, _DUMP, _named(_TABLE, TABLE) + _named(_SET, name))
        while True:
            for kind, content in messages(self._sock.recv(_DATAGRAM)):
                if kind in (_ERROR, _DONE):
                    (number,) = _NUMBER.unpack_from(content)
                    if number:
                        raise OSError(-number, os.strerror(-number))
                    return
                yield content[_FAMILY:]

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        length = _HEADERS.size + len(body)
        self._sock.send(_HEADERS.pack(length, kind, _REQUEST | flags, 1, 0, _INET, 0, 0) + body)


def _named(kind: int, name: str) -> bytes:
    content = name.encode() + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + bytes(-len(content) % 4)

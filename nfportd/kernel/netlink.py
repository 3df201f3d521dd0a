"""Questions to the kernel over netlink that it answers at once.

Must not know what is asked. The one idea: the kernel has answered when the request is sent, so a question is one call
of some 25 microseconds, and suits what is asked on the way of a packet or at each network event.

Layout: linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from nfportd import netlink

NETFILTER = 12  # NETLINK_NETFILTER
_SOL_NETLINK, _GET_STRICT_CHECK = 270, 12  # NETLINK_GET_STRICT_CHK, Linux 4.20
_REQUEST, _ACKNOWLEDGE, _DUMP = 0x1, 0x4, 0x300  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP
#: To make what is not there yet: NLM_F_CREATE | NLM_F_EXCL.
CREATE = 0x600
_ERROR, _DONE = 2, 3  # NLMSG_*
_NUMBER = struct.Struct("=i")  # of an NLMSG_ERROR or NLMSG_DONE: 0, or an error number, negative
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}  # enum nfproto
_FAMILY_SIZE = 4  # struct nfgenmsg
#: Bytes of an answer in one piece (NLMSG_GOODSIZE, and what a dump is raised to).
_LONGEST = 1 << 16
#: Seconds for a piece of an answer, which the kernel gives inside the call; nf_tables may be at work for another.
_PATIENCE, _OF_NFTABLES = 1.0, 5.0


class Netlink:
    """Questions of one protocol (NETLINK_*) over one socket, in the network namespace of the first of them.

    The socket stays, for its end would wait until tables that were just deleted are freed, 10 to 20 ms
    (nft_rcv_nl_event in net/netfilter/nf_tables_api.c).
    """

    def __init__(self, protocol: int, patience: float = _PATIENCE, *, strict: bool = False) -> None:
        """`strict`: what a request for a dump says is a filter, which the kernel else leaves out of account."""
        self._protocol, self._patience, self._strict = protocol, patience, strict
        self._sock: socket.socket | None = None

    def close(self) -> None:
        """Close the socket; who asks later gets another one."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def open(self) -> socket.socket:
        """The socket, in the network namespace of the first who wants it."""
        if self._sock is None:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._protocol)
            self._sock.settimeout(self._patience)
            if self._strict:
                self._sock.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)
        return self._sock

    def tell(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Have the kernel do something. Raises OSError with what it says."""
        for _ in self.answers(kind, body, flags=_ACKNOWLEDGE | flags):
            pass

    def answers(self, kind: int, body: bytes, *, dump: bool = False, flags: int = 0) -> Iterator[memoryview]:
        """What follows the header in each message of the answer. Raises OSError with what the kernel says."""
        sock, heard_out = self.open(), False
        try:
            sock.send(netlink.request(kind, _REQUEST | (_DUMP if dump else 0) | flags, body))
            while not heard_out:
                for said, content in netlink.messages(sock.recv(_LONGEST)):
                    heard_out = not dump or said in (_ERROR, _DONE)
                    if said not in (_ERROR, _DONE):
                        yield content
                    elif number := _NUMBER.unpack_from(content)[0]:
                        raise OSError(-number, os.strerror(-number))
        finally:
            if not heard_out:
                # An answer that comes late must not meet the next question.
                self.close()


class NfTables:
    """Questions to nf_tables, in the network namespace of the first of them."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETFILTER, _OF_NFTABLES)

    def close(self) -> None:
        """Close the socket; who asks later gets another one."""
        self._netlink.close()

    def answers(self, kind: int, *attributes: bytes, family: str = "inet", dump: bool = False) -> Iterator[memoryview]:
        """The attributes in each message of the answer to an NFT_MSG_*. Raises OSError with what the kernel says."""
        body = bytes((_FAMILIES[family], 0, 0, 0)) + b"".join(attributes)
        for content in self._netlink.answers(_NFTABLES | kind, body, dump=dump):
            yield content[_FAMILY_SIZE:]

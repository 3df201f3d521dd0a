"""Questions to the kernel over netlink that it answers at once, and the attributes in its answers.

Must not know what is asked. The one idea: the kernel has answered when the request is sent, so a question is one call
of some 25 microseconds, and suits what is asked on the way of a packet or at each network event.

Layout: linux/netlink.h.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct

_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_*
_NESTED = 1 << 15  # NLA_F_NESTED
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_NUMBER = struct.Struct("=i")
#: Bytes of an answer in one piece (NLMSG_GOODSIZE, and what a dump is raised to).
_LONGEST = 1 << 16
#: Seconds; the kernel answers inside the call.
_PATIENCE = 1.0


class Netlink:
    """A netlink socket of one protocol (NETLINK_*), in the network namespace in which this is made."""

    def __init__(self, protocol: int) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sock.settimeout(_PATIENCE)
        self._sequence = itertools.count(1)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def ask(self, kind: int, body: bytes, *, dump: bool = False) -> list[bytes]:
        """What follows the header in each message of the answer. Raises OSError with what the kernel says."""
        sequence = next(self._sequence) & 0xFFFFFFFF
        flags = _REQUEST | (_DUMP if dump else 0)
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body)
        found: list[bytes] = []
        while True:
            received, at = self._sock.recv(_LONGEST), 0
            while at + _HEADER.size <= len(received):
                length, kind, _, of, _ = _HEADER.unpack_from(received, at)
                said = received[at + _HEADER.size : at + length]
                at += max(_HEADER.size, (length + 3) & ~3)
                if of != sequence:
                    continue
                if kind == _ERROR:
                    number = -_NUMBER.unpack_from(said)[0]
                    raise OSError(number, os.strerror(number))
                if kind == _DONE:
                    return found
                found.append(said)
                if not dump:
                    return found


def attributes(content: bytes) -> dict[int, bytes]:
    """Attributes by their number; of several with one number the last."""
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        found[kind & 0x3FFF] = content[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return found


def attribute(kind: int, content: bytes) -> bytes:
    """An attribute in a request."""
    padding = bytes(-len(content) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + padding


def nested(kind: int, *inside: bytes) -> bytes:
    """An attribute that is made of others."""
    return attribute(kind | _NESTED, b"".join(inside))

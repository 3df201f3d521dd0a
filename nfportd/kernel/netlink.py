"""Questions to the kernel over netlink that it answers at once, and the attributes in its answers.

Must not know what is asked. The one idea: a request and its answer within one call cost some 20 microseconds, where
the general library takes milliseconds; so it suits what is asked on the way of a packet or of each network event.

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
            rest = self._sock.recv(1 << 18)
            while len(rest) >= _HEADER.size:
                length, kind, _, of, _ = _HEADER.unpack_from(rest)
                said, rest = rest[_HEADER.size : length], rest[(length + 3) & ~3 :]
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


def attributes(rest: bytes) -> dict[int, bytes]:
    """Attributes by their number; of several with one number the last."""
    found = {}
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        found[kind & 0x3FFF] = rest[_ATTRIBUTE.size : length]
        rest = rest[max(_ATTRIBUTE.size, (length + 3) & ~3) :]
    return found


def attribute(kind: int, content: bytes) -> bytes:
    """An attribute in a request."""
    padding = bytes(-len(content) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + padding


def nested(kind: int, *inside: bytes) -> bytes:
    """An attribute that is made of others."""
    return attribute(kind | _NESTED, b"".join(inside))

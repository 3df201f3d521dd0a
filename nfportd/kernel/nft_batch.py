"""Hands a transaction to nf_tables over a socket that is not ours alone.

Must not know what is in it. The one idea: the kernel has committed or refused, and answered, when the call that sends
returns; so whoever lends the socket finds nothing of it there afterwards.

The socket is libnftables' own, for a table with an owner belongs to a socket (linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

_ERROR = 2  # NLMSG_ERROR, also where the number is 0
#: struct nlmsghdr (length, type, flags, sequence, port) and the number with which struct nlmsgerr begins, negative.
_ANSWER = struct.Struct("=4xH2xI4xi")
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
#: Bytes that every socket takes at once, and what the kernel keeps of its buffer for itself (netlink_sendmsg).
_SMALL, _KEPT = 1 << 16, 32


def send(sock: socket.socket, batch: bytes, sequence: int) -> None:
    """Run a batch of messages of one sequence number, of which the last asks for an answer, as one transaction.

    Raises OSError with what the kernel says to the first that it refuses; then nothing of it is in force.
    """
    # libnftables leaves some of the kernel's refusals, and an answer to us would find no room.
    for _ in _answers(sock, sequence):
        pass
    if len(batch) > _SMALL and sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < len(batch) + _KEPT:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(batch) + _KEPT)
    sock.sendmsg([batch])
    said = list(_answers(sock, sequence))
    # Where refusals are many, the socket takes the first ones and says so.
    refusals = sorted(filter(None, said), key=lambda number: number == errno.ENOBUFS)
    if number := next(iter(refusals), 0 if said else errno.EIO):
        raise OSError(number, os.strerror(number))


def _answers(sock: socket.socket, sequence: int) -> Iterator[int]:
    """The numbers of all answers that there are, of which each has a datagram; after this the socket has none."""
    while True:
        try:
            # What follows the number repeats the message.
            answer = sock.recvmsg(_ANSWER.size, 0, socket.MSG_DONTWAIT)[0]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield errno.ENOBUFS
            continue
        if len(answer) == _ANSWER.size:
            kind, about, number = _ANSWER.unpack(answer)
            if (kind, about) == (_ERROR, sequence):
                yield -number

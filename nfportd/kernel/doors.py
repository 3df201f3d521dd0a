"""Knocks at targets: a short connection from this host to each, at once, bounded in number and time.

Must not judge. The one idea: a connected socket hears what the target or the way to it says (tcp(7), udp(7), ip(7)), so
no raw sockets and no privilege are needed. A connection is closed as soon as it stands; by UDP an empty datagram goes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from nfportd.doctor.facts import Door, Outcome

#: So many at once: of those who do not answer the kernel forgets the neighbour entries soon, and they tell why.
_AT_ONCE = 512
#: Seconds: one retransmission of a SYN (after 1 s, RFC 6298) has its time. What UDP is refused by comes at once.
_TCP, _UDP = 2.2, 0.5
#: close() then sends a reset: neither side keeps anything.
_RESET = struct.pack("ii", 1, 0)
_REFUSED = (errno.ECONNREFUSED, errno.ECONNRESET)
#: A router, the target, or a neighbour that does not answer: the neighbours' states tell which. Of ICMPv6 EACCES is
#: "administratively prohibited"; EPERM is a drop in this host's own output hook.
_REJECTED = (
    errno.EACCES,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EPROTO,
)


class Knock(NamedTuple):
    """A connection to be tried: to a door itself or to a port of this host that is mapped there, from a source of
    this host's (`""`: the kernel's choice)."""

    door: Door
    address: str
    port: int
    source: str = ""


async def knock(knocks: Iterable[Knock]) -> dict[Knock, Outcome]:
    """What becomes of each."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(each: Knock) -> tuple[Knock, Outcome]:
        async with turns:
            return each, await _outcome(each)

    return dict(await asyncio.gather(*map(one, knocks)))


async def _outcome(asked: Knock) -> Outcome:
    try:
        await (_tcp(asked) if asked.door.protocol == "tcp" else _udp(asked))
    except TimeoutError:
        # Of UDP silence is all that is promised.
        return Outcome.SILENT if asked.door.protocol == "tcp" else Outcome.ANSWERS
    except OSError as error:
        if error.errno in _REFUSED:
            return Outcome.REFUSED
        return Outcome.REJECTED if error.errno in _REJECTED else Outcome.NOT_ASKED
    return Outcome.ANSWERS


def _socket(kind: socket.SocketKind, asked: Knock) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in asked.address else socket.AF_INET, kind)
    made.setblocking(False)
    if asked.source:
        made.bind((asked.source, 0))
    return made


async def _tcp(asked: Knock) -> None:
    with _socket(socket.SOCK_STREAM, asked) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        async with asyncio.timeout(_TCP):
            await asyncio.get_running_loop().sock_connect(sock, (asked.address, asked.port))


async def _udp(asked: Knock) -> None:
    with _socket(socket.SOCK_DGRAM, asked) as sock:
        async with asyncio.timeout(_UDP):
            sock.connect((asked.address, asked.port))
            sock.send(b"")
            await asyncio.get_running_loop().sock_recv(sock, 1)

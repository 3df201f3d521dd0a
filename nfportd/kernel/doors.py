"""Knocks at targets: a short connection from this host to each, at once, bounded in number and time.

Must not judge. The one idea: a connected socket hears what the target or the way to it says (tcp(7), udp(7), ip(7)), so
no raw sockets and no privilege are needed; a connection is closed as soon as it stands, and nothing is sent by it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Mapping as AbstractMapping

from nfportd.doctor.facts import Door, Outcome

#: So many at once.
_AT_ONCE = 64
#: Seconds: one retransmission of a SYN (after 1 s, RFC 6298) has its time. What UDP is refused by comes at once.
_TCP, _UDP = 2.2, 0.5
#: close() then sends a reset: neither side keeps anything.
_RESET = struct.pack("ii", 1, 0)
_REFUSED = (errno.ECONNREFUSED, errno.ECONNRESET)
#: A router, the target or a neighbour that does not answer; the neighbours' states tell which.
_REJECTED = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EPROTO)

#: Where to knock for each door: its own address and port, or one of this host that is mapped there.
Knocks = AbstractMapping[Door, tuple[str, int]]


async def knock(knocks: Knocks) -> dict[Door, Outcome]:
    """What becomes of a connection to each."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(door: Door, at: tuple[str, int]) -> tuple[Door, Outcome]:
        async with turns:
            return door, await _outcome(door.protocol, at)

    return dict(await asyncio.gather(*(one(door, at) for door, at in knocks.items())))


async def _outcome(protocol: str, at: tuple[str, int]) -> Outcome:
    try:
        await (_tcp(at) if protocol == "tcp" else _udp(at))
    except TimeoutError:
        # Of UDP silence is all that is promised.
        return Outcome.SILENT if protocol == "tcp" else Outcome.ANSWERS
    except OSError as error:
        if error.errno in _REFUSED:
            return Outcome.REFUSED
        return Outcome.REJECTED if error.errno in _REJECTED else Outcome.NOT_ASKED
    return Outcome.ANSWERS


def _socket(kind: socket.SocketKind, at: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in at[0] else socket.AF_INET, kind)
    made.setblocking(False)
    return made


async def _tcp(at: tuple[str, int]) -> None:
    with _socket(socket.SOCK_STREAM, at) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        async with asyncio.timeout(_TCP):
            await asyncio.get_running_loop().sock_connect(sock, at)


async def _udp(at: tuple[str, int]) -> None:
    with _socket(socket.SOCK_DGRAM, at) as sock:
        async with asyncio.timeout(_UDP):
            await asyncio.get_running_loop().sock_connect(sock, at)
            sock.send(b"")
            await asyncio.get_running_loop().sock_recv(sock, 1)

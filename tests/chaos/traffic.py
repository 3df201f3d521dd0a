"""Traffic that remembers every connection: `python -m tests.chaos.traffic serve PORT|connect PATHS`, JSON out.

It knows nothing of nfportd or of faults. The one idea: new connections begin at a steady rate, whether those before
them have ended or not, so that a standstill is seen by its length and not by one client that waits.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast

from tests.lab import ROOT
from tests.netns import Namespace

#: Seconds from one connection of a path to the next, and from one question of a stream to the next.
INTERVAL, QUESTION = 0.05, 0.1
#: Seconds until a connection, and a stream, counts as failed.
PATIENCE, STREAM_PATIENCE = 8.0, 30.0
#: Connections of one path that may be under way.
MOST = 200
ANSWERED = "answered"
RESET = struct.pack("ii", 1, 0)


class Way(NamedTuple):
    """A way to a stable mapping. A stream is one connection that is kept."""

    name: str
    proto: str
    address: str
    port: int
    stream: bool = False


class Connection(NamedTuple):
    """One connection, or one question on a stream; times by the monotonic clock, which all processes share."""

    path: str
    begun: float
    ended: float
    outcome: str


class Clients:
    """Clients in a namespace that connect by some paths until they are ended."""

    def __init__(self, space: Namespace, paths: Sequence[Way], log: Path) -> None:
        self._log = log
        command = [sys.executable, "-m", "tests.chaos.traffic", "connect", json.dumps(paths)]
        with log.open("w") as out:
            self._process = space.popen(command, stdout=out, cwd=ROOT)

    def end(self) -> list[Connection]:
        """Let them finish what is under way, and tell."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(STREAM_PATIENCE + 30)
        return [Connection(*each) for each in json.loads(self._log.read_text())]


def serve(space: Namespace, port: int) -> None:
    """A server in a namespace that answers each TCP chunk and each datagram, in both families."""
    command = [sys.executable, "-m", "tests.chaos.traffic", "serve", str(port)]
    process = space.popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()  # it listens


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # in Python 3.11 it is none by its class

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(64):
            writer.write(data)
    except OSError:
        pass  # a client that resets
    finally:
        writer.close()


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_echo, sock=_bound(socket.SOCK_STREAM, port), backlog=4096)
    await asyncio.get_running_loop().create_datagram_endpoint(_Datagrams, sock=_bound(socket.SOCK_DGRAM, port))
    print("listening", flush=True)
    await server.serve_forever()


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    return sock


class _Clients:
    def __init__(self, paths: Sequence[Way]) -> None:
        self._paths = paths
        self._found: list[Connection] = []
        self._under_way: Counter[str] = Counter()
        # A port that comes again soon would meet what the kernel remembers of the flow before it.
        self._sources = {way.name: itertools.cycle(range(10_000, 60_000)) for way in paths}
        self._ended = asyncio.Event()

    async def run(self) -> list[Connection]:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ended.set)
        async with asyncio.TaskGroup() as group:
            for path in self._paths:
                group.create_task(self._stream(path) if path.stream else self._connect(path, group))
        return self._found

    async def _connect(self, path: Way, group: asyncio.TaskGroup) -> None:
        while not self._ended.is_set():
            if self._under_way[path.name] < MOST:
                self._under_way[path.name] += 1
                group.create_task(self._once(path))
            await asyncio.sleep(INTERVAL)

    async def _once(self, path: Way) -> None:
        begun = time.monotonic()
        sock = _socket(path)
        if path.proto == "udp":
            self._bind(sock, path)
        try:
            async with asyncio.timeout(PATIENCE):
                await _open(sock, path)
                outcome = await _ask(sock)
        except OSError as error:  # a timeout is one
            outcome = _name(error)
        finally:
            sock.close()
        self._under_way[path.name] -= 1
        self._found.append(Connection(path.name, begun, time.monotonic(), outcome))

    def _bind(self, sock: socket.socket, path: Way) -> None:
        for port in self._sources[path.name]:
            with suppress(OSError):  # another way has it just now
                sock.bind(("", port))
                return

    async def _stream(self, path: Way) -> None:
        while not self._ended.is_set():
            with _socket(path) as sock:
                outcome = ANSWERED
                while outcome == ANSWERED and not self._ended.is_set():
                    begun, opens = time.monotonic(), sock.getsockname()[1] == 0
                    try:
                        async with asyncio.timeout(STREAM_PATIENCE):
                            if opens:
                                await _open(sock, path)
                            outcome = await _ask(sock)
                    except OSError as error:
                        outcome = _name(error)
                    # Until it is open it is a connection like any other.
                    name = path.name.replace("stream", "tcp") if opens else path.name
                    self._found.append(Connection(name, begun, time.monotonic(), outcome))
                    await asyncio.sleep(QUESTION)


def _socket(path: Way) -> socket.socket:
    family = socket.AF_INET6 if ":" in path.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if path.proto == "tcp" else socket.SOCK_DGRAM)
    sock.setblocking(False)
    if path.proto == "tcp":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return sock


async def _open(sock: socket.socket, path: Way) -> None:
    await asyncio.get_running_loop().sock_connect(sock, (path.address, path.port))


async def _ask(sock: socket.socket) -> str:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"?")
    return ANSWERED if await loop.sock_recv(sock, 64) else "closed"


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "timeout")


def main(arguments: Sequence[str]) -> None:
    what, argument = arguments
    if what == "serve":
        asyncio.run(_serve(int(argument)))
    else:
        print(json.dumps(asyncio.run(_Clients([Way(*each) for each in json.loads(argument)]).run())))


if __name__ == "__main__":
    main(sys.argv[1:])

"""What stands in the laboratory's namespaces: servers that say who they are, clients that say what they saw.

It knows nothing of nfportd, nft or pytest. The one idea: a socket keeps the namespace in which it was made,
so one thread with one selector serves all namespaces, and a test asks from any of them without a process.
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

SocketFactory = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]
LINGER_RESET = struct.pack("ii", 1, 0)  # close() sends RST: a fixed source port is free again at once
GONE = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
NOWHERE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EINVAL, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Answer:
    """What a client got: who answered and which source it saw, or why nobody did."""

    outcome: str  # answered | timeout | refused | reset | unreachable
    target: str = ""
    source: str = ""
    source_port: int = 0
    port: int = 0  # the port on which the target was reached

    def __bool__(self) -> bool:
        return self.outcome == "answered"


@dataclass(frozen=True)
class Heard:
    """One datagram or one accepted connection, as the server saw it."""

    target: str
    proto: str
    source: str
    source_port: int
    port: int
    payload: bytes = b""


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def kind_of(proto: str) -> socket.SocketKind:
    return {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[proto]


def plain(address: str) -> str:
    """An IPv4 address as a dual-stack socket shows it, without the ::ffff: in front."""
    return address.removeprefix("::ffff:").partition("%")[0]


def failure(error: OSError) -> Answer:
    if isinstance(error, TimeoutError):
        return Answer("timeout")
    if error.errno == errno.ECONNREFUSED:
        return Answer("refused")
    if error.errno in GONE:
        return Answer("reset")
    if error.errno in NOWHERE:
        return Answer("unreachable")
    raise error


class Talk:
    """One flow of a client that stays open: a TCP connection, or a UDP socket with one source port."""

    def __init__(
        self,
        make: SocketFactory,
        address: str,
        port: int,
        proto: str = "tcp",
        source: str = "",
        source_port: int = 0,
        timeout: float = 3.0,
    ) -> None:
        family = family_of(address)
        self.proto = proto
        self.sock = make(family, kind_of(proto))
        self.sock.settimeout(timeout)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if proto == "tcp":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source or source_port:
                self.sock.bind((source or ("::" if family == socket.AF_INET6 else "0.0.0.0"), source_port))
            self.sock.connect((address, port))
        except BaseException:
            self.sock.close()
            raise
        self.source_port: int = self.sock.getsockname()[1]

    def ask(self, timeout: float | None = None) -> Answer:
        """Send one question on this flow and read the answer."""
        if timeout is not None:
            self.sock.settimeout(timeout)
        try:
            self.sock.send(b"?")
            line = self.sock.recv(256)
        except OSError as error:
            return failure(error)
        if not line:
            return Answer("reset")
        target, source, source_port, port = line.decode().split()
        return Answer("answered", target, source, int(source_port), int(port))

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(
    make: SocketFactory,
    address: str,
    port: int,
    proto: str = "tcp",
    source: str = "",
    source_port: int = 0,
    timeout: float = 3.0,
) -> Answer:
    """One question on a new flow."""
    try:
        with Talk(make, address, port, proto, source, source_port, timeout) as talk:
            return talk.ask()
    except OSError as error:
        return failure(error)


@dataclass
class Service:
    """Listening sockets of one server; close() frees its ports."""

    name: str
    servers: Servers
    sockets: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        for sock in self.sockets:
            self.servers.forget(sock)
        self.sockets.clear()


class Servers:
    """All servers of a laboratory in one thread; answers are `name source-address source-port local-port`."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._selector = selectors.DefaultSelector()
        self._running = True
        self._thread = threading.Thread(target=self._loop, name="servers", daemon=True)
        self._thread.start()

    def serve(
        self, name: str, make: SocketFactory, ports: Iterable[int], protos: Iterable[str], address: str
    ) -> Service:
        """Listen on every port and protocol; `::` takes both families with one socket."""
        service = Service(name, self)
        family = family_of(address)
        try:
            for proto in protos:
                for port in ports:
                    sock = make(family, kind_of(proto))
                    service.sockets.append(sock)
                    self._listen(sock, name, proto, address, port)
        except BaseException:
            service.close()
            raise
        return service

    def _listen(self, sock: socket.socket, name: str, proto: str, address: str, port: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if proto == "udp":  # the answer must leave from the address that was asked
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_PKTINFO", 8), 1)
        sock.bind((address, port))
        if proto == "tcp":
            sock.listen(1024)
        action = self._accept if proto == "tcp" else self._datagram
        self._selector.register(sock, selectors.EVENT_READ, (action, name, port))

    def forget(self, sock: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def close(self) -> None:
        self._running = False
        self._thread.join(2)
        for key in list(self._selector.get_map().values()):
            self.forget(key.fileobj)  # type: ignore[arg-type]
        self._selector.close()

    def _loop(self) -> None:
        while self._running:
            for key, _ in self._selector.select(0.2):
                action, name, port = key.data
                try:
                    action(key.fileobj, name, port)
                except OSError:
                    continue  # a socket closed under us, or a client that reset

    def _accept(self, listener: socket.socket, name: str, port: int) -> None:
        sock, peer = listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard.append(Heard(name, "tcp", plain(peer[0]), peer[1], port))
        self._selector.register(sock, selectors.EVENT_READ, (self._stream, name, port))

    def _stream(self, sock: socket.socket, name: str, port: int) -> None:
        try:
            request = sock.recv(4096)
            if request:
                peer = sock.getpeername()
                sock.send(f"{name} {plain(peer[0])} {peer[1]} {port}\n".encode())
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.forget(sock)

    def _datagram(self, sock: socket.socket, name: str, port: int) -> None:
        payload, ancillary, _, peer = sock.recvmsg(2048, 256)
        self.heard.append(Heard(name, "udp", plain(peer[0]), peer[1], port, payload))
        reply = f"{name} {plain(peer[0])} {peer[1]} {port}\n".encode()
        sock.sendmsg([reply], [reply_source(*item) for item in ancillary], 0, peer)

    def who_heard(self, payload: bytes, wait: float = 0.0) -> list[str]:
        """The servers that got a datagram with this payload, looked for until `wait` seconds have passed."""
        until = time.monotonic() + wait
        while True:
            names = [heard.target for heard in list(self.heard) if heard.payload == payload]
            if names or time.monotonic() >= until:
                return names
            time.sleep(0.02)


def reply_source(level: int, kind: int, body: bytes) -> tuple[int, int, bytes]:
    """Turn received packet information round: answer from the asked address, by any route."""
    if level == socket.IPPROTO_IPV6:
        return level, kind, body[:16] + struct.pack("i", 0)
    return level, kind, struct.pack("i4s4s", 0, body[8:12], bytes(4))

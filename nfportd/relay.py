"""The relay: takes connections to [::1] to targets where the kernel cannot, by TCP and UDP.

Must not know why a target needs it, nor write to the kernel. The one idea: it waits on one port of [::1] a protocol,
to which elements of the table lead every relayed key, and conntrack tells which port a client meant. So a range of
thousands of ports needs one socket, none of them has to be free on [::1] or above 1024, and a mapping that comes,
goes or changes is neither started nor stopped here: where a port leads is asked for each new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping as AbstractMapping

from nfportd.datagrams import Datagrams, Room
from nfportd.desired import LOOPBACK, Claim, loopback_key
from nfportd.kernel import meant
from nfportd.model import Endpoint, Key, Protocol
from nfportd.streams import Patience, Stream
from nfportd.turns import Turns

_log = logging.getLogger(__name__)

#: TCP connections and UDP flows at once, where there are descriptors for eight times as many; half of them for one
#: mapping. A connection keeps up to 128 KiB here while both of its ends stall.
STREAMS, FLOWS = 2048, 1024
#: Seconds between two looks at what goes on for too long, and between two lines of the log about the same.
_LOOK, _SILENCE = 5.0, 60.0
#: Seconds until the next attempt to accept when there are no descriptors or no memory.
_BREATH = 1.0
_AT_A_TIME = 16
_BACKLOG = 1024
_RESET = struct.pack("ii", 1, 0)  # struct linger

#: Tells whose mapping takes connections to a key, and where they end.
Served = Callable[[Key], tuple[Claim, Endpoint] | None]


class Relay:
    """The relay of one network namespace. `mark`: of packets to targets, so that they are known to come through it."""

    def __init__(self, mark: int, patience: Patience | None = None) -> None:
        self._mark = mark
        self._patience = patience or Patience()
        #: Whom it serves; nobody, until it is told.
        self.served: Served = lambda _: None
        #: Connections that were refused because there were too many.
        self.refused = 0
        self._turns: Turns | None = None
        self._listener: socket.socket | None = None
        self._datagrams: Datagrams | None = None
        self._streams: dict[int, set[Stream]] = {}
        self._of: Counter[Claim] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        # When something was said, by what it was about.
        self._said: dict[Hashable, float] = {}
        #: Where it waits, by protocol; empty while it does not.
        self.endpoints: AbstractMapping[Protocol, Endpoint] = {}
        #: The inodes of the sockets on which it waits.
        self.inodes: frozenset[int] = frozenset()

    @property
    def now(self) -> dict[str, int]:
        """Connections that are relayed at the moment, by protocol."""
        return {"tcp": self._of.total(), "udp": 0 if self._datagrams is None else len(self._datagrams)}

    def open(self, before: Callable[[], AbstractMapping[Protocol, Endpoint]] = dict) -> None:
        """Wait for connections, if it does not yet; a failure is logged and tried again at the next call.

        `before` tells where an earlier one waited: there, if it is free, so that what leads to it stays right.
        """
        if self.endpoints:
            return
        known = before()
        try:
            with contextlib.ExitStack() as undo:
                listener, sock = (
                    undo.enter_context(_bound(kind, known.get(protocol)))
                    for protocol, kind in ((Protocol.TCP, socket.SOCK_STREAM), (Protocol.UDP, socket.SOCK_DGRAM))
                )
                listener.listen(_BACKLOG)
                self._turns = self._turns or Turns()
                room = Room(_room(FLOWS, 16), _room(FLOWS, 16) // 2)
                self._datagrams = Datagrams(sock, self._way_of_udp, self._turns, self._mark, room)
                undo.pop_all()
        except OSError as error:
            text = "[::1] does not reach targets behind bridges that call ip6tables, 127.0.0.1 does: no relay"
            self._say(logging.ERROR, "wait", f"{text}: {_meaning(error)}")
            return
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)
        self.endpoints = {
            protocol: Endpoint(LOOPBACK, made.getsockname()[1])
            for protocol, made in ((Protocol.TCP, listener), (Protocol.UDP, sock))
        }
        self.inodes = frozenset(_inode(made) for made in (listener, sock))
        self._look()
        text = "[::1] is relayed to targets behind bridges that hand IPv6 to ip6tables, tcp at port %d, udp at port %d"
        _log.info(text, *(endpoint.port for endpoint in self.endpoints.values()))

    def rest(self) -> None:
        """Wait for no more connections; TCP connections that run go on."""
        if self._listener is None or self._datagrams is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        if self._pause:
            self._pause.cancel()
        self._listener.close()
        self._datagrams.close()
        self._listener = self._datagrams = None
        self.endpoints, self.inodes = {}, frozenset()
        _log.info("[::1] is not relayed any more; connections that go on: %d", self._of.total())

    def close(self) -> None:
        """End everything."""
        self.rest()
        for stream in self._all():
            stream.abort()
        if self._timer:
            self._timer.cancel()
        if self._turns:
            self._turns.close()

    def follow(self, keys: Iterable[Key]) -> None:
        """End what these keys do not lead to any more: UDP flows, and TCP connections whose mapping wants them cut."""
        if not self._streams and self._datagrams is None:
            return
        ports: dict[Protocol, set[int]] = {Protocol.TCP: set(), Protocol.UDP: set(), Protocol.SCTP: set()}
        for key in keys:
            if loopback_key(key):
                ports[key.protocol].add(key.port)
        if self._datagrams is not None and ports[Protocol.UDP]:
            self._datagrams.follow(ports[Protocol.UDP])
        for port in ports[Protocol.TCP] & self._streams.keys():
            way = self._way(Protocol.TCP, port)
            for stream in list(self._streams[port]):
                claims = [stream.claim, way[0]] if way else [stream.claim]
                moved = way is None or way[1] != stream.endpoint
                if moved and any(claim.mapping.on_change == "cut" for claim in claims):
                    stream.abort()

    def _way(self, protocol: Protocol, port: int) -> tuple[Claim, Endpoint] | None:
        return self.served(Key(6, LOOPBACK, protocol, port))

    def _way_of_udp(self, port: int) -> tuple[Claim, Endpoint] | None:
        return self._way(Protocol.UDP, port)

    def _all(self) -> list[Stream]:
        return [stream for streams in self._streams.values() for stream in streams]

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_A_TIME):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    self._breathe(listener, error)
                return
            try:
                self._take(client)
            except OSError:
                # No way to the target, or the client has gone.
                _refuse(client)

    def _breathe(self, listener: socket.socket, error: OSError) -> None:
        """Leave clients waiting for a moment, for the loop would call again at once."""
        self._say(logging.ERROR, "accept", f"the relay for [::1] cannot accept connections: {error.strerror}")
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())
        self._pause = loop.call_later(_BREATH, loop.add_reader, listener.fileno(), self._accept, listener)

    def _take(self, client: socket.socket) -> None:
        """Take a client to its target, or refuse it. Raises OSError."""
        port = meant.tcp_port(client)
        way = self._way(Protocol.TCP, port)
        if way is None or self._is_full(port, way[0]):
            _refuse(client)
            return
        assert self._turns
        stream = Stream(client, port, way, self._turns, self._mark)
        stream.ended = self._ended
        self._streams.setdefault(port, set()).add(stream)
        self._of[stream.claim] += 1

    def _is_full(self, port: int, claim: Claim) -> bool:
        """Whether a mapping has, or all have, as many connections as may be; then that is told."""
        most, mine, all_ = _room(STREAMS, 8), self._of[claim], self._of.total()
        if all_ < most and mine < most // 2:
            return False
        self.refused += 1
        text = f"[::1] port {port} of {claim}: {mine:,} connections are relayed ({all_:,} in all), as many as may be"
        self._say(logging.WARNING, claim, f"{text}; new ones are refused until some have ended")
        return True

    def _ended(self, stream: Stream) -> None:
        self._streams[stream.port].discard(stream)
        if not self._streams[stream.port]:
            del self._streams[stream.port]
        self._of[stream.claim] -= 1
        if not self._of[stream.claim]:
            del self._of[stream.claim]

    def _look(self) -> None:
        """Look for what goes on for too long, as long as there is anything."""
        now = time.monotonic()
        for stream in self._all():
            stream.look(now, self._patience)
        if self._datagrams is not None:
            self._datagrams.look(now)
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._streams or self._datagrams is not None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _say(self, level: int, about: Hashable, text: str) -> None:
        """Log it; what is about the same again only after a while."""
        now = time.monotonic()
        self._said = {each: at for each, at in self._said.items() if now - at < _SILENCE}
        if about not in self._said:
            self._said[about] = now
            _log.log(level, "%s", text)


def _bound(kind: socket.SocketKind, wanted: Endpoint | None) -> socket.socket:
    """A socket on a port of [::1], on the wanted one if it is free."""
    with contextlib.ExitStack() as undo:
        made = undo.enter_context(socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK))
        if kind is socket.SOCK_STREAM:
            # Connections of an earlier run that are about to end keep no port.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(wanted or (LOOPBACK, 0))
        except OSError:
            made.bind((LOOPBACK, 0))
        undo.pop_all()
        return made


def _inode(made: socket.socket) -> int:
    return os.fstat(made.fileno()).st_ino


def _refuse(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _room(most: int, part: int) -> int:
    """How many there may be, whatever the limit of open files is now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if soft == resource.RLIM_INFINITY else min(most, soft // part)


def _meaning(error: OSError) -> str:
    if error.errno == errno.EAFNOSUPPORT:
        return (
            "nfportd may open no IPv6 sockets; copy its systemd/relay.conf to /etc/systemd/system/nfportd.service.d/ "
            "and run: systemctl daemon-reload && systemctl restart nfportd"
        )
    return error.strerror or str(error)

"""TCP connections of the relay: bytes from each end to the other, half-closed as the ends are, within bounds.

Must not know who may connect, nor where to. The one idea: what was read is sent at once; what the other end does not
take is kept, and until it is gone nothing more is read. So a stalled end stalls the other one, and an idle connection
keeps nothing at all.

A connection ends as it would through the kernel: by its ends, by a reset, by a peer that is silent for too long; and
half-closed without a byte after two minutes, when conntrack forgets it (nf_conntrack_tcp_timeout_fin_wait). An idle
one is kept, as long as its ends answer keepalives.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from nfportd.desired import Claim
from nfportd.model import Endpoint
from nfportd.turns import Turns

#: Bytes read at a time; what is kept for an end that does not take them is never more.
CHUNK = 1 << 16
_buffer = memoryview(bytearray(CHUNK))

_RESET = struct.pack("ii", 1, 0)  # struct linger: closing sends a reset
_MARK = 36  # SO_MARK
#: Seconds of idleness after which an end is asked whether it is there, between questions; questions without an answer.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 600), (socket.TCP_KEEPINTVL, 60), (socket.TCP_KEEPCNT, 10))
#: Where `tcpi_retransmits` is in struct tcp_info (linux/tcp.h); a window that is closed counts elsewhere.
_RETRANSMITS = 2


class Patience(NamedTuple):
    """How long a connection may go on without progress."""

    #: Seconds until the target has taken it.
    connecting: float = 10.0
    #: Seconds without a byte after one end has said that it sends no more.
    half_closed: float = 120.0
    #: Times that bytes are sent again to an end that acknowledges nothing: 8 take about 50 seconds (RFC 6298).
    retransmits: int = 8


class _End:
    """One side of a connection."""

    __slots__ = ("kept", "over", "sock", "told")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self.sock = sock
        #: What waits to go to this end.
        self.kept = b""
        #: It sends no more; it was told that the other one does not.
        self.over = self.told = False


class Stream:
    """A connection that `way` takes to its target. `ended` is called once, with the sockets closed.

    `port`: the one to which the client connected; `mark`: of the packets to the target. Raises OSError where there is
    no way to the target, and leaves the client open then.
    """

    def __init__(self, client: socket.socket, port: int, way: tuple[Claim, Endpoint], turns: Turns, mark: int) -> None:
        self.port = port
        self.claim, self.endpoint = way
        self.ended: Callable[[Stream], None] | None = None
        self._turns = turns
        self._connecting = True
        self._moved = time.monotonic()
        target = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._client, self._target = _End(client), _End(target)
            target.setsockopt(socket.SOL_SOCKET, _MARK, mark)
            number = target.connect_ex(self.endpoint)
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, errno.errorcode.get(number, ""))
        except OSError:
            target.close()
            raise
        self._watch(self._client, self._target)

    def abort(self) -> None:
        """End it now, with a reset to both ends."""
        for end in (self._client, self._target):
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def look(self, now: float, patience: Patience) -> None:
        """End it where it went on for too long without progress; `now`: by the steady clock."""
        ends, idle = (self._client, self._target), now - self._moved
        if self._connecting:
            late = idle > patience.connecting
        else:
            late = idle > patience.half_closed and any(end.over for end in ends)
        if late or any(_retransmits(end.sock) >= patience.retransmits for end in ends):
            self.abort()

    def _close(self) -> None:
        for end in (self._client, self._target):
            self._turns.forget(end.sock.fileno())
            end.sock.close()
        if self.ended:
            self.ended(self)

    def _watch(self, *ends: _End) -> None:
        """Wait for what these ends are good for now."""
        for end in ends:
            events = select.EPOLLIN if self._reads(end) else 0
            if end.kept or (self._connecting and end is self._target):
                events |= select.EPOLLOUT
            if end.over and end.told:
                # There is nothing more, of which the kernel would tell without end.
                self._turns.forget(end.sock.fileno())
            else:
                self._turns.watch(end.sock.fileno(), events, partial(self._ready, end))

    def _other(self, end: _End) -> _End:
        return self._target if end is self._client else self._client

    def _reads(self, end: _End) -> bool:
        return not (self._connecting or end.over or self._other(end).kept)

    def _ready(self, end: _End, events: int) -> None:
        try:
            if events & (select.EPOLLERR | select.EPOLLHUP) and not self._reads(end):
                _raise_error(end.sock)
                # Both sides have ended here, and what came last is still to be read.
                self._turns.forget(end.sock.fileno())
                return
            if self._connecting:
                self._connect()
                return
            if events & select.EPOLLOUT:
                self._send(end)
            if self._reads(end):
                self._read(end)
        except BlockingIOError:
            pass
        except OSError:
            self.abort()

    def _connect(self) -> None:
        _raise_error(self._target.sock)
        self._connecting = False
        self._moved = time.monotonic()
        self._watch(self._client, self._target)

    def _read(self, end: _End) -> None:
        count = end.sock.recv_into(_buffer)
        self._moved = time.monotonic()
        other = self._other(end)
        if not count:
            end.over = True
            self._tell(other)
            return
        try:
            sent = other.sock.send(_buffer[:count])
        except BlockingIOError:
            sent = 0
        if sent < count:
            other.kept = bytes(_buffer[sent:count])
            self._watch(end, other)

    def _send(self, end: _End) -> None:
        """Send what was kept for an end."""
        if end.kept:
            sent = end.sock.send(end.kept)
            self._moved = time.monotonic()
            end.kept = end.kept[sent:]
        if not end.kept:
            self._tell(end)

    def _tell(self, end: _End) -> None:
        """Pass on to an end that the other one sends no more, once it has everything."""
        other = self._other(end)
        if other.over and not end.kept and not end.told:
            end.sock.shutdown(socket.SHUT_WR)
            end.told = True
        if self._client.told and self._target.told:
            self._close()
        else:
            self._watch(end, other)


def _raise_error(sock: socket.socket) -> None:
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, errno.errorcode.get(number, ""))


def _retransmits(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RETRANSMITS + 1)[_RETRANSMITS]

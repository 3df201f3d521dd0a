"""The door: who may come in over the socket, and who is shown out because nothing comes of the visit.

Must not know what is asked. The one idea: a connection is counted for its uid from accept to its end, and one on which
no request is at work for QUIET seconds is ended, whatever its client does or leaves undone meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from nfportd.api.problems import problem
from nfportd.limits import Exceeded, Limits, Place, Window
from nfportd.messages import Message, about

_log = logging.getLogger(__name__)

#: Seconds in which a request's head must arrive, on a new connection or after the last answer. aiohttp's
#: keepalive_timeout does that too, but not for a client that does not read, and so keeps its descriptor open.
QUIET = 10.0
#: Connections let in, and looked at, before others get their turn: turning one away costs a hundredth.
_AT_ONCE, _LOOKED_AT = 16, 256
#: Connections of one uid a second that are told why they are turned away.
_REFUSALS = 50
#: Seconds until the next look, where there are no descriptors left.
_PAUSE = 0.1
_UID = struct.Struct("I")


class Connection(web.RequestHandler):
    """aiohttp's side of one connection, with its end in sight."""

    __slots__ = ("_place", "_quiet_since", "_task", "_timer", "_wire", "uid")

    def __init__(self, server: web.Server, place: Place, uid: int, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self.uid = uid
        self._place = place
        self._quiet_since: float | None = None
        self._wire: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        self._quiet_since = self._loop.time()
        self._look_in(QUIET)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._place.leave()
        self._wire = None
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Meanwhile, a request is at work."""
        self._quiet_since = None
        try:
            yield
        finally:
            self._quiet_since = self._loop.time()

    def end_with_me(self) -> None:
        """Cancel the task that calls, when the client hangs up: it may have nothing else to wake it."""
        self._task = asyncio.current_task()

    def abort(self) -> None:
        """End it now, whatever is still to be sent."""
        if self._wire:
            self._wire.abort()

    def _look_in(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        quiet = 0.0 if self._quiet_since is None else self._loop.time() - self._quiet_since
        if quiet >= QUIET:
            self.abort()
        else:
            self._look_in(QUIET - quiet)


class Door:
    """Accepts connections on one listening socket, for aiohttp's server."""

    def __init__(self, server: web.Server, sock: socket.socket, limits: Limits, **options: Any) -> None:
        self._server = server
        self._sock = sock
        self._limits = limits
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._refusals = Window(_REFUSALS, 1.0)

    def open(self) -> None:
        """Let clients in."""
        self._pause = None
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Let no more clients in, and close the socket."""
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _accept(self) -> None:
        admitted = 0
        for _ in range(_LOOKED_AT):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if self._limits.lines.passes(-1):
                    _log.error("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._sock)
                self._pause = self._loop.call_later(_PAUSE, self.open)
                return
            sock.setblocking(False)
            admitted += self._admit(sock)
            if admitted == _AT_ONCE:
                return

    def _admit(self, sock: socket.socket) -> bool:
        uid = _UID.unpack_from(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12), 4)[0]
        if _has_gone(sock):
            sock.close()
            return False
        try:
            place = self._limits.connect(uid)
        except Exceeded as error:
            # Words for all would cost more than their connections, of which a flood makes 50,000 a second.
            if self._limits.lines.passes(uid):
                _log.warning("turned away uid %d: %s", uid, error, extra=about(Message.DENIED))
            if self._refusals.passes(uid):
                with contextlib.suppress(OSError):
                    sock.send(_refusal(str(error)))
            sock.close()
            return False
        task = self._loop.create_task(self._enter(sock, place, uid))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)
        return True

    async def _enter(self, sock: socket.socket, place: Place, uid: int) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: Connection(self._server, place, uid, **self._options), sock
            )
        except OSError as error:
            _log.warning("a connection of uid %d is lost: %s", uid, error.strerror)
            place.leave()
            sock.close()


def _has_gone(sock: socket.socket) -> bool:
    """Whether a client hung up before it was let in, so that nobody waits for an answer."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def _refusal(detail: str) -> bytes:
    response = problem("overloaded", detail)
    head = f"HTTP/1.1 {response.status} {response.reason}\r\nContent-Type: {response.content_type}\r\n"
    head += f"Content-Length: {len(response.text or '')}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    return f"{head}{response.text}".encode()

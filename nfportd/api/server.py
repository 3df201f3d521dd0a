"""The unix socket: who calls, how much a request may be, and errors as problems.

Must not know routes' meaning. The one idea: every request passes two middlewares: one bounds what its user has at work
and how long bodies and answers may take, so that nobody is stalled by another; one knows the caller and turns every
error into a problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import resource
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from nfportd.access import Access, Caller, Denied
from nfportd.api.door import Connection, Door
from nfportd.api.problems import of, problem
from nfportd.errors import NotPossible
from nfportd.limits import LINES, PERIOD, Exceeded, Kind, Limits, Window
from nfportd.messages import Message, about

_log = logging.getLogger(__name__)

#: Bytes of a body: 60,000 separate mappings fit.
MAX_BODY = 16 * 1024 * 1024
#: Bytes beyond which a body is a large one, of which a user has only few at once.
_LARGE_BODY = 1024 * 1024
#: Seconds in which a body must have arrived, and in which an answer must have been taken.
BODY_TIMEOUT = ANSWER_TIMEOUT = 20.0
# linux/socket.h: supplementary groups of the peer at the time of connect
_SO_PEERGROUPS = 59

#: Clients that connect at once and wait for accept; each waits for those before it, and more wait to be queued.
_BACKLOG = 1024

#: Seconds in which a client that was accepted must have begun to ask, when the end has come.
_GRACE = 0.05

CALLER = web.RequestKey("caller", Caller)
LIMITS = web.AppKey("limits", Limits)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def caller_of(request: web.Request) -> Caller:
    """Who is at the other end. Raises Denied where the kernel does not tell."""
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None or sock.family != socket.AF_UNIX:
        raise Denied("the caller is not known")
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:  # more than 256 groups, which Python has no room for
        raw = b""
    return Caller(pid, uid, frozenset((gid, *struct.unpack(f"{len(raw) // 4}I", raw))))


async def body(request: web.Request) -> bytes:
    """The body of a JSON request.

    Raises Refused where it is too large, late or no JSON, Exceeded where the user has too many large ones at work.
    """
    if request.content_type != "application/json" or request.headers.get("Content-Encoding", "identity") != "identity":
        found = request.headers.get("Content-Type", "no media type")
        raise Refused(problem("unsupported-media-type", f"found {found}"))
    small = request.content_length is not None and request.content_length <= _LARGE_BODY
    place = None if small else request.app[LIMITS].take(Kind.LARGE_BODIES, request[CALLER].uid)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except TimeoutError:
        raise Refused(problem("malformed", f"the body did not arrive within {BODY_TIMEOUT:.0f} s")) from None
    finally:
        if place:
            place.leave()


class Refused(Exception):
    """An answer that ends a request early."""

    def __init__(self, response: web.Response) -> None:
        self.response = response
        super().__init__()


def application(
    routes: web.RouteTableDef | list[web.RouteDef], access: Access, trusted: frozenset[int]
) -> web.Application:
    """The application with its routes behind the access list, and bounds for all uids but the trusted ones."""
    limits = Limits(resource.getrlimit(resource.RLIMIT_NOFILE)[0], trusted)

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            caller = caller_of(request)
            request[CALLER] = caller
            access.read(caller)
            return await handler(request)
        except Refused as refused:
            return refused.response
        except Denied as error:
            text = "denied %s %s to uid %s: %s"
            told, uid = about(Message.DENIED), _uid(request)
            if limits.lines.passes(uid):
                _log.warning(text, request.method, request.path, uid, error, extra=told)
            return of(error)
        except web.HTTPException as error:
            return _http(error, request)
        except (ConnectionError, Exceeded, asyncio.CancelledError):
            raise
        except Exception as error:
            with contextlib.suppress(type(error)):
                return of(error)
            _log.exception("%s %s failed", request.method, request.path)
            return problem("internal", "nfportd failed to answer; its log says more")

    app = web.Application(middlewares=[_bounding(limits), guard], client_max_size=MAX_BODY)
    app[LIMITS] = limits
    app.add_routes(routes)
    return app


def _bounding(limits: Limits) -> Middleware:
    """What keeps each user within its bounds."""

    @web.middleware
    async def bound(request: web.Request, handler: _Handler) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        with connection.working():
            try:
                with limits.taken(Kind.REQUESTS, connection.uid):
                    await limits.pace(connection.uid)
                    return await _send(request, await handler(request), connection)
            except Exceeded as error:
                if limits.lines.passes(connection.uid):
                    _log.warning("refused %s %s: %s", request.method, request.path, error, extra=about(Message.DENIED))
                response = of(error)
                # Who asks again must wait for a new connection.
                response.force_close()
                return await _send(request, response, connection)

    return bound


async def _send(request: web.Request, response: web.StreamResponse, connection: Connection) -> web.StreamResponse:
    """Send an answer. Raises ConnectionError where the client does not take it."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        connection.abort()
        raise ConnectionAbortedError("the client did not take its answer") from None
    return response


def _uid(request: web.Request) -> int:
    caller = request.get(CALLER)
    return caller.uid if caller else -1


def _http(error: web.HTTPException, request: web.Request) -> web.Response:
    match error:
        case web.HTTPNotFound():
            return problem("not-found", f"no resource {request.path}; /openapi.json lists them")
        case web.HTTPMethodNotAllowed():
            response = problem("method-not-allowed", f"{request.path} takes {', '.join(sorted(error.allowed_methods))}")
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        case web.HTTPRequestEntityTooLarge():
            return problem("too-large", f"the limit is {MAX_BODY} bytes; use port ranges, or several owners")
    return problem("malformed", error.reason)


def _one_line() -> logging.Logger:
    """A log for what is no HTTP: its traceback says nothing of us, and anybody who may connect could fill a disk."""
    log = logging.getLogger("nfportd.http")
    lines = Window(LINES, PERIOD)

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            text = str(record.exc_info[1]).splitlines() or [""]
            record.msg, record.args = "bad request: %s", (text[0][:200],)
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
        return lines.passes(-1)

    if not log.filters:
        log.addFilter(shorten)
    return log


class Server:
    """Serves an application on a unix socket; the group may connect, whether it may do more the access list says.

    `inherited`: a socket that listens already and outlives us; else one of our own is made at the path.
    """

    def __init__(self, app: web.Application, path: Path, group: str, inherited: socket.socket | None) -> None:
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=2.0)
        self._limits = app[LIMITS]
        self._path = path
        self._group = group
        self._inherited = inherited
        self._door: Door | None = None

    async def start(self) -> None:
        """Accept clients; those that have connected to an inherited socket before have waited for it."""
        await self._runner.setup()
        try:
            sock = self._inherited or self._listen()
        except OSError as error:
            raise NotPossible(f"{self._path}: cannot listen: {error.strerror}; name another with --socket") from None
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        assert self._runner.server
        self._door = Door(
            self._runner.server, sock, self._limits, access_log=None, auto_decompress=False, logger=_one_line()
        )
        self._door.open()

    def _listen(self) -> socket.socket:
        """A socket of our own, in place of one that an earlier run left."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Bound beside and renamed into place: a client meets either the old socket or one that is ready.
        scratch = self._path.with_name(self._path.name + ".new")
        scratch.unlink(missing_ok=True)
        sock.bind(str(scratch))
        scratch.chmod(0o660)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(scratch, -1, grp.getgrnam(self._group).gr_gid)
        sock.listen(_BACKLOG)
        scratch.rename(self._path)
        return sock

    async def stop(self) -> None:
        """Stop listening; requests that run, or are on their way from clients that were accepted, are answered."""
        if self._door:
            self._door.close()
            await asyncio.sleep(_GRACE)
        await self._runner.cleanup()
        if not self._inherited:
            self._path.unlink(missing_ok=True)

"""The unix socket: who calls, how much a request may be, and errors as problems.

Must not know routes' meaning. The one idea: every request passes one middleware that knows the caller and turns every
error into a problem; bodies are bounded in bytes and in time, so that nobody is stalled by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from nfportd.access import Access, Caller, Denied
from nfportd.api.problems import of, problem
from nfportd.errors import NotPossible
from nfportd.messages import Message, about

_log = logging.getLogger(__name__)

#: Bytes of a body: 60,000 separate mappings fit.
MAX_BODY = 16 * 1024 * 1024
#: Seconds in which a body must have arrived.
BODY_TIMEOUT = 20.0
# linux/socket.h: supplementary groups of the peer at the time of connect
_SO_PEERGROUPS = 59

#: Clients that connect at once and wait for accept; the kernel's somaxconn bounds it too.
_BACKLOG = 4096
_AT_ONCE = 16

#: Seconds in which a client that was accepted must have begun to ask, when the end has come.
_GRACE = 0.05

CALLER = web.RequestKey("caller", Caller)
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
    """The body of a JSON request. Raises Refused where it is too large, late or no JSON."""
    if request.content_type != "application/json" or request.headers.get("Content-Encoding", "identity") != "identity":
        found = request.headers.get("Content-Type", "no media type")
        raise Refused(problem("unsupported-media-type", f"found {found}"))
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await request.read()
    except TimeoutError:
        raise Refused(problem("malformed", f"the body did not arrive within {BODY_TIMEOUT:.0f} s")) from None


class Refused(Exception):
    """An answer that ends a request early."""

    def __init__(self, response: web.Response) -> None:
        self.response = response
        super().__init__()


def application(routes: web.RouteTableDef | list[web.RouteDef], access: Access) -> web.Application:
    """The application with its routes behind the access list."""

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
            told = about(Message.DENIED)
            _log.warning(text, request.method, request.path, _uid(request), error, extra=told)
            return of(error)
        except web.HTTPException as error:
            return _http(error, request)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            with contextlib.suppress(type(error)):
                return of(error)
            _log.exception("%s %s failed", request.method, request.path)
            return problem("internal", "nfportd failed to answer; its log says more")

    app = web.Application(middlewares=[guard], client_max_size=MAX_BODY)
    app.add_routes(routes)
    return app


def _uid(request: web.Request) -> object:
    caller = request.get(CALLER)
    return caller.uid if caller else "unknown"


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

    def shorten(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            text = str(record.exc_info[1]).splitlines() or [""]
            record.msg, record.args = "bad request: %s", (text[0][:200],)
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
        return True

    if not log.filters:
        log.addFilter(shorten)
    return log


class Server:
    """Serves an application on a unix socket; the group may connect, whether it may do more the access list says.

    `inherited`: a socket that listens already and outlives us; else one of our own is made at the path.
    """

    def __init__(self, app: web.Application, path: Path, group: str, inherited: socket.socket | None) -> None:
        self._runner = web.AppRunner(
            app, handle_signals=False, access_log=None, shutdown_timeout=2.0, auto_decompress=False, logger=_one_line()
        )
        self._path = path
        self._group = group
        self._inherited = inherited
        self._site: web.SockSite | None = None

    async def start(self) -> None:
        """Accept clients; those that have connected to an inherited socket before have waited for it."""
        await self._runner.setup()
        try:
            sock = self._inherited or self._listen()
        except OSError as error:
            raise NotPossible(f"{self._path}: cannot listen: {error.strerror}; name another with --socket") from None
        sock.setblocking(False)
        # asyncio takes the backlog also for how many it accepts before it does anything else.
        self._site = web.SockSite(self._runner, sock, backlog=_AT_ONCE)
        await self._site.start()
        sock.listen(_BACKLOG)

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
        if self._site:
            await self._site.stop()
            await asyncio.sleep(_GRACE)
        await self._runner.cleanup()
        if not self._inherited:
            self._path.unlink(missing_ok=True)

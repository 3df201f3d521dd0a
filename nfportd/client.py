"""The daemon's API as a caller sees it: requests over its unix socket, answers and problems as values.

Must use the standard library alone, and must not print. The one idea: an answer is the API's JSON as it came; what is
not an answer is one of two errors, a Problem that the daemon named, or NotReachable.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import struct
from collections.abc import Callable, Iterator, Mapping as AbstractMapping
from typing import Any
from urllib.parse import quote, urlencode

from nfportd.errors import NfportdError

DEFAULT_SOCKET = "/run/nfportd/nfportd.sock"
#: A JSON object of the API; its schema is at /openapi.json.
Json = dict[str, Any]
#: Seconds. A transaction of 65,000 elements takes one.
TIMEOUT = 30.0
#: How often a read-modify-write begins anew when others change the owner meanwhile.
ATTEMPTS = 20
#: What an owner's answer says of its mappings beyond what was asked for.
_STATE = ("state", "reason", "conflicts", "connections", "process", "loopback6", "owner", "since")
_NO_ERROR = 400


class NotReachable(NfportdError):
    """No daemon answers on the socket; the message says why and what to do."""


class Problem(NfportdError):
    """The daemon said no (RFC 9457). `name` is the last part of the problem's type, such as `conflict`."""

    def __init__(self, status: int, body: AbstractMapping[str, Any]) -> None:
        self.status = status
        self.name = str(body.get("type", "")).rpartition(":")[2]
        self.title = str(body.get("title") or f"HTTP status {status}")
        self.detail = str(body.get("detail") or self.title)
        self.errors: list[Json] = body.get("errors") or []
        self.holder: Json | None = body.get("holder")
        self.process: Json | None = body.get("process")
        self.rule: object = body.get("rule")
        super().__init__(self.detail)


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if self.timeout:
                # A blocking connect waits in line where the backlog is full; one with Python's timeout fails at once.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", math.ceil(self.timeout), 0))
            sock.connect(self._path)
            sock.settimeout(self.timeout)
        except OSError:
            sock.close()
            raise
        self.sock = sock


class Client:
    """One caller of one daemon. Keeps its connection between requests; not for several threads."""

    def __init__(self, path: str = DEFAULT_SOCKET, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._connection: _Connection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def get(self, path: str, **query: object) -> Json:
        """Read a resource."""
        return self.request("GET", path, query=query)

    def owner(self, owner: str) -> Json | None:
        """What an owner has, with its etag; None where it has nothing."""
        try:
            return self.get(_owner(owner))
        except Problem as problem:
            if problem.name == "not-found":
                return None
            raise

    def put(self, owner: str, body: Json, *, dry_run: bool = False, etag: str | None = "*") -> Json:
        """Make `body` all that an owner has. `etag`: what it must have now; None: nothing; "*": whatever it has."""
        headers = {} if etag == "*" else {"If-Match": f'"{etag.strip(chr(34))}"'} if etag else {"If-None-Match": "*"}
        return self.request("PUT", _owner(owner), body, headers=headers, query={"dry_run": dry_run or None})

    def delete(self, owner: str, *, etag: str = "*") -> Json:
        """Take back all that an owner has. `etag`: what it must have now; "*": whatever it has."""
        headers = {} if etag == "*" else {"If-Match": f'"{etag.strip(chr(34))}"'}
        return self.request("DELETE", _owner(owner), headers=headers)

    def edit(self, owner: str, change: Callable[[Json | None], Json | None], *, dry_run: bool = False) -> Json:
        """Read what an owner has, change it, write it back; anew where others have changed it meanwhile.

        `change` gets the owner's answer (None: it has nothing) and gives the new body (None: nothing is to be left).
        """
        attempts = ATTEMPTS
        while True:
            attempts -= 1
            now = self.owner(owner)
            body, etag = change(now), now["etag"] if now else None
            try:
                if body is None and now and not dry_run:
                    return self.delete(owner, etag=now["etag"])
                return self.put(owner, body or {"mappings": []}, dry_run=dry_run, etag=etag)
            except Problem as problem:
                if problem.name != "precondition-failed" or not attempts:
                    raise

    def events(self, since: int | None = None) -> Iterator[str]:
        """Events, each as a line of JSON, as they happen; ends when the daemon ends the stream."""
        connection = _Connection(self.path, self._timeout)
        try:
            self._connect(connection)
            sock = connection.sock
            connection.request("GET", _with("/v1/events", {"since": since}))
            answer = connection.getresponse()
            if answer.status >= _NO_ERROR:
                raise Problem(answer.status, _object(answer.read(), self.path))
            # The next event may be hours away.
            sock.settimeout(None)
            for line in answer:
                if text := line.decode().strip():
                    yield text
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        headers: AbstractMapping[str, str] | None = None,
        query: AbstractMapping[str, object] | None = None,
    ) -> Json:
        """Ask for one answer. Raises Problem where the daemon says no, NotReachable where nobody answers."""
        content = None if body is None else json.dumps(body).encode()
        sent = {**(headers or {}), **({"Content-Type": "application/json"} if body is not None else {})}
        path = _with(path, query or {})
        kept = self._connection is not None
        try:
            try:
                status, text = self._once(method, path, content, sent)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # A connection that was kept may have been closed while idle. No request does harm when it comes twice.
                self.close()
                if not kept:
                    raise
                status, text = self._once(method, path, content, sent)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None
        if status >= _NO_ERROR:
            raise Problem(status, _object(text, self.path))
        return _object(text, self.path)

    def _once(
        self, method: str, path: str, content: bytes | None, headers: AbstractMapping[str, str]
    ) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = _Connection(self.path, self._timeout)
        self._connect(self._connection)
        self._connection.request(method, path, content, dict(headers))
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def _connect(self, connection: _Connection) -> None:
        if connection.sock is not None:
            return
        try:
            connection.connect()
        except PermissionError:
            detail = f"{self.path} is closed to you; be root or a member of the socket's group"
            raise Problem(403, {"type": "urn:nfportd:problem:denied", "detail": detail}) from None

    def _unreachable(self, error: Exception) -> NotReachable:
        match error:
            case FileNotFoundError():
                why = "there is no such socket; is nfportd running (systemctl status nfportd)?"
            case ConnectionRefusedError():
                why = "nobody listens on it; is nfportd running (systemctl status nfportd)?"
            case TimeoutError() | BlockingIOError():
                why = f"no answer within {self._timeout:.0f} s; its log may say why (journalctl -u nfportd)"
            case http.client.RemoteDisconnected() | http.client.IncompleteRead() | ConnectionError():
                why = "the daemon went away before it answered; what was asked for may be in force or not, ask again"
            case http.client.HTTPException():
                why = f"what answers is not nfportd ({error!r})"
            case _:
                why = str(error)
        return NotReachable(f"{self.path}: {why}")


def _owner(owner: str) -> str:
    return f"/v1/owners/{quote(owner, safe=':@+')}"


def _with(path: str, query: AbstractMapping[str, object]) -> str:
    """The path with what is asked of it; None is left out."""
    asked = {name: "true" if value is True else value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(asked)}" if asked else path


def _object(text: bytes, path: str) -> Json:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NotReachable(f"{path}: what answers is not nfportd (found {text[:60]!r} instead of a JSON object)")
    return found


def wished(mapping: Json) -> Json:
    """A mapping of an owner's answer as it was asked for; what is empty is the default."""
    return {key: value for key, value in mapping.items() if key not in _STATE and value}

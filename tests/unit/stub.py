"""A daemon that only speaks: HTTP on a unix socket, owners in memory, answers as a test has laid them out.

It must not know what the client makes of them. The one idea: it holds owners as the contract says (etag, If-Match,
404), and everything else is answered from `answers`.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]
SINCE = "2026-01-02T03:04:05Z"
STATE = {"state": "active", "since": SINCE, "loopback6": "relay"}


def problem(name: str, status: int, detail: str, **members: Any) -> tuple[int, Json]:
    """An answer that is a problem."""
    kind = f"urn:nfportd:problem:{name}"
    return status, {"type": kind, "title": name.title(), "status": status, "detail": detail, **members}


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Stub:
    """What the daemon has, says and was asked. `answers` go before what it has, each once."""

    path: Path
    owners: dict[str, Json] = field(default_factory=dict)
    answers: dict[tuple[str, str], list[tuple[int, Any]]] = field(default_factory=dict)
    stream: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    raw: bytes | None = None

    def say(self, method: str, path: str, status: int, body: Any) -> None:
        """Lay out one answer."""
        self.answers.setdefault((method, path), []).append((status, body))

    def have(self, owner: str, *mappings: Json, **more: Any) -> None:
        """Let an owner have mappings."""
        filled = [
            {"protocol": ["tcp"], "masquerade": "auto", "on_change": "keep", **each, **STATE, "owner": owner}
            for each in mappings
        ]
        number = int(self.owners.get(owner, {"etag": "0"})["etag"]) + 1
        kept = {"source": "api", "etag": str(number), "since": SINCE, "persistent": False}
        self.owners[owner] = {"owner": owner, **kept, **more, "mappings": filled}

    def answer(self, asked: Asked) -> tuple[int, Any]:
        self.asked.append(asked)
        if laid := self.answers.get((asked.method, asked.path)):
            return laid.pop(0)
        if asked.path == "/v1/owners":
            return 200, {"owners": [{**each, "mappings": len(each["mappings"])} for each in self.owners.values()]}
        if asked.path == "/v1/mappings":
            return 200, {"mappings": [each for owner in self.owners.values() for each in owner["mappings"]]}
        if asked.path.startswith("/v1/owners/"):
            return self._owner(asked, asked.path.removeprefix("/v1/owners/"))
        return problem("not-found", 404, f"no resource {asked.path}")

    def _owner(self, asked: Asked, owner: str) -> tuple[int, Any]:
        now = self.owners.get(owner)
        if asked.method != "PUT" and now is None:
            return problem("not-found", 404, f"{owner} has no mappings")
        if asked.method == "GET":
            return 200, now
        wanted = asked.headers.get("If-Match", "").strip('"')
        if (wanted and (now is None or now["etag"] != wanted)) or (asked.headers.get("If-None-Match") and now):
            return problem("precondition-failed", 412, f"{owner} has other mappings now")
        before = len(now["mappings"]) if now else 0
        after = asked.body["mappings"] if asked.body else []
        if "dry_run" not in asked.query:
            if after:
                self.have(owner, *after, persistent=asked.body.get("persistent", False))
            else:
                self.owners.pop(owner, None)
        count = len(after) - before
        return 200, {"added": max(count, 0), "removed": max(-count, 0), "owners": {owner: self.owners.get(owner)}}


class _Speaker(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    stub: Stub

    def setup(self) -> None:
        super().setup()
        self.stub.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def _speak(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        asked = Asked(self.command, unquote(url.path), query, dict(self.headers), body)
        if self.stub.raw is not None:
            self.wfile.write(self.stub.raw)
            self.close_connection = True
        elif asked.path == "/v1/events" and self.stub.stream:
            self.stub.asked.append(asked)
            self._stream()
        else:
            status, answer = self.stub.answer(asked)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in self.stub.stream:
            self.wfile.write(f"{len(line) + 1:x}\r\n{line}\n\r\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_PUT = do_POST = do_DELETE = _speak  # noqa: N815


@contextlib.contextmanager
def speaking(path: Path) -> Iterator[Stub]:
    """A stub that answers on this socket."""
    stub = Stub(path)
    speaker = type("Speaker", (_Speaker,), {"stub": stub})
    with ThreadingUnixStreamServer(str(path), speaker) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield stub
        server.shutdown()
        thread.join()

"""Clients that flood the API: `python -m tests.api.floods SOCKET KIND UID`, until it is killed.

Must not know the bounds. The one idea: each kind takes as much as it gets of one thing, and never stops.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable

PUT = b"PUT /v1/owners/flood HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LARGE = PUT + b"Content-Length: %d\r\n\r\n" % (16 << 20)


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(path)
    return sock


def hold(path: str, first: bytes, then: bytes = b"") -> None:
    """Connections without end, each with a beginning and some more again and again, never read."""
    held: list[socket.socket] = []
    while True:
        try:
            sock = connect(path)
            held.append(sock)
            sock.setblocking(False)
            sock.send(first or b"G")
        except OSError:
            time.sleep(0.001)
        for each in held[-200:] if then else ():
            with contextlib.suppress(OSError):
                each.send(then)
        if len(held) > 3_000:
            held.pop(random.randrange(len(held))).close()


def ask(path: str, request: bytes, *, read: bool) -> None:
    """The same request for ever; whoever reads keeps its connection."""
    while True:
        with contextlib.suppress(OSError), connect(path) as sock:
            while True:
                sock.sendall(request)
                if not read or not sock.recv(65536):
                    break


def at_once(count: int, flood: Callable[..., None], *arguments: object, **more: object) -> None:
    for _ in range(count - 1):
        threading.Thread(target=flood, args=arguments, kwargs=more, daemon=True).start()
    flood(*arguments, **more)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


KINDS: dict[str, Callable[[str], None]] = {
    "silent": lambda path: hold(path, b""),
    "slow heads": lambda path: hold(path, b"GET /v1/st", b"a"),
    "slow bodies": lambda path: hold(path, PUT + b"Content-Length: 1000\r\n\r\n{", b" "),
    "unread answers": lambda path: hold(path, get("/openapi.json") * 50),
    "large bodies": lambda path: at_once(20, ask, path, LARGE + b" " * (16 << 20), read=False),
    "hasty": lambda path: ask(path, get("/v1/status"), read=False),
    "nothing there": lambda path: at_once(200, ask, path, get("/nothing"), read=True),
    "listings": lambda path: at_once(100, ask, path, get("/metrics"), read=True),
    "followers": lambda path: hold(path, get("/v1/events")),
}


if __name__ == "__main__":
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
    KINDS[sys.argv[2]](sys.argv[1])

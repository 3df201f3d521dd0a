"""How the tests call the API: bodies as users write them, answers as values, and bytes where a client would not do.

Must not know what a test asserts. The one idea: a refusal is a value as well, so that a test reads like a dialogue.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping as AbstractMapping
from dataclasses import dataclass
from typing import Any

from nfportd.client import Client, Json, Problem
from tests.lab import Daemon, Lab
from tests.netns import Namespace

OWN = "192.0.2.1"
T1, T2, T3 = "10.88.0.11:80", "10.88.0.12:80", "10.88.1.2:80"
# linux/netlink.h NETLINK_NETFILTER, NETLINK_ADD_MEMBERSHIP; linux/netfilter/nfnetlink.h NFNLGRP_NFTABLES
NETLINK_NETFILTER, GROUP, SOL_NETLINK, ADD_MEMBERSHIP = 12, 7, 270, 1


def mapping(listen: int | str, *targets: str, **more: Any) -> Json:
    """One mapping of a body; to t1 unless told otherwise."""
    return {"listen": listen, "targets": list(targets or (T1,)), **more}


def body(*mappings: Json, **more: Any) -> Json:
    return {"mappings": list(mappings), **more}


def refusal(ask: Callable[..., object], *arguments: Any, **more: Any) -> Problem:
    """The problem with which the daemon refuses."""
    try:
        answer = ask(*arguments, **more)
    except Problem as problem:
        return problem
    raise AssertionError(f"nothing was refused: {answer}")


def client(daemon: Daemon) -> Client:
    return Client(str(daemon.socket), timeout=20)


def transact(api: Client, *, dry_run: bool = False, **owners: Json | None) -> Json:
    query = {"dry_run": True} if dry_run else {}
    return api.request("POST", "/v1/transactions", {"owners": owners}, query=query)


def states(api: Client, **query: object) -> dict[str, str]:
    """What became of each mapping, by owner and listen."""
    found = api.get("/v1/mappings", **query)["mappings"]
    return {f"{each['owner']} {each['listen']}": each["state"] for each in found}


def answers(lab: Lab, port: int, space: str = "client") -> str:
    """The target that answers a TCP connection to the host's port; why none does otherwise."""
    answer = lab.spaces[space].ask(OWN, port, timeout=1)
    return answer.target if answer else answer.outcome


def eventually(ask: Callable[[], object], wanted: object, patience: float = 5) -> None:
    """Wait until a question has an answer."""
    until = time.monotonic() + patience
    while (found := ask()) != wanted:
        if time.monotonic() > until:
            raise AssertionError(f"still {found!r} after {patience} s, not {wanted!r}")
        time.sleep(0.02)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer as it came."""

    status: int
    headers: AbstractMapping[str, str]
    content: bytes

    @property
    def json(self) -> Json:
        return dict(json.loads(self.content))

    @property
    def name(self) -> str:
        """The problem's name."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self
        assert self.json["status"] == self.status
        return str(self.json["type"]).removeprefix("urn:nfportd:problem:")


@contextlib.contextmanager
def connected(daemon: Daemon, timeout: float = 10) -> Iterator[socket.socket]:
    """A connection to the API's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(str(daemon.socket))
        yield sock


def answer_on(sock: socket.socket) -> Answer:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return Answer(response.status, dict(response.getheaders()), response.read())


def say(daemon: Daemon, request: bytes) -> Answer:
    """Send bytes on a new connection, and read the answer."""
    with connected(daemon) as sock, contextlib.suppress(BrokenPipeError):
        sock.sendall(request)
        return answer_on(sock)
    raise AssertionError("the daemon hung up")


def ask(daemon: Daemon, method: str, path: str, content: bytes = b"", **headers: str) -> Answer:
    """One request, in HTTP/1.1 and with nothing added."""
    lines = io.StringIO()
    lines.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n")
    sent = {"Content-Length": str(len(content))} if content else {}
    for name, value in {**sent, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
        lines.write(f"{name}: {value}\r\n")
    return say(daemon, f"{lines.getvalue()}\r\n".encode() + content)


class Commits:
    """What the kernel tells of changes to a namespace's tables."""

    def __init__(self, space: Namespace) -> None:
        self._socket = space.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP)

    def seen(self, wait: float = 0.1) -> int:
        """How many messages have come since the last look."""
        count = 0
        self._socket.settimeout(wait)
        while True:
            try:
                self._socket.recv(65536)
            except TimeoutError:
                return count
            count += 1

    def __enter__(self) -> Commits:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

"""Clients that mean no good or do not know better: noise, half requests, slow ones, crowds. The next one is served.

Must not know aiohttp. The one idea: after each, an honest client gets its answer, soon.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.calling import body, client, connected, mapping
from tests.lab import Daemon, Lab

pytestmark = pytest.mark.alone

PUT = b"PUT /v1/owners/web HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """One for all: it must outlive them."""
    begun = Daemon(lab)
    begun.start()
    pid = begun.pid
    yield begun
    assert begun.process
    assert begun.process.poll() is None
    assert begun.pid == pid
    begun.stop()
    assert "Traceback" not in begun.log
    lab.daemons.remove(begun)
    lab.reset()


def an_honest_client_is_served(daemon: Daemon, within: float = 1.0) -> None:
    began = time.monotonic()
    with client(daemon) as api:
        api.put("honest", body(mapping(8080)))
        api.delete("honest")
    assert time.monotonic() - began < within


def noises() -> Iterator[bytes]:
    """Noise, and good requests with some bytes changed, cut or doubled."""
    rng = random.Random(5)
    content = b'{"mappings": [{"listen": 9000, "targets": "10.88.0.11:80"}]}'
    good = PUT + b"Content-Length: %d\r\n\r\n" % len(content) + content
    chunked = PUT + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    for _ in range(150):
        yield rng.randbytes(rng.randint(1, 3000))
    for _ in range(350):
        spoilt = bytearray(rng.choice([good, chunked]))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(spoilt))
            match rng.randrange(3):
                case 0:
                    spoilt[at] = rng.randrange(256)
                case 1:
                    del spoilt[at : at + rng.randint(1, 20)]
                case _:
                    spoilt[at:at] = spoilt[at : at + rng.randint(1, 20)]
            if not spoilt:
                break
        yield bytes(spoilt)
    yield b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n"
    yield b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"
    yield b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n"
    yield PUT + b"Content-Length: -5\r\n\r\n"
    yield PUT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"
    yield PUT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield PUT + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n"


def test_noise_on_the_socket(daemon: Daemon) -> None:
    for noise in noises():
        with connected(daemon, timeout=0.05) as sock, contextlib.suppress(OSError):
            sock.sendall(noise)
            sock.shutdown(socket.SHUT_WR)
            status = sock.recv(4096)[9:12]
            assert not status.startswith(b"5") or status == b"505", noise
    an_honest_client_is_served(daemon)


def test_300_half_open_and_slow_clients_stall_nobody(daemon: Daemon) -> None:
    """Silent ones, some that never end a header, some that never end a body, and some that never read."""
    unread = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50
    beginnings = [b"", b"GET /v1/st", PUT + b"Content-Length: 100\r\n\r\n{", unread]
    with contextlib.ExitStack() as crowd:
        for number in range(300):
            sock = crowd.enter_context(connected(daemon))
            sock.sendall(beginnings[number % len(beginnings)])
        for _ in range(5):
            an_honest_client_is_served(daemon)
    an_honest_client_is_served(daemon)


def test_clients_that_hang_up_before_their_answer(daemon: Daemon) -> None:
    """Each wish comes true as a whole or not at all, whoever waits for it."""
    content = b'{"mappings": [{"listen": "9000-9019", "targets": "10.88.0.11:9000-9019"}]}'
    for number in range(100):
        with connected(daemon) as sock:
            head = PUT.replace(b"web", b"hasty") if number % 2 else b"DELETE /v1/owners/hasty HTTP/1.1\r\nHost: x\r\n"
            tail = b"Content-Length: %d\r\n\r\n%s" % (len(content), content) if number % 2 else b"\r\n"
            sock.sendall(head + tail)
    an_honest_client_is_served(daemon)
    assert len(daemon.elements("any4")) in (0, 20)
    with client(daemon) as api, contextlib.suppress(Exception):
        api.delete("hasty")


def test_a_crowd_that_connects_at_once(daemon: Daemon) -> None:
    with contextlib.ExitStack() as crowd:
        waiting = []
        for _ in range(500):
            sock = crowd.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(5)
            sock.connect(str(daemon.socket))
            waiting.append(sock)
        for sock in waiting:
            sock.sendall(b"GET /v1/owners HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {sock.recv(12) for sock in waiting} == {b"HTTP/1.1 200"}


def test_large_bodies_do_not_stay_in_memory(daemon: Daemon) -> None:
    """Twenty bodies of 12 MB, refused for their last byte."""

    def resident() -> int:
        lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    content = b'{"mappings": [' + b" " * (12 << 20) + b"}"
    seen = []
    for _ in range(20):
        with connected(daemon) as sock:
            sock.sendall(PUT + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            assert sock.recv(12) == b"HTTP/1.1 400"
        seen.append(resident())
    assert max(seen[5:]) - seen[4] < 40_000, seen

"""What ends a relayed connection that makes no progress, with less patience than the daemon has; and what does not.

It must not know the daemon. The one idea: one stream in the host's namespace, looked at again and again, and what its
client sees.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from nfportd.desired import Claim
from nfportd.model import Endpoint
from nfportd.streams import Patience, Stream
from nfportd.turns import Turns
from tests.lab import Lab, address
from tests.unit.reading import mapping

CLAIM = Claim("api:test", 0, mapping(8080, "[fd88::11]:80"))
LITTLE = Patience(connecting=0.5, half_closed=0.5, retransmits=4)
SILENT = 9


@pytest.fixture(scope="module", autouse=True)
def _silent(lab: Lab) -> Iterator[None]:
    """One port of t1 answers nothing at all."""
    rule = f"chain input {{\n type filter hook input priority 0\n tcp dport {SILENT} drop\n }}"
    lab.t1.nft(f"table inet silent {{\n {rule}\n}}")
    yield
    lab.t1.nft("delete table inet silent")


def lasts(lab: Lab, act: Callable[[socket.socket], None], limit: float, port: int = 80) -> float:
    """Seconds for which a stream to t1 lasts, at most `limit`, while its client acts."""

    async def run() -> float:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as waiting:
            near = socket.create_connection(waiting.getsockname()[:2], timeout=limit + 5)
            client, _ = waiting.accept()
        turns, ended = Turns(), asyncio.Event()
        stream = Stream(client, 8080, (CLAIM, Endpoint(address("t1", 6), port)), turns, 0)
        stream.ended = lambda _: ended.set()
        begun = time.monotonic()
        acting = asyncio.create_task(asyncio.to_thread(act, near))
        while not ended.is_set() and time.monotonic() - begun < limit:
            await asyncio.sleep(0.05)
            stream.look(time.monotonic(), LITTLE)
        took = time.monotonic() - begun
        if not ended.is_set():
            stream.abort()
        await acting
        near.close()
        turns.close()
        return took

    with lab.host.entered():
        return asyncio.run(run())


def is_reset(near: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        near.recv(1)


def test_a_target_that_does_not_answer(lab: Lab) -> None:
    assert 0.5 <= lasts(lab, is_reset, 3, port=SILENT) < 1.5


def test_a_half_closed_connection_on_which_nothing_happens(lab: Lab) -> None:
    def act(near: socket.socket) -> None:
        near.shutdown(socket.SHUT_WR)
        is_reset(near)

    with lab.t1.socket(socket.AF_INET6, socket.SOCK_STREAM) as idle:
        idle.bind(("::", 9001))
        idle.listen()
        assert 0.5 <= lasts(lab, act, 3, port=9001) < 1.5


def test_an_idle_connection_is_kept(lab: Lab) -> None:
    def act(near: socket.socket) -> None:
        for _ in range(2):
            near.sendall(b"?")
            assert near.recv(100).startswith(b"t1 ")
            time.sleep(1)

    assert lasts(lab, act, 2.2) >= 2.2


def test_a_target_that_takes_nothing_is_waited_for(lab: Lab) -> None:
    """It acknowledges probes of its closed window, so it is there."""

    def act(near: socket.socket) -> None:
        near.settimeout(1)
        with pytest.raises(TimeoutError):
            near.sendall(bytes(1 << 26))

    with lab.t1.socket(socket.AF_INET6, socket.SOCK_STREAM) as stalled:
        stalled.bind(("::", 9002))
        stalled.listen()
        assert lasts(lab, act, 5, port=9002) >= 5


def test_a_target_that_vanishes(lab: Lab) -> None:
    def act(near: socket.socket) -> None:
        near.sendall(b"?")
        assert near.recv(100).startswith(b"t1 ")
        lab.host.ip("link", "set", "v-t1", "down")
        near.sendall(b"?")
        is_reset(near)

    try:
        # Four times the same bytes: after 0.2, 0.6, 1.4 and 3 seconds.
        assert 2 < lasts(lab, act, 10) < 6
    finally:
        lab.host.ip("link", "set", "v-t1", "up")

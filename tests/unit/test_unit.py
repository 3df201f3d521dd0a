"""What the service manager hears, read from a socket as systemd reads it.

It must not start a daemon. The one idea: each message is a datagram; what does not come within a moment does not come.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfportd import unit


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def told(sock: socket.socket) -> list[str]:
    found = []
    try:
        while True:
            found.append(sock.recv(4096).decode())
    except BlockingIOError:
        return found


async def for_a_while(task: asyncio.Task[None], seconds: float) -> None:
    await asyncio.wait({task}, timeout=seconds)
    assert task.cancel(), task.exception()


def test_a_reload_is_framed_also_when_it_fails(heard: socket.socket) -> None:
    with pytest.raises(ValueError, match="broken"), unit.reloading():
        raise ValueError("broken")

    first, last = told(heard)
    assert first.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert last == "READY=1"


def test_a_burst_of_changes_is_one_status_line(heard: socket.socket) -> None:
    async def burst() -> None:
        changed, number = asyncio.Event(), 0
        task = asyncio.create_task(unit.tell_status(changed, lambda: f"{number} mappings"))
        for number in range(1000):  # noqa: B007 (the line above reads it)
            changed.set()
            await asyncio.sleep(0)
        await for_a_while(task, 0.5)

    asyncio.run(burst())

    assert told(heard)[-1] == "STATUS=999 mappings"
    assert len(told(heard)) == 0


def test_only_beats_that_come_back_are_told(heard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000")
    beats = iter([None, ValueError("the table cannot be read"), None])

    async def beat() -> None:
        try:
            failure = next(beats)
        except StopIteration:
            await asyncio.Event().wait()  # hangs
        else:
            if failure:
                raise failure

    async def live() -> None:
        await for_a_while(asyncio.create_task(unit.feed_watchdog(beat)), 0.3)

    asyncio.run(live())

    assert told(heard) == ["WATCHDOG=1", "WATCHDOG=1"]


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)

    unit.ready()
    with unit.reloading():
        pass

    assert unit.inherited() is None

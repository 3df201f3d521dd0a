"""Owners that end with a deadline or a process, by the real clock and real processes.

It must not touch namespaces. The one idea: follow, let something end, and hear who is told of it, or that nobody is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nfportd.kernel import lifetimes as module
from nfportd.kernel.lifetimes import Lifetimes, incarnation
from tests.told import Told

pytestmark = pytest.mark.alone

Story = Callable[[Lifetimes, Told], Awaitable[None]]


def play(story: Story) -> None:
    async def whole() -> None:
        told = Told()
        with contextlib.closing(Lifetimes(told)) as lifetimes:
            await story(lifetimes, told)

    asyncio.run(whole())


def until(lifetimes: Lifetimes, owner: str, seconds: float) -> None:
    lifetimes.follow(owner, deadline=time.time() + seconds, pid=None, netns=None)


def bind(lifetimes: Lifetimes, owner: str, process: subprocess.Popen[bytes]) -> None:
    lifetimes.follow(owner, deadline=None, pid=process.pid, netns=None)


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start processes that end only when killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


Sleeper = Callable[[], subprocess.Popen[bytes]]


def test_an_owner_ends_at_its_deadline_and_not_before() -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        before = time.monotonic()
        until(lifetimes, "late", 0.2)
        until(lifetimes, "early", 0.1)
        until(lifetimes, "never", 3600)

        assert await told.next() == ("early", "its time was up")
        assert 0.1 <= time.monotonic() - before < 0.2 + 1
        assert (await told.next())[0] == "late"
        assert (time.monotonic() - before >= 0.2, await told.rest()) == (True, [])

    play(story)


def test_a_deadline_in_the_past_is_told_at_once_but_not_from_inside() -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        until(lifetimes, "cni:a", -10)

        assert (told.now(), (await told.next())[0]) == ([], "cni:a")

    play(story)


def test_a_renewed_owner_lives_on() -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        until(lifetimes, "a", 0.1)
        until(lifetimes, "a", 3600)
        until(lifetimes, "b", 0.1)
        lifetimes.follow("b", deadline=None, pid=None, netns=None)
        until(lifetimes, "c", -1)
        until(lifetimes, "c", 3600)
        until(lifetimes, "d", 0.05)
        lifetimes.forget("d")

        assert await told.rest() == []

    play(story)


def test_a_deadline_brought_forward_is_kept() -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        until(lifetimes, "a", 3600)
        until(lifetimes, "a", 0.05)

        assert (await told.next())[0] == "a"

    play(story)


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_step_of_the_wall_clock_makes_no_life_longer_or_shorter(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        until(lifetimes, "soon", 0.2)
        until(lifetimes, "later", 1800)
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + step)

        assert told.now() == []
        assert ((await told.next())[0], await told.rest()) == ("soon", [])

    play(story)


def test_time_goes_on_while_the_host_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 0.05)

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        until(lifetimes, "a", 1800)
        until(lifetimes, "b", 7200)
        clock = module._now
        monkeypatch.setattr(module, "_now", lambda: clock() + 3600)

        assert ((await told.next())[0], await told.rest()) == ("a", [])

    play(story)


def test_ten_thousand_owners_cost_nothing_while_nothing_ends() -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        for _ in range(5):  # renewed again and again
            for number in range(10_000):
                until(lifetimes, f"api:{number}", 3600 + number)
        await asyncio.sleep(0)
        before = time.process_time()
        await asyncio.sleep(0.5)

        assert time.process_time() - before < 0.01
        assert (len(lifetimes._deadlines) < 25_000, told.now()) == (True, [])

    play(story)


def test_thousands_that_end_together_are_all_told() -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        end = time.time() + 0.3
        for number in range(5000):
            lifetimes.follow(f"api:{number}", deadline=end, pid=None, netns=None)
        ended = {(await told.next())[0] for _ in range(5000)}

        assert (len(ended), await told.rest()) == (5000, [])

    play(story)


def test_the_owners_of_a_process_end_with_it(sleeper: Sleeper) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        one, other = sleeper(), sleeper()
        bind(lifetimes, "a", one)
        bind(lifetimes, "b", one)
        bind(lifetimes, "c", other)
        one.kill()  # not waited for: a zombie has ended too

        ends = sorted([await told.next(), await told.next()])
        assert ends == [("a", f"process {one.pid} ended"), ("b", f"process {one.pid} ended")]
        assert await told.rest() == []

    play(story)


def test_whichever_comes_first(sleeper: Sleeper) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        process = sleeper()
        soon = time.time() + 0.1
        lifetimes.follow("a", deadline=soon, pid=process.pid, netns=None)
        lifetimes.follow("b", deadline=soon + 3600, pid=process.pid, netns=None)

        assert await told.next() == ("a", "its time was up")
        process.kill()
        assert (await told.next(), await told.rest()) == (("b", f"process {process.pid} ended"), [])

    play(story)


def test_what_was_given_before_counts_no_more(sleeper: Sleeper) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        old, new = sleeper(), sleeper()
        bind(lifetimes, "a", old)
        bind(lifetimes, "a", new)
        bind(lifetimes, "b", old)
        lifetimes.forget("b")
        old.kill()
        assert await told.rest() == []

        new.kill()
        assert (await told.next())[0] == "a"

    play(story)


def test_an_end_that_was_not_told_yet_is_not_told_of_the_next_life(sleeper: Sleeper) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        old, new = sleeper(), sleeper()
        bind(lifetimes, "a", old)
        old.kill()
        old.wait()
        with pytest.raises(ValueError, match=f"there is no process {old.pid}"):
            bind(lifetimes, "b", old)  # finds out that it ended
        bind(lifetimes, "a", new)

        assert await told.rest() == []

    play(story)


def test_a_refused_change_leaves_the_life_as_it_was(sleeper: Sleeper) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        process = sleeper()
        bind(lifetimes, "a", process)
        with pytest.raises(ValueError, match="not an absolute path"):
            lifetimes.follow("a", deadline=time.time(), pid=os.getpid(), netns="run/netns/x")
        assert await told.rest() == []
        process.kill()
        assert (await told.next())[0] == "a"

    play(story)


def zombie(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process.pid


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40])
def test_what_is_no_process_is_refused(pid: int) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        with pytest.raises(ValueError, match=str(pid)):
            lifetimes.follow("a", deadline=None, pid=pid, netns=None)

    play(story)


def test_a_process_that_has_ended_and_a_thread_are_refused(sleeper: Sleeper) -> None:
    async def story(lifetimes: Lifetimes, told: Told) -> None:
        refused = [ended_process(), zombie(sleeper()), await asyncio.to_thread(threading.get_native_id)]
        for pid in refused:
            with pytest.raises(ValueError, match=str(pid)):
                lifetimes.follow("a", deadline=None, pid=pid, netns=None)

    play(story)


def test_whoever_is_told_may_follow_the_owner_again() -> None:
    async def story(_: Lifetimes, told: Told) -> None:
        def again(owner: str, reason: str) -> None:
            told(owner, reason)
            if len(rounds) < 3:
                rounds.append(owner)
                until(lifetimes, owner, 0.01)

        rounds: list[str] = []
        with contextlib.closing(Lifetimes(again)) as lifetimes:
            until(lifetimes, "a", 0.01)
            assert await told.rest() == ["a"] * 4

    play(story)


def test_close_leaves_nothing_open_and_tells_nothing(sleeper: Sleeper) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def story(_: Lifetimes, told: Told) -> None:
        before = open_files()
        for _round in range(3):
            with contextlib.closing(Lifetimes(told)) as lifetimes:
                lifetimes.follow("a", deadline=time.time() + 0.05, pid=sleeper().pid, netns=None)
                until(lifetimes, "b", -1)

        assert (open_files(), await told.rest()) == (before, [])

    play(story)


def test_an_incarnation_tells_processes_apart(sleeper: Sleeper) -> None:
    one, other = sleeper(), sleeper()
    first = incarnation(pid=one.pid, netns=None)

    assert first == incarnation(pid=one.pid, netns=None)
    assert first == incarnation(pid=None, netns=f"/proc/{one.pid}/ns/net")
    assert first != incarnation(pid=other.pid, netns=None)
    with pytest.raises(ValueError, match="there is no process"):
        incarnation(pid=ended_process(), netns=None)

"""The daemon is ended while it, or libnftables, is anywhere in a transaction.

Must not know the order of a stop. The one idea: who writes stands still at a call, the daemon gets its signal, and only
then does that process go on.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from nfportd.client import NotReachable, Problem
from tests.api.calling import T1, T2, body, client, mapping
from tests.faults.injection import Fault, injected, injected_at_birth
from tests.faults.test_libnftables import ALL
from tests.faults.truth import SOON, agreed, left
from tests.lab import Daemon, Lab

BEFORE, AFTER = body(mapping(8090, T1), mapping(8091)), body(mapping(8090, T2), mapping(8092))
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1)

pytestmark = pytest.mark.timeout(1800 if ALL else 120)


def put(daemon: Daemon) -> bool:
    """Whether the change was acknowledged."""
    with client(daemon) as api:
        try:
            api.put("web", AFTER)
        except (Problem, NotReachable):
            return False
    return True


def end(daemon: Daemon, number: signal.Signals, go_on: Callable[[], None]) -> int:
    """Give the daemon its signal, then let libnftables go on; the exit status."""
    process = daemon.process
    assert process
    os.kill(process.pid, number)
    go_on()
    status = process.wait(SOON)
    daemon.process = None
    return status


def phases(*sample: tuple[str, int], last: dict[str, int]) -> list[tuple[str, int]]:
    """The calls after which to stop: a sample, or every one up to the last of its kind."""
    return [(call, nth) for call, most in last.items() for nth in range(1, most + 1)] if ALL else list(sample)


def test_in_a_change(lab: Lab, daemon: Daemon) -> None:
    # A change is stored, then it is in force, then that has been told.
    tried = phases(("sendmsg", 1), last={"sendmsg": 1, "recvmsg": 3})
    for number, (call, nth) in itertools.product(SIGNALS, tried):
        print(number, call, nth)  # shown when it fails
        with client(daemon) as api:
            api.put("web", BEFORE)
        with ThreadPoolExecutor(1) as pool, injected(daemon, Fault(call, nth, "SIGSTOP"), daemon.pid) as injection:
            answer = pool.submit(put, daemon)
            assert injection.stopped()
            status = end(daemon, number, injection.go_on)
            told = answer.result(SOON)
        assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        if number == signal.SIGTERM:
            assert left(lab) == []
        daemon.start()
        # Who was told nothing may find either, but nothing between.
        agreed(daemon, AFTER, *([] if told else [BEFORE]))


def test_sigterm_in_a_stop(lab: Lab, daemon: Daemon) -> None:
    """A second one, from somebody in a hurry."""
    for call, nth in phases(("sendmsg", 1), last={"sendto": 6, "recvmsg": 8, "sendmsg": 1}):
        if daemon.process is None:
            daemon.start()
        with injected(daemon, Fault(call, nth, "SIGSTOP")) as injection:
            os.kill(daemon.pid, signal.SIGTERM)
            assert injection.stopped()
            assert end(daemon, signal.SIGTERM, injection.go_on) == 0
        assert left(lab) == []


def test_sigterm_in_a_start(lab: Lab, daemon: Daemon) -> None:
    daemon.stop()
    for call, nth in phases(("sendmsg", 1), last={"sendto": 36, "recvmsg": 50, "sendmsg": 3}):
        print(call, nth)  # shown when it fails
        with injected_at_birth(daemon, Fault(call, nth, "SIGSTOP")) as injection:
            assert injection.stopped()
            assert end(daemon, signal.SIGTERM, injection.go_on) == 0
        assert left(lab) == []

"""A transaction fails, or libnftables does or dies at any of its calls: what was acknowledged holds, traffic goes on.

Must not know how nfportd recovers. The one idea: whatever was injected, soon the kernel, the API and the store say the
same, and that is what the caller was told. A sample of faults by default; FAULTS=all tries each at each call.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest

from nfportd.client import Json, Problem
from nfportd.kernel import nft_worker
from tests.api.calling import OWN, T1, T2, body, client, eventually, mapping
from tests.faults.injection import CALLS, Fault, Injection, injected, injected_at_birth, worker, workers
from tests.faults.truth import SOON, STILL, agreed, kernel, left
from tests.lab import Daemon, Lab

ALL = os.environ.get("FAULTS") == "all"
ERRORS = ("EBUSY", "EINTR", "ENOMEM", "ENOBUFS")
HOWS = ("SIGKILL", "SIGSEGV", *ERRORS)

pytestmark = pytest.mark.timeout(7200 if ALL else 120)


def each_fault(
    attempt: Callable[[Fault], bool],
    *sample: Fault,
    step: int = 1,
    hows: Iterable[str] = HOWS,
    calls: Iterable[str] = CALLS,
) -> None:
    """Try faults, each by an attempt that says whether it was met; behind the last call there is nothing to try."""
    if not ALL:
        for fault in sample:
            assert attempt(fault), f"{fault}: there is no such call"
        return
    for how, call in itertools.product(hows, calls):
        for nth in itertools.count(1, step):
            print(how, call, nth)  # shown when it fails
            if not attempt(Fault(call, nth, how)):
                break


@contextlib.contextmanager
def traffic(lab: Lab) -> Iterator[None]:
    """Traffic through the mapping that nobody touches: one connection that stays, and new ones all the time."""
    over, outcomes = threading.Event(), Counter[str]()

    def ask() -> None:
        with lab.outside.talk(OWN, STILL) as talk:
            while not over.wait(0.01):
                outcomes[lab.outside.ask(OWN, STILL).target] += 1
                outcomes[talk.ask().target] += 1

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield
    finally:
        over.set()
        client.join()
    assert outcomes.keys() == {"t1"}, outcomes


def wish(number: int) -> Json:
    """Bodies, each of which changes, adds and removes something against the one before."""
    return body(mapping(8090, T2 if number % 2 else T1), mapping(8091 + number % 2))


def put(daemon: Daemon, wished: Json) -> bool:
    """Whether the daemon says that it is in force."""
    with client(daemon) as api:
        try:
            api.put("web", wished)
        except Problem:
            return False
    return True


def test_a_change(lab: Lab, daemon: Daemon) -> None:
    numbers = itertools.count(1)
    held = wish(0)
    assert put(daemon, held)

    def attempt(fault: Fault) -> bool:
        nonlocal held
        wished = wish(next(numbers))
        with injected(daemon, fault, daemon.pid) as injection:
            held = wished if put(daemon, wished) else held
        agreed(daemon, held)
        return injection.fired

    with traffic(lab):
        each_fault(
            attempt,
            *(Fault("sendmsg", 1, how) for how in ERRORS),
            *(Fault("recvmsg", nth, how) for nth in (1, 2, 3) for how in ERRORS),
            hows=ERRORS,
            calls=("sendmsg", "recvmsg"),
        )


def test_a_change_after_libnftables_died(lab: Lab, daemon: Daemon) -> None:
    """Its socket is ours as well, and what the table is owned by."""
    with traffic(lab):
        for number in range(4):
            os.kill(worker(daemon), signal.SIGKILL)
            assert put(daemon, wish(number))
            agreed(daemon, wish(number))


def test_it_ends_without_a_word_when_the_daemon_has_gone(lab: Lab) -> None:
    """A daemon that is killed closes its end a moment before its child gets its signal."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        command = [sys.executable, "-P", nft_worker.__file__, str(theirs.fileno()), str(os.getpid())]
        process = lab.host.popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)

    assert (process.communicate(timeout=20)[1], process.returncode) == ("", 0)


def test_what_cannot_be_written_is_refused_and_taken_back(lab: Lab, daemon: Daemon) -> None:
    assert put(daemon, wish(0))
    with traffic(lab):
        with (
            injected(daemon, Fault("sendmsg", 1, "ENOMEM", lasting=True)),
            injected(daemon, Fault("sendmsg", 1, "ENOMEM", lasting=True), daemon.pid),
        ):
            assert not put(daemon, wish(1))
            assert lab.outside.ask(OWN, 8090).target == "t1"
        agreed(daemon, wish(0))


def test_while_libnftables_dies_all_the_time_a_change_is_in_force_or_taken_back(lab: Lab, daemon: Daemon) -> None:
    assert put(daemon, wish(0))
    over = threading.Event()

    def slay() -> None:
        while not over.is_set():
            for pid in workers(daemon):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)

    slayer = threading.Thread(target=slay)
    with traffic(lab):
        slayer.start()
        try:
            held = wish(1) if put(daemon, wish(1)) else wish(0)
        finally:
            over.set()
            slayer.join()
        agreed(daemon, held)


def test_a_repair(lab: Lab, daemon: Daemon) -> None:
    assert put(daemon, wish(0))

    def attempt(fault: Fault) -> bool:
        with lab.outside.talk(OWN, 8090) as talk:
            assert talk.ask().target == "t1"
            with injected(daemon, fault) as injection:
                lab.host.run(["nft", "flush", "ruleset"], check=False)  # one that is owned stays
                eventually(lambda: len(kernel(daemon)), 3, SOON)
                # Only now: a question of ours would have brought the repair about.
                agreed(daemon, wish(0))
            assert talk.ask().target == lab.outside.ask(OWN, 8090).target == "t1"
        return injection.fired

    if "owner" in str(daemon.table()["nftables"][1]):
        pytest.skip("nobody can flush a table that has an owner")
    each_fault(
        attempt,
        Fault("sendmsg", 1, "SIGKILL"),
        Fault("sendmsg", 1, "EBUSY"),
        Fault("recvmsg", 12, "EINTR"),
        Fault("sendmsg", 2, "SIGKILL"),  # the seal
    )


MEDDLING = """
add element inet nfportd any4 { tcp . 9999 : 10.88.0.11 . 80 }
delete element inet nfportd any4 { tcp . 8091 }
delete element inet nfportd any4 { tcp . 8090 }
add element inet nfportd any4 { tcp . 8090 : 10.88.0.12 . 80 }
"""


def born(daemon: Daemon, fault: Fault) -> Injection:
    """Start the daemon with a fault until it is ready."""
    seen = len(daemon.log)
    with injected_at_birth(daemon, fault) as injection:
        daemon.wait_for(r"\bready: ", seen, SOON)
    return injection


def test_an_adoption(lab: Lab, daemon: Daemon) -> None:
    """Of a table in which something is missing, foreign and wrong; what is right goes on being served."""
    assert put(daemon, wish(0))

    def attempt(fault: Fault) -> bool:
        daemon.kill9()
        eventually(lambda: lab.host.run(["nft", "-f", "-"], text=MEDDLING, check=False).returncode, 0)
        injection = born(daemon, fault)
        agreed(daemon, wish(0))
        return injection.fired

    with traffic(lab):
        each_fault(attempt, Fault("recvmsg", 36, "SIGKILL"), step=3)


def test_a_first_load_and_a_stop(lab: Lab, daemon: Daemon) -> None:
    assert put(daemon, wish(0))
    daemon.stop()

    def attempt(fault: Fault) -> bool:
        injection = born(daemon, fault)
        agreed(daemon, wish(0))
        with injected(daemon, Fault("sendmsg", 1, fault.how)):
            assert daemon.stop(SOON) == 0
        assert left(lab) == []
        return injection.fired

    each_fault(attempt, Fault("sendmsg", 1, "SIGSEGV"), step=3)


def test_a_stop(lab: Lab, daemon: Daemon) -> None:
    def attempt(fault: Fault) -> bool:
        if daemon.process is None:
            daemon.start()
        assert left(lab)
        with injected(daemon, fault) as injection:
            assert daemon.stop(SOON) == 0
        assert left(lab) == []
        return injection.fired

    each_fault(attempt, Fault("sendmsg", 1, "ENOMEM"))

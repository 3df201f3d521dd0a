"""Faults in the process that runs libnftables, or the daemon: at its n-th netlink call an error, its end, or a pause.

Must not know what a test does meanwhile. The one idea: strace stands between that process and the kernel, so the
library, the process and the daemon are the real ones.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.lab import Daemon

#: What libnftables does: a transaction, a question, an answer. `sendto` is also how the process answers the daemon. The
#: daemon itself writes elements by `sendmsg` and reads the answer by `recvmsg`.
CALLS = ("sendmsg", "sendto", "recvmsg")
_PATIENCE = 20.0


class Fault(NamedTuple):
    """What becomes of the n-th call of a kind. An errno: it fails and does nothing; SIGKILL: the process ends before
    it; SIGSEGV: after it; SIGSTOP: the process stops after it."""

    call: str
    nth: int
    how: str
    #: Whether all later calls of the kind are met as well.
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.how} at {self.call} {self.nth}"


class Injection:
    """A fault that waits in a process; see `injected` and `injected_at_birth`."""

    def __init__(self, pid: int, fault: Fault, output: Path) -> None:
        self.pid = pid
        self._fault = fault
        self._output = output
        #: Whether the process has come as far; known at the end.
        self.fired = False
        effect = f"signal={fault.how}" if fault.how.startswith("SIG") else f"error={fault.how}"
        inject = f"inject={fault.call}:{effect}:when={fault.nth}{'+' if fault.lasting else ''}"
        command = ["strace", "-o", str(output), "-e", f"trace={fault.call}", "-e", inject, "-p", str(pid)]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr
        said = self._strace.stderr.readline()
        if "attached" not in said:
            self.end()
            raise RuntimeError(f"strace: {said}")

    def stopped(self) -> bool:
        """Wait until a SIGSTOP has stopped the process; False where it never comes as far."""
        until = time.monotonic() + _PATIENCE
        while self._strace.poll() is None and time.monotonic() < until:
            if "stopped by SIGSTOP" in self._output.read_text().partition(f"{self._fault.call}(")[2]:
                return True
            time.sleep(0.002)
        return False

    def go_on(self) -> None:
        """Let a stopped process go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Leave the process alone."""
        self._strace.terminate()
        self._strace.wait(_PATIENCE)
        assert self._strace.stderr
        self._strace.stderr.close()
        self.go_on()
        self.fired = self._output.read_text().count(f"{self._fault.call}(") >= self._fault.nth


def workers(daemon: Daemon) -> list[int]:
    """The processes that run libnftables for a daemon, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        found = [int(each) for each in children if b"nft_worker" in Path(f"/proc/{each}/cmdline").read_bytes()]
    return sorted(found)


def worker(daemon: Daemon) -> int:
    """The process that runs libnftables, once there is one: for a moment another may read others' rules."""
    until = time.monotonic() + _PATIENCE
    while len(found := workers(daemon)) != 1:
        assert time.monotonic() < until, f"processes for libnftables: {found}\n{daemon.log[-2000:]}"
        time.sleep(0.001)
    return found[0]


@contextlib.contextmanager
def injected(daemon: Daemon, fault: Fault, pid: int | None = None) -> Iterator[Injection]:
    """A fault in what libnftables does from now on, or another process."""
    injection = Injection(pid or worker(daemon), fault, daemon.dir / "strace")
    try:
        yield injection
    finally:
        injection.end()


@contextlib.contextmanager
def injected_at_birth(daemon: Daemon, fault: Fault) -> Iterator[Injection]:
    """Start the daemon, with a fault in all that libnftables does for it."""
    daemon.start(wait=False)
    pid = worker(daemon)
    # It has only begun to read its program.
    os.kill(pid, signal.SIGSTOP)
    injection = Injection(pid, fault, daemon.dir / "strace")
    os.kill(pid, signal.SIGCONT)
    try:
        yield injection
    finally:
        injection.end()

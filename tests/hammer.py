"""A load of short connections that counts its failures: `python -m tests.hammer connect|serve ...`, JSON out.

It knows nothing of nfportd. The one idea: a run is a process in a namespace, so that a load does not share an
interpreter with what it measures; it ends on SIGTERM or after its count, and always tells what it saw.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.lab import ROOT
from tests.netns import Namespace

RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Tally:
    """What one load saw: connections that a target answered, by target, and failures by reason."""

    made: int
    failed: int
    targets: dict[str, int]
    reasons: dict[str, int]
    longest: float  # seconds, the slowest connection


class Load:
    """A load that runs in a namespace until it is ended."""

    def __init__(self, space: Namespace, address: str, port: int, count: int = 0) -> None:
        command = [sys.executable, "-m", "tests.hammer", "connect", address, str(port), str(count)]
        self.process = space.popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it runs
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._began

    def end(self, wait: bool = False, timeout: float = 90) -> Tally:
        """Stop it (or wait until its count is reached) and read its tally."""
        if not wait:
            self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=timeout)
        return Tally(**json.loads(out))


def serve(space: Namespace, port: int, name: str) -> None:
    """A server process in a namespace that greets each TCP connection with one byte-sized name and closes."""
    command = [sys.executable, "-m", "tests.hammer", "serve", str(port), name]
    process = space.popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()  # it listens


def _serve(port: int, name: str) -> None:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    greeting = name.encode()
    print("listening", flush=True)
    while True:
        sock, _ = listener.accept()
        with suppress(OSError):
            sock.send(greeting)
        sock.close()


def _once(family: int, place: tuple[str, int]) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.connect(place)
        return sock.recv(16).decode()


def _connect(address: str, port: int, count: int) -> dict[str, Any]:
    running = True

    def end(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, end)
    print("running", flush=True)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    targets: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    longest = 0.0
    while running and (not count or sum(targets.values()) < count):
        began = time.monotonic()
        try:
            name = _once(family, (address, port))
        except OSError as error:
            reasons[type(error).__name__ + ": " + str(error)] += 1
            time.sleep(0.001)
            continue
        if name:
            targets[name] += 1
        else:
            reasons["closed without a greeting"] += 1
        longest = max(longest, time.monotonic() - began)
    made, failed = targets.total(), reasons.total()
    return {"made": made, "failed": failed, "targets": targets, "reasons": reasons, "longest": longest}


def main(arguments: Sequence[str]) -> None:
    what, *rest = arguments
    if what == "serve":
        _serve(int(rest[0]), rest[1])
    else:
        print(json.dumps(_connect(rest[0], int(rest[1]), int(rest[2]))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Ways to publish one mapping more, to change it and to withdraw it, each at one size; and all of them in turn.

Must not know what stands behind a way. The one idea: A B C A B C ..., another one first each time, so that the
machine's moods, and the work that a call leaves to the kernel, fall on all of them alike.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

ADDED, CHANGED, REMOVED = "added", "changed", "removed"


class Cost(NamedTuple):
    """Milliseconds of one call: by the clock, and of processors in all that worked for it, where that is known."""

    wall: float
    cpu: float = 0.0


class Way:
    """Who publishes, with how many mappings present, how often it is measured, and what was found."""

    verbs: tuple[str, ...] = (ADDED, CHANGED, REMOVED)

    def __init__(self, who: str, size: int, rounds: int) -> None:
        self.who, self.size, self.rounds = who, size, rounds
        self.costs: dict[str, list[Cost]] = {verb: [] for verb in self.verbs}

    def once(self, number: int) -> None:
        """Publish, change and withdraw one mapping."""
        for verb, found in self.costs.items():
            found.append(self.step(verb, number))

    def step(self, verb: str, number: int) -> Cost:
        """Do one of these, and return when it is in force."""
        raise NotImplementedError

    def walls(self, verb: str) -> list[float]:
        """Milliseconds by the clock, of each round."""
        return [cost.wall for cost in self.costs[verb]]


def spawn(command: list[str], given: bytes = b"", environment: dict[str, str] | None = None) -> Cost:
    """Run a program to its end; one that fails ends the measurement with what it printed."""
    with os.fdopen(os.memfd_create("given"), "w+b") as stdin, os.fdopen(os.memfd_create("told"), "w+b") as told:
        stdin.write(given)
        stdin.seek(0)
        places = [(os.POSIX_SPAWN_DUP2, file.fileno(), to) for file, to in ((stdin, 0), (told, 1), (told, 2))]
        began = time.perf_counter()
        pid = os.posix_spawn(command[0], command, environment or {}, file_actions=places)
        _, status, usage = os.wait4(pid, 0)
        wall = timed(began).wall
        if status:
            told.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {told.read().decode()}")
    return Cost(wall, (usage.ru_utime + usage.ru_stime) * 1000)


def timed(began: float) -> Cost:
    """What has passed since `began`, by time.perf_counter."""
    return Cost((time.perf_counter() - began) * 1000)


def in_turn(ways: Sequence[Way]) -> None:
    """Measure all, as often as each wants it."""
    most = max(way.rounds for way in ways)
    for number in range(most):
        again = [way for way in ways if number < way.rounds]
        first = number % len(again)
        for way in (*again[first:], *again[:first]):
            way.once(number)
        tell(f"round {number + 1} of {most}, load average {os.getloadavg()[0]:.1f}")


def tell(text: str) -> None:
    """Say how far it is, a line every few seconds."""
    now = time.monotonic()
    if now - _told[0] >= _EVERY:
        _told[0] = now
        print(text, file=sys.stderr, flush=True)


_EVERY = 5.0
_told = [0.0]


def shared(rounds: int, share: int) -> int:
    """So many percent of the rounds; two at least, for a spread."""
    return max(2, rounds * share // 100)

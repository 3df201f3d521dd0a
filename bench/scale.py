"""`make bench-scale`: many mappings as a whole: start, adoption after a crash, memory, repair.

Must not believe the daemon's log for what is in force: a client's connection through the last mapping tells. The one
idea: a daemon without mappings goes through the same, in turn, so that what the mappings cost can be told.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bench import repair, results
from bench.hosts import Generations, children, daemon_of, forget, handle, others, run, served
from bench.results import OURS, Row
from bench.ways import shared, tell
from tests.lab import Lab

MANY = 60_000
ROUNDS = 3
#: Goals: seconds of a start and of an adoption, megabytes of the daemon with many mappings and with none.
START, ADOPTION, LARGE, IDLE = 2.0, 2.0, 120.0, 45.0
WORKER = f"{OURS}, its libnftables processes"
MEGABYTE = 1e6
#: What the kernel allocates for tables, by the lines of /proc/meminfo: small things, per-processor counters, arrays.
_KERNEL = ("SUnreclaim", "Percpu", "VmallocUsed")


class Started:
    """A daemon on a host with a client, which starts and crashes; and what was seen of it."""

    def __init__(self, lab: Lab, size: int) -> None:
        self.size, name = size, f"s{size}"
        self.daemon = daemon_of(lab, name)
        served(lab, name, MANY)
        self._client = lab.spaces[f"{name}-c"]
        self._generations = Generations(lab, name)
        (self.daemon.dropins / "others.yaml").write_text(others(size))
        self.found: dict[str, list[float]] = {}

    def once(self) -> None:
        """A start, a look at its memory, a crash, an adoption."""
        forget(self.daemon)
        seen, began = self._begin()
        if self.size:
            self._connected(began)
        self._ready("start", seen, began)
        self._memory("started")
        self.daemon.kill9()
        time.sleep(0.5)
        self._generations.forget()
        seen, began = self._begin()
        self._ready("adoption", seen, began)
        self._note("writes", self._generations.forget())
        if self.size and not self._client.ask("10.88.0.1", MANY):
            raise RuntimeError("what was adopted is not in force")
        self._memory("adopted")

    def _begin(self) -> tuple[int, float]:
        """Start the daemon; how much of the log is of its earlier lives, and when it was."""
        seen, began = len(self.daemon.log), time.perf_counter()
        self.daemon.start(wait=False)
        return seen, began

    def _connected(self, began: float) -> None:
        while not self._client.ask("10.88.0.1", MANY, timeout=0.2):
            if time.perf_counter() - began > _PATIENCE:
                raise RuntimeError(f"{self.size} mappings are not in force in time\n{self.daemon.log[-4000:]}")
            time.sleep(0.005)
        self._note("connected", time.perf_counter() - began)

    def _ready(self, what: str, seen: int, began: float) -> None:
        self.daemon.wait_for(r"\bready: ", seen, timeout=_PATIENCE)
        self._note(what, time.perf_counter() - began)

    def _memory(self, when: str) -> None:
        # What is freed after a start is freed by then, and what the files were validated to is written down.
        time.sleep(1)
        for who, pids in ((OURS, [self.daemon.pid]), (WORKER, children(self.daemon))):
            rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
            for kind in ("Rss", "Pss"):
                kilobytes = sum(int(re.findall(rf"^{kind}:\s+(\d+) kB", each, re.M)[0]) for each in rollups)
                self._note(f"{kind} of {who} {when}", kilobytes * 1024 / MEGABYTE)

    def _note(self, what: str, value: float) -> None:
        self.found.setdefault(what, []).append(value)


def starts(lab: Lab, share: int) -> list[Row]:
    """Starts, adoptions and memory, with nothing and with many; and what the kernel holds for the many."""
    measured = [Started(lab, size) for size in (0, MANY)]
    listing = ""
    for number in range(shared(ROUNDS, share)):
        for each in measured:
            tell(f"start {number + 1} with {each.size} mappings")
            each.once()
            if each.size:
                listing = listing or run(handle(lab, f"s{MANY}"), "list ruleset")
            each.daemon.stop(timeout=60)
    return [*_times(measured), *_memories(measured), in_kernel(lab, listing, shared(ROUNDS, share))]


def _times(measured: Sequence[Started]) -> list[Row]:
    rows = []
    for group, what, unit, goal in _TIMES:
        for each in measured:
            if what in each.found:
                rows.append(
                    results.row(group, each.size, OURS, each.found[what], unit, goal=goal if each.size else None)
                )
    return rows


def _memories(measured: Sequence[Started]) -> list[Row]:
    rows = []
    for kind, when in product(("Rss", "Pss"), ("started", "adopted")):
        for each, who in product(measured, (OURS, WORKER)):
            goal = (LARGE if each.size else IDLE) if (who, kind) == (OURS, "Rss") else None
            values = each.found[f"{kind} of {who} {when}"]
            rows.append(results.row(f"Memory ({kind}), {when}", each.size, who, values, "MB", goal=goal))
    return rows


#: What is called how, by what was noted, and its goal.
_TIMES = (
    ("Cold start, until a connection goes through the last mapping", "connected", "s", START),
    ("Cold start, until the daemon says that it is ready", "start", "s", START),
    ("Adoption after kill -9, until the daemon says that it is ready", "adoption", "s", ADOPTION),
    ("Transactions that the kernel saw during an adoption", "writes", "commits", 0.0),
)
_PATIENCE = 120.0


def in_kernel(lab: Lab, listing: str, rounds: int) -> Row:
    """What the kernel holds more after it was given the listed table."""
    lab.space("plain")
    nft = handle(lab, "plain")
    found = []
    for _ in range(rounds):
        before = _allocated()
        run(nft, listing)
        time.sleep(0.5)
        found.append((_allocated() - before) / MEGABYTE)
        run(nft, "flush ruleset")
        # The kernel frees what was flushed some time later.
        time.sleep(1)
    return results.row(f"Memory of the kernel's table ({' + '.join(_KERNEL)})", MANY, "the kernel", found, "MB")


def _allocated() -> int:
    text = Path("/proc/meminfo").read_text()
    return sum(int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.M)[0]) * 1024 for name in _KERNEL)


def main(share: int = 100) -> None:
    """Measure `share` percent of the rounds, print and save."""
    with Lab(build=False) as lab:
        rows = starts(lab, share)
    with Lab(build=False) as lab:
        rows += repair.measure(lab, share)
    results.show(rows)
    what = (
        "A start from nothing and one that finds the table of a daemon that was killed; memory by "
        "/proc/PID/smaps_rollup a second later (Rss is resident, Pss its part of what is shared), and by what "
        "/proc/meminfo shows more of after the same table was loaded; how long what another program has undone stays "
        "undone, until the kernel tells of the daemon's commit."
    )
    print(f"\n{results.save('scale', what, rows)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

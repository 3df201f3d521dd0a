"""Where the time of one PUT, of a start and of an adoption goes: `python -m bench.profile`.

Must not hook into nfportd for good: bench/clocks.py wraps its functions in a process of its own. The one idea: at each
moment of a window (a request, a start) the innermost phase that is under way gets the time, in whatever process it is.
"""

from __future__ import annotations

import ast
import bisect
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bench import clocks, results
from bench.clocks import KERNEL, NFT, PHASES, START, Interval
from bench.cni import PLUGIN, Ours
from bench.hosts import FREE, Connection, daemon_of, forget, mapping, others
from bench.portmap import Pod
from bench.results import TOGETHER, Row
from bench.ways import ADDED, REMOVED, Cost, shared, spawn, tell
from tests.lab import Daemon, Lab

MANY = 60_000
#: Batches of PUTs, each of which gives one figure; starts; calls of the plugin.
BATCHES, BATCH, STARTS, CALLS = 10, 50, 3, 20
REST = "HTTP, event loop, all else"
ORDER = (START, *(each for each in dict.fromkeys(PHASES.values()) if each != KERNEL), NFT, KERNEL, REST)
#: Seconds after which a daemon has written down what its files were validated to.
_SETTLED = 1.0


class Window(NamedTuple):
    """From when to when somebody waited."""

    begin: float
    end: float


def parts(window: Window, intervals: Sequence[Interval]) -> dict[str, float]:
    """Seconds of each phase in a window; `intervals` are in the order of their begins."""
    last = bisect.bisect_left(intervals, (window.end,))
    inside = [each for each in intervals[:last] if each.end > window.begin]
    edges = {window.begin, window.end}
    edges |= {edge for each in inside for edge in (each.begin, each.end) if window.begin < edge < window.end}
    found: dict[str, float] = {}
    for begin, end in pairwise(sorted(edges)):
        active = [each for each in inside if each.begin <= begin and each.end >= end]
        for phase, part in _shares(active[-1] if active else None):
            found[phase] = found.get(phase, 0.0) + (end - begin) * part
    return found


def _shares(innermost: Interval | None) -> Iterator[tuple[str, float]]:
    if innermost is None:
        yield REST, 1.0
        return
    yield innermost.phase, innermost.computed
    if innermost.computed < 1.0:
        yield KERNEL, 1.0 - innermost.computed


class Clocked:
    """A daemon with clocks."""

    def __init__(self, lab: Lab, name: str, size: int) -> None:
        self.size = size
        self.daemon: Daemon = daemon_of(lab, name)
        (self.daemon.dropins / "others.yaml").write_text(others(size))
        self._place = self.daemon.dir / "clocks"
        self._place.mkdir()
        self._prefix = [sys.executable, "-m", "bench.clocks", str(self._place)]

    def start(self) -> Window:
        """Start it with clocks; until it is ready."""
        self.daemon.prefix = self._prefix
        begin = time.perf_counter()
        self.daemon.start(timeout=120)
        return Window(begin, time.perf_counter())

    def crashed(self) -> None:
        """Let a daemon without clocks leave its table behind."""
        self.daemon.prefix = []
        self.daemon.start(timeout=120)
        time.sleep(_SETTLED)
        self.daemon.kill9()

    def stop(self) -> list[Interval]:
        """Stop it, and read what the clocks have noted."""
        self.daemon.stop(timeout=60)
        found = clocks.read(self._place)
        for file in self._place.iterdir():
            file.unlink()
        return found


def puts(lab: Lab, size: int, share: int) -> list[Row]:
    """One PUT after the other."""
    clocked = Clocked(lab, f"p{size}", size)
    clocked.start()
    time.sleep(_SETTLED)
    connection = Connection(clocked.daemon.socket)
    requests = [
        Connection.request("PUT", "/v1/owners/api:profile", {"mappings": [mapping(FREE[0], number + 1)]})
        for number in range(shared(BATCHES, share) * BATCH)
    ]
    windows = []
    for request in requests:
        begin = time.perf_counter()
        connection.ask(request)
        windows.append(Window(begin, time.perf_counter()))
    connection.close()
    intervals = clocked.stop()
    found = [parts(window, intervals) for window in windows]
    batches = [_mean(found[first : first + BATCH]) for first in range(0, len(found), BATCH)]
    return _rows("One PUT of one mapping", size, batches, "ms", 1000)


def starts(lab: Lab, share: int) -> list[Row]:
    """Starts from nothing, and starts that find the table of a daemon that was killed."""
    cold, adopted = [], []
    clocked = Clocked(lab, "many", MANY)
    for number in range(shared(STARTS, share)):
        tell(f"start {number + 1} with clocks")
        forget(clocked.daemon)
        window = clocked.start()
        cold.append(parts(window, clocked.stop()))
        clocked.crashed()
        window = clocked.start()
        adopted.append(parts(window, clocked.stop()))
    return [*_rows("Cold start", MANY, cold, "s"), *_rows("Adoption of an unchanged table", MANY, adopted, "s")]


def _mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {phase: statistics.fmean(each.get(phase, 0.0) for each in found) for phase in ORDER}


def _rows(group: str, size: int, found: Sequence[dict[str, float]], unit: str, factor: float = 1.0) -> list[Row]:
    rows = []
    for phase in ORDER:
        values = [each.get(phase, 0.0) * factor for each in found]
        if any(values):
            rows.append(results.row(group, size, phase, values, unit))
    whole = [sum(each.values()) * factor for each in found]
    return [*rows, results.row(group, size, TOGETHER, whole, unit)]


def plugin(lab: Lab, share: int) -> list[Row]:
    """Where the time of a CNI ADD goes: each step does what the one before does, and more."""
    lab.space("pods")
    ours = Ours(lab, 0, 1)
    tree = ast.parse(Path(PLUGIN).read_text())
    imports = "\n".join(ast.unparse(each) for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom))
    python = ["/usr/bin/python3", "-I", "-S", "-c"]
    end = "import posix; posix._exit(0)"  # as the plugin ends
    steps: dict[str, Callable[[], Cost]] = {
        "a process (/bin/true)": lambda: spawn(["/bin/true"]),
        "the interpreter": lambda: spawn([*python, end]),
        "its imports": lambda: spawn([*python, f"{imports}\n{end}"]),
        "itself read and compiled": lambda: spawn([str(ours.program)], b"", {"CNI_COMMAND": "VERSION"}),
        "configuration and request": lambda: ours.call(ADDED, Pod(50_000)),
    }
    walls: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(shared(CALLS, share)):
        for name, step in steps.items():
            walls[name].append(step().wall)
        ours.call(REMOVED, Pod(50_000))
    group, rows = "One CNI ADD", []
    before = [0.0] * len(next(iter(walls.values())))
    for name, found in walls.items():
        more = [max(0.0, now - then) for now, then in zip(found, before, strict=True)]
        rows.append(results.row(group, 0, name, more, "ms"))
        before = found
    ours.daemon.stop(timeout=30)
    return [*rows, results.row(group, 0, TOGETHER, before, "ms")]


def main(share: int = 100) -> None:
    """Measure `share` percent of the rounds, print and save."""
    rows: list[Row] = []
    with Lab(build=False) as lab:
        for size in (0, MANY):
            rows += puts(lab, size, share)
        rows += starts(lab, share)
        rows += plugin(lab, share)
    results.show(rows)
    what = (
        "Time by phase. libnftables is what its process computes in user space, by getrusage; kernel is the rest of "
        "its time in a command, and what elements take that are written past it. The parts of the CNI plugin are "
        "differences between programs that do more and more of it."
    )
    print(f"\n{results.save('profile', what, rows)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

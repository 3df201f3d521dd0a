"""Windows and connections: who may fail when, who did, and how long the windows were.

Must not touch the host: values in, values and text out. The one idea: a window belongs to the ways that its fault
names, and ends for each of them with the first new connection that got through after the repair; outside of windows
nobody fails.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.chaos.faults import Fault
from tests.chaos.traffic import ANSWERED, Connection

#: Seconds before a fault in which a connection may have begun that it still meets under way.
UNDER_WAY = 0.5
#: Seconds after a repair in which a new connection must have got through.
LATE = 5.0


class Window(NamedTuple):
    """A fault: from the start of its command to its end, until all is as before; times by the monotonic clock."""

    kind: str
    begun: float
    done: float
    repaired: float

    @property
    def milliseconds(self) -> float:
        """From the start of the command until all is as before."""
        return (self.repaired - self.begun) * 1000


class Judgement:
    """What became of the connections of a run."""

    def __init__(self, faults: dict[str, Fault], windows: Sequence[Window], connections: Iterable[Connection]) -> None:
        self._faults, self._windows = faults, windows
        self.ways: dict[str, list[Connection]] = defaultdict(list)
        for each in sorted(connections, key=lambda each: each.begun):
            self.ways[each.path].append(each)
        #: Connections that failed outside of every window.
        self.wrong: list[str] = []
        #: How many failed, in windows, by kind of fault.
        self.excused: dict[str, int] = defaultdict(int)
        #: Seconds of windows by way.
        self.disturbed: dict[str, float] = {}
        for way, found in self.ways.items():
            self._judge(way, found)

    def _judge(self, way: str, found: Sequence[Connection]) -> None:
        stream = " stream" in way
        windows = [window for window in self._windows if self._stops(window.kind, way)]
        spans = [(window, window.begun, self._end(window, found, stream)) for window in windows]
        self.disturbed[way] = sum(end - begun for _, begun, end in spans)
        for each in found:
            if each.outcome == ANSWERED:
                continue
            reach = each.ended if stream else each.begun
            met = [w for w, begun, end in spans if begun - UNDER_WAY <= reach and each.begun <= end]
            if met:
                self.excused[met[-1].kind] += 1
            else:
                self.wrong.append(f"{way}: {each.outcome} after {each.ended - each.begun:.3f} s; {self._before(each)}")

    def _before(self, connection: Connection) -> str:
        """The faults before a connection began, for people."""
        last = [window for window in self._windows if window.begun <= connection.begun][-3:]
        return ", ".join(f"{window.kind} {connection.begun - window.begun:.2f} s before" for window in last)

    def _end(self, window: Window, found: Sequence[Connection], stream: bool) -> float:
        if stream:
            return window.repaired + UNDER_WAY
        through = (c.ended for c in found if c.outcome == ANSWERED and c.begun >= window.done)
        return max(window.repaired, min(next(through, window.repaired), window.repaired + LATE))

    def _stops(self, kind: str, way: str) -> bool:
        fault = self._faults[kind]
        if " stream" in way and not fault.breaks:
            return False
        return bool(fault.stops) and all(word in way for word in fault.stops)


def distribution(windows: Sequence[Window], excused: dict[str, int]) -> str:
    """The windows by kind, in milliseconds."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for window in windows:
        by_kind[window.kind].append(window.milliseconds)
    lines = [f"{'repaired, in ms after':<32} {'count':>5} {'p50':>8} {'p90':>8} {'p99':>8} {'max':>8} {'failed':>7}"]
    for kind, found in sorted(by_kind.items()):
        found.sort()
        figures = " ".join(
            f"{found[min(len(found) - 1, len(found) * part // 100)]:>8.1f}" for part in (50, 90, 99, 100)
        )
        lines.append(f"{kind:<32} {len(found):>5} {figures} {excused.get(kind, 0):>7}")
    return "\n".join(lines)

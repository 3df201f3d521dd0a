"""`make bench-data`: what a published port costs the connections and packets that go through it, among few and many.

Must not look into a ruleset. The one idea: nfportd, the rules of others and the limits (a host that only routes, one
that tracks connections too, one that translates by a single rule) are measured in turn, many short times; whoever is
compared is compared within a turn, so that the machine's moods fall on both.

The first argument is the share of the turns in percent; others are numbers of mappings: `bench.data 10 1 1000`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.lanes import PARTLY, RELAYED, Hosts, Kind, Lane
from bench.layouts import CONNTRACK, NO_CONNTRACK, ONE_DNAT, PEERS
from bench.results import OURS, Row, row, save
from tests.lab import Lab

SIZES = (1, 100, 1_000, 10_000, 60_000)
TURNS = 25
MILLISECONDS = 20

CONNECTIONS = Kind("connections a second", "connect", 8)
LATENCY = Kind("one connection", "connect", 1, "us")
PACKETS = Kind("UDP packets a second", "udp", 32)
KINDS = (
    CONNECTIONS,
    LATENCY,
    Kind("new UDP flows a second", "new", 8),
    PACKETS,
    Kind("bulk", "bulk", 1, "Gbit/s", 1e9 / 8),
)
WHAT = (
    "What goes through the newest of so many mappings, from a client over a host to a target (namespaces, veth); "
    "client, kernel and target share one core, so each figure is what one core carries"
)


def kinds_of(lane: Lane) -> Iterator[Kind]:
    """What is measured of a lane: of other ways little, and no UDP of a relay for TCP."""
    if lane.way == PARTLY:
        yield from (CONNECTIONS, PACKETS)
    elif lane.group:
        yield CONNECTIONS
    else:
        yield from (kind for kind in KINDS if lane.who != RELAYED or kind.mode in ("connect", "bulk"))


def measure(lanes: Sequence[Lane], turns: int) -> None:
    """All lanes in turn, another one first each time."""
    for number in range(turns):
        first = number * 7 % len(lanes)
        for kind in KINDS:
            for lane in (*lanes[first:], *lanes[:first]):
                if kind in kinds_of(lane):
                    lane.once(kind, MILLISECONDS)
        print(f"turn {number + 1} of {turns}", end="\r", flush=True)


def ratios(one: Lane, other: Lane, kind: Kind = CONNECTIONS) -> list[float]:
    """How many times what the other carries one carries, in each turn."""
    return [mine / theirs for mine, theirs in zip(one.rates(kind), other.rates(kind), strict=True)]


def rows_of(lanes: Sequence[Lane]) -> list[Row]:
    """Every figure."""
    rows = []
    for lane in lanes:
        for kind in kinds_of(lane):
            samples = lane.samples[kind.group]
            if kind is LATENCY:
                for name in ("p50", "p99"):
                    values = [getattr(sample, name) for sample in samples]
                    rows.append(row(f"{kind.group}, {name}", lane.size, lane.who, values, kind.unit))
            else:
                rows.append(row(kind.group + lane.group, lane.size, lane.who, lane.rates(kind), kind.unit, "more"))
        if lane.group:
            continue
        shares = [100 * sample.user / sample.seconds for sample in lane.samples[CONNECTIONS.group]]
        rows.append(row("time in the load generator", lane.size, lane.who, shares, "%"))
    return rows


def tables(lanes: Sequence[Lane]) -> None:
    """One table for each kind; the ratio is to a host that only routes, measured beside it in each turn."""
    for kind in KINDS:
        for group in dict.fromkeys(lane.group for lane in lanes if kind in kinds_of(lane)):
            present = [lane for lane in lanes if lane.group == group and kind in kinds_of(lane)]
            _table(kind, group, present, lanes)


def _table(kind: Kind, group: str, present: Sequence[Lane], lanes: Sequence[Lane]) -> None:
    sizes = sorted({lane.size for lane in present})
    head = "microseconds, p50 / p99" if kind is LATENCY else f"{kind.unit}; x: times {NO_CONNTRACK}"
    print(f"\n{kind.group}{group}: medians of {len(present[0].samples[kind.group])} turns, in {head}")
    print(f"{'mappings':>22}" + "".join(f"{size:>24,}" for size in sizes))
    for who in dict.fromkeys(lane.who for lane in present):
        cells = []
        for size in sizes:
            found = [lane for lane in present if (lane.who, lane.size) == (who, size)]
            cells.append(_cell(kind, found[0], lanes) if found else "")
        print(f"{who:>22}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def _cell(kind: Kind, lane: Lane, lanes: Sequence[Lane]) -> str:
    samples = lane.samples[kind.group]
    if kind is LATENCY:
        return " / ".join(
            f"{statistics.median(getattr(each, name) for each in samples):.1f}" for name in ("p50", "p99")
        )
    rates = lane.rates(kind)
    figure = f"{statistics.median(rates):,.1f}" if kind.unit != "1/s" else f"{statistics.median(rates):,.0f}"
    base = ratios(lane, find(lanes, NO_CONNTRACK, lane.size), kind)
    return f"{figure} {statistics.median(base):.2f}x"


def find(lanes: Sequence[Lane], who: str, size: int) -> Lane:
    """The lane from elsewhere. Raises LookupError where it was left out."""
    for lane in lanes:
        if (lane.who, lane.size, lane.group) == (who, size, ""):
            return lane
    raise LookupError(f"{who} among {size} mappings")


class Goal(NamedTuple):
    """What one lane should carry at least, as a part of what another does."""

    group: str
    one: Lane
    other: Lane
    least: float

    def row(self) -> Row:
        """What was found."""
        return row(self.group, self.one.size, OURS, ratios(self.one, self.other), "x", "more", self.least)


def goals(lanes: Sequence[Lane], sizes: Sequence[int]) -> Iterator[Goal]:
    """What was promised of connections a second; no forwarder is held to more than the fewest rules that translate."""
    first, most = sizes[0], sizes[-1]
    ours = {size: find(lanes, OURS, size) for size in sizes}
    about = f"{CONNECTIONS.group} of {OURS} against"
    if most > first:
        yield Goal(f"{about} its own with {first:,}", ours[most], ours[first], 0.97)
    for limit in (CONNTRACK, ONE_DNAT):
        yield from (Goal(f"{about} {limit}", ours[size], find(lanes, limit, size), 0.97) for size in sizes)
    for lane in lanes:
        if not lane.group and (lane.who in PEERS or lane.who == RELAYED):
            yield Goal(f"{about} {lane.who}", ours[lane.size], lane, 1)


def judge(found: Sequence[Goal]) -> None:
    """Print each goal with what was found; a miss that is within the quarters of the turns is called noise."""
    print("\nRatios within each turn: the median, and what a quarter of the turns is below and above")
    for goal in found:
        values = ratios(goal.one, goal.other)
        low, half, high = statistics.quantiles(values, n=4, method="inclusive")
        verdict = "pass" if half >= goal.least else "miss within noise" if high >= goal.least else "MISS"
        figures = f"{half:>7.3f} ({low:.3f} to {high:.3f})  goal {goal.least:.2f}: {verdict}"
        print(f"{goal.group:<62} {goal.one.size:>7,} {figures}")


def main(share: int = 100, *sizes: int) -> list[Row]:
    """Print all tables and keep the figures; `share` percent of the turns."""
    sizes = sizes or SIZES
    with Lab(build=False) as lab:
        started = time.monotonic()
        hosts = Hosts(lab, sizes)
        hosts.build()
        lanes = list(hosts.ready())
        print(f"{len(lanes)} ways stand after {time.monotonic() - started:.0f} s", flush=True)
        measure(lanes, max(2, TURNS * share // 100))
        tables(lanes)
        for why in hosts.left_out:
            print(f"left out: {why}")
        found = list(goals(lanes, sizes))
        judge(found)
        for daemon in hosts.daemons:
            daemon.stop(timeout=60)
        return [*rows_of(lanes), *(goal.row() for goal in found)]


if __name__ == "__main__":
    print(f"\nkept in {save('data', WHAT, main(*map(int, sys.argv[1:])))}")

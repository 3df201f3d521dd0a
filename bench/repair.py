"""How long what others have undone stays undone, among few and many mappings.

Must not time the start of a program, nor ask the daemon: what is undone goes to the kernel from here, the kernel says
when another process has written, and a client then gets through. The one idea: all sizes and all kinds are measured in
turn, and beside them nft itself loads the same table.
"""

from __future__ import annotations

import sys
import time

from bench import results
from bench.hosts import Generations, daemon_of, handle, others, run, served
from bench.results import OURS, Row
from bench.ways import Cost, Way, in_turn, shared, timed
from tests.lab import Lab

FLUSH, LOAD = "flush ruleset", "nft loads the same table"
_GROUP = "In force again after: {}"
KINDS = {
    FLUSH: "flush ruleset",
    "chain flushed": "flush chain inet nfportd dispatch",
    "element removed": "delete element inet nfportd any4 {{ tcp . {port} }}",
    "element changed": "delete element inet nfportd any4 {{ tcp . {port} }}\n"
    "add element inet nfportd any4 {{ tcp . {port} : 10.88.0.99 . 9 }}",
}
#: How often a flush is measured, by the number of mappings; and the other kinds, of which a few tell enough.
ROUNDS = {100: 200, 1_000: 20, 10_000: 5, 60_000: 5}
FEW = 20
#: Goals: milliseconds that 99 of 100 repairs after a flush may take.
GOALS = {100: 20.0, 60_000: 1500.0}


class Repair(Way):
    """A daemon with a number of mappings, a target, a client, and somebody who undoes things."""

    verbs = (*KINDS, LOAD)

    def __init__(self, lab: Lab, size: int, rounds: int) -> None:
        super().__init__(OURS, size, rounds)
        name = f"r{size}"
        self.daemon = daemon_of(lab, name)
        served(lab, name, size)
        self._client = lab.spaces[f"{name}-c"]
        (self.daemon.dropins / "others.yaml").write_text(others(size))
        self.daemon.start(timeout=120)
        self._other = handle(lab, name)
        self._generations = Generations(lab, name)
        time.sleep(0.5)
        self._text = run(self._other, "list ruleset")
        lab.space(f"{name}-plain")
        self._plain = handle(lab, f"{name}-plain")
        # Repairs without a pause are a fight, and take their time.
        self._rested = 0.0

    def once(self, number: int) -> None:
        """Undo something of each kind, and load the table elsewhere."""
        for kind in self.verbs if number < FEW else (FLUSH,):
            self.costs[kind].append(self.step(kind, number))

    def step(self, verb: str, number: int) -> Cost:
        """Undo something, wait for the daemon's transaction, and see that a client gets through."""
        if verb == LOAD:
            return self._load()
        time.sleep(max(0.0, self._rested - time.monotonic()))
        self._generations.forget()
        began = time.perf_counter()
        run(self._other, KINDS[verb].format(port=self.size))
        self._generations.of_others()
        took = timed(began)
        if (answer := self._client.ask("10.88.0.1", self.size)).outcome != "answered":
            raise RuntimeError(f"{verb}: {self.size} mappings are not in force again: {answer}")
        self._rested = time.monotonic() + 0.12 + 11 * min(took.wall / 1000, 0.25)
        return took

    def _load(self) -> Cost:
        """What nft takes to load the table as it lists it."""
        run(self._plain, "flush ruleset")
        began = time.perf_counter()
        run(self._plain, self._text)
        return timed(began)


def measure(lab: Lab, share: int) -> list[Row]:
    """The figures of all sizes and kinds."""
    ways = [Repair(lab, size, shared(rounds, share)) for size, rounds in ROUNDS.items()]
    in_turn(ways)
    for way in ways:
        way.daemon.stop(timeout=60)
    rows = []
    for kind in KINDS:
        rows += [results.row(_GROUP.format(kind), way.size, OURS, way.walls(kind), "ms") for way in ways]
        if kind == FLUSH:
            rows += [results.row(_GROUP.format(kind), way.size, LOAD, way.walls(LOAD), "ms") for way in ways]
    group = _GROUP.format(f"{FLUSH}; 99 of 100 take at most")
    return rows + [results.high(group, way.size, OURS, way.walls(FLUSH), "ms", GOALS.get(way.size)) for way in ways]


def main(share: int = 100) -> None:
    """Measure `share` percent of the rounds and print; `make bench-scale` keeps them."""
    with Lab(build=False) as lab:
        results.show(measure(lab, share))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

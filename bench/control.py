"""`make bench-control`: what it costs to publish one mapping more, to change it, to withdraw it, among few and many.

Must not know how a way works. The one idea: all ways of nfportd at all sizes are measured in turn, then all plugins of
container runtimes, so that each comparison is of calls that followed each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import api, cni, results
from bench.api import Api, Command
from bench.cni import Plugin
from bench.dropins import DropIn
from bench.hosts import daemon_of, others
from bench.results import OURS, Row
from bench.ways import ADDED, CHANGED, REMOVED, Way, in_turn, shared
from tests.lab import Lab

SIZES = (0, 100, 1_000, 10_000, 60_000)
#: How often each way is measured.
REQUESTS, FILES, COMMANDS = 200, 15, 10
#: Goals: milliseconds of half of the PUTs.
PUT = 1.0
#: How much faster than portmap's nftables backend, by call and size.
FASTER = {("ADD", 0): 1.0, ("DEL", 0): 1.0, ("ADD + DEL", 100): 2.0, ("ADD + DEL", 5_000): 12.0}
#: How much longer a call may take than with nothing present and still be called flat.
FLAT = 1.1

#: What is compared: the ways of nfportd with each other, its plugin with those of others.
_OWN, _PLUGINS = "One mapping {}", "The port of one container {}"


def own(lab: Lab, share: int) -> list[Row]:
    """The ways of nfportd."""
    ways: list[Way] = []
    for size in SIZES:
        daemon = daemon_of(lab, f"n{size}")
        (daemon.dropins / "others.yaml").write_text(others(size))
        daemon.start(timeout=120)
        ways += [
            Api(daemon, size, shared(REQUESTS, share)),
            Command(daemon, size, shared(COMMANDS, share)),
            DropIn(lab, daemon, size, shared(FILES, share)),
        ]
    in_turn(ways)
    for daemon in lab.daemons:
        daemon.stop(timeout=60)
    return [*_each(_OWN, ways), *_slowest(ways)]


def _each(group: str, ways: Sequence[Way]) -> list[Row]:
    rows = []
    for verb in (ADDED, CHANGED, REMOVED):
        for way in ways:
            if verb in way.costs:
                goal = PUT if isinstance(way, Api) and verb != REMOVED else None
                rows.append(results.row(group.format(verb), way.size, way.who, way.walls(verb), "ms", goal=goal))
    return rows


def _slowest(ways: Sequence[Way]) -> list[Row]:
    group = "A PUT of one mapping: 99 of 100 take at most"
    puts = [(way, way.walls(ADDED) + way.walls(CHANGED)) for way in ways if isinstance(way, Api)]
    return [results.high(group, way.size, OURS, walls, "ms") for way, walls in puts]


def runtimes(lab: Lab, share: int) -> tuple[list[Row], list[str]]:
    """The plugins of container runtimes, and what is to be said of those that are not nfportd's."""
    plugins, told = cni.plugins(lab, share)
    in_turn(plugins)
    rows = [*_each(_PLUGINS, plugins), *_faster(plugins), *_flat(plugins)]
    for plugin in plugins:
        # A container comes and goes.
        cpu = [sum(each.cpu for each in both) for both in zip(*plugin.costs.values(), strict=True)]
        group = "Processor time to publish one container and to withdraw it"
        rows.append(results.row(group, plugin.size, plugin.who, cpu, "ms"))
    for daemon in lab.daemons:
        daemon.stop(timeout=60)
    return rows, told


def _faster(plugins: Sequence[Plugin]) -> list[Row]:
    """Our plugin against portmap's nftables backend, round by round."""
    rows = []
    theirs = {each.size: each for each in plugins if each.who == cni.THEIRS}
    for name, verbs in _CALLS.items():
        for ours in (each for each in plugins if each.who == cni.OURS and each.size in theirs):
            ratios = [
                their / our for their, our in zip(_sums(theirs[ours.size], verbs), _sums(ours, verbs), strict=True)
            ]
            group, goal = f"CNI {name}: times as fast as portmap's nftables backend", FASTER.get((name, ours.size))
            rows.append(results.row(group, ours.size, OURS, ratios, "x", "more", goal))
    return rows


def _flat(plugins: Sequence[Plugin]) -> list[Row]:
    """Our plugin against itself with nothing present."""
    ours = [each for each in plugins if each.who == cni.OURS]
    rows = []
    for name, verbs in _CALLS.items():
        for each in ours[1:]:
            ratios = [
                with_ / without for with_, without in zip(_sums(each, verbs), _sums(ours[0], verbs), strict=False)
            ]
            group = f"CNI {name}: times what it takes with nothing present"
            rows.append(results.row(group, each.size, OURS, ratios, "x", goal=FLAT))
    return rows


_CALLS = {"ADD": (ADDED,), "DEL": (REMOVED,), "ADD + DEL": (ADDED, REMOVED)}


def _sums(plugin: Plugin, verbs: Sequence[str]) -> list[float]:
    return [sum(walls) for walls in zip(*(plugin.walls(verb) for verb in verbs), strict=True)]


def main(share: int = 100) -> None:
    """Measure `share` percent of the rounds, print and save."""
    with Lab(build=False) as lab:
        rows = own(lab, share)
    with Lab(build=False) as lab:
        rows += api.throughput(lab, share)
    with Lab(build=False) as lab:
        more, told = runtimes(lab, share)
    rows += more
    results.show(rows)
    what = (
        "What it takes to publish one mapping, to change and to withdraw it, until the program that asked has its "
        "answer (API, nfportctl, CNI, netavark) or until the kernel tells of the commit (drop-in). "
        f"Beside nfportd: {'; '.join(told)}."
    )
    print(f"\n{results.save('control', what, rows)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

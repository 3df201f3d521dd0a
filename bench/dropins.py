"""`make bench`: what a changed drop-in costs among few and many mappings, and what a cold start costs.

Must not time itself by the daemon's log: a netlink socket in the daemon's namespace says when the kernel committed.
The one idea: the sizes are measured in turn (A B C A B C ...), so that the machine's moods fall on all of them alike.
"""

from __future__ import annotations

import re
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab import Daemon, Lab

SIZES = (10, 1_000, 60_000)
ROUNDS = 40
# linux/netlink.h NETLINK_NETFILTER, NETLINK_ADD_MEMBERSHIP; linux/netfilter/nfnetlink.h NFNLGRP_NFTABLES
NETLINK_NETFILTER, GROUP, SOL_NETLINK, ADD_MEMBERSHIP = 12, 7, 270, 1


def changing(port: int) -> str:
    """The drop-in that is changed: one mapping."""
    return f"mappings:\n  - {{name: changing, listen: 65000, targets: '10.88.0.11:{port}'}}\n"


def others(count: int) -> str:
    """A drop-in of many separate mappings."""
    lines = (f"  - {{listen: {port}, targets: '10.88.0.12:{port}'}}\n" for port in range(1, count + 1))
    return "mappings:\n" + "".join(lines)


def ranges(count: int, width: int = 1_000) -> str:
    """The same keys as ranges."""
    spans = (f"{first}-{first + width - 1}" for first in range(1, count + 1, width))
    return "mappings:\n" + "".join(f"  - {{listen: {s}, targets: '10.88.0.12:{s}'}}\n" for s in spans)


def resident(daemon: Daemon) -> float:
    """The daemon's resident memory in MiB."""
    return float(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())[0]) / 1024


def host(lab: Lab, name: str) -> None:
    """A namespace with the link by which the targets are reached."""
    space = lab.space(name)
    lab.bridge(space, "br0")
    space.batch("address add 10.88.0.1/24 dev br0\n")


class Change:
    """A daemon with many mappings, and one drop-in beside them that is changed."""

    def __init__(self, lab: Lab, count: int) -> None:
        name = f"n{count}"
        host(lab, name)
        self.count = count
        self.daemon = Daemon(lab, space=name)
        (self.daemon.dropins / "others.yaml").write_text(others(count))
        (self.daemon.dropins / "changing.yaml").write_text(changing(1))
        self.daemon.start(timeout=120)
        self.events = self.daemon.space.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.events.bind((0, 0))
        self.events.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP)
        self.events.settimeout(10)
        self.milliseconds: list[float] = []

    def once(self, port: int) -> None:
        """Rename a new version into place and wait for the kernel's word."""
        draft = self.daemon.dir / "draft"
        draft.write_text(changing(port))
        started = time.perf_counter()
        draft.rename(self.daemon.dropins / "changing.yaml")
        self.events.recv(65536)
        self.milliseconds.append((time.perf_counter() - started) * 1000)
        time.sleep(0.02)
        self.events.setblocking(False)
        for _ in self._rest():
            pass
        self.events.settimeout(10)

    def _rest(self) -> Iterator[bytes]:
        while True:
            try:
                yield self.events.recv(65536)
            except BlockingIOError:
                return


def change(lab: Lab) -> dict[str, dict[str, float]]:
    """Milliseconds from rename to kernel for each size."""
    daemons = [Change(lab, count) for count in SIZES]
    for number in range(ROUNDS):
        for each in daemons:
            each.once(number % 1000 + 2)
    base = statistics.median(daemons[0].milliseconds)
    print(f"\nOne mapping changed: from the file's rename to the kernel's commit ({ROUNDS} times each, in turn)")
    print(f"{'others':>10}  {'median ms':>9}  {'p95 ms':>8}  {'ratio':>6}  {'resident MiB':>12}")
    results = {}
    for each in daemons:
        median = statistics.median(each.milliseconds)
        high = statistics.quantiles(each.milliseconds, n=20)[-1]
        memory = resident(each.daemon)
        print(f"{each.count:>10,}  {median:>9.2f}  {high:>8.2f}  {median / base:>6.2f}  {memory:>12.0f}")
        results[str(each.count)] = {"median_ms": median, "p95_ms": high, "ratio": median / base, "resident_mib": memory}
        each.daemon.stop()
    return results


def cold_start(lab: Lab, rounds: int = 3) -> dict[str, float]:
    """Seconds from exec to all in force, for nothing and for 60,000 elements, in turn; and an adoption of those."""
    daemons = {}
    for name, text in (("none", "mappings: []\n"), ("many", ranges(SIZES[-1]))):
        host(lab, name)
        daemons[name] = Daemon(lab, space=name)
        (daemons[name].dropins / "ranges.yaml").write_text(text)
    seconds: dict[str, list[float]] = {"none": [], "many": [], "adopted": []}
    memory = {}
    for _ in range(rounds):
        for name, daemon in daemons.items():
            seconds[name].append(start(daemon))
            memory[name] = resident(daemon)
            if name == "many":
                daemon.kill9()
                seconds["adopted"].append(start(daemon))
                memory["adopted"] = resident(daemon)
            daemon.stop(timeout=30)
    print(
        f"\nCold start with {SIZES[-1]:,} elements as ranges, from exec to all in force ({rounds} times each, in turn)"
    )
    print(f"{'start':>10}  {'median s':>9}  {'ratio':>6}  {'resident MiB':>12}")
    base = statistics.median(seconds["none"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:>10}  {median:>9.2f}  {median / base:>6.2f}  {memory[name]:>12.0f}")
    figures = {f"{name}_s": statistics.median(found) for name, found in seconds.items()}
    return figures | {f"{name}_resident_mib": each for name, each in memory.items()}


def start(daemon: Daemon) -> float:
    """Seconds until the daemon says that it is ready."""
    started = time.perf_counter()
    daemon.start(timeout=120)
    return time.perf_counter() - started


def main() -> dict[str, Any]:
    """Print both tables."""
    with Lab(build=False) as lab:
        return {"change": change(lab), "cold_start": cold_start(lab)}


if __name__ == "__main__":
    main()

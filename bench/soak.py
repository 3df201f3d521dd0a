"""`make soak`: a million changes, and whether memory and descriptors of the daemon and its child stay flat.

Must not look into the daemon: the kernel says what its processes hold. The one idea: after a warm-up a line is laid
through the samples, and what it climbs is the leak.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench.hosts import daemon_of
from nfportd.client import Client, Json
from tests.lab import Lab

CHANGES = 1_000_000
OWNERS = 400
#: Changes of a round: so many PUTs of one owner each, and one transaction of so many.
SINGLE, BATCH = 20, 80
#: Rounds from one drop-in, drift, client that hangs up, sample to the next.
FILE, DRIFT, HANG_UP, SAMPLE = 10, 40, 5, 50
#: This part of the samples is warm-up: caches and the ring of events fill.
WARM_UP = 0.2
#: What the lines may climb from there to the end, in MiB and in descriptors.
MIB, DESCRIPTORS = 4.0, 2.0

DRIFTS = (
    "flush ruleset",
    "flush chain inet nfportd dispatch",
    "flush map inet nfportd any4",
    "add element inet nfportd any4 { tcp . 9 : 10.88.0.99 . 9 }",
    "add table inet stranger",
)


class Sample(NamedTuple):
    """What the two processes hold after so many changes."""

    changes: int
    daemon_mib: float
    child_mib: float
    daemon_descriptors: float
    child_descriptors: float


class Soak:
    """A daemon, what its owners were promised last, and the samples."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._random = random.Random(seed)
        self._owners: dict[str, int | None] = {f"soak:{10_000 + number}": None for number in range(OWNERS)}
        self._filed = 0
        self.daemon = daemon_of(lab, "soak")
        self.changes = self.drifts = 0
        self.samples: list[Sample] = []
        self._file()
        self.daemon.start()
        self._api = Client(str(self.daemon.socket), timeout=60)

    def round(self, number: int) -> None:
        """A hundred changes, and now and then something that nobody asked for."""
        for owner in self._random.choices(list(self._owners), k=SINGLE):
            self._put(owner)
        self._transact(self._random.sample(list(self._owners), BATCH))
        if number % FILE == 0:
            self._file()
        if number % HANG_UP == 0:
            self._hang_up()
        if number % DRIFT == 0:
            self.daemon.space.nft(DRIFTS[self.drifts % len(DRIFTS)], check=False)
            self.drifts += 1
        if number % SAMPLE == 0:
            self.samples.append(self._sample())
            # A million changes are as many lines.
            os.truncate(self.daemon.dir / "log", 0)

    def settles(self) -> bool:
        """Whether the kernel comes to hold what was promised last."""
        held = {f"tcp . {owner.partition(':')[2]}": target for owner, target in self._owners.items() if target}
        wanted = {key: f"10.88.0.11 . {target}" for key, target in (held | {"tcp . 9999": self._filed}).items()}
        until = time.monotonic() + 60
        while self.daemon.elements("any4") != wanted:
            if time.monotonic() > until:
                return False
            time.sleep(0.5)
        return True

    def _sample(self) -> Sample:
        daemon = Path(f"/proc/{self.daemon.pid}")
        [child] = (daemon / f"task/{self.daemon.pid}/children").read_text().split()
        both = daemon, Path(f"/proc/{child}")
        return Sample(self.changes, *map(resident, both), *(len(list((each / "fd").iterdir())) for each in both))

    def _put(self, owner: str) -> None:
        self._owners[owner] = target = self._target()
        self._api.put(owner, body(owner, target))
        self.changes += 1

    def _transact(self, owners: list[str]) -> None:
        new = {owner: self._random.choice([None, self._target()]) for owner in owners}
        wish = {owner: body(owner, target) if target else None for owner, target in new.items()}
        self._api.request("POST", "/v1/transactions", {"owners": wish})
        self._owners |= new
        self.changes += len(owners)

    def _file(self) -> None:
        self._filed = self._target()
        draft = self.daemon.dir / "draft"
        draft.write_text(f"mappings:\n  - {{listen: 9999, targets: '10.88.0.11:{self._filed}'}}\n")
        draft.rename(self.daemon.dropins / "soak.yaml")
        self.changes += 1

    def _hang_up(self) -> None:
        """Clients that do not wait for the end of their answer."""
        with Client(str(self.daemon.socket)) as api:
            next(api.events(since=0))
            api.get("/v1/status")

    def _target(self) -> int:
        return self._random.randint(1, 60_000)


def body(owner: str, target: int) -> Json:
    """One mapping; the port is in the owner's name."""
    return {"mappings": [{"listen": owner.partition(":")[2], "targets": f"10.88.0.11:{target}"}]}


def resident(process: Path) -> float:
    """Resident memory in MiB."""
    return float(re.findall(r"VmRSS:\s+(\d+)", (process / "status").read_text())[0]) / 1024


def verdict(samples: list[Sample]) -> bool:
    """Print how each line climbs; whether all are flat."""
    warm = samples[int(len(samples) * WARM_UP) :]
    changes = [each.changes for each in warm]
    flat = True
    print(f"\n{'':>19}  {'first':>7}  {'last':>7}  {'most':>7}  {'slope / 100,000':>15}  {'climbs':>7}  {'may':>5}")
    for name in Sample._fields[1:]:
        values = [float(getattr(each, name)) for each in warm]
        slope = statistics.linear_regression(changes, values).slope
        climbs, may = slope * (changes[-1] - changes[0]), MIB if name.endswith("mib") else DESCRIPTORS
        figures = f"{values[0]:>7.1f}  {values[-1]:>7.1f}  {max(values):>7.1f}  {slope * 100_000:>15.3f}"
        print(f"{name:>19}  {figures}  {climbs:>7.2f}  {may:>5}")
        flat &= climbs <= may
    return flat


def main(changes: int = CHANGES, seed: int = 6) -> int:
    """Run, print, and say by the exit status whether all was flat and right."""
    with Lab(build=False) as lab:
        soak = Soak(lab, seed)
        began, number, told = time.monotonic(), 0, 0
        while soak.changes < changes:
            number += 1
            soak.round(number)
            if soak.changes - told >= changes // 20 and soak.samples:
                told, last = soak.changes, soak.samples[-1]
                memory = f"{last.daemon_mib:.1f} and {last.child_mib:.1f} MiB"
                print(f"{time.monotonic() - began:>6.0f} s  {told:>9,} changes: {memory}", flush=True)
        seconds = time.monotonic() - began
        print(f"\n{soak.changes:,} changes in {seconds:,.0f} s, {soak.changes / seconds:,.0f} a second;", end=" ")
        print(f"{soak.drifts} times drift; seed {seed}")
        right, flat = soak.settles(), verdict(soak.samples)
        print(f"kernel as promised: {right}; flat: {flat}")
        soak.daemon.stop(timeout=30)
    return 0 if right and flat else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))

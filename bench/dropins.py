"""What one mapping costs as a drop-in: from the file's rename to the kernel's commit.

Must not time itself by the daemon's log: a netlink socket in the daemon's namespace says when the kernel committed.
The one idea: a file is written beside the directory and renamed into place, as a careful editor does.
"""

from __future__ import annotations

import time

from bench.hosts import FREE, Generations
from bench.ways import ADDED, REMOVED, Cost, Way, timed
from tests.lab import Daemon, Lab


class DropIn(Way):
    """A file that appears, changes and goes."""

    def __init__(self, lab: Lab, daemon: Daemon, size: int, rounds: int) -> None:
        super().__init__("nfportd, drop-in", size, rounds)
        self._file, self._draft = daemon.dropins / "one.yaml", daemon.dir / "draft"
        self._generations = Generations(lab, daemon.space.name)

    def step(self, verb: str, number: int) -> Cost:
        """Do it to the file and wait for the kernel's word."""
        target = number + 1 if verb == ADDED else number + 10_000
        self._draft.write_text(f"mappings:\n  - {{listen: {FREE[2]}, targets: '10.88.0.11:{target}'}}\n")
        self._generations.forget()
        began = time.perf_counter()
        if verb == REMOVED:
            self._file.unlink()
        else:
            self._draft.rename(self._file)
        self._generations.of_others()
        took = timed(began)
        # What the daemon does after its commit is not to fall on the next figure.
        time.sleep(0.02)
        return took

"""Clients of the API in a process of their own: `python -m tests.chaos.publishers SOCKET CLIENTS SEED`, JSON out.

Must not know the laboratory or the faults. The one idea: what a client wants follows from the seed alone; it asks until
the daemon says yes or no, and so knows in the end what was promised to each of its owners.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from nfportd.client import Client, Json, NotReachable, Problem
from tests.api.calling import body, mapping
from tests.lab import ROOT
from tests.netns import Namespace

#: Owners of each client, and seconds between two of its requests.
OWNERS, PAUSE = 10, 0.02

#: What an owner has: its ports with their targets, and whether that survives a reboot.
Wish = tuple[dict[str, str], bool] | None


class Publisher(threading.Thread):
    """One client."""

    def __init__(self, path: str, number: int, seed: int, ended: threading.Event) -> None:
        super().__init__()
        self._path, self._ended = path, ended
        self._random = random.Random(f"{seed}/{number}")
        first = 20_000 + number * 100
        self._ports = {f"load:{number}/{n}": range(first + n * 10, first + n * 10 + 10) for n in range(OWNERS)}
        self.promised: dict[str, Wish] = dict.fromkeys(self._ports)
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        with Client(self._path, timeout=60) as api:
            while not self._ended.is_set():
                several = self._random.random() < 0.3
                owners = self._random.sample(list(self._ports), 3 if several else 1)
                self._ask(api, {owner: self._wish(owner) for owner in owners})
                time.sleep(PAUSE)

    def _wish(self, owner: str) -> Wish:
        if self._random.random() < 0.2:
            return None
        ports = self._random.sample(list(self._ports[owner]), self._random.randint(1, 5))
        target = f"10.88.0.12:{self._random.randint(1, 9999)}"
        return {str(port): target for port in sorted(ports)}, self._random.random() < 0.4

    def _ask(self, api: Client, wishes: dict[str, Wish]) -> None:
        """Ask again while nobody answers, for what was asked may be in force or not."""
        owners = {owner: as_body(wish) for owner, wish in wishes.items()}
        while True:
            try:
                api.request("POST", "/v1/transactions", {"owners": owners})
            except NotReachable:
                self.outcomes["nobody answered"] += 1
                time.sleep(0.05)
            except Problem as problem:
                # An answer that was lost may have been a yes: only the same again tells.
                self.outcomes[problem.name] += 1
                time.sleep(0.05)
            else:
                self.outcomes["done"] += 1
                self.promised |= wishes
                return


def as_body(wish: Wish) -> Json | None:
    """A wish as the API takes it."""
    if wish is None:
        return None
    ports, persistent = wish
    return body(*(mapping(port, target) for port, target in ports.items()), persistent=persistent)


class Load:
    """Publishers in a process of their own."""

    def __init__(self, space: Namespace, path: Path, clients: int, seed: int) -> None:
        command = [sys.executable, "-m", "tests.chaos.publishers", str(path), str(clients), str(seed)]
        self._process = space.popen(command, stdout=subprocess.PIPE, cwd=ROOT)

    def end(self) -> tuple[dict[str, Wish], Counter[str]]:
        """Let them get their last answers; what was promised, and how often they heard what."""
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=90)
        promised, outcomes = json.loads(out)
        return {owner: wish and (wish[0], wish[1]) for owner, wish in promised.items()}, Counter(outcomes)


def main(path: str, clients: int, seed: int) -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    publishers = [Publisher(path, number, seed, ended) for number in range(clients)]
    for publisher in publishers:
        publisher.start()
    promised: dict[str, Wish] = {}
    outcomes: Counter[str] = Counter()
    for publisher in publishers:
        publisher.join()
        promised |= publisher.promised
        outcomes += publisher.outcomes
    print(json.dumps([promised, outcomes]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

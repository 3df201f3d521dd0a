"""64 clients at once, in a process of their own: `python -m tests.api.load SOCKET CLIENTS OWNERS CHANGES`, JSON out.

Must not know the laboratory. The one idea: each client has owners of its own, and tells at the end what was
acknowledged for each; what anybody else was told does not matter to it.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter

from nfportd.client import Client, Problem
from tests.api.calling import body, mapping

#: A port that all clients want, beside their own.
WANTED = range(60_000, 60_016)


class Publisher(threading.Thread):
    """One client: publishes, changes and withdraws its owners, and sometimes wants what others want as well."""

    def __init__(self, path: str, number: int, ports: range, changes: int) -> None:
        super().__init__()
        self._path = path
        self._number = number
        self._ports = ports
        self._changes = changes
        self._random = random.Random(number)
        self.acknowledged: dict[str, dict[str, str]] = {}
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        with Client(self._path, timeout=60) as api:
            for turn in range(self._changes):
                try:
                    self._change(api, turn)
                    self.outcomes["done"] += 1
                except Problem as problem:
                    self.outcomes[problem.name] += 1
                except Exception as error:
                    self.outcomes[repr(error)] += 1

    def _change(self, api: Client, turn: int) -> None:
        port = self._ports[turn % len(self._ports)]
        owner = f"load:{self._number}/{port}"
        if owner in self.acknowledged and self._random.random() < 0.4:
            api.delete(owner)
            del self.acknowledged[owner]
            return
        wish = {str(port): f"10.88.0.12:{self._random.randint(1, 9999)}"}
        if self._random.random() < 0.02:
            wish[str(self._random.choice(WANTED))] = "10.88.0.12:80"
        api.put(owner, body(*(mapping(listen, target) for listen, target in wish.items())))
        self.acknowledged[owner] = wish


def main() -> None:
    path, clients, owners, changes = sys.argv[1], *map(int, sys.argv[2:])
    share = owners // clients
    publishers = [
        Publisher(path, number, range(10_000 + number * share, 10_000 + (number + 1) * share), changes // clients)
        for number in range(clients)
    ]
    began = time.monotonic()
    for publisher in publishers:
        publisher.start()
    outcomes: Counter[str] = Counter()
    acknowledged: dict[str, dict[str, str]] = {}
    for publisher in publishers:
        publisher.join()
        outcomes += publisher.outcomes
        acknowledged |= publisher.acknowledged
    seconds = time.monotonic() - began
    print(json.dumps({"acknowledged": acknowledged, "outcomes": outcomes, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

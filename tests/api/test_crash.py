"""kill -9 a hundred times under load: what was acknowledged is there, and what was not is there as a whole or not.

Must not know the store. The one idea: each writer remembers for its owners what was acknowledged and what was asked
for when the daemon died; after a start one of the two must be in the API and in the kernel.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from nfportd.client import Client, Json, NotReachable
from tests.api.calling import body, client, mapping
from tests.lab import Daemon, Lab

KILLS = 100
WRITERS = 4
OWNERS = 6  # of each writer

#: What an owner has: listen -> target, and whether that is persistent; None for nothing at all.
Wished = tuple[frozenset[tuple[int, str]], bool] | None


class Writer:
    """Changes its own owners at random until the daemon is gone."""

    def __init__(self, number: int, seed: int) -> None:
        self._random = random.Random(seed)
        first = 10_000 + number * 1_000
        self.ports = {f"w{number}:{n}": range(first + n * 10, first + n * 10 + 10) for n in range(OWNERS)}
        self.acknowledged: dict[str, Wished] = dict.fromkeys(self.ports)
        self.asked: dict[str, Wished] = {}
        self.changes = 0

    def run(self, daemon: Daemon) -> None:
        with client(daemon) as api:
            try:
                while True:
                    self._change(api)
            except NotReachable:
                return

    def _change(self, api: Client) -> None:
        several = self._random.random() < 0.3
        owners = self._random.sample(list(self.ports), self._random.choice([2, 3]) if several else 1)
        self.asked = {owner: self._wish(owner) for owner in owners}
        if several:
            api.request("POST", "/v1/transactions", {"owners": {o: as_body(w) for o, w in self.asked.items()}})
        else:
            [(owner, wish)] = self.asked.items()
            if wish is not None:
                api.put(owner, as_body(wish) or {})
            elif self.acknowledged[owner] is not None:
                api.delete(owner)
        self.acknowledged |= self.asked
        self.asked = {}
        self.changes += 1

    def _wish(self, owner: str) -> Wished:
        if self._random.random() < 0.2:
            return None
        ports = self._random.sample(list(self.ports[owner]), self._random.randint(1, 5))
        target = f"10.88.0.{self._random.randint(11, 12)}:{self._random.randint(1, 9999)}"
        return frozenset((port, target) for port in ports), self._random.random() < 0.4

    def settle(self, found: dict[str, Wished]) -> None:
        """Hold what is there against what was acknowledged and asked for; go on from there."""
        mine = {owner: found.get(owner) for owner in self.ports}
        right = [self.acknowledged, self.acknowledged | self.asked]
        assert mine in right, f"found {mine}\nacknowledged {self.acknowledged}\nasked {self.asked}"
        self.acknowledged, self.asked = mine, {}


def as_body(wish: Wished) -> Json | None:
    if wish is None:
        return None
    pairs, persistent = wish
    return body(*(mapping(port, target) for port, target in sorted(pairs)), persistent=persistent)


def in_the_api(api: Client) -> dict[str, Wished]:
    kept = {each["owner"]: bool(each["persistent"]) for each in api.get("/v1/owners")["owners"]}
    found: dict[str, set[tuple[int, str]]] = {owner: set() for owner in kept}
    for each in api.get("/v1/mappings")["mappings"]:
        assert each["state"] == "active"
        found[each["owner"]].add((int(each["listen"]), each["targets"][0]))
    return {owner: (frozenset(pairs), kept[owner]) for owner, pairs in found.items()}


def elements(wishes: Iterable[Wished]) -> dict[str, str]:
    pairs = [pair for wish in wishes if wish for pair in wish[0]]
    return {f"tcp . {port}": target.replace(":", " . ") for port, target in pairs}


def crashes(daemon: Daemon, seed: int, kills: int) -> int:
    """Kill a daemon under load again and again; how many changes were acknowledged."""
    writers = [Writer(number, seed=seed * WRITERS + number) for number in range(WRITERS)]
    moments = random.Random(seed)
    daemon.start()
    for _ in range(kills):
        threads = [threading.Thread(target=writer.run, args=(daemon,)) for writer in writers]
        for thread in threads:
            thread.start()
        time.sleep(moments.uniform(0.01, 0.15))
        daemon.kill9()
        for thread in threads:
            thread.join()
        if moments.random() < 0.1:  # and again while it starts
            daemon.start(wait=False)
            time.sleep(moments.uniform(0.1, 0.5))
            daemon.kill9()
        daemon.start()
        with client(daemon) as api:
            found = in_the_api(api)
        for writer in writers:
            writer.settle(found)
        assert daemon.elements("any4") == elements(found.values())
    daemon.stop()
    return sum(writer.changes for writer in writers)


@pytest.mark.timeout(400)
def test_a_hundred_crashes_under_load(lab: Lab) -> None:
    """In two hosts side by side, as there are two processors."""
    daemons = []
    for name in ("host1", "host2"):
        space = lab.space(name)
        lab.bridge(space, "br0")
        space.batch("address add 10.88.0.1/24 dev br0")
        daemons.append(Daemon(lab, space=name))
    with ThreadPoolExecutor(len(daemons)) as pool:
        runs = [pool.submit(crashes, daemon, seed, KILLS // 2) for seed, daemon in enumerate(daemons)]
        changes = sum(run.result() for run in runs)

    assert changes > KILLS * 4, "there was a load"

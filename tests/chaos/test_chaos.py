"""Under traffic and requests, faults of every kind: what is published stays so, and what was promised is in force.

Must not know how anything is repaired. The one idea: traffic, requests and faults run beside one another and know
nothing of each other; what they have noted down is compared when all is over.

CHAOS_SEED is what faults and requests follow from, CHAOS_SECONDS how long they go on (`make chaos`: ten minutes).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from nfportd.client import Client
from tests.api import calling
from tests.chaos import faults, plan, traffic, world as worlds
from tests.chaos.judgement import Judgement, Window, distribution
from tests.chaos.publishers import Load, Wish
from tests.chaos.world import SERVER, STABLE, World, both, until
from tests.lab import Lab

SEED = int(os.environ.get("CHAOS_SEED", "6"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "15"))
CLIENTS = 3


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    for name in STABLE:
        traffic.serve(lab.spaces[name], SERVER)
    made = World(lab)
    made.daemon.start()
    with calling.client(made.daemon) as api:
        api.put("stable", calling.body(calling.mapping(STABLE["t4"], *both("t4")), persistent=True))
    until(made.host_is_right, 10)
    made.remember()
    yield made
    if made.daemon.process is not None:
        made.daemon.stop(timeout=30)


@pytest.mark.timeout(SECONDS + 300)
def test_it_survives_everything(world: World, lab: Lab) -> None:
    outside, inside = worlds.ways()
    clients = [
        traffic.Clients(space, ways, lab.tmp / f"{space.name}.json")
        for space, ways in ((lab.outside, outside), (lab.host, inside))
    ]
    load = Load(lab.host, world.daemon.socket, CLIENTS, SEED)
    windows = chaos(world)
    promised, outcomes = load.end()
    judged = Judgement(faults.ALL, windows, [each for some in clients for each in some.end()])

    print(distribution(windows, judged.excused))
    for way, found in judged.ways.items():
        failed = sum(each.outcome != traffic.ANSWERED for each in found)
        print(f"{way:<20} {len(found):>6} times, {failed:>4} failed; {judged.disturbed[way]:>6.1f} s of windows")
    print(f"requests: {dict(outcomes)}; {count(world)} repairs since the last start")
    print("\n".join(judged.wrong))
    assert not judged.wrong, "connections failed that nothing disturbed"
    assert outcomes["internal"] == 0
    everything_agrees(world, promised)


def chaos(world: World) -> list[Window]:
    """Let fault follow fault until the time is over."""
    windows: list[Window] = []
    began = time.monotonic()
    print(f"\nCHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:.0f}")
    for step in plan.steps(SEED, list(faults.ALL)):
        time.sleep(step.peace)
        if time.monotonic() - began > SECONDS:
            return windows
        assert world.daemon.process, "it is started again at once"
        assert world.daemon.process.poll() is None, "it ends by nothing but SIGKILL"
        fault = faults.ALL[step.kind]
        begun = time.monotonic()
        fault.act(world, random.Random(step.chance))
        done = time.monotonic()
        repaired = until(partial(right, world, fault), faults.PATIENCE)
        windows.append(Window(step.kind, begun, done, repaired))
        print(
            f"{begun - began:>7.2f} s  {step.number:>4}  {step.kind:<30} {windows[-1].milliseconds:>8.1f} ms",
            flush=True,
        )
    raise AssertionError("the plan has no end")


def right(world: World, fault: faults.Fault) -> bool:
    """Whether what the fault may have touched is as before."""
    return world.kernel_is_right() and (not fault.host or (world.host_is_right() and world.kernel_is_right()))


def count(world: World) -> int:
    with calling.client(world.daemon) as api:
        return int(api.get("/v1/status")["repairs"]["count"])


def everything_agrees(world: World, promised: dict[str, Wish]) -> None:
    """Kernel, API, store, files and what clients were promised hold the same."""
    with calling.client(world.daemon) as api:
        calling.eventually(lambda: {each["state"] for each in shown(api)}, {"active"}, patience=30)
        calling.eventually(lambda: maps(world), elements(shown(api)), patience=30)
        assert world.kernel_is_right()
        assert world.host_is_right()
        status = api.get("/v1/status")
        assert (status["table"], status["files"], status["unreached"]) == ("intact", {}, [])
        in_api = by_owner(shown(api))
        kept = {each["owner"]: bool(each["persistent"]) for each in api.get("/v1/owners")["owners"]}
    in_files = {owner: found for owner, found in in_api.items() if owner.startswith("file:")}
    assert in_files == by_owner(in_the_files(world))
    rows = in_the_store(world)
    assert {owner: persistent for owner, (persistent, _) in rows.items()} == {
        owner: persistent for owner, persistent in kept.items() if not owner.startswith("file:")
    }
    in_store = {owner: found for owner, (_, found) in rows.items() if found}
    assert in_store == {owner: found for owner, found in in_api.items() if owner not in in_files}
    loaded = {owner: found for owner, found in in_api.items() if owner.startswith("load:")}
    wanted = {
        owner: {(port, "tcp", target) for port, target in wish[0].items()} for owner, wish in promised.items() if wish
    }
    assert loaded == wanted
    assert {owner: kept[owner] for owner in wanted} == {owner: wish[1] for owner, wish in promised.items() if wish}


Flat = set[tuple[str, str, str]]


def flat(mapping: dict[str, Any]) -> Flat:
    """(listen, protocol, target) of a mapping, however it was written."""
    protocols, targets = mapping.get("protocol") or "tcp", mapping["targets"]
    protocols = [protocols] if isinstance(protocols, str) else protocols
    targets = [targets] if isinstance(targets, str) else targets
    return {(str(mapping["listen"]), protocol, target) for protocol in protocols for target in targets}


def by_owner(mappings: list[dict[str, Any]]) -> dict[str, Flat]:
    found: dict[str, Flat] = {}
    for each in mappings:
        found.setdefault(each["owner"], set()).update(flat(each))
    return found


def shown(api: Client) -> list[dict[str, Any]]:
    return list(api.get("/v1/mappings")["mappings"])


def in_the_files(world: World) -> list[dict[str, Any]]:
    found = []
    for path in world.daemon.dropins.glob("*.yaml"):
        found += [{"owner": f"file:{path.name}", **each} for each in yaml.safe_load(path.read_text())["mappings"]]
    return found


def in_the_store(world: World) -> dict[str, tuple[bool, Flat]]:
    found: dict[str, tuple[bool, Flat]] = {}
    for place, persistent in (("run", False), ("state", True)):
        # SQLite resolves the link into the other mount namespace itself, and misses the file.
        copy = world.daemon.dir / f"{place}.db"
        copy.write_bytes((world.daemon.inside / place / "mappings.db").read_bytes())
        with contextlib.closing(sqlite3.connect(copy)) as store:
            rows = store.execute("SELECT owner, content FROM owners").fetchall()
        found |= {o: (persistent, set().union(*map(flat, json.loads(c)["mappings"]))) for o, c in rows}
    return found


def maps(world: World) -> dict[tuple[str, str], str]:
    """What the kernel has in its maps."""
    found = worlds.elements(world.table())
    return {key: value for key, value in found.items() if key[0] in ("any4", "any6", "addr4", "addr6")}


def elements(mappings: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """What the kernel must have for them."""
    found: dict[tuple[str, str], str] = {}
    for listen, protocol, target in sorted(set().union(*map(flat, mappings))):
        host, _, port = target.rpartition(":")
        family = 6 if host.startswith("[") else 4
        found[f"any{family}", f"{protocol} . {listen}"] = f"{host.strip('[]')} . {port}"
    return found

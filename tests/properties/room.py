"""The host in which a daemon lives, and what kernel, API and store there say against what was promised.

It must not know what happens, nor in which order. The one idea: everything is asked from outside, and a difference is
told in words.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from typing import Any

from nfportd.client import Client
from tests.lab import Daemon, Lab, joined
from tests.netns import Namespace
from tests.properties.model import NAMES
from tests.properties.promises import Promises, Table

#: What may be missing while sets of such names have no elements.
ON_DEMAND = {
    "admission": ("guarded_",),
    "dispatch_addr": ("addr",),
    "masquerade_addr": ("always_addr", "never_addr"),
    "masquerade_any": ("always_any", "never_any"),
}


class Skeleton(dict[str, Any]):
    """Chains, rules, sets and flags as nft lists them, without numbers that change."""

    def __init__(self, listed: list[dict[str, Any]]) -> None:
        super().__init__()
        for each in listed:
            for kind, said in each.items():
                if kind == "rule":
                    self.setdefault(f"rules of {said['chain']}", []).append(_still(said["expr"]))
                elif kind != "metainfo":
                    gone = ("handle", "elem", "packets", "bytes")
                    name = said["name"]
                    self[f"{kind} {name}"] = {key: value for key, value in said.items() if key not in gone}


def _still(expression: Any) -> Any:
    if isinstance(expression, list):
        return [_still(each) for each in expression]
    if isinstance(expression, dict):
        return {key: None if key == "counter" else _still(value) for key, value in expression.items()}
    return expression


class Room:
    """The host, with one daemon at a time in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host: Namespace = lab.host
        self._sound: Skeleton | None = None

    def begin(self) -> Daemon:
        daemon = Daemon(self.lab)
        if self._sound is None:
            # With what comes on demand.
            (daemon.dropins / "guarded.yaml").write_text(
                "mappings:\n"
                "  - {listen: 1, targets: '10.88.0.11:1', sources: [192.0.2.0/24], masquerade: always}\n"
                "  - {listen: '127.0.0.1:2', targets: '10.88.0.11:1', masquerade: always}\n"
            )
            daemon.start()
            self._sound = Skeleton(daemon.table()["nftables"])
            daemon.stop()
            (daemon.dropins / "guarded.yaml").unlink()
        daemon.start()
        return daemon

    def end(self, daemon: Daemon) -> None:
        """It goes, and leaves nothing."""
        if daemon.process is not None:
            assert daemon.stop() == 0
        left = daemon.table()
        self.lab.daemons.remove(daemon)
        shutil.rmtree(daemon.dir)
        self.host.run(["nft", "flush", "ruleset"])
        assert not left

    def difference(self, daemon: Daemon, api: Client, promised: Promises) -> str:
        """Where kernel, API or store are not as promised, for people; empty where they are."""
        try:
            listed = daemon.table().get("nftables", [])
        except ValueError:
            return "the listing is no JSON"  # nft 1.0.6 writes a table that has a flag from memory that it has freed
        found, wanted = elements(listed), promised.elements()
        wrong = [f"{n}: {found.get(n)} is not {wanted[n]}" for n in NAMES if found.get(n) != wanted[n]]
        skeleton, sound = Skeleton(listed), self._sound or Skeleton([])
        names = skeleton.keys() | sound.keys()
        filled = [name for name, inside in found.items() if inside]
        for chain, prefixes in ON_DEMAND.items():
            if not any(name.startswith(prefixes) for name in filled):
                names -= {f"chain {chain}", f"rules of {chain}"} - skeleton.keys()
        wrong += [f"{n}: {skeleton.get(n)} is not {sound.get(n)}" for n in names if skeleton.get(n) != sound.get(n)]
        if len(found.get("fingerprint", ())) != 1:
            wrong.append("there is no fingerprint")
        for what, said, right in (
            ("listed", states(api), promised.states()),
            ("stored", stored(daemon), promises(promised)),
        ):
            wrong += [f"{what}: {said} is not {right}"] if said != right else []
        for family, name in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
            if (wanted[f"any{family}"] or wanted[f"addr{family}"]) and self.host.sysctl(name) != "1":
                wrong.append(f"{name} is not 1")
        return "\n".join(wrong)


def elements(listed: list[dict[str, Any]]) -> Table:
    found: Table = {}
    for each in listed:
        for kind in ("map", "set"):
            if kind in each:
                pairs = [pair if kind == "map" else (pair, "") for pair in each[kind].get("elem", [])]
                found[each[kind]["name"]] = {_text(each[kind]["name"], key): joined(value) for key, value in pairs}
    return found


def _text(name: str, key: Any) -> str:
    """A key as joined; a prefix of full length is listed as an address."""
    text = joined(key)
    first, _, rest = text.partition(" . ")
    if name.startswith(("onlink", "allowed")) and "/" not in first:
        return f"{first}/{128 if ':' in first else 32} . {rest}"
    return text


def states(api: Client) -> dict[tuple[str, str, str], str]:
    listed = api.get("/v1/mappings")["mappings"]
    return {(each["owner"], each["listen"], "+".join(each["protocol"])): each["state"] for each in listed}


Stored = dict[tuple[str, bool], list[tuple[str, list[str]]]]


def stored(daemon: Daemon) -> Stored:
    """What stands in the files: for each owner, and whether it survives a reboot, listens and targets."""
    found: Stored = {}
    for persistent, place in ((False, "run"), (True, "state")):
        path = daemon.dir / place / "mappings.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            for owner, text in database.execute("SELECT owner, content FROM owners"):
                mappings = json.loads(text)["mappings"]
                found[owner, persistent] = sorted((each["listen"], sorted(each["targets"])) for each in mappings)
    return found


def promises(promised: Promises) -> Stored:
    return {
        (owner, owner in promised.persistent): sorted(
            (said["listen"], sorted(said["targets"])) for said in (entry.json() for entry in content)
        )
        for owner, content in promised.wishes.items()
        if not owner.startswith("file:")
    }

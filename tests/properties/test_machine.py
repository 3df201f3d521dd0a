"""The whole daemon against a model: API, files, faults and meddling in any order, and after each what was promised.

It must not look into the daemon. The one idea: a machine draws what happens next; once there is quiet the kernel, the
API and the store must say what the model says. `NFPORTD_EXAMPLES=500` runs it long, with other examples each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nfportd.client import Client, Problem
from tests.properties.host import bridged
from tests.properties.model import LINKS, NAMES
from tests.properties.promises import Content, Entry, Promises, Table, Wished
from tests.properties.room import Room

EXAMPLES = int(os.environ.get("NFPORTD_EXAMPLES", "0"))
#: Seconds in which there must be quiet; a child that died twice while listing costs some.
PATIENCE = 15.0

PORTS = range(8000, 8004)
OWNERS = st.sampled_from(["api:a", "api:b", "cni:c"])
FILES = st.sampled_from(["10-a.yaml", "20-b.yaml"])
LISTENS: dict[str | None, tuple[int, ...]] = {
    None: (4, 6), "0.0.0.0": (4,), "192.0.2.1": (4,), "127.0.0.1": (4,), "::": (6,), "2001:db8::1": (6,)
}  # fmt: skip
TARGETS = {4: ("10.88.0.11", "10.88.0.140", "10.88.1.2", "198.51.100.7"), 6: ("fd88::11", "fd88:0:0:1::2")}
SOURCES: tuple[tuple[str, ...], ...] = (), (), ("192.0.2.0/24", "2001:db8::7/128"), ("::/0",)
PROTOCOLS: tuple[tuple[str, ...], ...] = ("tcp",), ("tcp",), ("udp",), ("tcp", "udp")


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    count = draw(st.integers(1, 2))
    address = draw(st.sampled_from(list(LISTENS)))
    families = draw(st.lists(st.sampled_from(LISTENS[address]), min_size=1, unique=True))
    return Entry(
        address,
        draw(st.integers(PORTS.start, PORTS.stop - count)),
        count,
        draw(st.sampled_from(PROTOCOLS)),
        tuple((draw(st.sampled_from(TARGETS[family])), draw(st.sampled_from([80, 9000]))) for family in families),
        draw(st.sampled_from(["auto", "auto", "always", "never"])),
        draw(st.sampled_from(SOURCES)),
    )


@st.composite
def contents(draw: st.DrawFn) -> Content:
    """What one owner may have: no key twice."""
    found: list[Entry] = []
    for entry in draw(st.lists(entries(), max_size=3)):
        if not any(entry.goes().keys() & other.goes().keys() for other in found):
            found.append(entry)
    return tuple(found)


def _empty(table: Table) -> None:
    table.clear()


def _flush_any4(table: Table) -> None:
    table["any4"] = {}


def _add_any4(table: Table) -> None:
    table["any4"]["tcp . 9000"] = "203.0.113.1 . 1"


def _none(_: Table) -> None:
    pass


#: What others do to the table, in nft's words, and what that makes of its elements.
MEDDLING: dict[str, Callable[[Table], None]] = {
    "delete table inet nfportd": _empty,
    "flush ruleset": _empty,
    "flush map inet nfportd any4": _flush_any4,
    "add element inet nfportd any4 { tcp . 9000 : 203.0.113.1 . 1 }": _add_any4,
    "add element inet nfportd always_any6 { udp . 8001 }": _none,
    'add element inet nfportd onlink4 { 203.0.113.1-203.0.113.5 . "br0" }': _none,
    "flush set inet nfportd fingerprint": _none,
    "flush chain inet nfportd dispatch": _none,
    "add rule inet nfportd prerouting drop": _none,
    "insert rule inet nfportd output tcp dport 1 drop": _none,
    "add chain inet nfportd extra; add rule inet nfportd extra jump dispatch": _none,
    "add chain inet nfportd hook { type filter hook input priority 0; }": _none,
    "delete chain inet nfportd loopback_guard": _none,
    "add chain inet nfportd output { policy drop; }": _none,
    "add table inet nfportd { flags dormant; }": _none,
    "add set inet nfportd extra { type mark; }": _none,
}
#: Besides, the elements that are there are taken away or changed.
ELEMENTS = ("remove", "change")
CRASH = "libnftables crashes"
meddling = st.one_of(st.sampled_from([*MEDDLING]), st.tuples(st.sampled_from(ELEMENTS), st.integers(0, 7)))
noise = st.one_of(st.none(), st.just(CRASH), meddling)
Meddling = str | tuple[str, int]


def body(content: Content, **more: Any) -> dict[str, Any]:
    return {"mappings": [entry.json() for entry in content], **more}


class Machine(RuleBasedStateMachine):
    """One daemon, several lives."""

    def __init__(self, room: Room) -> None:
        super().__init__()
        self.room = room
        self.promised = Promises(LINKS)
        self.broken: set[str] = set()
        self.files: set[str] = set()
        self.listeners: dict[int, socket.socket] = {}
        self.daemon = room.begin()
        self.api = Client(str(self.daemon.socket), timeout=30)

    def teardown(self) -> None:
        self.api.close()
        for sock in self.listeners.values():
            sock.close()
        self.room.end(self.daemon)

    @invariant()
    def all_is_as_promised(self) -> None:
        until = time.monotonic() + PATIENCE
        pause = 0.01
        while wrong := self.room.difference(self.daemon, self.api, self.promised):
            if time.monotonic() > until:
                raise AssertionError(f"after {PATIENCE:.0f} s of quiet\n{wrong}\n{self.daemon.log[-6000:]}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.3)

    # Requests

    def ask(self, method: Callable[[], Any]) -> int | str:
        """What an answer says: 200, or the problem's name."""
        try:
            method()
        except Problem as problem:
            return problem.name
        return 200

    def wish(self, wished: Wished, ask: Callable[[], Any], persistent: tuple[str, ...] = ()) -> None:
        refusal = self.promised.refusal(wished)
        assert self.ask(ask) == (refusal or 200)
        if not refusal:
            self.promised.fulfil(wished, persistent)

    @rule(owner=OWNERS, content=contents(), persistent=st.booleans(), before=noise)
    def put(self, owner: str, content: Content, persistent: bool, before: Meddling | None) -> None:
        self.meddle(before)
        wished = body(content, persistent=persistent)
        self.wish({owner: content}, lambda: self.api.put(owner, wished), (owner,) if persistent else ())

    @rule(owner=OWNERS, content=contents(), etag=st.sampled_from(["right", "wrong", None]))
    def put_if_it_matches(self, owner: str, content: Content, etag: str | None) -> None:
        now = self.api.owner(owner)
        tag = now["etag"] if now and etag == "right" else etag
        if (tag is None) if now else (tag is not None):
            assert self.ask(lambda: self.api.put(owner, body(content), etag=tag)) == "precondition-failed"
        elif etag == "wrong":
            assert self.ask(lambda: self.api.put(owner, body(content), etag="0" * 16)) == "precondition-failed"
        else:
            self.wish({owner: content}, lambda: self.api.put(owner, body(content), etag=tag))

    @rule(owner=OWNERS, before=noise)
    def delete(self, owner: str, before: Meddling | None) -> None:
        self.meddle(before)
        if owner in self.promised.wishes:
            self.wish({owner: None}, lambda: self.api.delete(owner))
        else:
            assert self.ask(lambda: self.api.delete(owner)) == "not-found"

    @rule(wished=st.dictionaries(OWNERS, st.none() | contents(), min_size=2))
    def transact(self, wished: dict[str, Content | None]) -> None:
        owners = {owner: None if content is None else body(content) for owner, content in wished.items()}
        self.wish(wished, lambda: self.api.request("POST", "/v1/transactions", {"owners": owners}))

    @rule(owner=OWNERS, content=contents())
    def check(self, owner: str, content: Content) -> None:
        asked = {"owner": owner, **body(content)}
        refusal = self.promised.refusal({owner: content})
        assert self.ask(lambda: self.api.request("POST", "/v1/check", asked)) == (refusal or 200)

    @rule(owner=OWNERS, content=contents(), crash=st.booleans())
    def lease(self, owner: str, content: Content, crash: bool) -> None:
        wished = body(content, expires_in=0.4)
        until = time.monotonic() + 0.4
        refusal = self.promised.refusal({owner: content})
        self.wish({owner: content}, lambda: self.api.put(owner, wished))
        if refusal:
            return
        if crash:
            self.daemon.kill9()
            time.sleep(max(0.0, until - time.monotonic()))
            # Nobody withdrew it before: it is not in the life that begins.
            found = self.promised.elements()
            self.promised.fulfil({owner: None})
            self.begin(found)
        else:
            self.promised.fulfil({owner: None})

    # Files

    @rule(name=FILES, content=contents(), before=noise)
    def write(self, name: str, content: Content, before: Meddling | None) -> None:
        self.meddle(before)
        line = self.daemon.write(name, json.dumps(body(content)))
        assert "applied" in line, line
        self.files.add(name)
        self.broken.discard(name)
        self.promised.fulfil({f"file:{name}": content or None})

    @rule(name=FILES)
    def spoil(self, name: str) -> None:
        line = self.daemon.write(name, "mappings:\n  - listen: 99999\n")
        assert f"{name}:2:" in line, line
        self.files.add(name)
        self.broken.add(name)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.files)))
        self.daemon.remove(name)
        self.files.discard(name)
        self.broken.discard(name)
        self.promised.fulfil({f"file:{name}": None})

    @rule(by_api=st.booleans())
    def reload(self, by_api: bool) -> None:
        if by_api:
            errors = self.api.request("POST", "/v1/reload", {})["errors"]
            assert {name for name in self.files if any(name in each for each in errors)} == self.broken
        else:
            seen = len(self.daemon.log)
            self.daemon.hup()
            self.daemon.wait_for(r"applied: all files \(SIGHUP\)", seen)

    # Processes

    @rule(
        number=st.sampled_from([signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM]),
        damage=st.lists(meddling, max_size=2),
        store=st.sampled_from(["sound", "sound", "corrupt", "removed"]),
        persistent=st.booleans(),
    )
    def begin_again(self, number: signal.Signals, damage: list[Meddling], store: str, persistent: bool) -> None:
        process = self.daemon.process
        assert process
        process.send_signal(number)
        assert process.wait(20) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        found = {} if number == signal.SIGTERM else self.promised.elements()
        for each in damage:
            self.meddle(each, found)
        place = self.daemon.dir / ("state" if persistent else "run") / "mappings.db"
        if store == "corrupt":
            place.write_bytes(b"not a database " * 1000)
        elif store == "removed":
            place.unlink()
        self.begin(found, [] if store == "sound" else [persistent], corrupt=store == "corrupt")

    def begin(self, found: Table, lost: list[bool] | None = None, *, corrupt: bool = False) -> None:
        self.api.close()
        self.promised.reborn(found if found else {name: {} for name in NAMES}, lost=lost or [], corrupt=corrupt)
        self.daemon.start()

    def kill_libnftables(self) -> None:
        """End the process that runs it, if it has been needed since the last one died."""
        for child in Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"nft_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    @rule(port=st.sampled_from(PORTS))
    def listen(self, port: int) -> None:
        if port not in self.listeners:
            sock = self.listeners[port] = self.room.host.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", port))
            sock.listen()
            self.promised.listening.add(port)

    @precondition(lambda self: self.listeners)
    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        port = data.draw(st.sampled_from(sorted(self.listeners)))
        self.listeners.pop(port).close()
        self.promised.silence(port)
        # Blocked keys are looked at every ten seconds, and with each repair.
        self.meddle("add chain inet nfportd extra")

    # Meddling

    @rule(all_of=st.lists(st.just(CRASH) | meddling, min_size=1, max_size=4))
    def others_meddle(self, all_of: list[Meddling]) -> None:
        for each in all_of:
            self.meddle(each)

    @rule(name=st.sampled_from(["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]))
    def others_set_a_sysctl(self, name: str) -> None:
        self.room.host.sysctl(name, 0)

    def meddle(self, what: Meddling | None, found: Table | None = None) -> None:
        """Do what another program might; `found` follows what it makes of the elements."""
        if what is None:
            return
        if what == CRASH:
            self.kill_libnftables()
            return
        if isinstance(what, str):
            done = self.room.host.run(["nft", what], check=False)  # the table may be away, or owned
            if done.returncode == 0 and found:
                MEDDLING[what](found)
            return
        kind, number = what
        table = self.promised.elements() if found is None else found
        there = [(name, *pair) for name in ("any4", "any6", "addr4", "addr6") for pair in table.get(name, {}).items()]
        if not there:
            return
        name, key, _ = there[number % len(there)]
        gone = f"delete element inet nfportd {name} {{ {key} }}"
        other = "203.0.113.1 . 1" if name.endswith("4") else "2001:db8::dead . 1"
        new = f"; add element inet nfportd {name} {{ {key} : {other} }}" if kind == "change" else ""
        done = self.room.host.run(["nft", gone + new], check=False)
        if done.returncode == 0 and found:
            del found[name][key]
            found[name] |= {key: other} if new else {}


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with bridged() as lab:
        yield Room(lab)


EASY = settings(deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
SHORT = settings(EASY, max_examples=5, stateful_step_count=14, derandomize=True, phases=[Phase.generate])
LONG = settings(EASY, max_examples=EXAMPLES or 1, stateful_step_count=30, print_blob=True)


@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_whatever_happens_what_was_promised_holds(room: Room) -> None:
    class Here(Machine):
        def __init__(self) -> None:
            super().__init__(room)

    run_state_machine_as_test(Here, settings=LONG if EXAMPLES else SHORT)

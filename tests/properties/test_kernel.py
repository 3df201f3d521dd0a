"""The real Reconciler on a real kernel: whatever is wished, in any order, over restarts and damage, is in the table.

It must not look into the reconciler. The one idea: a thread of its own in a namespace of its own runs the event loop
of the daemon; after every step the table is listed by another process and compared with the plain model.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Mapping as AbstractMapping
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from nfportd.enforcer import Kernel
from nfportd.errors import KernelRefused
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.nft import Nft
from nfportd.kernel.nft_monitor import NftMonitor
from nfportd.kernel.ports import LocalPorts
from nfportd.kernel.sysctl import Sysctls
from nfportd.model import Mapping
from nfportd.reconciler import Reconciler
from nfportd.register import Change, Register
from nfportd.relay import Relay
from nfportd.table import Table
from nfportd.wishes import Content, Held, Outcome, Waiting, Wish
from tests.api.calling import eventually
from tests.properties import model
from tests.properties.inside import KERNEL, Inside, body
from tests.properties.model import LINKS
from tests.properties.strategies import OWNERS, Wishes, files
from tests.unit.reading import mapping


class Nobody:
    """Keeps nothing and watches nothing."""

    async def keep(self, held: AbstractMapping[str, Held | None]) -> None:
        """As a store that always can."""

    def transaction(self, seconds: float, *, ok: bool) -> None:
        """Not watched."""

    def flushed(self, requests: int) -> None:
        """Not watched."""

    def fulfilled(self, change: Change, waiting: Iterable[Waiting]) -> None:
        """Not watched."""

    def refused(self, owner: str, detail: str) -> None:
        """Not watched."""

    def repaired(self, detail: str) -> None:
        """Not watched."""


def as_wish(wishes: Wishes) -> Wish:
    return Wish(owners={owner: Content(mappings=mappings) if mappings else None for owner, mappings in wishes.items()})


class Life:
    """One life of what the daemon wires together, without files and signals."""

    def __init__(self, inside: Inside, run_dir: Path) -> None:
        self._inside = inside
        inside.do(self._begin(run_dir))

    async def _begin(self, run_dir: Path) -> None:
        wake = asyncio.Event()
        self._monitor, self._network, self._conntrack = NftMonitor(wake.set), NetworkWatch(wake.set), Conntrack()
        self._nft = Nft(self._monitor.leave_out, wake.set)
        self._table = Table(self._nft, 13)
        self._host = Host(self._network, Sysctls(run_dir / "sysctls.json", manage=True))
        self._ports, self._relay = LocalPorts(), Relay(1 << 13)
        kernel = Kernel(
            wake, self._table, self._monitor, self._network, self._conntrack, self._host, self._ports, self._relay
        )
        self._reconciler = Reconciler(Register(), kernel, Nobody(), Nobody())
        await self._table.adopt()
        self._task = asyncio.create_task(self._reconciler.run())

    def wish(self, *wishes: Wishes) -> list[Outcome]:
        """Make several wishes at once, as if they came from several sources."""

        async def together() -> list[Outcome]:
            return await asyncio.gather(*(self._reconciler.fulfil(as_wish(wish)) for wish in wishes))

        return self._inside.do(together())

    @property
    def written(self) -> tuple[int, int]:
        """Elements added and removed by the last transaction."""
        return self._reconciler.enforcer.elements_added, self._reconciler.enforcer.elements_removed

    def end(self, *, clean: bool) -> None:
        """Stop; or, not clean, die: everything stays in the kernel. A second end is none."""
        if not self._task.cancel():
            return
        self._inside.do(self._end(clean))
        # A table that has an owner is free when the owner's context is.
        del self._reconciler, self._table, self._nft
        gc.collect()

    async def _end(self, clean: bool) -> None:
        await asyncio.gather(self._task, return_exceptions=True)
        if clean:
            self._host.release()
            await self._table.delete()
        self._relay.close()
        self._ports.close()
        self._conntrack.close()
        self._network.close()
        self._monitor.close()
        self._nft.close()


#: What may happen to the table between two lives, in nft's words.
DAMAGE = (
    "",
    "flush map inet nfportd any4",
    "add element inet nfportd any4 { tcp . 9000 : 203.0.113.1 . 1, dccp . 8000 : 203.0.113.1 . 1 }",
    "add element inet nfportd always_any6 { udp . 8001 }",
    'add element inet nfportd onlink4 { 203.0.113.0/24 . "br0" }',
    'add element inet nfportd onlink4 { 203.0.113.1-203.0.113.5 . "br0" }',
    "flush chain inet nfportd dispatch",
    "add rule inet nfportd prerouting drop",
    "add chain inet nfportd extra; add rule inet nfportd extra jump dispatch",
    "delete chain inet nfportd loopback_guard",
    "flush chain inet nfportd postrouting; delete chain inet nfportd postrouting; "
    "add chain inet nfportd postrouting { type nat hook postrouting priority 50; }",
    "flush chain inet nfportd dispatch; delete map inet nfportd any4; "
    "add map inet nfportd any4 { type inet_service : ipv4_addr; }; add element inet nfportd any4 { 80 : 203.0.113.1 }",
    "flush set inet nfportd fingerprint",
    "add chain inet nfportd output { policy drop; }",
    "add chain inet nfportd extra",
    "delete table inet nfportd",
    "delete table inet nfportd; add table inet nfportd",
)

turns = st.lists(st.dictionaries(st.sampled_from(OWNERS), files(), min_size=1), min_size=1, max_size=3)
restarts = st.sampled_from(DAMAGE)

WEB: dict[Mapping, int] = {mapping(8000, ["10.88.0.11:80", "[fd88::11]:80"], masquerade="always"): 2}
MOVED: dict[Mapping, int] = {mapping(8000, ["10.88.0.140:80", "[fd88:0:0:1::2]:80"]): 2}


@KERNEL
@given(st.lists(turns | restarts, min_size=1, max_size=6))
@example([[{OWNERS[1]: WEB}], [{OWNERS[0]: MOVED}], [{OWNERS[0]: {}}], [{OWNERS[1]: {}}]])
def test_the_table_is_what_is_wished_after_every_step(
    inside: Inside, tmp_path: Path, steps: list[list[Wishes] | str]
) -> None:
    wishes: Wishes = {}
    life = Life(inside, tmp_path)
    try:
        for step in steps:
            if isinstance(step, str):
                life.end(clean=False)
                inside.space.nft(step, check=False)  # what is there already cannot be added
                life = Life(inside, tmp_path)
                outcomes = life.wish(dict(wishes))
            else:
                outcomes = life.wish(*step)
                for turn in step:
                    wishes |= turn

            assert [outcome.refused for outcome in outcomes if outcome.refused] == []
            assert inside.elements() == model.elements(wishes, LINKS)
    finally:
        life.end(clean=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_repaired_by_a_restart(inside: Inside, tmp_path: Path, damage: str) -> None:
    life = Life(inside, tmp_path)
    try:
        life.wish({OWNERS[0]: WEB})
        sound = inside.space.run(["nft", "-s", "list", "table", "inet", "nfportd"]).stdout
        life.end(clean=False)
        inside.space.nft(damage)
        life = Life(inside, tmp_path)
        life.wish({OWNERS[0]: WEB})

        repaired = inside.space.run(["nft", "-s", "list", "table", "inet", "nfportd"]).stdout
        assert body(repaired) == body(sound)
    finally:
        life.end(clean=True)


def test_chains_that_were_changed_before_they_were_sealed_are_repaired(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nft lists then must not pass for what was written."""
    seal = Table.seal

    async def late(table: Table) -> None:
        monkeypatch.setattr(Table, "seal", seal)
        # Where the table has an owner, the kernel refuses this.
        inside.space.nft("flush chain inet nfportd dispatch", check=table.owned is False)
        await seal(table)

    monkeypatch.setattr(Table, "seal", late)
    life = Life(inside, tmp_path)
    try:
        life.wish({OWNERS[0]: WEB})
        eventually(lambda: "dnat" in inside.space.nft("list chain inet nfportd dispatch"), True)
    finally:
        life.end(clean=True)


def test_what_is_right_already_is_not_written(inside: Inside, tmp_path: Path) -> None:
    life = Life(inside, tmp_path)
    try:
        life.wish({OWNERS[0]: WEB})
        life.end(clean=False)
        life = Life(inside, tmp_path)

        life.wish({OWNERS[0]: WEB})
        assert life.written == (0, 0)
    finally:
        life.end(clean=True)


def test_a_mapping_whose_target_cannot_be_isolated_is_not_in_force(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And comes into force when it can; a target that two want isolated is nobody's alone."""
    one, two, other = ({mapping(port, "10.88.0.140:80", isolate=port != 8002): 2} for port in (8000, 8001, 8002))
    run, write = Nft.run, Nft.write

    async def refusing(self: Nft, text: str) -> None:
        if "add element inet nfportd isolated4" in text:
            raise KernelRefused("no room")
        await run(self, text)

    async def refusing_elements(self: Nft, batch: bytes) -> None:
        if b"isolated4\0" in batch:
            raise KernelRefused("no room")
        await write(self, batch)

    life = Life(inside, tmp_path)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Nft, "run", refusing)
            patched.setattr(Nft, "write", refusing_elements)
            (alone,) = life.wish({OWNERS[0]: one, OWNERS[2]: other})
            assert [claim.mapping for claim in alone.refused] == list(one)
            assert inside.elements() == model.elements({OWNERS[2]: other}, LINKS)
        life.wish({OWNERS[1]: two})
        assert inside.elements() == model.elements({OWNERS[0]: one, OWNERS[1]: two, OWNERS[2]: other}, LINKS)
    finally:
        life.end(clean=True)


def test_a_clean_end_leaves_nothing(inside: Inside, tmp_path: Path) -> None:
    def host() -> tuple[str, str, str]:
        return (
            inside.space.run(["nft", "list", "ruleset"]).stdout,
            inside.space.ip("-6", "route", "show", "table", "all", "proto", "110"),
            "".join(inside.space.sysctl(f"net/ipv4/conf/{name}/route_localnet") for name in ("all", "br0", "br1")),
        )

    before = host()
    life = Life(inside, tmp_path)
    life.wish({OWNERS[0]: WEB})
    during = host()
    life.end(clean=True)

    assert (host(), during == before) == (before, False)

"""Brings what is desired into force: host, delta, one transaction, stale flows; and mends what others undo.

Must not know wishes, nor who asked for what. The one idea: what the kernel is known to hold is compared with what it
should hold, for the keys that a change or a drift touches; a repair is the same pass as a change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping as AbstractMapping
from functools import partial
from typing import NamedTuple, Protocol as Interface

from nfportd import desired, flows, loopback, topology
from nfportd.desired import ABSENT, Absent, Claim, Delta, Desired, Elements, Parts, Slot, Touched
from nfportd.drift import Drift
from nfportd.flows import Moved
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.nft_monitor import NftMonitor
from nfportd.kernel.ports import LocalPorts
from nfportd.messages import Message, about
from nfportd.model import Key, Mapping, Protocol
from nfportd.pace import Pace
from nfportd.relay import Relay
from nfportd.table import Table, Written
from nfportd.topology import Topology, Unreached

_log = logging.getLogger(__name__)

#: Seconds between attempts for mappings that the kernel refused.
RETRY = 10.0
#: Lines about repairs that may follow at once; one a second comes back.
_LINES = 20.0


class Kernel(NamedTuple):
    """All through which the kernel is reached; `wake` is set when something there is no longer as it was."""

    wake: asyncio.Event
    table: Table
    monitor: NftMonitor
    network: NetworkWatch
    conntrack: Conntrack
    host: Host
    ports: LocalPorts
    relay: Relay


class Watcher(Interface):
    """Who is told what the kernel took, refused, and was made to take again."""

    def transaction(self, seconds: float, *, ok: bool) -> None:
        """A transaction took so long."""

    def flushed(self, requests: int) -> None:
        """Stale flows were deleted by so many requests."""

    def refused(self, owner: str, detail: str) -> None:
        """The kernel refused something of an owner."""

    def repaired(self, detail: str) -> None:
        """What others had undone is in force again."""


class Enforcer:
    """Keeps the kernel as desired."""

    def __init__(self, wanted: Desired, kernel: Kernel, watcher: Watcher) -> None:
        self._desired = wanted
        _, self._table, self._monitor, self._network, self._conntrack, self._host, self._ports, self._relay = kernel
        self._relay.served = wanted.served
        self._watcher = watcher
        self._topology = Topology(topology.Network())
        self._repairs = _Repairs(watcher)
        self.refused: dict[Claim, str] = {}
        self.unreached: set[str] = set()
        #: Elements written by the last transaction.
        self.elements_added = self.elements_removed = 0
        #: True until a pass has compared everything, at the start and after a failure.
        self.compare_all = True
        #: Whether what was refused may fit now.
        self.room = False
        # Passes in a row that failed, and when, by the steady clock, one that nobody wished for may be tried again.
        self._failures, self._not_before = 0, 0.0

    @property
    def topology(self) -> Topology:
        """What the targets in use ask of the host."""
        return self._topology

    @property
    def fight(self) -> bool:
        """Whether another program undoes again and again what is repaired."""
        return self._repairs.pace.fight

    def due(self) -> float | None:
        """Seconds until there is something to do without a wish; None: not until something happens."""
        if self.room:
            return 0.0
        now = time.monotonic()
        if self._monitor.ready or self._network.changed or self._table.uncertain:
            return max(self._repairs.pace.delay(now), self._not_before - now, 0.0)
        return RETRY if self.refused or self._desired.blocked or self.compare_all else None

    def in_force(self, key: Key) -> bool:
        """Whether the kernel has a target for a key."""
        return desired.endpoint_in(self._table.elements, key) is not None

    def again(self) -> Touched:
        """The keys to try again: of refused mappings, and those on which a process listened."""
        touched: Touched = {}
        for claim in self.refused:
            touched |= dict.fromkeys(claim.mapping.claimed(), claim)
        blocked = set(self._desired.blocked)
        self._desired.block(blocked, self._ports.listening(blocked) if blocked else {})
        return touched | {key: self._desired.holder(key) for key in blocked}

    async def enforce(self, touched: Touched, *, retried: bool) -> dict[Claim, str]:
        """Write what the touched keys need, and mend what others have undone; the mappings that the kernel refused.

        `retried`: everything that was refused before is among the touched.
        """
        self.room = False
        try:
            refused = await self._enforce(touched, retried=retried)
        except BaseException:
            # Nobody knows how far it came.
            self._table.uncertain = self.compare_all = True
            self._failures += 1
            self._not_before = time.monotonic() + min(RETRY, 2.0**self._failures)
            raise
        if self._failures:
            _log.warning("in force again, after %d attempts that failed", self._failures)
        self._failures, self._not_before = 0, 0.0
        return refused

    async def _enforce(self, touched: Touched, *, retried: bool) -> dict[Claim, str]:
        started = time.monotonic()
        undone = await self._follow_network()
        self._ask_relay()
        drift = self._monitor.take()
        gone: Elements | None = {}
        if drift or self._table.uncertain:
            gone = await self._table.follow(drift)
        written = await self._table.commit(
            lambda: self._delta(touched, drift.elements, gone), self._delta_of_all, self._label
        )
        self.compare_all = False
        took = time.monotonic() - started
        if written.change or written.refused:
            self._watcher.transaction(took, ok=not written.refused)
        self.elements_added, self.elements_removed = len(written.change.add), len(written.change.remove)
        await self._table.seal()
        self._relay.follow(touched)
        if not self._desired.relay:
            self._relay.rest()
        if self._monitor.quiet():
            self._table.caught_up()
        refused = self._note_refused(written.refused, tried=retried)
        self.room = bool(self.refused and not retried and written.change.remove)
        await self._flush(written, touched)
        if drift or undone:
            self._repairs.note(drift, undone, written.change, took)
            self._repairs.spend(time.monotonic() - started)
        return refused

    def _note_refused(self, refused: AbstractMapping[Hashable, str], *, tried: bool) -> dict[Claim, str]:
        """Remember what to try again; return the mappings among what was refused."""
        claims = {label: reason for label, reason in refused.items() if isinstance(label, Claim)}
        for label, reason in refused.items():
            if label not in self.refused:
                owner, key = (label.owner, label.mapping.listen) if isinstance(label, Claim) else ("", "")
                told = about(Message.REFUSED, owner, key)
                _log.error("%s is not in force, the kernel refuses it: %s", label, reason, extra=told)
                self._watcher.refused(owner, f"{label}: {reason}")
        untried = {} if tried else {self._desired.standing(c): r for c, r in self.refused.items()}
        self.refused = {claim: reason for claim, reason in untried.items() if claim} | claims
        return claims

    async def _follow_network(self) -> list[str]:
        """Keep what the host must allow in step with its routes and with the targets in use; what others had undone."""
        changes = self._desired.reached_changes()
        if self._network.changed or not self._topology.network.links:
            known, self._topology = self._topology, Topology(await self._network.snapshot(), self._desired.reached())
            # Keys to targets that came or went are touched; the others have to be found.
            if (known.relayed ^ self._topology.relayed) - {target.address for target in changes}:
                self.compare_all = True
            for name in topology.odd_names(self._topology.network):
                _log.warning("interface %r has a name that a ruleset cannot hold; no hairpin or loopback there", name)
        else:
            before = self._topology.needs
            for target, used in changes.items():
                self._topology.add(target) if used else self._topology.remove(target)
            if self._topology.needs == before:
                return []
        undone = self._host.allow(self._topology.needs, self._topology.network)
        unreached = {need.address for need in self._topology.needs if isinstance(need, Unreached)}
        for address in sorted(unreached - self.unreached):
            _log.warning("no route leads to target %s; connections to it fail until one appears", address)
        self.unreached = unreached
        return undone

    def _ask_relay(self) -> None:
        """Have the relay wait for connections before elements lead to it; it rests when none does any more."""
        if self._topology.relayed:
            self._relay.open(lambda: loopback.relays(self._table.elements))
        endpoints = self._relay.endpoints if self._topology.relayed else {}
        if endpoints != self._desired.relay:
            self.compare_all = True
        self._desired.relayed, self._desired.relay = self._topology.relayed, endpoints

    def _delta(self, touched: Touched, drifted: Iterable[Slot], gone: Elements | None) -> Delta:
        """What the touched keys and the slots of a drift need; `gone`: what was right, and went with its set."""
        if self.refused or self.compare_all or gone is None:
            # Where a mapping was refused the kernel may hold elements of an older claim than `touched` names.
            return self._delta_of_all()
        elements = self._table.elements
        present = {name: elements.get(name, {}) for name in ("onlink4", "onlink6")}
        keys = dict(touched)
        for slot in drifted:
            if key := desired.key_of(slot):
                keys.setdefault(key, self._desired.holder(key))
        wanted: dict[Slot, Parts | Absent | None] = {
            Slot(name, key): value
            for name, inside in gone.items()
            if name not in present
            for key, value in inside.items()
        }
        wanted |= self._desired.wanted(keys)
        for slot in drifted:
            wanted.setdefault(slot, self._desired.isolation(slot))
        return self._against(present, wanted)

    def _delta_of_all(self) -> Delta:
        return self._against(self._table.elements, self._desired.wanted_of_all())

    def _against(self, present: Elements, wanted: dict[Slot, Parts | Absent | None]) -> Delta:
        """What makes slots be as wanted, and nothing else be among the elements that are present."""
        for slot in desired.all_slots(present):
            wanted.setdefault(slot, ABSENT)
        for need in self._topology.needs:
            if isinstance(need, Slot):
                wanted[need] = None
        return desired.delta(self._table.elements, wanted)

    def _label(self, slot: Slot) -> Hashable:
        """A mapping's elements stand or fall together, every other element by itself."""
        key = desired.key_of(slot)
        if key is None:
            return self._desired.isolator(slot) or slot
        served = self._desired.served(key)
        return self._desired.holder(key) or (served and served[0]) or slot

    async def _flush(self, written: Written, touched: Touched) -> None:
        """Delete the flows that would go on to an old target, or whose source may not connect any more."""
        moved = [*(self._passed_by() if written.chains else ()), *self._keys_moved(written.change, touched)]
        endpoint = partial(desired.endpoint_in, self._table.elements)
        local = self._topology.network.addresses
        found = list(flows.stale(moved, endpoint, local))
        opening, stale = [each for each in found if each.opening], [each for each in found if not each.opening]
        barred = list(flows.barred(flows.narrowed(written.change), self._follows, endpoint, local))
        if touched:
            self._conntrack.delete_opening(opening)
            if stale or barred:
                await self._conntrack.delete(stale, barred)
        else:
            # Nobody waits for an answer, but the next repair would.
            self._conntrack.delete_later([*opening, *stale], barred)
        if found or barred:
            self._watcher.flushed(len(found) + len(barred))

    def _keys_moved(self, change: Delta, touched: Touched) -> Iterator[Moved]:
        for slot in change.remove | change.add:
            if not desired.is_target(slot):
                continue
            before, after = desired.to_endpoint(change.remove.get(slot)), desired.to_endpoint(change.add.get(slot))
            if Protocol.TCP in slot.key and not before and after and after.address != desired.LOOPBACK:
                # No flow has an old target; at a start that is so for nearly every slot.
                continue
            if key := desired.key_of(slot):
                yield Moved(key, before, after, self._cuts(key, touched.get(key)))

    def _passed_by(self) -> Iterator[Moved]:
        """Every key whose flows may have begun without a target, while the chains were not as they must be."""
        for slot in desired.all_slots(self._table.elements):
            # TCP flows end by themselves.
            if desired.is_target(slot) and Protocol.TCP not in slot.key and (key := desired.key_of(slot)):
                yield Moved(key, None, desired.endpoint_in(self._table.elements, key), cut=False)

    def _follows(self, key: Key) -> Mapping | None:
        holder = self._desired.holder(key)
        return holder and holder.mapping

    def _cuts(self, key: Key, before: Claim | None) -> bool:
        """Whether the mapping that the key followed, or the one it follows now, wants its TCP flows cut."""
        holders = (before, self._desired.holder(key))
        return any(holder is not None and holder.mapping.on_change == "cut" for holder in holders)


class _Repairs:
    """Counts repairs, paces them, and tells of them in few lines."""

    def __init__(self, watcher: Watcher) -> None:
        self.pace = Pace()
        self._watcher = watcher
        self._lines, self._told = _LINES, time.monotonic()
        self._untold = 0

    def note(self, drift: Drift, undone: list[str], change: Delta, took: float) -> None:
        """Something was put right, in so many seconds."""
        what = [str(drift)] if drift else []
        what += [f"{text} was undone" for text in undone]
        elements = f"+{len(change.add)} -{len(change.remove)} elements"
        detail = f"{'; '.join(what)}; right again in {took * 1000:.1f} ms ({elements})"
        self._watcher.repaired(detail)
        now = time.monotonic()
        self._lines, self._told = min(_LINES, self._lines + now - self._told), now
        if self._lines < 1:
            self._untold += 1
            return
        self._lines -= 1
        more = f"; {self._untold} repairs before it are not in the log" if self._untold else ""
        _log.warning("repaired: %s%s", detail, more, extra=about(Message.REPAIRED))
        self._untold = 0

    def spend(self, took: float) -> None:
        """A repair has taken so many seconds altogether."""
        fought = self.pace.fight
        self.pace.spend(time.monotonic(), took)
        if self.pace.fight and not fought:
            text = "another program undoes again and again what is repaired; from now on repairs take their time"
            _log.error(text, extra=about(Message.REPAIRED))

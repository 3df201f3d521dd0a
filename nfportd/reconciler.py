"""Carries what owners wish into the kernel: desired -> delta -> one transaction -> stale flows -> answer.

Must not know where mappings come from. The one idea: whatever arrives while a transaction runs goes together into the
next one, and each caller is answered when the kernel has its change. Nothing is listed on the way of a change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable, Mapping as AbstractMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from nfportd import desired, flows, topology
from nfportd.desired import ABSENT, Claim, Delta, Desired, Elements, Slot, Touched
from nfportd.flows import Moved
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.model import Key, Mapping
from nfportd.table import Table
from nfportd.topology import Topology, Unreached

_log = logging.getLogger(__name__)

#: Seconds between attempts for mappings that the kernel refused.
RETRY = 10.0
#: Seconds from a network event to the reading of routes: events come in bursts.
_SETTLE = 0.02
#: Seconds after a failure before the next attempt, whatever asks for it.
_BREATH = 1.0

Wishes = AbstractMapping[str, AbstractMapping[Mapping, int]]


class Waiting(NamedTuple):
    """A claim that does not hold some of its keys, and the one that holds the first of them."""

    claim: Claim
    holder: Claim
    keys: list[Key]


@dataclass(slots=True)
class Outcome:
    """What became of a change: how many elements were added and removed, which claims wait, which were refused."""

    added: int = 0
    removed: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    refused: dict[Claim, str] = field(default_factory=dict)


class Reconciler:
    """Keeps the table in the kernel equal to what the owners wish."""

    def __init__(self, table: Table, network: NetworkWatch, conntrack: Conntrack, host: Host) -> None:
        self._table = table
        self._network = network
        self._conntrack = conntrack
        self._host = host
        self._desired = Desired()
        self._topology = Topology(topology.Network())
        self._refused: dict[Claim, str] = {}
        self._unreached: set[str] = set()
        self._queue: list[tuple[Wishes, asyncio.Future[Outcome]]] = []
        self._wake = asyncio.Event()
        # True until a pass has compared everything, at the start and after a failure.
        self._compare_all = True
        self._room = False
        self._heard = False

    async def replace(self, wishes: Wishes) -> Outcome:
        """Make each owner's mappings (with their lines) all that it wishes; returns when the kernel has them.

        Mappings that the kernel refuses, or whose keys others hold, are in the outcome; the others are in force.
        """
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append((wishes, answer))
        self._wake.set()
        return await answer

    async def run(self) -> None:
        """Work until cancelled: take what has arrived, bring it into force, answer."""
        while True:
            await self._wait()
            queue, self._queue = self._queue, []
            self._room = False
            try:
                outcome = await self._pass([wishes for wishes, _ in queue])
            except Exception as error:
                _log.exception("a change could not be brought into force")
                self._compare_all = True
                for _, answer in queue:
                    if not answer.cancelled():
                        answer.set_exception(error)
                await asyncio.sleep(_BREATH)
                continue
            for _, answer in queue:
                if not answer.cancelled():
                    answer.set_result(outcome)

    async def _wait(self) -> None:
        """Until a wish has arrived, the network has changed, or it is time to try again what failed."""
        if not self._heard:
            # An adopted table must not be emptied just because nobody has wished for anything yet.
            await self._wake.wait()
            self._heard = True
        if self._queue or self._room:
            return
        self._wake.clear()
        waits = [asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(self._network.changed.wait())]
        try:
            again = RETRY if self._refused or self._compare_all else None
            done, _ = await asyncio.wait(waits, timeout=again, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if waits[0] not in done and waits[1] in done:
            await asyncio.sleep(_SETTLE)

    async def _pass(self, wishes: Sequence[Wishes]) -> Outcome:
        touched: Touched = {}
        for wish in wishes:
            for owner, mappings in wish.items():
                for key, holder in self._desired.replace(owner, mappings).items():
                    # The first holder of a key is the one that the kernel knows.
                    touched.setdefault(key, holder)
        await self._follow_network()
        if not wishes:
            # Not with every change: each attempt fails, and then the table is read.
            for claim in self._refused:
                touched |= dict.fromkeys((key for key, _ in claim.mapping.endpoints()), claim)
        written = await self._table.commit(
            lambda: self._delta_of_all() if self._compare_all else self._delta(touched), self._delta_of_all, self._label
        )
        self._compare_all = False
        outcome = Outcome(len(written.change.add), len(written.change.remove), self._waiting(touched))
        outcome.refused = self._note_refused(written.refused, tried=not wishes)
        self._room = bool(self._refused and wishes and written.change.remove)
        await self._flush(written.change, touched)
        return outcome

    def _waiting(self, keys: Iterable[Key]) -> list[Waiting]:
        found = []
        for claim, lost in self._desired.waiting(keys).items():
            if holder := self._desired.holder(lost[0]):
                found.append(Waiting(claim, holder, lost))
        return found

    def _note_refused(self, refused: AbstractMapping[Hashable, str], *, tried: bool) -> dict[Claim, str]:
        """Remember what to try again; return the mappings among what was refused."""
        claims = {label: reason for label, reason in refused.items() if isinstance(label, Claim)}
        for label, reason in refused.items():
            if label not in self._refused:
                _log.error("%s is not in force, the kernel refuses it: %s", label, reason)
        untried = {} if tried else {self._desired.standing(c): r for c, r in self._refused.items()}
        self._refused = {claim: reason for claim, reason in untried.items() if claim} | claims
        return claims

    async def _follow_network(self) -> None:
        """Keep what the host must allow in step with its routes and with the targets in use."""
        changes = self._desired.reached_changes()
        if self._network.changed.is_set() or not self._topology.network.links:
            self._topology = Topology(await self._network.snapshot(), self._desired.reached())
            for name in topology.odd_names(self._topology.network):
                _log.warning("interface %r has a name that a ruleset cannot hold; no hairpin or loopback there", name)
        elif changes:
            for target, used in changes.items():
                self._topology.add(target) if used else self._topology.remove(target)
        else:
            return
        await self._host.allow(self._topology.needs, self._topology.network)
        unreached = {need.address for need in self._topology.needs if isinstance(need, Unreached)}
        for address in sorted(unreached - self._unreached):
            _log.warning("no route leads to target %s; connections to it fail until one appears", address)
        self._unreached = unreached

    def _delta(self, touched: Iterable[Key]) -> Delta:
        elements = self._table.elements
        return self._against({name: elements.get(name, {}) for name in ("onlink4", "onlink6")}, touched)

    def _delta_of_all(self) -> Delta:
        return self._against(self._table.elements, self._desired.claimed())

    def _against(self, present: Elements, keys: Iterable[Key]) -> Delta:
        """What makes these keys be as desired, and nothing else be among the elements that are present."""
        wanted = self._desired.wanted(keys)
        for slot in desired.all_slots(present):
            wanted.setdefault(slot, ABSENT)
        for need in self._topology.needs:
            if isinstance(need, Slot):
                wanted[need] = None
        return desired.delta(self._table.elements, wanted)

    def _label(self, slot: Slot) -> Hashable:
        """A mapping's elements stand or fall together, every other element by itself."""
        key = desired.key_of(slot)
        return (key and self._desired.holder(key)) or slot

    async def _flush(self, change: Delta, touched: Touched) -> None:
        """Delete the flows that would go on to an old target."""
        moved = []
        for slot in change.remove | change.add:
            key = desired.key_of(slot)
            if key and slot == desired.slots(key)[0]:
                before = desired.to_endpoint(change.remove.get(slot))
                after = desired.to_endpoint(change.add.get(slot))
                moved.append(Moved(key, before, after, self._cuts(key, touched.get(key))))
        endpoint = partial(desired.endpoint_in, self._table.elements)
        await self._conntrack.delete(list(flows.stale(moved, endpoint, self._topology.network.addresses)))

    def _cuts(self, key: Key, before: Claim | None) -> bool:
        """Whether the mapping that the key followed, or the one it follows now, wants its TCP flows cut."""
        holders = (before, self._desired.holder(key))
        return any(holder is not None and holder.mapping.on_change == "cut" for holder in holders)

    @property
    def mappings(self) -> int:
        """How many mappings are wished for."""
        return self._desired.count()

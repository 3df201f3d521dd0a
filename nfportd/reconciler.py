"""Carries what owners wish into the kernel: wishes -> delta -> one transaction -> stale flows -> answers.

Must not know where wishes come from. The one idea: whatever arrives while a transaction runs goes together into the
next one, and each wish is answered when the store and the kernel have it. Nothing is listed on the way of a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping as AbstractMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from nfportd import desired, flows, topology
from nfportd.desired import ABSENT, Absent, Claim, Delta, Elements, Parts, Slot, Touched
from nfportd.errors import KernelRefused, NfportdError
from nfportd.flows import Moved
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.ports import LocalPorts
from nfportd.messages import Message, about
from nfportd.model import Key, Mapping
from nfportd.register import Change, Register
from nfportd.table import Table
from nfportd.topology import Topology, Unreached
from nfportd.wishes import Held, NotStored, Outcome, PortInUse, Waiting, Wish

_log = logging.getLogger(__name__)

#: Seconds between attempts for mappings that the kernel refused.
RETRY = 10.0
#: Seconds from a network event to the reading of routes: events come in bursts.
_SETTLE = 0.02
#: Seconds after a failure before the next attempt, whatever asks for it.
_BREATH = 1.0


class Kernel(NamedTuple):
    """All through which the kernel is reached."""

    table: Table
    network: NetworkWatch
    conntrack: Conntrack
    host: Host
    ports: LocalPorts


class Keeper(Protocol):
    """Where promised contents are written down before they come into force."""

    async def keep(self, held: AbstractMapping[str, Held | None]) -> None:
        """Write down what these owners hold, all or none. Raises NotStored."""


class Observer(Protocol):
    """Who is told what happened."""

    def transaction(self, seconds: float, *, ok: bool) -> None:
        """A transaction took so long."""

    def flushed(self, requests: int) -> None:
        """Stale flows were deleted by so many requests."""

    def fulfilled(self, change: Change, waiting: Iterable[Waiting]) -> None:
        """A wish came true, but for what waits."""

    def refused(self, owner: str, detail: str) -> None:
        """The kernel refused something of an owner."""


@dataclass(slots=True)
class _Request:
    wish: Wish
    answer: asyncio.Future[Outcome]
    change: Change | None = None

    def refuse(self, error: NfportdError) -> None:
        self.change = None
        if not self.answer.done():
            self.answer.set_exception(error)

    def grant(self, outcome: Outcome) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Reconciler:
    """Keeps the table in the kernel equal to what the owners wish."""

    def __init__(self, register: Register, kernel: Kernel, keeper: Keeper, observer: Observer) -> None:
        self.register = register
        self._desired = register.desired
        self._table, self._network, self._conntrack, self._host, self._ports = kernel
        self._keeper = keeper
        self._observer = observer
        self._topology = Topology(topology.Network())
        self.refused: dict[Claim, str] = {}
        self.unreached: set[str] = set()
        #: Elements written by the last transaction.
        self.elements_added = self.elements_removed = 0
        self._queue: deque[_Request] = deque()
        self._wake = asyncio.Event()
        # True until a pass has compared everything, at the start and after a failure.
        self._compare_all = True
        self._room = False
        self._heard = False

    @property
    def topology(self) -> Topology:
        """What the targets in use ask of the host."""
        return self._topology

    async def fulfil(self, wish: Wish) -> Outcome:
        """Bring a wish into force; returns when the store and the kernel have it.

        Raises KeyTaken, PortInUse, PreconditionFailed, NotStored or KernelRefused for a promised wish that cannot come
        true, and then nothing of it is in force. Of other wishes, what waits or is refused is in the outcome.
        """
        request = _Request(wish, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._wake.set()
        return await request.answer

    async def beat(self) -> None:
        """Return once the loop below has come round and nft has answered. Not before the first wish of a start."""
        await self.fulfil(Wish(owners={}))
        await self._table.answers()

    async def run(self) -> None:
        """Work until cancelled: take what has arrived, bring it into force, answer."""
        while True:
            await self._wait()
            batch = self._next_batch()
            self._room = False
            try:
                await self._pass(batch)
            except Exception as error:
                _log.exception("a change could not be brought into force")
                await self._give_up(batch, error)
                await asyncio.sleep(_BREATH)

    def _next_batch(self) -> list[_Request]:
        """What has arrived, up to a second wish of the same owner: each must be able to be undone."""
        owners: set[str] = set()
        batch: list[_Request] = []
        while self._queue and not owners & self._queue[0].wish.owners.keys():
            batch.append(self._queue.popleft())
            owners |= batch[-1].wish.owners.keys()
        return batch

    async def _give_up(self, batch: Sequence[_Request], error: Exception) -> None:
        self._compare_all = True
        before: dict[str, Held | None] = {}
        for request in reversed(batch):
            if request.wish.promised and request.change and not request.answer.done():
                self._undo(request.change)
                before |= request.change.before
        with contextlib.suppress(NotStored):
            await self._keeper.keep(before)
        for request in batch:
            if not request.answer.done():
                request.answer.set_exception(error)

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
            again = RETRY if self.refused or self._desired.blocked or self._compare_all else None
            done, _ = await asyncio.wait(waits, timeout=again, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if waits[0] not in done and waits[1] in done:
            await asyncio.sleep(_SETTLE)

    async def _pass(self, batch: Sequence[_Request]) -> None:
        taken = [request for request in batch if self._take(request)]
        await self._keep(taken)
        taken = [request for request in taken if request.change]
        touched: Touched = {}
        for request in taken:
            assert request.change
            for key, holder in request.change.touched.items():
                # The first holder of a key is the one that the kernel knows.
                touched.setdefault(key, holder)
        if not batch:
            touched |= self._again()
        refused = await self._bring_into_force(touched, retried=not batch)
        if any(self._broken(request, refused) for request in taken):
            taken = await self._take_back(taken, refused)
        self._ports.release(key for key in touched if not self._reserves(key))
        for request in taken:
            outcome = self._outcome(request, refused)
            if request.change:
                self._observer.fulfilled(request.change, outcome.waiting)
            request.grant(outcome)

    def _take(self, request: _Request) -> bool:
        """Enter a wish; one that may not be, or that only asks, is answered."""
        try:
            change = self.register.take(request.wish, time.time(), self._in_force, self._ports.listening)
        except NfportdError as refusal:
            request.refuse(refusal)
            return False
        if request.wish.dry_run:
            request.change = change
            outcome = self._outcome(request, {})
            self.register.undo(change)
            request.grant(outcome)
            return False
        try:
            self._reserve(change.touched, promised=request.wish.promised)
        except (PortInUse, KernelRefused) as refusal:
            self._undo(change)
            request.refuse(refusal)
            return False
        request.change = change
        return True

    def _undo(self, change: Change) -> Touched:
        touched = self.register.undo(change)
        self._ports.release(key for key in touched if not self._reserves(key))
        return touched

    def _reserve(self, keys: Iterable[Key], *, promised: bool) -> None:
        reserved = [key for key in keys if self._reserves(key)]
        for key, error in self._ports.reserve(reserved).items():
            if promised and error.errno == errno.EADDRINUSE:
                raise PortInUse(key, key.address or "any", None)
            if promised:
                raise KernelRefused(f"cannot be reserved: {error.strerror}")
            _log.error("%s cannot be reserved: %s; %s is in force without", key, error, self._desired.holder(key))

    def _reserves(self, key: Key) -> bool:
        holder = self._desired.holder(key)
        return holder is not None and holder.mapping.reserve

    def _in_force(self, key: Key) -> bool:
        return desired.endpoint_in(self._table.elements, key) is not None

    async def _keep(self, taken: Sequence[_Request]) -> None:
        """Write the promised contents down before they come into force; without that they are taken back."""
        promised = [request for request in taken if request.wish.promised]
        held = {owner: self.register.held.get(owner) for request in promised for owner in request.wish.owners}
        if not held:
            return
        try:
            await self._keeper.keep(held)
        except NotStored as error:
            # A later wish of this batch may name what is taken back here as the holder before it.
            self._compare_all = True
            for request in reversed(promised):
                if request.change:
                    self._undo(request.change)
                request.refuse(error)

    def _broken(self, request: _Request, refused: AbstractMapping[Claim, str]) -> bool:
        return request.wish.promised and any(claim.owner in request.wish.owners for claim in refused)

    async def _take_back(self, taken: list[_Request], refused: AbstractMapping[Claim, str]) -> list[_Request]:
        """Undo the promised wishes of a batch in which the kernel refused one; return the other wishes.

        The refused one is answered; the other promised ones are tried again without it.
        """
        touched: Touched = {}
        restored: dict[str, Held | None] = {}
        promised = [request for request in taken if request.wish.promised]
        for request in reversed(promised):
            assert request.change
            touched |= self._undo(request.change)
            restored |= request.change.before
        await self._keeper.keep(restored)
        await self._bring_into_force(touched, retried=False)
        for request in promised:
            if self._broken(request, refused):
                reason = next(reason for claim, reason in refused.items() if claim.owner in request.wish.owners)
                request.refuse(KernelRefused(reason))
        self._queue.extendleft(request for request in reversed(promised) if not request.answer.done())
        return [request for request in taken if request not in promised]

    def _outcome(self, request: _Request, refused: AbstractMapping[Claim, str]) -> Outcome:
        assert request.change
        change, owners = request.change, request.wish.owners
        waiting = [each for each in self.register.waiting(change.touched) if each.claim.owner in owners]
        mine = {claim: reason for claim, reason in refused.items() if claim.owner in owners}
        blocked = {key: who for key, who in self._desired.blocked.items() if key in change.touched}
        held = {owner: self.register.held.get(owner) for owner in owners}
        return Outcome(change.added, change.removed, waiting, mine, blocked, change.shadowed, held)

    def _again(self) -> Touched:
        """The keys to try again: of refused mappings, and those on which a process listened."""
        touched: Touched = {}
        for claim in self.refused:
            touched |= dict.fromkeys((key for key, _ in claim.mapping.endpoints()), claim)
        blocked = set(self._desired.blocked)
        self._desired.block(blocked, self._ports.listening(blocked) if blocked else {})
        return touched | {key: self._desired.holder(key) for key in blocked}

    async def _bring_into_force(self, touched: Touched, *, retried: bool) -> dict[Claim, str]:
        """Write what the touched keys need; return the mappings that the kernel refused."""
        await self._follow_network()
        started = time.monotonic()
        written = await self._table.commit(
            lambda: self._delta_of_all() if self._compare_all else self._delta(touched), self._delta_of_all, self._label
        )
        self._compare_all = False
        if written.change or written.refused:
            self._observer.transaction(time.monotonic() - started, ok=not written.refused)
        self.elements_added, self.elements_removed = len(written.change.add), len(written.change.remove)
        refused = self._note_refused(written.refused, tried=retried)
        self._room = bool(self.refused and not retried and written.change.remove)
        await self._flush(written.change, touched)
        return refused

    def _note_refused(self, refused: AbstractMapping[Hashable, str], *, tried: bool) -> dict[Claim, str]:
        """Remember what to try again; return the mappings among what was refused."""
        claims = {label: reason for label, reason in refused.items() if isinstance(label, Claim)}
        for label, reason in refused.items():
            if label not in self.refused:
                owner, key = (label.owner, label.mapping.listen) if isinstance(label, Claim) else ("", "")
                told = about(Message.REFUSED, owner, key)
                _log.error("%s is not in force, the kernel refuses it: %s", label, reason, extra=told)
                self._observer.refused(owner, f"{label}: {reason}")
        untried = {} if tried else {self._desired.standing(c): r for c, r in self.refused.items()}
        self.refused = {claim: reason for claim, reason in untried.items() if claim} | claims
        return claims

    async def _follow_network(self) -> None:
        """Keep what the host must allow in step with its routes and with the targets in use."""
        changes = self._desired.reached_changes()
        if self._network.changed.is_set() or not self._topology.network.links:
            self._topology = Topology(await self._network.snapshot(), self._desired.reached())
            for name in topology.odd_names(self._topology.network):
                _log.warning("interface %r has a name that a ruleset cannot hold; no hairpin or loopback there", name)
        else:
            before = self._topology.needs
            for target, used in changes.items():
                self._topology.add(target) if used else self._topology.remove(target)
            if self._topology.needs == before:
                return
        await self._host.allow(self._topology.needs, self._topology.network)
        unreached = {need.address for need in self._topology.needs if isinstance(need, Unreached)}
        for address in sorted(unreached - self.unreached):
            _log.warning("no route leads to target %s; connections to it fail until one appears", address)
        self.unreached = unreached

    def _delta(self, touched: Touched) -> Delta:
        if self.refused:
            # Where a mapping was refused the kernel may hold elements of an older claim than `touched` names.
            return self._delta_of_all()
        elements = self._table.elements
        present = {name: elements.get(name, {}) for name in ("onlink4", "onlink6")}
        return self._against(present, self._desired.wanted(touched))

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
        return (key and self._desired.holder(key)) or slot

    async def _flush(self, change: Delta, touched: Touched) -> None:
        """Delete the flows that would go on to an old target, or whose source may not connect any more."""
        moved = []
        for slot in change.remove | change.add:
            key = desired.key_of(slot)
            if key and slot == desired.slots(key)[0]:
                before = desired.to_endpoint(change.remove.get(slot))
                after = desired.to_endpoint(change.add.get(slot))
                moved.append(Moved(key, before, after, self._cuts(key, touched.get(key))))
        endpoint = partial(desired.endpoint_in, self._table.elements)
        local = self._topology.network.addresses
        stale = list(flows.stale(moved, endpoint, local))
        barred = list(flows.barred(flows.narrowed(change), self._follows, endpoint, local))
        if stale or barred:
            await self._conntrack.delete(stale, barred)
            self._observer.flushed(len(stale) + len(barred))

    def _follows(self, key: Key) -> Mapping | None:
        holder = self._desired.holder(key)
        return holder and holder.mapping

    def _cuts(self, key: Key, before: Claim | None) -> bool:
        """Whether the mapping that the key followed, or the one it follows now, wants its TCP flows cut."""
        holders = (before, self._desired.holder(key))
        return any(holder is not None and holder.mapping.on_change == "cut" for holder in holders)

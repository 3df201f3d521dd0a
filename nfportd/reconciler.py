"""The only writer to the kernel: desired -> delta -> one transaction -> stale flows -> acknowledge.

Must not know where mappings come from. The one idea: whatever arrives while a transaction runs goes together into the
next one, and each caller is answered when the kernel has its change.

The mirror `_actual` is what the kernel holds by all we know; it is read once at start, and again only after a
transaction failed. Nothing is listed on the way of a change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping as AbstractMapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from nfportd import desired, flows, ruleset, topology
from nfportd.desired import ABSENT, Claim, Delta, Desired, Elements, Slot, Touched
from nfportd.errors import KernelRefused, NotPossible
from nfportd.flows import Moved
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.nft import Nft
from nfportd.model import Key, Mapping
from nfportd.topology import Topology, Unreached

_log = logging.getLogger(__name__)

#: Seconds between attempts for mappings that the kernel refused.
RETRY = 10.0
#: Seconds from a network event to the reading of routes: events come in bursts.
_SETTLE = 0.02

Wishes = AbstractMapping[str, AbstractMapping[Mapping, int]]


@dataclass(slots=True)
class Outcome:
    """What became of a change: elements written and removed, keys that other owners hold, mappings refused."""

    added: int = 0
    removed: int = 0
    waiting: dict[Claim, list[Key]] = field(default_factory=dict)
    refused: dict[Claim, str] = field(default_factory=dict)
    seconds: float = 0.0


class Reconciler:
    """Keeps the table in the kernel equal to what the owners wish."""

    def __init__(self, nft: Nft, network: NetworkWatch, conntrack: Conntrack, host: Host, mark_bit: int) -> None:
        self._nft = nft
        self._network = network
        self._conntrack = conntrack
        self._host = host
        self._mark_bit = mark_bit
        self._desired = Desired()
        self._topology = Topology(topology.Network())
        self._actual: Elements = {}
        self._refused: dict[Claim, str] = {}
        self._unreached: set[str] = set()
        self._queue: list[tuple[Wishes, asyncio.Future[Outcome]]] = []
        self._wake = asyncio.Event()
        # What must go before the first delta, in its transaction: the skeleton, or nothing where it stands already.
        self._prologue = ""
        self._flags: ruleset.Flags = ()
        self._whole_table = True
        self._desired_known = False

    async def replace(self, wishes: Wishes) -> Outcome:
        """Make each owner's mappings (with their lines) all that it wishes; returns when the kernel has them.

        Mappings that the kernel refuses, or whose keys others hold, are in the outcome; the others are in force.
        """
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append((wishes, answer))
        self._wake.set()
        return await answer

    async def adopt(self) -> None:
        """Read the table that an earlier run left, if there is one, and see what of it can stay.

        Raises NotPossible where nftables cannot be used at all.
        """
        can_own = await self._nft.allows(ruleset.empty_table(ruleset.OWNED, "nfportd_probe")) is None
        try:
            found = await self._nft.list_table()
            if found is None:
                # Before everything else, for its loopback guard must stand when sysctls open the loopback.
                self._flags = ruleset.OWNED if can_own else ()
                self._prologue = ruleset.skeleton(self._mark_bit, self._flags)
                await self._write(Delta({}, {}))
                _log.info("made table inet %s%s", ruleset.TABLE, ", owned" if can_own else "")
                return
            self._flags = found.flags
            if "owner" in found.flags:
                # Only its owner may write to the table, so it is taken over before anything else.
                await self._nft.run(ruleset.empty_table(found.flags))
        except KernelRefused as refusal:
            raise NotPossible(f"nftables cannot be used: {refusal}; it takes CAP_NET_ADMIN and nf_tables") from None
        self._take_over(found)
        if self._prologue and not ruleset.sets_to_replace(found):
            # The guard stands before sysctls open the loopback; only sets that are made anew wait for the delta.
            await self._write(Delta({}, {}))
        count = sum(map(len, found.elements.values()))
        how = "; its sets are of another version and are made anew" if self._prologue else ""
        _log.info("adopted table inet %s with %d elements%s", ruleset.TABLE, count, how)
        if can_own and "owner" not in found.flags:
            _log.info("the table keeps having no owner; it gets one when it is made anew, after a stop")

    def _take_over(self, found: ruleset.Listed) -> None:
        """Take what was listed as the actual state; chains unlike ours are refilled together with the next delta."""
        self._actual = found.elements
        self._prologue = ""
        if found.fingerprint != ruleset.fingerprint(self._mark_bit, found):
            self._prologue = ruleset.refill(found, self._mark_bit, self._flags)

    async def run(self) -> None:
        """Work until cancelled: take what has arrived, bring it into force, answer."""
        while True:
            await self._wait()
            queue, self._queue = self._queue, []
            started = time.monotonic()
            try:
                outcome = await self._pass([wishes for wishes, _ in queue])
            except Exception as error:
                _log.exception("a change could not be brought into force")
                self._whole_table = True
                for _, answer in queue:
                    if not answer.cancelled():
                        answer.set_exception(error)
                continue
            outcome.seconds = time.monotonic() - started
            for _, answer in queue:
                if not answer.cancelled():
                    answer.set_result(outcome)

    async def _wait(self) -> None:
        """Until a wish has arrived, the network has changed, or it is time to try again what failed."""
        if not self._desired_known:
            # An adopted table must not be emptied just because nobody has wished for anything yet.
            await self._wake.wait()
            self._desired_known = True
        if self._queue:
            return
        self._wake.clear()
        waits = [
            asyncio.ensure_future(self._wake.wait()),
            asyncio.ensure_future(self._network.changed.wait()),
        ]
        try:
            again = RETRY if self._refused or self._whole_table else None
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
                # The first holder of a key is the one that the kernel knows.
                touched = self._desired.replace(owner, mappings) | touched
        await self._follow_network()
        if self._whole_table:
            touched = {key: self._desired.holder(key) for key in self._desired.claimed()} | touched
        if not wishes:
            # Not with every change: each attempt fails, and then the table is read.
            for claim in self._refused:
                for key, _ in claim.mapping.endpoints():
                    touched.setdefault(key, claim)
        outcome = Outcome(waiting=self._desired.waiting(touched))
        change, outcome.refused = await self._commit(touched)
        outcome.added, outcome.removed = len(change.add), len(change.remove)
        self._whole_table = False
        untried = {c: r for c, r in self._refused.items() if wishes and self._desired.wishes(c)}
        self._refused = untried | outcome.refused
        await self._flush(change, touched)
        return outcome

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

    def _delta(self, touched: Touched) -> Delta:
        wanted = self._desired.wanted(touched)
        for slot in desired.all_slots(self._actual if self._whole_table else self._onlink()):
            wanted.setdefault(slot, ABSENT)
        for need in self._topology.needs:
            if isinstance(need, Slot):
                wanted[need] = None
        return desired.delta(self._actual, wanted)

    def _onlink(self) -> Elements:
        return {name: self._actual.get(name, {}) for name in ("onlink4", "onlink6")}

    async def _commit(self, touched: Touched) -> tuple[Delta, dict[Claim, str]]:
        """Write what the touched keys need; return the delta and the mappings that the kernel refused.

        After a refusal the table is read, and what is needed now is written but for what the kernel refuses.
        """
        change = self._delta(touched)
        try:
            await self._write(change)
            return change, {}
        except KernelRefused as refusal:
            level = logging.DEBUG if self._refused else logging.WARNING
            _log.log(level, "nft refused a transaction of %d elements: %s", len(change.add | change.remove), refusal)
        found = await self._nft.list_table()
        if found:
            self._take_over(found)
        else:
            self._actual = {}
            self._prologue = ruleset.skeleton(self._mark_bit, self._flags)
        await self._write(Delta({}, {}))
        self._whole_table = True
        for key in self._desired.claimed():
            touched.setdefault(key, self._desired.holder(key))
        change = self._delta(touched)
        return change, await self._isolate(self._by_claim(change, touched))

    async def _write(self, change: Delta) -> None:
        prologue = self._prologue
        if change or prologue:
            await self._nft.run(prologue + ruleset.text(change))
        desired.apply(self._actual, change)
        if prologue:
            self._prologue = ""
            await self._leave_fingerprint()

    async def _leave_fingerprint(self) -> None:
        found = await self._nft.list_table(elements=False)
        if found:
            await self._nft.run(ruleset.set_fingerprint(ruleset.fingerprint(self._mark_bit, found)))

    def _by_claim(self, change: Delta, touched: Iterable[Key]) -> list[tuple[Claim | None, Delta]]:
        """Cut a delta into the parts that stand or fall together: a mapping's elements, and each other element."""
        owner: dict[Slot, Claim | None] = {}
        for key in touched:
            owner |= dict.fromkeys(desired.slots(key), self._desired.holder(key))
        parts: dict[Claim | Slot, Delta] = {}
        for slot in change.remove | change.add:
            part = parts.setdefault(owner.get(slot) or slot, Delta({}, {}))
            if slot in change.remove:
                part.remove[slot] = change.remove[slot]
            if slot in change.add:
                part.add[slot] = change.add[slot]
        return [(label if isinstance(label, Claim) else None, part) for label, part in parts.items()]

    async def _isolate(self, parts: list[tuple[Claim | None, Delta]]) -> dict[Claim, str]:
        """Write the parts, halving them where the kernel refuses, until only what it refuses is left out."""
        whole = Delta({}, {})
        for _, part in parts:
            whole.remove.update(part.remove)
            whole.add.update(part.add)
        try:
            await self._write(whole)
        except KernelRefused as refusal:
            if len(parts) > 1:
                middle = len(parts) // 2
                return await self._isolate(parts[:middle]) | await self._isolate(parts[middle:])
            claim = parts[0][0]
            if claim is None:
                _log.error("the kernel refuses %s: %s", ruleset.text(whole).strip(), refusal)
                return {}
            if claim not in self._refused:
                _log.error("%s is not in force, the kernel refuses it: %s", claim, refusal)
            return {claim: refusal.reason}
        return {}

    async def _flush(self, change: Delta, touched: Touched) -> None:
        """Delete the flows that would go on to an old target."""
        moved = []
        for slot in change.remove | change.add:
            if key := desired.key_of(slot):
                before = desired.to_endpoint(change.remove.get(slot))
                after = desired.endpoint_in(self._actual, key)
                if before != after:
                    moved.append(Moved(key, before, after, self._cuts(key, touched.get(key))))
        local = self._topology.network.addresses
        await self._conntrack.delete(list(flows.stale(moved, partial(desired.endpoint_in, self._actual), local)))

    def _cuts(self, key: Key, before: Claim | None) -> bool:
        """Whether the mapping that the key followed, or the one it follows now, wants its TCP flows cut."""
        holders = (before, self._desired.holder(key))
        return any(holder is not None and holder.mapping.on_change == "cut" for holder in holders)

    async def withdraw(self) -> None:
        """Take the table and everything that nfportd set on this host away; the loopback guard last."""
        await self._host.release()
        if await self._nft.list_table(elements=False):
            await self._nft.run(f"delete table inet {ruleset.TABLE}\n")
            _log.info("removed table inet %s", ruleset.TABLE)

    @property
    def mappings(self) -> int:
        """How many mappings are wished for."""
        return self._desired.count()

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
from collections.abc import Iterable, Mapping as AbstractMapping
from dataclasses import dataclass, field

from nfportd import desired, flows, ruleset, topology
from nfportd.desired import Claim, Delta, Desired, Elements, Slot
from nfportd.errors import KernelRefused, NotPossible
from nfportd.flows import Moved
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.nft import Nft
from nfportd.model import Endpoint, Key, Mapping
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
        self._cut: set[Key] = set()
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
        count = sum(map(len, found.elements.values()))
        how = "; its chains are of another version and will be refilled" if self._prologue else ""
        _log.info("adopted table inet %s with %d elements%s", ruleset.TABLE, count, how)
        if can_own and "owner" not in found.flags:
            _log.info("the table keeps having no owner; it gets one when it is made anew, after a stop")

    def _take_over(self, found: ruleset.Listed) -> None:
        """Take what was listed as the actual state; chains unlike ours are refilled together with the next delta."""
        self._actual = found.elements
        self._prologue = ""
        if found.fingerprint != ruleset.fingerprint(self._mark_bit, found):
            self._prologue = ruleset.refill(found, self._mark_bit, self._flags)
            for name in ruleset.sets_to_replace(found):
                self._actual[name] = {}

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

    async def _pass(self, wishes: Iterable[Wishes]) -> Outcome:
        touched: set[Key] = set()
        for wish in wishes:
            for owner, mappings in wish.items():
                touched |= self._desired.replace(owner, mappings)
        await self._follow_network()
        if self._whole_table:
            touched = set(self._desired.keys())
        for claim in self._refused:
            touched |= {key for key, _ in claim.mapping.endpoints()}
        outcome = Outcome(waiting=self._desired.waiting(touched))
        await self._bring_into_force(touched, outcome)
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

    async def _bring_into_force(self, touched: set[Key], outcome: Outcome) -> None:
        change = self._delta(touched)
        before = {key: desired.endpoint_in(self._actual, key) for key in touched | self._vanishing(change)}
        outcome.refused = await self._commit(change, touched)
        outcome.added, outcome.removed = len(change.add), len(change.remove)
        self._whole_table = False
        self._refused = {c: r for c, r in self._refused.items() if c in outcome.refused} | outcome.refused
        await self._flush(before)

    def _delta(self, touched: set[Key]) -> Delta:
        wanted = self._desired.wanted(touched)
        among = {slot for key in touched for slot in desired.slots(key)}
        onlink = {need for need in self._topology.needs if isinstance(need, Slot)}
        wanted |= dict.fromkeys(onlink)
        among |= onlink
        if self._whole_table:
            among |= set(desired.all_slots(self._actual))
        else:
            among |= {Slot(name, key) for name in ("onlink4", "onlink6") for key in self._actual.get(name, ())}
        return desired.delta(self._actual, wanted, among)

    def _vanishing(self, change: Delta) -> set[Key]:
        """Keys of elements that an earlier run left and nobody claims."""
        if not self._whole_table:
            return set()
        return {key for slot in change.remove if (key := desired.key_of(slot))}

    async def _commit(self, change: Delta, touched: set[Key]) -> dict[Claim, str]:
        """Write a delta; on refusal read the table, try again, and then find out which mappings are refused."""
        try:
            await self._write(change)
            return {}
        except KernelRefused as refusal:
            _log.warning("nft refused a transaction of %d elements: %s", len(change.add | change.remove), refusal)
        found = await self._nft.list_table()
        if found:
            self._take_over(found)
        else:
            self._actual = {}
            self._prologue = ruleset.skeleton(self._mark_bit, self._flags)
        await self._write(Delta({}, {}))
        self._whole_table = True
        touched |= set(self._desired.keys())
        return await self._isolate(self._by_claim(self._delta(touched), touched))

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

    def _by_claim(self, change: Delta, touched: set[Key]) -> list[tuple[Claim | None, Delta]]:
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

    async def _flush(self, before: AbstractMapping[Key, Endpoint | None]) -> None:
        """Delete the flows that would go on to an old target, and remember which keys want their TCP flows cut."""
        endpoint = self._endpoint
        moved = [Moved(key, old, new) for key, old in before.items() if (new := endpoint(key)) != old]
        for key in before:
            if (holder := self._desired.holder(key)) and holder.mapping.on_change == "cut":
                self._cut.add(key)
        await self._conntrack.delete(
            list(flows.stale(moved, self._cut.__contains__, endpoint, self._topology.network.addresses))
        )
        self._cut -= {m.key for m in moved if m.after is None}

    def _endpoint(self, key: Key) -> Endpoint | None:
        return desired.endpoint_in(self._actual, key)

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

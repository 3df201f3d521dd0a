"""Our table in the kernel and the mirror of its elements: adopt what is there, write deltas, isolate what is refused.

Must not know owners or the network. The one idea: the mirror is read once at the start and again only after a refusal;
in between it follows from what was written, by us or, as the kernel tells, by others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Literal, NamedTuple

from nfportd import desired, elements, ruleset
from nfportd.desired import Absent, Delta, Elements, Parts, Slot
from nfportd.drift import Drift
from nfportd.errors import KernelRefused, NotPossible
from nfportd.kernel.nft import Nft, NftDied

_log = logging.getLogger(__name__)

#: How often that is tried which no later pass does again, and the seconds between.
_ATTEMPTS, _PAUSE = 4, 0.2


class Part(NamedTuple):
    """Elements that stand or fall together, because one thing asks for them."""

    label: Hashable
    change: Delta


class Written(NamedTuple):
    """What a commit brought into force, and why the rest was refused, by the label of its part."""

    change: Delta
    refused: dict[Hashable, str]
    #: Whether chains were written, so that until then packets may have passed without them.
    chains: bool = False


#: How the table's chains, sets and rules are, against what was written.
State = Literal["intact", "changed", "missing"]


class Table:
    """The table `inet nfportd`. `elements` is what the kernel holds by all we know."""

    def __init__(self, nft: Nft, mark_bit: int) -> None:
        self.elements: Elements = {}
        self._nft = nft
        self._mark_bit = mark_bit
        self._flags: ruleset.Flags = ()
        # What must go before the next delta, in its transaction, until it is written: the skeleton, or a refill.
        self._prologue = ""
        # The chains on demand that have their rules, or get them by the prologue.
        self._on_demand: set[str] = set()
        # What makes room for a new table where nft cannot list the one that is there.
        self._unreadable = ""
        # Chains, sets and rules as nft listed them after they were written.
        self._skeleton: ruleset.Skeleton | None = None
        self._sealed = True
        # What was written since it is not known that all notifications still to come are younger (`caught_up`).
        self._written: set[Slot] = set()
        self._doubted = False

    @property
    def owned(self) -> bool:
        """Whether only this process may change the table."""
        return "owner" in self._flags

    @property
    def uncertain(self) -> bool:
        """Whether somebody must look (`follow`) what the kernel holds: a commit failed, or libnftables died."""
        return self._doubted or self._nft.died

    @uncertain.setter
    def uncertain(self, doubted: bool) -> None:
        self._doubted = doubted

    async def adopt(self) -> None:
        """Read the table that an earlier run left and see what of it can stay; make it where there is none.

        Raises NotPossible where nftables cannot be used at all.
        """
        try:
            await _insist(self._adopt)
        except KernelRefused as refusal:
            raise NotPossible(f"nftables cannot be used: {refusal}; it takes CAP_NET_ADMIN and nf_tables") from None

    async def _adopt(self) -> None:
        probe = ruleset.empty_table(ruleset.OWNED, "nfportd_probe")
        # Asked twice, for it may have been refused for a reason of the moment.
        lacking = await self._nft.allows(probe) and await self._nft.allows(probe)
        can_own = lacking is None
        if lacking:
            _log.info("no flags owner, persist here (%s): other programs can change the table", lacking)
        flags = self._nft.flags()
        # A table that was made without an owner keeps having none.
        self._flags = ruleset.OWNED if can_own and (flags is None or "persist" in flags) else ()
        found = await self._read()
        if found is None:
            # Before everything else, for its loopback guard must stand when sysctls open the loopback.
            await self._anew()
            return
        # The kernel takes the flag owner away when an owner ends; so nobody else writes from here on.
        await self._own()
        self._take_over(found)
        if self._prologue and not ruleset.sets_to_replace(found):
            # The same order; only sets that are made anew wait for the delta that fills them.
            await self._write(Delta({}, {}))
            await self.seal()
        count = sum(map(len, found.elements.values()))
        how = "; its sets are of another version and are made anew" if self._prologue else ""
        _log.info("adopted table inet %s with %d elements%s", ruleset.TABLE, count, how)
        if can_own and not self.owned:
            _log.info("the table keeps having no owner; it gets one when it is made anew, after a stop")

    async def _read(self) -> ruleset.Listed | None:
        """Our table, or None, where it is missing or must be made anew."""
        self._unreadable = ""
        if not await self._usable():
            return None
        try:
            return await self._nft.list_table()
        except NftDied:
            pass
        try:
            return await self._nft.list_table()
        except NftDied as died:
            self._condemn(f"cannot be listed ({died})")
            return None

    async def _usable(self) -> bool:
        """See that nft can list and change the table that is there; False where it must be made anew for that."""
        flags = self._nft.flags() or ()
        if strange := set(flags) - {"dormant", *self._flags}:
            if "owner" in strange:
                # The kernel takes this flag away when the owner ends.
                raise KernelRefused(f"another process owns table inet {ruleset.TABLE}; it must delete it, or end")
            # nft 1.0.6 does not know it; and the kernel lets nobody change a table who leaves its flags out.
            self._condemn(f"has flags of a newer nft ({', '.join(sorted(strange))})")
            return False
        if "dormant" in flags:
            await self._nft.run(ruleset.empty_table(self._flags))
        return True

    def _condemn(self, why: str) -> None:
        _log.warning("the table %s; it is made anew", why)
        self._unreadable = f"delete table inet {ruleset.TABLE}\n"

    async def _anew(self) -> None:
        """Write the skeleton now; where it takes the place of a table, with the first delta, which fills it."""
        self._forget()
        if self._unreadable:
            return
        await self._write(Delta({}, {}))
        await self.seal()
        _log.info("made table inet %s%s", ruleset.TABLE, ", owned" if self.owned else "")

    def _forget(self) -> None:
        """There is no table: the next transaction makes it."""
        self.elements = {}
        self._on_demand = set()
        self._prologue = self._unreadable + ruleset.skeleton(self._mark_bit, self._flags)

    async def _own(self) -> None:
        """Be the table's owner (again), where it can have one: it belongs to the process that runs libnftables."""
        self._nft.died = False
        if self.owned:
            await self._nft.run(ruleset.empty_table(self._flags))

    def _take_over(self, found: ruleset.Listed) -> None:
        """Mirror what was listed; chains unlike ours are refilled together with the next delta."""
        self.elements = found.elements
        self._prologue = ""
        self._skeleton = found.skeleton
        self._on_demand = ruleset.on_demand(found)
        if ruleset.has_others(found) or found.fingerprint != ruleset.fingerprint(self._mark_bit, found):
            self._prologue = ruleset.refill(found, self._mark_bit, self._flags)

    def caught_up(self) -> None:
        """All notifications that are older than what we wrote last have been followed."""
        self._written.clear()

    async def follow(self, drift: Drift) -> Elements | None:
        """Learn what others did to the table: then the mirror has what the kernel holds, and the next commit mends it.

        Reads everything only where notifications were lost, or cross with a transaction of ours. Returns the elements
        that went together with their set; None where nobody can know what was there before.
        """
        if self._doubted or drift.lost or drift.elements.keys() & self._written:
            await self._reread()
            return None
        if self._nft.died:
            await self._own()
        before = dict(self.elements)
        if drift.skeleton:
            await self._follow_skeleton()
        for name in drift.emptied:
            self.elements[name] = {}
        gone = {name: inside for name, inside in before.items() if inside and not self.elements.get(name)}
        for slot, value in drift.elements.items():
            inside = self.elements.setdefault(slot.set, {})
            if isinstance(value, Absent):
                inside.pop(slot.key, None)
            else:
                inside[slot.key] = value
        return gone

    async def _follow_skeleton(self) -> None:
        found = await self._nft.list_table(whole=False) if await self._usable() else None
        if found is None:
            self._forget()
        else:
            # Also where it is as it was listed after our last write: that may have come before the listing.
            known = found._replace(elements=self.elements)
            self._on_demand = ruleset.on_demand(known)
            self._prologue = ruleset.refill(known, self._mark_bit, self._flags)
            for name in {*ruleset.sets_to_replace(found), *(self.elements.keys() - found.sets.keys())}:
                self.elements[name] = {}

    async def _reread(self) -> None:
        self._doubted = False
        found = await self._read()
        if found:
            await self._own()
            self._take_over(found)
        else:
            self._forget()

    async def commit(
        self, delta: Callable[[], Delta], anew: Callable[[], Delta], label: Callable[[Slot], Hashable]
    ) -> Written:
        """Write a delta as one transaction.

        After a refusal the table is read and `anew` asked for all that it lacks; what of that is still refused is
        halved until single parts (slots of one label) remain that the kernel refuses. All others are written.
        Raises KernelRefused where not even the skeleton can be written.
        """
        change, chains = delta(), bool(self._prologue)
        try:
            await self._write(change)
            return Written(change, {}, chains)
        except KernelRefused as refusal:
            _log.warning("nft refused a transaction of %d elements: %s", len(change.add | change.remove), refusal)
        await self._reread()
        chains |= bool(self._prologue)
        await self._write(Delta({}, {}))
        written = Written(Delta({}, {}), {}, chains)
        await self._isolate(_parts(anew(), label), written)
        return written

    async def _write(self, change: Delta) -> None:
        chains = ruleset.needed({slot.set: {slot.key: None} for slot in change.add}) - self._on_demand
        prologue = self._prologue + ruleset.chains(chains, self._mark_bit)
        batch = elements.transaction(change) if change and not prologue else None
        if batch:
            await self._nft.write(batch)
        elif change or prologue:
            await self._nft.run(prologue + ruleset.text(change))
        desired.apply(self.elements, change)
        self._written |= change.remove.keys() | change.add.keys()
        self._on_demand |= chains
        if prologue:
            self._prologue = self._unreadable = ""
            self._sealed = False

    async def seal(self) -> None:
        """After a commit that wrote chains: remember how nft lists them, also in the table, for the next start."""
        if self._sealed:
            return
        try:
            found = await self._nft.list_table(whole=False)
            if found:
                await self._nft.run(ruleset.set_fingerprint(ruleset.fingerprint(self._mark_bit, found)))
                self._skeleton, self._sealed = found.skeleton, True
        except KernelRefused as refusal:
            # What was written holds all the same. Somebody has been there in the meantime, or libnftables died: either
            # leads to another pass, which tries again.
            _log.debug("the table cannot be sealed: %s", refusal)

    async def _isolate(self, parts: list[Part], written: Written) -> None:
        whole = _merged(part.change for part in parts)
        try:
            await self._write(whole)
        except KernelRefused as refusal:
            if len(parts) == 1:
                written.refused[parts[0].label] = refusal.reason
                return
            middle = len(parts) // 2
            await self._isolate(parts[:middle], written)
            await self._isolate(parts[middle:], written)
        else:
            written.change.remove.update(whole.remove)
            written.change.add.update(whole.add)

    async def answers(self) -> None:
        """Return once nft has answered a question that costs the same at any size."""
        await self._nft.allows(ruleset.empty_table((), "nfportd_beat"))

    async def state(self) -> State:
        """What has become of the table, its elements apart. Costs the same at any number of mappings."""
        flags = self._nft.flags()
        if flags is None:
            return "missing"
        found = await self._nft.list_table(whole=False) if flags == self._flags else None
        return "intact" if found and found.skeleton == self._skeleton else "changed"

    async def holds(self, elements: dict[Slot, Parts | None]) -> bool:
        """Whether the kernel has these elements with these values; two dry runs, for nft lists no chosen elements."""
        there = Delta(elements, {}), Delta({}, elements)
        return not any([await self._nft.allows(ruleset.text(change)) for change in there if change])

    async def delete(self) -> None:
        """Take the table away, also where somebody has done so already."""
        text = f"{ruleset.empty_table(self._flags)}delete table inet {ruleset.TABLE}\n"
        await _insist(lambda: self._nft.run(text))
        _log.info("removed table inet %s", ruleset.TABLE)


async def _insist(attempt: Callable[[], Awaitable[None]]) -> None:
    """Do what nobody would do again. Raises the last KernelRefused."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await attempt()
        except KernelRefused as refusal:
            _log.warning("tried again in %.1f s: %s", _PAUSE, refusal)
            await asyncio.sleep(_PAUSE)
    return await attempt()


def _parts(change: Delta, label: Callable[[Slot], Hashable]) -> list[Part]:
    """Cut a delta by label; parts that only remove come first, since they make room."""
    parts: dict[Hashable, Delta] = {}
    for slot in change.remove | change.add:
        part = parts.setdefault(label(slot), Delta({}, {}))
        if slot in change.remove:
            part.remove[slot] = change.remove[slot]
        if slot in change.add:
            part.add[slot] = change.add[slot]
    return sorted((Part(*item) for item in parts.items()), key=lambda part: bool(part.change.add))


def _merged(changes: Iterable[Delta]) -> Delta:
    whole = Delta({}, {})
    for change in changes:
        whole.remove.update(change.remove)
        whole.add.update(change.add)
    return whole

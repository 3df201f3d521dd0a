"""Who wishes for what: takes wishes one by one, or refuses them, and can take each back.

Must not know the kernel, the store or a clock. The one idea: a wish is entered, then looked at; what may not be is
undone, and the desired state is as if it had never come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping as AbstractMapping, Set as AbstractSet
from dataclasses import dataclass, field, replace

from nfportd.desired import RECOVERED, Claim, Desired, Touched
from nfportd.model import Blocker, Key, Mapping
from nfportd.wishes import Content, Held, KeyTaken, PortInUse, PreconditionFailed, Waiting, Wish

#: Tells which of some keys local processes listen on, with the address and, where known, the process.
Listening = Callable[[Iterable[Key]], AbstractMapping[Key, Blocker]]


@dataclass(frozen=True, slots=True)
class Change:
    """What a wish changed, and what was before, to undo it. `shadowed`: taken from processes that listen there."""

    before: AbstractMapping[str, Held | None]
    touched: Touched
    added: int
    removed: int
    shadowed: AbstractMapping[Key, Blocker] = field(default_factory=dict)


class Register:
    """The contents of all owners, and the desired state that follows."""

    def __init__(self) -> None:
        self.desired = Desired()
        self.held: dict[str, Held] = {}

    def take(self, wish: Wish, now: float, in_force: Callable[[Key], bool], listening: Listening) -> Change:
        """Enter a wish. Raises PreconditionFailed, KeyTaken or PortInUse, and then nothing has changed.

        `in_force`: whether the kernel has an element for a key; such a key is not looked up among local listeners.
        """
        self._match(wish)
        before = {owner: self.held.get(owner) for owner in wish.owners}
        touched: Touched = {}
        added = removed = 0
        for owner, content in wish.owners.items():
            old = self.held[owner].content.mappings.keys() if owner in self.held else set()
            new = content.mappings.keys() if content else set()
            fresh = new - old if old else new
            added, removed = added + len(fresh), removed + (len(old - new) if old else 0)
            self._enter(owner, content, wish.since.get(owner, now), touched, fresh)
        change = Change(before, touched, added, removed)
        try:
            if wish.promised:
                self._promise(wish, touched)
            shadowed = self._look_for_listeners(wish, touched, in_force, listening)
        except (KeyTaken, PortInUse):
            self.undo(change)
            raise
        return replace(change, shadowed=shadowed)

    def undo(self, change: Change) -> Touched:
        """Take a wish back; return the keys that this touches."""
        touched: Touched = {}
        for owner, held in change.before.items():
            self._enter(owner, held.content if held else None, held.since if held else 0.0, touched)
            if held:
                self.held[owner] = held
        return touched

    def waiting(self, keys: Iterable[Key]) -> list[Waiting]:
        """The claims that do not hold some of these keys."""
        found = []
        for claim, lost in self.desired.waiting(keys).items():
            if holder := self.desired.holder(lost[0]):
                found.append(Waiting(claim, holder, tuple(lost)))
        return found

    def _match(self, wish: Wish) -> None:
        for owner, wanted in wish.matches.items():
            held = self.held.get(owner)
            etag = held.content.etag if held else None
            if (etag or "") not in wanted and not ("*" in wanted and etag):
                raise PreconditionFailed(owner, etag)

    def _enter(
        self,
        owner: str,
        content: Content | None,
        now: float,
        touched: Touched,
        fresh: AbstractSet[Mapping] = frozenset(),
    ) -> None:
        for key, holder in self.desired.replace(owner, content.mappings if content else {}).items():
            # The first holder of a key is the one that the kernel knows.
            touched.setdefault(key, holder)
        before = self.held.get(owner)
        if content is None:
            self.held.pop(owner, None)
        elif before is None:
            self.held[owner] = Held(content, now)
        else:
            later = {mapping: then for mapping, then in before.later.items() if mapping in content.mappings}
            self.held[owner] = Held(content, before.since, later | dict.fromkeys(fresh, now))

    def _promise(self, wish: Wish, touched: Touched) -> None:
        for key, before in touched.items():
            now = self.desired.holder(key)
            mine = [claim for claim in self.desired.claims(key) if claim.owner in wish.owners]
            if now is None or not mine:
                continue
            if len(mine) > 1:
                raise KeyTaken(key, mine[0], self.since(mine[0]))
            for other in (before, now):
                if other and other.owner not in wish.owners and other.owner != RECOVERED:
                    raise KeyTaken(key, other, self.since(other))

    def _look_for_listeners(
        self, wish: Wish, touched: Touched, in_force: Callable[[Key], bool], listening: Listening
    ) -> AbstractMapping[Key, Blocker]:
        new = [key for key in touched if self._takes(key) and not in_force(key)]
        found = listening(new) if new else {}
        if wish.promised and found:
            key, (address, process) = next(iter(found.items()))
            raise PortInUse(key, address, process)
        # What was held before holds: a process that came to listen meanwhile would not have stopped it either.
        shadowed = {key: who for key, who in found.items() if self._holder(key) in wish.since}
        self.desired.block(touched.keys(), {key: who for key, who in found.items() if key not in shadowed})
        return shadowed

    def _holder(self, key: Key) -> str:
        holder = self.desired.holder(key)
        return holder.owner if holder else ""

    def _takes(self, key: Key) -> bool:
        holder = self.desired.holder(key)
        return holder is not None and not holder.mapping.shadow_listener

    def since(self, claim: Claim) -> float:
        """Since when a claim's owner has had mappings, in seconds since the epoch."""
        held = self.held.get(claim.owner)
        return held.since if held else 0.0

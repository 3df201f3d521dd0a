"""What should be in the kernel: who claims which key, which claim holds it, and the elements that follow.

Must not know nft's syntax, files or the kernel. The one idea: every claim is kept, the first in order holds the key;
so whoever lets go makes room for the next by itself, and a change costs as much as the keys it touches.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping as AbstractMapping, Set as AbstractSet
from enum import Enum
from typing import NamedTuple

from nfportd.model import Blocker, Endpoint, Key, Mapping, Protocol, takes_loopback
from nfportd.notation import FAMILIES, Family

#: The owner of elements that were found in the kernel when the store that knew their owners was lost.
RECOVERED = "recovered:store"

#: The address of the host's own IPv6 loopback.
LOOPBACK = "::1"

#: The parts of an element's key or value as nft writes them: `("192.0.2.1", "tcp", 80)`.
Parts = tuple[str | int, ...]


class Slot(NamedTuple):
    """A place for one element: a set or map of the table and a key in it."""

    set: str
    key: Parts


#: Elements by set, then by key; a map's value, or None where a set just contains.
Elements = dict[str, dict[Parts, Parts | None]]
_NOTHING: dict[Parts, Parts | None] = {}


class Absent(Enum):
    """What a slot without an element holds; None is what an element of a set holds."""

    ABSENT = 0


ABSENT = Absent.ABSENT


class Delta(NamedTuple):
    """What turns one state of the table into another. A slot in both is changed: removed, then added."""

    remove: dict[Slot, Parts | None]
    add: dict[Slot, Parts | None]

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


class Claim(NamedTuple):
    """One owner's wish to hold the keys of a mapping. Ordered: the least claim on a key holds it."""

    owner: str
    line: int
    mapping: Mapping

    def __str__(self) -> str:
        place = f" line {self.line}" if self.line else ""
        return f"mapping {self.mapping} ({self.owner}{place})"

    @property
    def order(self) -> tuple[int, str, int]:
        """Owners that were promised their keys, then files by name and line, then what was found without an owner."""
        rank = 1 if self.owner.startswith("file:") else 2 if self.owner == RECOVERED else 0
        return (rank, self.owner, self.line)


#: Keys that a change touches, each with the claim that held it before.
Touched = dict[Key, Claim | None]


class Reached(NamedTuple):
    """A target address in use, and whether loopback connections can be sent to it."""

    family: Family
    address: str
    loopback: bool


class Desired:
    """The claims of all owners. A mutable index that its one holder changes; it does no I/O and knows no clock."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[Mapping, Claim]] = {}
        self._count = 0
        # Nearly every key has one claim: no tuple is kept for those, at 60,000 keys that is 4 MB.
        self._claims: dict[Key, Claim | tuple[Claim, ...]] = {}
        # By how many mappings each is.
        self._reached: Counter[Reached] = Counter()
        self._reached_since: dict[Reached, bool] = {}
        # Isolated targets, each with the keys that lead there and whose holder says so: the last one opens it.
        self._isolating: dict[Slot, set[Key]] = {}
        #: Keys with more than one claim.
        self.contested: set[Key] = set()
        #: Keys that stay out of the kernel because a process of this host listens there, with who it is.
        self.blocked: dict[Key, Blocker] = {}
        #: Targets to which a relay takes connections to [::1], and where it waits, by protocol.
        self.relayed: AbstractSet[str] = frozenset()
        self.relay: AbstractMapping[Protocol, Endpoint] = {}

    def replace(self, owner: str, mappings: AbstractMapping[Mapping, int]) -> Touched:
        """Make `mappings` (with their lines) all that the owner claims; return the keys that this touches."""
        before = self._owners.get(owner, {})
        after = {mapping: _same(Claim(owner, line, mapping), before) for mapping, line in mappings.items()}
        touched: Touched = {}
        for mapping in before.keys() - after.keys() if before else ():
            self._drop(before[mapping], touched)
        for mapping, claim in after.items():
            if mapping not in before:
                self._take(claim, touched)
            elif before[mapping] is not claim:
                # Only the line moved: the claim is renewed, the keys stay as they are.
                self._drop(before[mapping], {})
                self._take(claim, {})
        self._count += len(after) - len(before)
        self._owners[owner] = after
        if not after:
            del self._owners[owner]
        return touched

    def _take(self, claim: Claim, touched: Touched) -> None:
        mapping = claim.mapping
        for key in mapping.claimed():
            if key in self._claims:
                self._join(key, claim, touched)
                continue
            self._claims[key] = claim
            touched.setdefault(key)
            if mapping.isolate:
                self._isolate(key, claim)
        for reached in _reached(mapping):
            if not self._reached[reached]:
                self._note(reached, used=True)
            self._reached[reached] += 1

    def _join(self, key: Key, claim: Claim, touched: Touched) -> None:
        """Take a place among others who claim a key."""
        others = self.claims(key)
        touched.setdefault(key, others[0])
        ordered = list(others)
        bisect.insort(ordered, claim, key=lambda c: c.order)
        self._claims[key] = tuple(ordered)
        self.contested.add(key)
        if ordered[0] is claim:
            self._open(key, others[0])
            self._isolate(key, claim)

    def _drop(self, claim: Claim, touched: Touched) -> None:
        for key in claim.mapping.claimed():
            claims = self.claims(key)
            touched.setdefault(key, claims[0])
            others = tuple(c for c in claims if c is not claim)
            if others:
                self._claims[key] = others[0] if len(others) == 1 else others
            else:
                del self._claims[key]
            if len(others) < 2:
                self.contested.discard(key)
            if claims[0] is claim:
                self._open(key, claim)
                if others:
                    self._isolate(key, others[0])
        for reached in _reached(claim.mapping):
            self._reached[reached] -= 1
            if not self._reached[reached]:
                del self._reached[reached]
                self._note(reached, used=False)

    def _isolate(self, key: Key, holder: Claim) -> None:
        if holder.mapping.isolate:
            self._isolating.setdefault(isolated(key, holder.mapping.endpoint(key)), set()).add(key)

    def _open(self, key: Key, holder: Claim) -> None:
        if holder.mapping.isolate:
            slot = isolated(key, holder.mapping.endpoint(key))
            self._isolating[slot].remove(key)
            if not self._isolating[slot]:
                del self._isolating[slot]

    def block(self, among: AbstractSet[Key], blockers: AbstractMapping[Key, Blocker]) -> None:
        """Keep out of the kernel, of the keys `among`, exactly those that have a blocker."""
        for key in self.blocked.keys() & among:
            del self.blocked[key]
        self.blocked |= blockers

    def _note(self, reached: Reached, *, used: bool) -> None:
        if self._reached_since.get(reached, used) != used:
            del self._reached_since[reached]
        else:
            self._reached_since[reached] = used

    def claims(self, key: Key) -> tuple[Claim, ...]:
        """All claims on a key, its holder first."""
        claims = self._claims.get(key)
        if claims is None:
            return ()
        # A claim is a tuple itself, hence the test for Claim.
        return (claims,) if isinstance(claims, Claim) else claims

    def holder(self, key: Key) -> Claim | None:
        """Whose mapping the key follows."""
        claims = self._claims.get(key)
        return claims if claims is None or isinstance(claims, Claim) else claims[0]

    def served(self, key: Key) -> tuple[Claim, Endpoint] | None:
        """Whose mapping takes connections to a key, and where they end; [::1] falls to a key on every address."""
        for each in (key, key._replace(address=None)) if key.address == LOOPBACK else (key,):
            holder = self.holder(each)
            if holder and each not in self.blocked:
                return holder, holder.mapping.endpoint(each)
        return None

    def detour(self, key: Key) -> Endpoint | None:
        """Where the relay waits for connections to a key on [::1]; None where the kernel serves it, or nobody does."""
        found = self.served(key)
        return self.relay.get(key.protocol) if found and found[1].address in self.relayed else None

    def _at_loopback(self, key: Key) -> Parts | Absent:
        """What should stand for a key on [::1] while there is a relay."""
        if detour := self.detour(key):
            return tuple(detour)
        holder = self.holder(key)
        return ABSENT if holder is None or key in self.blocked else tuple(holder.mapping.endpoint(key))

    def isolation(self, slot: Slot) -> Absent | None:
        """What should be in a slot that belongs to no key: an element where somebody wants that target isolated."""
        return None if slot in self._isolating else ABSENT

    def isolator(self, slot: Slot) -> Claim | None:
        """The holder that wants this target isolated; None where several do, or none."""
        keys = self._isolating.get(slot, ())
        return self.holder(next(iter(keys))) if len(keys) == 1 else None

    def standing(self, claim: Claim) -> Claim | None:
        """The claim by which its owner still wishes for its mapping; its line may have moved."""
        return self._owners.get(claim.owner, {}).get(claim.mapping)

    def claimed(self) -> Iterable[Key]:
        """Every key that somebody claims."""
        return self._claims.keys()

    def owners(self) -> Iterable[str]:
        """Every owner with a mapping."""
        return self._owners.keys()

    def reached(self) -> Iterable[Reached]:
        """Every target address in use."""
        return self._reached.keys()

    def reached_changes(self) -> dict[Reached, bool]:
        """The targets that came into use (True) or went out of it (False) since this was asked last."""
        changes, self._reached_since = self._reached_since, {}
        return changes

    def waiting(self, keys: Iterable[Key]) -> dict[Claim, list[Key]]:
        """The claims that do not hold some of these keys, with those keys."""
        waiting: dict[Claim, list[Key]] = {}
        for key in keys:
            for claim in self.claims(key)[1:]:
                waiting.setdefault(claim, []).append(key)
        return waiting

    def __len__(self) -> int:
        return len(self._claims)

    def count(self) -> int:
        """How many mappings there are."""
        return self._count

    def wanted(self, touched: AbstractMapping[Key, Claim | None]) -> dict[Slot, Parts | Absent | None]:
        """What should be in the slots of these keys: in those of the claim that held each before, and of its holder.

        The target of a key that is kept out of the kernel stays isolated.
        """
        wanted: dict[Slot, Parts | Absent | None] = {}
        detours: dict[Slot, Parts | Absent | None] = {}
        for key, former in touched.items():
            target, claim = _target(key), self.holder(key)
            if former is not None:
                for slot in _options(key, former.mapping, target):
                    wanted[slot] = ABSENT
                self._want_isolated(key, former, wanted)
            if self.relay and (loopback := loopback_key(key)):
                detours[_target(loopback)] = self._at_loopback(loopback)
            if claim is not None:
                self._want_isolated(key, claim, wanted)
            if claim is None or key in self.blocked:
                wanted[target] = ABSENT
                continue
            wanted[target] = claim.mapping.endpoint(key)
            for slot in _options(key, claim.mapping, target):
                wanted[slot] = None
        return wanted | detours

    def _want_isolated(self, key: Key, claim: Claim, wanted: dict[Slot, Parts | Absent | None]) -> None:
        if claim.mapping.isolate:
            slot = isolated(key, claim.mapping.endpoint(key))
            wanted[slot] = self.isolation(slot)

    def wanted_of_all(self) -> dict[Slot, Parts | Absent | None]:
        """What should be in the table for all claims; every slot that is not named should be empty."""
        return self.wanted(dict.fromkeys(self._claims))


def _reached(mapping: Mapping) -> list[Reached]:
    loopback = takes_loopback(mapping.listen.address)
    return [Reached(target.family, target.address, loopback) for target in mapping.targets]


def _same(claim: Claim, before: AbstractMapping[Mapping, Claim]) -> Claim:
    """The claim that stands for this mapping already, if it is equal: claims are told apart by identity."""
    standing = before.get(claim.mapping)
    return standing if standing == claim else claim


_ANY = {family: f"any{family}" for family in FAMILIES}
_ADDR = {family: f"addr{family}" for family in FAMILIES}


def _target(key: Key) -> Slot:
    family, address, protocol, port = key
    if address is None:
        return Slot(_ANY[family], (protocol, port))
    return Slot(_ADDR[family], (address, protocol, port))


def loopback_key(key: Key) -> Key | None:
    """The key of connections to [::1] on which this one has a say; None where it has none."""
    return key._replace(address=LOOPBACK) if key.family == 6 and key.address in (None, LOOPBACK) else None


def isolated(key: Key, endpoint: Endpoint) -> Slot:
    """Where it stands that a key's target is isolated."""
    return Slot(f"isolated{key.family}", (endpoint.address, key.protocol, endpoint.port))


def slots(key: Key) -> tuple[Slot, Slot, Slot]:
    """Where a key's elements stand: its target in a map, its wish to always or never be masqueraded in two sets."""
    target = _target(key)
    return target, Slot(f"always_{target.set}", target.key), Slot(f"never_{target.set}", target.key)


def options(key: Key, mapping: Mapping) -> Iterable[Slot]:
    """Where a key stands besides its target, by what its mapping says of masquerading and of sources."""
    return _options(key, mapping, _target(key))


def _options(key: Key, mapping: Mapping, target: Slot) -> Iterable[Slot]:
    sources = mapping.sources
    if key.address is None and not sources and mapping.masquerade == "auto":
        return ()
    name, parts = target
    found = [] if mapping.masquerade == "auto" else [Slot(f"{mapping.masquerade}_{name}", parts)]
    if sources:
        found.append(Slot(f"guarded_{name}", parts))
        found += [Slot(f"allowed_{name}", (source, *parts)) for source in of_family(sources, key.family)]
    elif key.address is not None:
        # So that a guarded wildcard on the same port does not stand in the way.
        found.append(Slot(f"open_{name}", parts))
    return found


def of_family(sources: Iterable[str], family: Family) -> tuple[str, ...]:
    """The prefixes of one family. Where a list of sources has none of it, nobody of that family is allowed."""
    return tuple(source for source in sources if (":" in source) == (family == 6))


_PROTOCOLS: dict[str | int, Protocol] = {str(protocol): protocol for protocol in Protocol}
_TARGETS = frozenset([*_ANY.values(), *_ADDR.values()])
_OPTIONS = frozenset(["", "always", "never", "guarded", "open", "allowed"])


def is_target(slot: Slot) -> bool:
    """Whether the target of a key stands in a slot."""
    return slot.set in _TARGETS


def key_of(slot: Slot) -> Key | None:
    """The key whose element stands in a slot; None for slots of targets and links, and for what we never write."""
    option, _, name = slot.set.rpartition("_")
    if name not in _TARGETS or option not in _OPTIONS or slot.key == ("*",):
        return None
    parts = slot.key[1:] if option == "allowed" else slot.key
    protocol, port = parts[-2:]
    if protocol not in _PROTOCOLS or not isinstance(port, int):
        return None
    address = str(parts[0]) if name in _ADDR.values() else None
    return Key(4 if name[-1] == "4" else 6, address, _PROTOCOLS[protocol], port)


def endpoint_in(elements: Elements, key: Key) -> Endpoint | None:
    """Where a key's connections go by these elements."""
    slot = _target(key)
    return to_endpoint(elements.get(slot.set, _NOTHING).get(slot.key))


def to_endpoint(value: Parts | None) -> Endpoint | None:
    """The value of an element of a map, as an endpoint."""
    return Endpoint(str(value[0]), int(value[1])) if value else None


def delta(actual: Elements, wanted: AbstractMapping[Slot, Parts | Absent | None]) -> Delta:
    """What makes the slots be as wanted. Elements that are right already are not in it."""
    remove: dict[Slot, Parts | None] = {}
    add: dict[Slot, Parts | None] = {}
    for slot, want in wanted.items():
        have = actual.get(slot.set, _NOTHING).get(slot.key, ABSENT)
        if have == want:
            continue
        if not isinstance(have, Absent):
            remove[slot] = have
        if not isinstance(want, Absent):
            add[slot] = want
    return Delta(remove, add)


def apply(elements: Elements, change: Delta) -> None:
    """Bring elements to the state after a delta."""
    for slot in change.remove:
        elements[slot.set].pop(slot.key, None)
    for slot, value in change.add.items():
        elements.setdefault(slot.set, {})[slot.key] = value


def all_slots(elements: Elements) -> Iterator[Slot]:
    """Every slot that has an element."""
    for name, inside in elements.items():
        for key in inside:
            yield Slot(name, key)

"""What the API shows of the state: owners, mappings and what became of them.

Must not change anything. The one idea: everything is derived from the register and what the reconciler remembers, at
the moment when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping as AbstractMapping
from dataclasses import replace
from typing import Any, NamedTuple

from nfportd import loopback
from nfportd.api.bodies import Conflict, MappingState, Minute, Owner, OwnerSummary, Process, Share
from nfportd.desired import RECOVERED, Claim
from nfportd.model import Mapping, listens
from nfportd.reconciler import Reconciler
from nfportd.traffic import Packed, Traffic, packed, unpacked
from nfportd.wishes import Held, rfc3339

Drift = AbstractMapping[Mapping, str]
_NONE: Drift = {}


class Wanted(NamedTuple):
    """Which mappings; None: whatever it is."""

    owner: str | None = None
    name: str | None = None
    port: int | None = None
    protocol: str | None = None

    def takes(self, mapping: Mapping) -> bool:
        """Whether a mapping is among them, by all but its owner."""
        ports = mapping.listen.ports
        return (
            self.name in (None, mapping.name)
            and (self.port is None or ports.first <= self.port <= ports.last)
            and (self.protocol is None or self.protocol in mapping.protocol)
        )


class Views:
    """Reads the state of a reconciler."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._register = reconciler.register

    def owner(self, name: str, drift: Drift = _NONE) -> Owner | None:
        """An owner with its mappings; None if it has none. `drift`: what the kernel has not as it should, and why."""
        held = self._register.held.get(name)
        return self.of(name, held, drift) if held else None

    def of(self, name: str, held: Held, drift: Drift = _NONE) -> Owner:
        """An owner that holds a content."""
        states = []
        for mapping, line in held.content.mappings.items():
            state = self._state(Claim(name, line, mapping), held, None)
            if state.state == "active" and mapping in drift:
                state = replace(state, state="drift", reason=drift[mapping])
            states.append(state)
        return Owner(**_common(name, held), mappings=states)

    def owners(self, prefix: str) -> Iterator[OwnerSummary]:
        """The owners whose names begin with a prefix, in order."""
        for name, held in sorted(self._register.held.items()):
            if name.startswith(prefix):
                yield OwnerSummary(**_common(name, held), mappings=len(held.content.mappings))

    def mappings(self, wanted: Wanted, traffic: Traffic | None = None) -> Iterator[MappingState]:
        """The mappings that are wanted, by owner."""
        for owner, held in sorted(self._register.held.items()):
            if wanted.owner not in (None, owner):
                continue
            for mapping, line in held.content.mappings.items():
                if wanted.takes(mapping):
                    yield self._state(Claim(owner, line, mapping), held, traffic)

    def busiest(self, most: int, traffic: Traffic) -> Iterator[MappingState]:
        """The mappings with the most connections lately, then those with the most of all, then others."""
        found: dict[Claim, None] = {}
        for claim in self._by_connections(most, traffic):
            found[claim] = None
            if len(found) == most:
                break
        for claim in found:
            if held := self._register.held.get(claim.owner):
                yield self._state(claim, held, traffic)

    def _by_connections(self, most: int, traffic: Traffic) -> Iterator[Claim]:
        for by_key in (traffic.grown, traffic.accepted):
            yield from (claim for claim, _ in self._shares(by_key()).most_common(most))
        for owner, held in self._register.held.items():
            yield from (Claim(owner, line, mapping) for mapping, line in held.content.mappings.items())

    def minutes(self, traffic: Traffic) -> Iterator[Minute]:
        """What is known of the last hour, by the mappings that hold the keys now."""
        for minute in traffic.minutes:
            busiest = [_share(claim, count) for claim, count in self._shares(minute.busiest).most_common()]
            began, seconds = rfc3339(minute.began), round(minute.seconds, 1)
            yield Minute(began=began, seconds=seconds, connections=minute.connections, busiest=busiest)

    def count(self) -> int:
        """How many mappings there are."""
        return self._register.desired.count()

    def _shares(self, by_key: AbstractMapping[Packed, int]) -> Counter[Claim]:
        found: Counter[Claim] = Counter()
        for each, connections in by_key.items():
            key = unpacked(each)
            if key and (holder := self._register.desired.holder(key)):
                found[holder] += connections
        return found

    def in_trouble(self) -> Iterator[MappingState]:
        """The mappings that are not wholly in force, whatever the reason."""
        desired = self._register.desired
        claims = set(self._reconciler.enforcer.refused)
        claims |= {claim for key in desired.contested for claim in desired.claims(key)[1:]}
        claims |= {holder for key in desired.blocked if (holder := desired.holder(key))}
        for claim in sorted(claims, key=lambda each: each.order):
            if held := self._register.held.get(claim.owner):
                yield self._state(claim, held, None)

    def _state(self, claim: Claim, held: Held, traffic: Traffic | None) -> MappingState:
        mapping = claim.mapping
        conflicts = self._conflicts(claim)
        blocked, process = self._blocker(claim)
        refused = self._reconciler.enforcer.refused.get(claim)
        state, reason = "active", None
        if conflicts:
            state, reason = "conflict", f"{conflicts[0].key} is held by {conflicts[0].owner}"
        elif blocked:
            state, reason = "port-in-use", blocked
        elif refused:
            state, reason = "refused", refused
        return MappingState(
            **mapping.written(),
            owner=claim.owner,
            since=rfc3339(held.since),
            loopback6=self._loopback6(claim) if state == "active" else "no",
            state=state,
            reason=reason,
            process=process,
            conflicts=conflicts,
            unreached=[t.address for t in mapping.targets if t.address in self._reconciler.enforcer.unreached],
            changed=rfc3339(held.later[mapping]) if mapping in held.later else None,
            **(self._counted(claim, traffic, wholly=not conflicts) if traffic else {}),
        )

    def _loopback6(self, claim: Claim) -> loopback.Way:
        return loopback.way(claim, self._register.desired, self._reconciler.enforcer.topology)

    def _counted(self, claim: Claim, traffic: Traffic, *, wholly: bool) -> dict[str, Any]:
        """The connections of the keys that a claim holds, which may be all."""
        holder = self._register.desired.holder
        keys = [packed(key) for key, _ in claim.mapping.endpoints() if wholly or holder(key) == claim]
        rate = round(sum(map(traffic.growth, keys)) / traffic.seconds, 3) if traffic.seconds else None
        return {"connections": sum(map(traffic.connections, keys)), "rate": rate}

    def _conflicts(self, claim: Claim) -> list[Conflict]:
        # Only a drop-in waits, or what was found without an owner, and few do: looking at every key of a range is left
        # to those.
        if not claim.owner.startswith("file:") and claim.owner != RECOVERED:
            return []
        found: dict[str, Conflict] = {}
        for key, _ in claim.mapping.endpoints():
            holder = self._register.desired.holder(key)
            if holder and holder != claim and holder.owner not in found:
                since = rfc3339(self._register.since(holder))
                found[holder.owner] = Conflict(key=str(key), owner=holder.owner, since=since)
        return list(found.values())

    def _blocker(self, claim: Claim) -> tuple[str | None, Process | None]:
        for key, (address, process) in self._register.desired.blocked.items():
            if self._register.desired.holder(key) == claim:
                found = Process(pid=process[0], name=process[1]) if process else None
                return f"{key}: {listens(process)} on {address}", found
        return None, None


def _common(name: str, held: Held) -> dict[str, Any]:
    content = held.content
    return {
        "owner": name,
        "source": "file" if name.startswith("file:") else "api",
        "etag": content.etag,
        "since": rfc3339(held.since),
        "persistent": content.persistent,
        "expires_at": rfc3339(content.expires_at) if content.expires_at else None,
        "pid": content.pid,
        "netns": content.netns,
    }


def _share(claim: Claim, connections: int) -> Share:
    mapping = claim.mapping
    protocol = [str(protocol) for protocol in mapping.protocol]
    return Share(
        owner=claim.owner, name=mapping.name, listen=str(mapping.listen), protocol=protocol, connections=connections
    )

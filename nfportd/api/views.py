"""What the API shows of the state: owners, mappings and what became of them.

Must not change anything. The one idea: everything is derived from the register and what the reconciler remembers, at
the moment when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping as AbstractMapping
from dataclasses import replace
from typing import Any

from nfportd import desired as state
from nfportd.api.bodies import Conflict, MappingState, Owner, OwnerSummary, Process
from nfportd.desired import RECOVERED, Claim, Slot
from nfportd.model import Mapping, listens
from nfportd.reconciler import Reconciler
from nfportd.wishes import Held, rfc3339

Counters = AbstractMapping[Slot, int]
Drift = AbstractMapping[Mapping, str]
_NONE: Drift = {}


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

    def mappings(
        self, owner: str | None, port: int | None, protocol: str | None, counters: Counters | None
    ) -> Iterator[MappingState]:
        """The mappings of one owner or all that listen on a port (or any) by a protocol (or any)."""
        for name, held in sorted(self._register.held.items()):
            if owner not in (None, name):
                continue
            for mapping, line in held.content.mappings.items():
                ports = mapping.listen.ports
                if port is not None and not ports.first <= port <= ports.last:
                    continue
                if protocol is None or protocol in mapping.protocol:
                    yield self._state(Claim(name, line, mapping), held, counters)

    def in_trouble(self) -> Iterator[MappingState]:
        """The mappings that are not wholly in force, whatever the reason."""
        desired = self._register.desired
        claims = set(self._reconciler.enforcer.refused)
        claims |= {claim for key in desired.contested for claim in desired.claims(key)[1:]}
        claims |= {holder for key in desired.blocked if (holder := desired.holder(key))}
        for claim in sorted(claims, key=lambda each: each.order):
            if held := self._register.held.get(claim.owner):
                yield self._state(claim, held, None)

    def _state(self, claim: Claim, held: Held, counters: Counters | None) -> MappingState:
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
            state=state,
            reason=reason,
            process=process,
            conflicts=conflicts,
            connections=_connections(mapping, counters) if counters is not None else None,
        )

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


def _connections(mapping: Mapping, counters: Counters) -> int:
    return sum(counters.get(state.slots(key)[0], 0) for key, _ in mapping.endpoints())

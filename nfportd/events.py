"""What has happened lately, numbered, for those who follow it.

Must not know who follows nor how: no sockets, no HTTP. The one idea: one ring for all; a follower is only a place in
it, so it costs nothing, is never waited for, and one that the ring has overtaken is told so and let go.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import NamedTuple

from nfportd.wishes import rfc3339


class Kind(StrEnum):
    """What can happen. `lost` happens to the follower alone: events before the next one are no longer known."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    CONFLICT = "conflict"
    REFUSED = "refused"
    REPAIRED = "repaired"
    RELOAD = "reload"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `owner` is empty where it happened to no owner; `time` is RFC 3339."""

    seq: int
    time: str
    kind: Kind
    owner: str
    key: str | None = None
    target: str | None = None
    detail: str | None = None

    def json(self) -> str:
        """One line of JSON, without a newline; what is not known is left out."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(known, ensure_ascii=False, separators=(",", ":"))


class Since(NamedTuple):
    """The events after a number, and whether some of them are no longer known."""

    events: list[Event]
    lost: bool


class Events:
    """The last `size` events. For one event loop; not for threads."""

    def __init__(self, size: int = 10_000, first: int | None = None, clock: Callable[[], float] = time.time) -> None:
        """Number the events from `first`; by default from the microseconds of the clock.

        So numbers grow across restarts, and a follower that comes back after one learns what it has missed.
        """
        self._clock = clock
        self.size = size
        self._ring: list[Event | None] = [None] * size
        self._first = self._next = int(clock() * 1_000_000) if first is None else first
        self._news = asyncio.Event()
        self._closed = False

    @property
    def last(self) -> int:
        """The number of the latest event; where there is none, the one before the first."""
        return self._next - 1

    @property
    def _oldest(self) -> int:
        return max(self._first, self._next - self.size)

    def add(
        self,
        kind: Kind,
        owner: str = "",
        *,
        key: str | None = None,
        target: str | None = None,
        detail: str | None = None,
    ) -> None:
        """Note what happened, and wake those who follow."""
        event = Event(self._next, self._now(), kind, owner, key, target, detail)
        self._ring[event.seq % self.size] = event
        self._next += 1
        self._news.set()

    def skip(self, count: int) -> None:
        """So many events come before the next `size` ones, which drive them out at once."""
        self._next += count

    def _now(self) -> str:
        # Many happen at the same millisecond, and what it is as text is remembered.
        return rfc3339(round(self._clock(), 3))

    def since(self, seq: int) -> Since:
        """The events after number `seq`; after 0, all that are known. A number of the future was of another clock."""
        lost = seq != 0 and not self._oldest - 1 <= seq <= self.last
        start = self._oldest if lost or seq == 0 else seq + 1
        return Since([self._at(each) for each in range(start, self._next)], lost)

    def _at(self, seq: int) -> Event:
        event = self._ring[seq % self.size]
        assert event is not None
        return event

    async def follow(self, seq: int | None = None) -> AsyncIterator[Event]:
        """The events after number `seq` (None: after now), then each as it happens, until `close`.

        Where some after `seq` are no longer known the first event is a `lost`, then come those that are. A follower
        so slow that the ring overtakes it gets a `lost` as its last event.
        """
        place = self.last if seq is None else seq
        if place == 0 or not self._oldest - 1 <= place <= self.last:
            if place != 0:
                yield self._lost(place)
            place = self._oldest - 1
        while True:
            # By number, not by a copy: a follower that stands still must not hold old events in memory.
            while place < self.last:
                if place < self._oldest - 1:
                    yield self._lost(place)
                    return
                place += 1
                yield self._at(place)
            if self._closed:
                return
            # No await since the last look: an event that comes now sets it again.
            self._news.clear()
            await self._news.wait()

    def _lost(self, seq: int) -> Event:
        detail = f"events after {seq} and before {self._oldest} are no longer known; read the state anew"
        return Event(self._oldest - 1, self._now(), Kind.LOST, "", detail=detail)

    def close(self) -> None:
        """Let every follower end when it has read what happened so far."""
        self._closed = True
        self._news.set()

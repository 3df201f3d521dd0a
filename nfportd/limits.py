"""How much of the daemon each user may take: connections, requests, whole listings, lines of the log.

Must not know sockets or HTTP. The one idea: everything is counted by uid, so a flood meets bounds of its own; root and
the daemon's own user meet only the bound on all connections, of which others never get the last quarter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from enum import StrEnum

from nfportd.errors import NfportdError


class Kind(StrEnum):
    """What is counted for each uid."""

    CONNECTIONS = "connections"
    REQUESTS = "requests at work"
    LARGE_BODIES = "large bodies at work"
    FOLLOWERS = "followers of events"


#: All connections at once, where there are descriptors for twice as many.
CONNECTIONS = 1024
#: A uid's share of them.
_SHARE = 8
#: The most of each kind for one uid. 64 requests at work are 64 clients at once.
MOST = {Kind.REQUESTS: 64, Kind.LARGE_BODIES: 2, Kind.FOLLOWERS: 32}
#: Requests, and new connections, of one uid a second.
RATE = 500
#: Lines of the log about one uid in so many seconds.
LINES, PERIOD = 5, 10.0


class Exceeded(NfportdError):
    """A user has as much of something as it may have."""


class Place:
    """What was taken; to be left once, and leaving again does nothing."""

    def __init__(self, limits: Limits, kind: Kind, uid: int) -> None:
        self._limits: Limits | None = limits
        self._of = (kind, uid)

    def leave(self) -> None:
        """Give it back."""
        if self._limits:
            self._limits.give_back(*self._of)
            self._limits = None


class Limits:
    """The counts. `descriptors`: how many this process may have open."""

    def __init__(self, descriptors: int, trusted: frozenset[int]) -> None:
        self._total = min(CONNECTIONS, descriptors // 2)
        self._trusted = trusted
        self._most = {Kind.CONNECTIONS: max(1, self._total // _SHARE), **MOST}
        self._taken: Counter[tuple[Kind, int]] = Counter()
        self._connections = 0
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next: dict[int, float] = {}
        self._begun = Window(RATE, 1.0)
        #: What to ask before a line about a uid is written.
        self.lines = Window(LINES, PERIOD)

    def connect(self, uid: int) -> Place:
        """Count a connection. Raises Exceeded where there are too many, or too many have begun in this second."""
        open_to_it = self._total if uid in self._trusted else self._total - self._total // 4
        if self._connections >= open_to_it:
            raise Exceeded(f"{self._connections} connections are open, and uid {uid} gets no more; try again")
        if uid not in self._trusted and not self._begun.passes(uid):
            raise Exceeded(f"uid {uid} has begun more than {RATE} connections in a second; keep one open")
        place = self.take(Kind.CONNECTIONS, uid)
        self._connections += 1
        return place

    def take(self, kind: Kind, uid: int) -> Place:
        """Count one more. Raises Exceeded."""
        if uid not in self._trusted and self._taken[kind, uid] >= self._most[kind]:
            raise Exceeded(f"uid {uid} has {self._most[kind]} {kind}, which is the most that a user may have")
        self._taken[kind, uid] += 1
        return Place(self, kind, uid)

    def give_back(self, kind: Kind, uid: int) -> None:
        """Count one less."""
        self._connections -= kind is Kind.CONNECTIONS
        self._taken[kind, uid] -= 1
        if not self._taken[kind, uid]:
            del self._taken[kind, uid]

    @contextlib.contextmanager
    def taken(self, kind: Kind, uid: int) -> Iterator[None]:
        """Take one meanwhile. Raises Exceeded."""
        place = self.take(kind, uid)
        try:
            yield
        finally:
            place.leave()

    async def pace(self, uid: int) -> None:
        """Wait until the uid may have its next request: RATE a second."""
        if uid in self._trusted:
            return
        now = time.monotonic()
        if len(self._next) > _KNOWN:
            self._next = {each: at for each, at in self._next.items() if at > now}
        at = max(now, self._next.get(uid, now))
        self._next[uid] = at + 1 / RATE
        if at > now:
            await asyncio.sleep(at - now)

    @contextlib.asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Make a listing of everything: one at a time for a uid, and the next after a rest as long as it took."""
        lock = self._turns[uid]
        await lock.acquire()
        began = time.monotonic()
        try:
            yield
        finally:
            asyncio.get_running_loop().call_later(time.monotonic() - began, self._end_turn, uid, lock)

    def _end_turn(self, uid: int, lock: asyncio.Lock) -> None:
        lock.release()
        # The lock wakes the next in line, who holds it only when it has run.
        if len(self._turns) > _KNOWN and not self._taken[Kind.REQUESTS, uid]:
            self._turns.pop(uid, None)


#: uids that are remembered although they ask for nothing now; a user namespace may have 65,536.
_KNOWN = 1_000


class Window:
    """Lets each uid pass `most` times in so many seconds."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._since = time.monotonic()
        self._passed: Counter[int] = Counter()

    def passes(self, uid: int) -> bool:
        """Whether it may, once more."""
        now = time.monotonic()
        if now - self._since >= self._seconds:
            self._since = now
            self._passed.clear()
        self._passed[uid] += 1
        return self._passed[uid] <= self._most

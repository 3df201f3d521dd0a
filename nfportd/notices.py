"""What the reconciler did, told to those who watch: events and metrics.

Must not change anything. The one idea: the reconciler calls, nobody answers; a watcher cannot slow it down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from nfportd.events import Events, Kind
from nfportd.metrics import Metrics
from nfportd.model import Mapping
from nfportd.register import Change, Register
from nfportd.wishes import Waiting


class Notices:
    """Turns what happened into events and metrics. `stirred` is set when others' rules may stop something else than
    before."""

    def __init__(self, register: Register, events: Events, metrics: Metrics, stirred: asyncio.Event) -> None:
        self._register = register
        self._events = events
        self._metrics = metrics
        self._stirred = stirred
        #: Set with each change, for who shows what is.
        self.changed = asyncio.Event()
        #: How often something was repaired since the start, and what was said of the last time.
        self.repairs = 0
        self.last_repair: str | None = None

    def transaction(self, seconds: float, *, ok: bool) -> None:
        """A transaction took so long."""
        self._metrics.transaction(seconds, ok)
        self.changed.set()

    def flushed(self, requests: int) -> None:
        """Stale flows were deleted by so many requests."""
        self._metrics.flush(requests)

    def fulfilled(self, change: Change, waiting: Iterable[Waiting]) -> None:
        """A wish came true, but for what waits."""
        self.changed.set()
        if change.before:
            self._stirred.set()
        for owner, before in change.before.items():
            held = self._register.held.get(owner)
            old = before.content.mappings.keys() if before else set()
            new = held.content.mappings.keys() if held else set()
            gone = {mapping.listen: mapping for mapping in old - new}
            happened = [
                (Kind.CHANGED if gone.pop(mapping.listen, None) else Kind.ADDED, mapping) for mapping in new - old
            ]
            happened += [(Kind.REMOVED, mapping) for mapping in gone.values()]
            # At a start there may be six times as many as are remembered.
            self._events.skip(max(0, len(happened) - self._events.size))
            for kind, mapping in happened[-self._events.size :]:
                self._add(kind, owner, mapping)
        for each in waiting:
            self._events.add(Kind.CONFLICT, each.claim.owner, key=str(each.keys[0]), detail=f"held by {each.holder}")

    def refused(self, owner: str, detail: str) -> None:
        """The kernel refused something of an owner."""
        self._events.add(Kind.REFUSED, owner, detail=detail)

    def repaired(self, detail: str) -> None:
        """What others had undone is in force again."""
        self._metrics.repair()
        self._events.add(Kind.REPAIRED, detail=detail)
        self.repairs, self.last_repair = self.repairs + 1, detail
        self.changed.set()

    def reload(self, detail: str) -> None:
        """Drop-ins were read."""
        self._stirred.set()
        self._events.add(Kind.RELOAD, "", detail=detail)

    def _add(self, kind: Kind, owner: str, mapping: Mapping) -> None:
        listen = f"{mapping.listen}/{'+'.join(mapping.protocol)}"
        self._events.add(kind, owner, key=listen, target=", ".join(map(str, mapping.targets)), detail=mapping.name)

"""What the API asks of the daemon beside wishes: its status, its counters, a reload, and lives that end.

Must not know HTTP. The one idea: one object holds what a running daemon is made of, so that an answer can be read
together in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping as AbstractMapping
from typing import Any

from nfportd import desired
from nfportd.counts import Counts
from nfportd.desired import Absent, Claim, Parts, Slot
from nfportd.enforcer import Kernel
from nfportd.errors import NfportdError
from nfportd.events import Events
from nfportd.kernel.lifetimes import Lifetimes, incarnation
from nfportd.kernel.nft import Nft
from nfportd.metrics import Connections, Metrics, Readings
from nfportd.model import Mapping
from nfportd.notices import Notices
from nfportd.obstacles import Obstacles
from nfportd.reconciler import Reconciler
from nfportd.register import Register
from nfportd.shared import Shared
from nfportd.sources.dropins import DropIns
from nfportd.traffic import Traffic, packed
from nfportd.wishes import Content, Wish, rfc3339

_log = logging.getLogger(__name__)


class Service:
    """A running daemon, as its API sees it."""

    def __init__(self, register: Register, kernel: Kernel, nft: Nft, dropins: DropIns, counts: Counts) -> None:
        self.register = register
        self.events = Events()
        self.counts = counts
        self._relay = kernel.relay
        self.metrics = Metrics(
            Readings(
                mappings=self._by_source,
                elements=self._by_set,
                conflicts=self._waiting,
                refused=lambda: len(self._refused()),
                relayed=lambda: self._relay.now,
                not_relayed=lambda: self._relay.refused,
            )
        )
        self.notices = Notices(register, self.events, self.metrics, kernel.monitor.stirred)
        self.reconciler: Reconciler | None = None
        self.obstacles: Obstacles | None = None
        self._table, self._monitor = kernel.table, kernel.monitor
        self._host = kernel.host
        self._state = Shared(kernel.table.state)
        self._terse_listing = Shared(lambda: nft.list_table(whole=False))
        self._dropins = dropins
        self._lifetimes = Lifetimes(self._ended)
        self._since = time.time()
        self._tasks: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """End what follows us and what we follow."""
        self.events.close()
        self._lifetimes.close()

    def incarnation(self, content: Content) -> str:
        """Which process and namespace a content is bound to. Raises ValueError or OSError where there are none."""
        return incarnation(pid=content.pid, netns=content.netns)

    def follow(self, owner: str, content: Content) -> None:
        """Let an owner's mappings end with what they are bound to; raises nothing, for what has gone has ended."""
        try:
            if content.bound_to and self.incarnation(content) != content.bound_to:
                raise ValueError("its pid or path belongs to another now")
            self._lifetimes.follow(owner, deadline=content.expires_at, pid=content.pid, netns=content.netns)
        except ValueError as error:
            self._ended(owner, str(error))
        except OSError as error:
            _log.error("%s: its end cannot be watched (%s)", owner, error.strerror)

    def _ended(self, owner: str, reason: str) -> None:
        _log.info("%s ends: %s", owner, reason)
        task = asyncio.ensure_future(self._remove(owner))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remove(self, owner: str) -> None:
        assert self.reconciler
        await self.reconciler.fulfil(Wish(owners={owner: None}, promised=True))

    async def drift(self, owner: str) -> AbstractMapping[Mapping, str]:
        """The owner's mappings that the kernel has not as we left them, and why; costs as much as their keys."""
        await self._settle()
        held = self.register.held.get(owner)
        claims = [Claim(owner, line, mapping) for mapping, line in held.content.mappings.items()] if held else []
        state = await self._table.state()
        if state != "intact":
            return {claim.mapping: f"table inet nfportd is {state}" for claim in claims}
        wanted = {claim.mapping: self._elements(claim) for claim in claims}
        if await self._table.holds({slot: value for each in wanted.values() for slot, value in each.items()}):
            return {}
        reason = "elements of it in table inet nfportd were removed or changed by somebody else"
        return {mapping: reason for mapping, each in wanted.items() if not await self._table.holds(each)}

    async def _settle(self) -> None:
        """Let what others have done so far be repaired first, where it can be."""
        assert self.reconciler
        if self._monitor.quiet() and not self._table.uncertain:
            return
        with contextlib.suppress(NfportdError, TimeoutError):
            async with asyncio.timeout(_SETTLE):
                await self.reconciler.fulfil(Wish(owners={}))

    def _elements(self, claim: Claim) -> dict[Slot, Parts | None]:
        """What should be in the kernel for a claim: nothing for keys that it waits for or that are refused."""
        if claim in self._refused():
            return {}
        keys = (key for key in claim.mapping.claimed() if self.register.desired.holder(key) == claim)
        wanted = self.register.desired.wanted(dict.fromkeys(keys))
        return {slot: value for slot, value in wanted.items() if not isinstance(value, Absent)}

    async def status(self) -> dict[str, Any]:
        """Everything that a person who looks for a fault wants to know first."""
        await self._settle()
        return {
            "version": importlib.metadata.version("nfportd"),
            "pid": os.getpid(),
            "since": rfc3339(self._since),
            "features": {"owner_persist": self._table.owned},
            "table": await self._state(),
            "repairs": {
                "count": self.notices.repairs,
                "last": self.notices.last_repair,
                "fight": bool(self.reconciler and self.reconciler.enforcer.fight),
            },
            "mappings": self.register.desired.count(),
            "owners": len(self.register.held),
            "elements": self._by_set(),
            "connections": self._recent(),
            "files": {name: list(map(str, problems)) for name, problems in self._dropins.problems.items()},
            "unreached": sorted(self.reconciler.enforcer.unreached) if self.reconciler else [],
            "forwarding": [found._asdict() for found in await self.obstacles.look()] if self.obstacles else [],
            "sysctls": self._host.managed(),
        }

    def _recent(self) -> dict[str, Any]:
        """How many connections there were lately, by what was read last."""
        traffic = self.counts.traffic
        return {"rate": traffic.rate, "last_hour": traffic.lately}

    def summary(self) -> str:
        """The state in one line."""
        counted = _counted(self.register.desired.count(), "mapping"), _counted(len(self.register.held), "owner")
        elements = _counted(sum(self._by_set().get(name, 0) for name in _MAPS), "element")
        waits, refused = self._waiting(), len(self._refused())
        return f"{counted[0]} of {counted[1]}, {elements} in force; {waits} waiting, {refused} refused"

    async def render(self) -> bytes:
        """The metrics, with connections counted by the kernel where there are few enough mappings."""
        found = await self._terse_listing()
        if found:
            self.metrics.blocked(found.blocked)
            self.metrics.bypassed(found.bypassed)
        few = len(self.register.desired) <= _COUNTED
        self.metrics.connections(self._connections(await self.counts.now()) if few else None)
        self.metrics.reload_errors({name: len(found) for name, found in self._dropins.problems.items()})
        return self.metrics.render()

    def _connections(self, traffic: Traffic) -> list[Connections]:
        found = []
        for slot in desired.all_slots({name: self._table.elements.get(name, {}) for name in _MAPS}):
            key = desired.key_of(slot)
            holder = key and self.register.desired.holder(key)
            if key and holder:
                name, count = holder.mapping.name or str(holder.mapping.listen), traffic.connections(packed(key))
                found.append(Connections(holder.owner, name, str(key.protocol), key.family, key.port, count))
        return found

    def _refused(self) -> AbstractMapping[Claim, str]:
        return self.reconciler.enforcer.refused if self.reconciler else {}

    def _by_source(self) -> dict[str, int]:
        found: Counter[str] = Counter(file=0, api=0)
        for owner, held in self.register.held.items():
            found["file" if owner.startswith("file:") else "api"] += len(held.content.mappings)
        return dict(found)

    def _by_set(self) -> dict[str, int]:
        return {name: len(inside) for name, inside in self._table.elements.items()}

    def _waiting(self) -> int:
        return len(self.register.waiting(self.register.desired.contested))


#: Seconds for which an answer about the kernel waits for a repair.
_SETTLE = 1.0

_MAPS = ("addr4", "addr6", "any4", "any6")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


#: More keys than these are not listed for their counters at each scrape.
_COUNTED = 1_000

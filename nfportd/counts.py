"""Counts connections while the daemon runs: reads the kernel's counters each minute, and whenever somebody asks.

Must not know what is counted for whom. The one idea: readings run in a thread, are shared by all who ask at the same
time, and one that fails costs nothing but being up to date.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from nfportd.kernel.counters import Counted
from nfportd.shared import Shared
from nfportd.traffic import Packed, Traffic

_log = logging.getLogger(__name__)

#: Seconds between the readings that nobody asks for: 0.25 s of a thread's time at 60,000 elements, 7 ms at 1,000.
_MINUTE = 60.0


class Counts:
    """The connections of all keys. `read` asks the kernel, and may block; `fold` says what counts for which key."""

    def __init__(self, read: Callable[[], Counted], fold: Callable[[dict[Packed, int]], dict[Packed, int]]) -> None:
        self.traffic = Traffic()
        self._read, self._fold = read, fold
        self._shared = Shared(self._note)

    async def now(self) -> Traffic:
        """What the counters say now; where they cannot be read, what they said last."""
        try:
            await self._shared()
        except OSError as error:
            _log.warning("connections cannot be counted at the moment: %s", error.strerror or error)
        return self.traffic

    async def run(self) -> None:
        """Keep the minutes of the last hour, for ever."""
        await self.now()
        while True:
            await asyncio.sleep(_MINUTE)
            await self.now()
            self.traffic.end_minute(time.monotonic(), time.time())

    async def _note(self) -> None:
        counted = await asyncio.to_thread(self._read)
        connections = self._fold(counted.connections)
        self.traffic.note(connections, complete=counted.complete, now=time.monotonic(), date=time.time())

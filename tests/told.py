"""What lifetimes have told, as a test waits for it.

It must not know how an end is seen. The one idea: a queue; what is not told within patience fails the test.
"""

from __future__ import annotations

import asyncio

#: For a busy machine; what is told comes within milliseconds.
PATIENCE = 5.0
#: Long enough for what should not come.
QUIET = 0.15


class Told:
    """Stands in for whoever is told of the ends."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def __call__(self, owner: str, reason: str) -> None:
        self._queue.put_nowait((owner, reason))

    async def next(self) -> tuple[str, str]:
        """The next owner that ended, and why."""
        async with asyncio.timeout(PATIENCE):
            return await self._queue.get()

    def now(self) -> list[str]:
        """The owners whose end has been told already."""
        return [self._queue.get_nowait()[0] for _ in range(self._queue.qsize())]

    async def rest(self) -> list[str]:
        """The owners whose end is told until there is quiet."""
        await asyncio.sleep(QUIET)
        return self.now()

"""Readings that cost much, made once for all who ask at the same time.

Must not know what is read. The one idea: an answer is never older than the question, so who asks while a reading runs
waits for the next one, with all others who do; and that begins after a rest as long as the last took.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """A reading that is shared; it raises what the reading raises."""

    def __init__(self, read: Callable[[], Awaitable[_T]]) -> None:
        self._read = read
        self._running: asyncio.Task[_T] | None = None
        self._next: asyncio.Task[_T] | None = None
        self._rest_until = 0.0

    async def __call__(self) -> _T:
        if self._next is None:
            self._next = asyncio.create_task(self._begin())
            # All who asked may have gone when it fails.
            self._next.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Who asks no more does not end it for the others.
        return await asyncio.shield(self._next)

    async def _begin(self) -> _T:
        if self._running:
            await asyncio.wait([self._running])
        await asyncio.sleep(self._rest_until - time.monotonic())
        self._running, self._next = self._next, None
        began = time.monotonic()
        try:
            return await self._read()
        finally:
            self._rest_until = 2 * time.monotonic() - began

"""Many sockets in one event loop without crowding out what else runs there.

Must not know what the sockets carry. The one idea: they are waited for in an epoll of their own, of which the loop
sees a single descriptor; each time it is their turn only some of the ready ones are served, so an API request waits
for those and not for all. The kernel hands out ready descriptors in turn (epoll(7), EPOLLIN without EPOLLET).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable

#: Sockets served at a time; each takes some 50 microseconds.
_AT_A_TIME = 16

#: Called with the events (EPOLL*) that a socket is ready for.
Ready = Callable[[int], None]


class Turns:
    """The sockets that are waited for, by their descriptors. None may be opened while one is served."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._serve)

    def close(self) -> None:
        """Wait for nothing more."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._ready.clear()

    def watch(self, descriptor: int, events: int, ready: Ready) -> None:
        """Wait for these events on a descriptor, and for errors and its end (EPOLLERR, EPOLLHUP)."""
        if descriptor in self._ready:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._ready[descriptor] = ready

    def forget(self, descriptor: int) -> None:
        """Wait no more for a descriptor; do so before it is closed."""
        if self._ready.pop(descriptor, None):
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)

    def _serve(self) -> None:
        for descriptor, events in self._epoll.poll(0, _AT_A_TIME):
            # Another one may just have ended it.
            if ready := self._ready.get(descriptor):
                ready(events)

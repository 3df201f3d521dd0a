"""What nfportd and the service manager say to each other: the socket handed over, readiness, status, signs of life.

Must not know what the daemon does. The one idea: without a service manager (no NOTIFY_SOCKET, LISTEN_FDS or
WATCHDOG_USEC) everything here does nothing, and the daemon works the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

from systemd import daemon as systemd

_log = logging.getLogger(__name__)

#: Seconds between two status lines.
_PAUSE = 0.25
#: Signs of life in one watchdog period: one may be late.
_BEATS = 3


def inherited() -> socket.socket | None:
    """The listening unix socket that the service manager holds for us; it is not ours to unlink."""
    found = None
    for descriptor, name in systemd.listen_fds_with_names().items():
        sock = socket.socket(fileno=descriptor)
        if found or not systemd.is_socket_unix(descriptor, socket.SOCK_STREAM, 1):
            _log.warning("the socket %s of the service manager is not used: one unix stream socket is", name)
            sock.close()
        else:
            found = sock
    return found


def ready() -> None:
    """What was wished at the start is in force."""
    systemd.notify("READY=1")


def stopping() -> None:
    """The end has begun."""
    systemd.notify("STOPPING=1")


@contextlib.contextmanager
def reloading() -> Iterator[None]:
    """What happens inside is a reload."""
    systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        yield
    finally:
        systemd.notify("READY=1")


async def tell_status(changed: asyncio.Event, summary: Callable[[], str]) -> None:
    """Keep the status line true, for ever: at most one a pause, however often something changes."""
    told = ""
    while True:
        changed.clear()
        status = summary()
        if status != told:
            systemd.notify(f"STATUS={status}")
            told = status
        await asyncio.sleep(_PAUSE)
        await changed.wait()


async def feed_watchdog(beat: Callable[[], Awaitable[None]]) -> None:
    """Tell the service manager of each beat, for ever; a beat that does not come back, or fails, is not told."""
    period = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
    if not period:
        await asyncio.Event().wait()
    while True:
        await asyncio.sleep(period / _BEATS)
        try:
            await beat()
        except Exception:
            _log.exception("no sign of life for the watchdog")
        else:
            systemd.notify("WATCHDOG=1")

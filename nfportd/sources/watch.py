"""Which files of a directory may have changed, as inotify tells it.

Must not read the files. The one idea: a file is due once its writer is done (closed or renamed into place), and a
file that vanished only after a moment, because editors rename the old one away before they write the new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from asyncinotify import Event, Inotify, Mask

#: Seconds of quiet before a written file is read, so that files written together change together.
SETTLE = 0.005
#: Seconds for which a vanished file may come back before its mappings go.
GRACE = 0.3

_WRITTEN = Mask.CLOSE_WRITE | Mask.MOVED_TO
_VANISHED = Mask.DELETE | Mask.MOVED_FROM
_GONE = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
_WATCHED = _WRITTEN | _VANISHED | Mask.CREATE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR

#: The names of files that may have changed, or None for all of them.
Names = frozenset[str] | None


async def changed(directory: Path) -> AsyncIterator[Names]:
    """Tell for ever which files of a directory to read again; also of one that comes, goes or is replaced.

    The first thing told is None: whatever happened before the watch stood is read once.
    """
    while True:
        with Inotify() as inotify:
            try:
                inotify.add_watch(directory, _WATCHED)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                await _appears(directory)
                continue
            yield None
            async for names in _due(inotify, directory):
                yield names
        # Replaced by a rename it is back at once, and nothing is withdrawn.
        await asyncio.sleep(GRACE)


async def _due(inotify: Inotify, directory: Path) -> AsyncIterator[Names]:
    """Tell the names that are due, until the directory is gone."""
    due: dict[str, float] = {}
    # Never cancelled for a timeout: that could lose an event that has just been read.
    coming = asyncio.ensure_future(inotify.get())
    try:
        while True:
            now = time.monotonic()
            ready = frozenset(name for name, when in due.items() if when <= now)
            if ready:
                due = {name: when for name, when in due.items() if name not in ready}
                yield ready
                continue
            await asyncio.wait({coming}, timeout=min(due.values()) - now if due else None)
            if not coming.done():
                continue
            event = coming.result()
            coming = asyncio.ensure_future(inotify.get())
            if event.mask & _GONE:
                return
            if event.mask & Mask.Q_OVERFLOW:
                due.clear()
                yield None
            elif event.name:
                _note(due, event, directory)
    finally:
        coming.cancel()


def _note(due: dict[str, float], event: Event, directory: Path) -> None:
    name = str(event.name)
    now = time.monotonic()
    if event.mask & _WRITTEN:
        due[name] = now + SETTLE
    elif event.mask & _VANISHED:
        due[name] = now + GRACE
    elif _is_link(directory / name):
        # A new link is whole at once; a new file is not before it is closed.
        due[name] = now + SETTLE


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink() or path.stat().st_nlink > 1
    except OSError:
        return False


async def _appears(directory: Path) -> None:
    """Wait until a directory may exist, by watching the nearest one above it that does."""
    with Inotify() as inotify:
        inotify.add_watch(_nearest(directory), Mask.CREATE | Mask.MOVED_TO | Mask.DELETE_SELF | Mask.MOVE_SELF)
        if not _exists(directory):
            await inotify.get()


def _nearest(directory: Path) -> Path:
    return next(above for above in directory.absolute().parents if above.is_dir())


def _exists(directory: Path) -> bool:
    return directory.is_dir()

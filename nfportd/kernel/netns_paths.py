"""Paths of network namespaces, and when one stops leading to the namespace that it led to.

Must not know owners, and must hold no descriptor and no watch on a namespace, which would keep it alive. The one idea:
inotify on the directory tells of an unlinked path at once; for an unmounted one the kernel marks /proc/self/mountinfo,
and then the paths are compared with what they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from asyncinotify import Inotify, Mask

_ENTRY_GONE = Mask.DELETE | Mask.MOVED_FROM
_DIRECTORY_GONE = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
_WATCHED = _ENTRY_GONE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000

#: Seconds between a change of mounts and the look at the paths, and what each path adds (a look at one takes 5
#: microseconds): changes of mounts come in bursts, and may come without end.
BREATH = 0.05
BREATH_A_PATH = 0.0001
#: Paths looked at in one go, so that others get their turn.
_SLICE = 200

#: Device, inode and birth of a namespace's file; inode numbers alone are used again at once.
Identity = tuple[int, int, int]


class _Known(NamedTuple):
    place: Path
    watch: int
    identity: Identity


def identify(path: str) -> Identity:
    """Which network namespace a path leads to. Raises ValueError with a sentence where it leads to none."""
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not an absolute path; write it like /run/netns/blue")
    try:
        found = Path(path).stat()
        # Nothing but a namespace is ever opened: opening a device or a pipe may have effects.
        if found.st_dev == Path("/proc/self/ns/net").stat().st_dev:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET:
                    return _identity(found)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; name a network namespace like /run/netns/blue") from None
    raise ValueError(f"{path} is no network namespace; name one like /run/netns/blue")


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_ctime_ns


class NetnsPaths:
    """The paths that are followed. `gone` is called once with each that ended; it is not followed any more then."""

    def __init__(self, gone: Callable[[str], None]) -> None:
        self._gone = gone
        self._known: dict[str, _Known] = {}
        self._entries: dict[int, dict[str, set[str]]] = {}  # by watch and name; several paths can be one file
        self._undo = contextlib.ExitStack()
        self._inotify: Inotify | None = None
        self._unchecked: list[str] = []
        self._mounts_changed = False
        self._next_check: asyncio.TimerHandle | None = None

    def follow(self, path: str) -> None:
        """Follow a path. Raises ValueError where it leads to no network namespace."""
        # Before anything is watched that is none.
        identity = identify(path)
        inotify = self._inotify or self._start()
        # What was told until now is about the path's earlier life.
        self._drain()
        if path in self._known and self._known[path].identity != identity:
            self._lose(path)
        place = Path(path)
        try:
            watch = inotify.add_watch(place.parent, _WATCHED).wd
        except OSError as error:
            raise ValueError(f"{place.parent} cannot be watched: {error.strerror}") from None
        try:
            self._known[path] = _Known(place, watch, identify(path))
        except ValueError:
            self._unwatch(watch)
            raise
        self._entries.setdefault(watch, {}).setdefault(place.name, set()).add(path)

    def forget(self, path: str) -> None:
        """Follow a path no more."""
        known = self._known.pop(path, None)
        if known is None:
            return
        entries = self._entries.get(known.watch, {})
        paths = entries.get(known.place.name, set())
        paths.discard(path)
        if not paths:
            entries.pop(known.place.name, None)
        self._unwatch(known.watch)

    def close(self) -> None:
        """Follow nothing any more."""
        self._undo.close()
        if self._next_check:
            self._next_check.cancel()
        self._known.clear()

    def _start(self) -> Inotify:
        loop = asyncio.get_running_loop()
        self._inotify = inotify = self._undo.enter_context(Inotify(sync_timeout=0))
        loop.add_reader(inotify.fd, self._drain)
        self._undo.callback(loop.remove_reader, inotify.fd)
        mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._undo.callback(os.close, mountinfo)
        # The loop asks for what is readable, which this file always is; changes are exceptional conditions.
        changes = self._undo.enter_context(select.epoll())
        changes.register(mountinfo, select.EPOLLPRI)
        loop.add_reader(changes.fileno(), self._see_mounts, changes)
        self._undo.callback(loop.remove_reader, changes.fileno())
        return inotify

    def _drain(self) -> None:
        assert self._inotify is not None
        for event in self._inotify:
            if event.mask & Mask.Q_OVERFLOW:
                self._plan_check()
            if event.watch is None:
                continue
            entries = self._entries.get(event.watch.wd, {})
            if event.mask & _DIRECTORY_GONE:
                self._lose(*(path for paths in entries.values() for path in paths))
                self._entries.pop(event.watch.wd, None)
            elif event.mask & _ENTRY_GONE:
                self._lose(*entries.get(str(event.name), ()))

    def _lose(self, *paths: str) -> None:
        for path in paths:
            self.forget(path)
            self._gone(path)

    def _unwatch(self, watch: int) -> None:
        """End the watch on a directory in which no path is followed."""
        if self._entries.get(watch):
            return
        self._entries.pop(watch, None)
        assert self._inotify is not None
        for each in self._inotify.watches:
            if each.wd == watch:
                with contextlib.suppress(OSError):  # the directory has gone
                    self._inotify.rm_watch(each)

    def _see_mounts(self, changes: select.epoll) -> None:
        changes.poll(0)
        self._plan_check()

    def _plan_check(self) -> None:
        self._mounts_changed = True
        if self._next_check is None:
            self._next_check = asyncio.get_running_loop().call_later(self._breath(), self._check)

    def _breath(self) -> float:
        return BREATH + BREATH_A_PATH * len(self._known)

    def _check(self) -> None:
        """Compare some of the paths with what they were; come back for the rest."""
        if not self._unchecked:
            self._mounts_changed = False
            self._unchecked = list(self._known)
        some, self._unchecked = self._unchecked[-_SLICE:], self._unchecked[:-_SLICE]
        self._lose(*(path for path in some if path in self._known and self._differs(path)))
        self._next_check = None
        if self._unchecked or self._mounts_changed:
            delay = 0 if self._unchecked else self._breath()
            self._next_check = asyncio.get_running_loop().call_later(delay, self._check)

    def _differs(self, path: str) -> bool:
        try:
            return _identity(self._known[path].place.stat()) != self._known[path].identity
        except OSError:
            return True

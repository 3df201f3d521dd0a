"""How long owners live: until a deadline, the end of a process or of a network namespace, whichever comes first.

Must not know mappings, or what becomes of an owner that ended. The one idea: the kernel tells the end of a process
(pidfd) and of a namespace's path, and one timer waits for the nearest deadline; while nothing ends, nothing runs.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nfportd.kernel import processes
from nfportd.kernel.netns_paths import NetnsPaths, identify
from nfportd.kernel.processes import Processes

#: Seconds that the timer waits at most: the loop's clock stands still while the host is suspended, ours does not.
_LONGEST = 60.0
_LINKS = 40

#: A pid, or the path of a network namespace.
_Bond = int | str


class _Life(NamedTuple):
    until: float | None  # on CLOCK_BOOTTIME
    bonds: frozenset[_Bond]


class Lifetimes:
    """The owners that are followed. `ended` is called in the loop, once, with each that ended and why.

    A deadline becomes a time to run when it is given: a step of the wall clock makes no life longer or shorter.
    """

    def __init__(self, ended: Callable[[str, str], None]) -> None:
        self._ended = ended
        self._lives: dict[str, _Life] = {}
        self._bound: dict[_Bond, set[str]] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap; may hold deadlines that are no longer true
        self._timer: asyncio.TimerHandle | None = None
        self._over: dict[str, str] = {}  # ended, and not told yet
        self._processes = Processes(lambda pid: self._end_bound(pid, f"process {pid} ended"))
        self._paths = NetnsPaths(lambda path: self._end_bound(path, f"network namespace {path} is gone"))

    def follow(self, owner: str, *, deadline: float | None, pid: int | None, netns: str | None) -> None:
        """Follow an owner by these, and no more by what was given before. The deadline is in seconds since the epoch.

        Raises ValueError where there is no such process or namespace, OSError (EMFILE) where too many files are open;
        then what was given before still holds.
        """
        bonds: frozenset[_Bond] = frozenset(([] if pid is None else [pid]) + ([_resolve(netns)] if netns else []))
        try:
            for bond in bonds:
                self._watch(bond)
        except (ValueError, OSError):
            self._release(bonds)
            raise
        self._over.pop(owner, None)
        before = self._lives.pop(owner, None)
        for bond in bonds:
            self._bound.setdefault(bond, set()).add(owner)
        if before:
            self._unbind(owner, before.bonds - bonds)
        until = None if deadline is None else _now() + deadline - time.time()
        if bonds or until is not None:
            self._lives[owner] = _Life(until, bonds)
        if until is not None:
            self._set_deadline(owner, until)

    def forget(self, owner: str) -> None:
        """Follow an owner no more; nothing is told of it."""
        self._over.pop(owner, None)
        life = self._lives.pop(owner, None)
        if life:
            self._unbind(owner, life.bonds)

    def close(self) -> None:
        """Follow nothing any more."""
        if self._timer:
            self._timer.cancel()
        self._processes.close()
        self._paths.close()
        self._lives.clear()
        self._over.clear()

    def _watch(self, bond: _Bond) -> None:
        if isinstance(bond, int):
            self._processes.follow(bond)
        else:
            self._paths.follow(bond)

    def _unbind(self, owner: str, bonds: frozenset[_Bond]) -> None:
        for bond in bonds:
            self._bound.get(bond, set()).discard(owner)
        self._release(bonds)

    def _release(self, bonds: frozenset[_Bond]) -> None:
        """Stop watching what nobody is bound to."""
        for bond in bonds:
            if self._bound.get(bond):
                continue
            self._bound.pop(bond, None)
            if isinstance(bond, int):
                self._processes.forget(bond)
            else:
                self._paths.forget(bond)

    def _end_bound(self, bond: _Bond, reason: str) -> None:
        for owner in self._bound.pop(bond, set()):
            self._end(owner, reason)

    def _end(self, owner: str, reason: str) -> None:
        self.forget(owner)
        self._over[owner] = reason
        # Later, because this may be inside follow(), and nobody expects to be called back from there.
        asyncio.get_running_loop().call_soon(self._tell, owner)

    def _tell(self, owner: str) -> None:
        reason = self._over.pop(owner, None)
        if reason is not None:
            self._ended(owner, reason)

    def _set_deadline(self, owner: str, until: float) -> None:
        if len(self._deadlines) > 2 * len(self._lives) + 64:
            # Mostly renewed ones.
            self._deadlines = [(life.until, name) for name, life in self._lives.items() if life.until is not None]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (until, owner))
        if self._timer is None or self._deadlines[0] == (until, owner):
            self._arm()

    def _arm(self) -> None:
        """Wait for the nearest deadline; end those that are over."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._deadlines:
            until, owner = self._deadlines[0]
            is_true = owner in self._lives and self._lives[owner].until == until
            left = until - _now()
            if is_true and left > 0:
                self._timer = asyncio.get_running_loop().call_later(min(left, _LONGEST), self._arm)
                return
            heapq.heappop(self._deadlines)
            if is_true:
                self._end(owner, "its time was up")


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def incarnation(*, pid: int | None, netns: str | None) -> str:
    """Which process and namespace these are: another text once the pid or the path belongs to another.

    To be stored with an owner, and compared after a restart. Raises ValueError as Lifetimes.follow does.
    """
    bond = _resolve(netns) if netns else None
    parts = [f"{each}@{processes.incarnation(each)}" for each in (pid, bond) if isinstance(each, int)]
    return " ".join(parts + ([":".join(map(str, identify(bond)))] if isinstance(bond, str) else []))


def _resolve(path: str) -> _Bond:
    """What a namespace's path depends on: the process of /proc/PID/ns/net, also behind links; else the path."""
    place = path
    for _ in range(_LINKS):
        # normpath leaves two slashes at the beginning; \d alone takes digits of any script, which are no path of /proc.
        normal = "/" + os.path.normpath(place).lstrip("/")
        found = re.fullmatch(r"/proc/([0-9]+|self|thread-self)(?:/task/[0-9]+)?/ns/net", normal)
        if found and not found[1].isdecimal():
            raise ValueError(f"{path} is the namespace of nfportd itself; write the pid of the process")
        if found:
            return int(found[1])
        try:
            link = Path(place).readlink()
        except (OSError, ValueError):  # not a link; what is wrong with it is said later
            return place
        if re.fullmatch(r"\w+:\[\d+\]", str(link)):  # a link of /proc, which leads to no other path
            return place
        place = str(Path(place).parent / link)
    return place

"""Processes, and when one ends.

Must not know owners. The one idea: a pidfd becomes readable when its process ends, zombie or not, and stays with that
process whoever has its number later.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable
from pathlib import Path


class Processes:
    """The processes that are followed, by a pidfd each. `ended` is called once with each that ended."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._pidfds: dict[int, int] = {}

    def follow(self, pid: int) -> None:
        """Follow a process. Raises ValueError where there is none, OSError where too many files are open."""
        if pid in self._pidfds:
            if not _is_over(self._pidfds[pid]):
                return
            self._end(pid)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise OSError(error.errno, f"process {pid} cannot be followed: too many open files") from None
            raise ValueError(f"there is no process {pid} in the PID namespace of nfportd") from None
        except OverflowError:
            raise ValueError(f"{pid} is not a pid") from None
        if _is_over(pidfd):
            os.close(pidfd)
            raise ValueError(f"process {pid} has ended")
        self._pidfds[pid] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._end, pid)

    def forget(self, pid: int) -> None:
        """Follow a process no more."""
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Follow nothing any more."""
        for pid in list(self._pidfds):
            self.forget(pid)

    def _end(self, pid: int) -> None:
        self.forget(pid)
        self._ended(pid)


def _is_over(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def started(pid: int) -> str:
    """When a process started, in ticks since the boot (field 22 of /proc/PID/stat)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        raise ValueError(f"there is no process {pid} in the PID namespace of nfportd") from None

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


def incarnation(pid: int) -> str:
    """What no other process has that bears this number, now or later. Raises ValueError where there is none.

    Linux 6.9 gives each process an inode of its own behind its pidfds; before, it is when it started, in ticks since
    the boot (field 22 of /proc/PID/stat).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        raise ValueError(f"there is no process {pid} in the PID namespace of nfportd") from None
    try:
        found = os.fstat(pidfd)
    finally:
        os.close(pidfd)
    if (found.st_dev, found.st_ino) != _shared_inode():
        return f"{found.st_ino}/{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}"
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        text = (
            "cannot be followed: before Linux 6.9 that takes /proc, which is hidden here (ProtectProc=default shows it)"
        )
        raise ValueError(f"process {pid} {text}") from None


def _shared_inode() -> tuple[int, int]:
    """The inode behind all descriptors that have none of their own."""
    with select.epoll() as any_of_them:
        found = os.fstat(any_of_them.fileno())
    return found.st_dev, found.st_ino

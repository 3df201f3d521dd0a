"""Whether nobody but root and this process's own user can write to what the daemon relies on.

Must not know what is in a file. The one idea: whoever may write to the settings, the drop-ins or the state could
forward any port, so what others can write to is refused, with the command that mends it.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable, Set as AbstractSet
from pathlib import Path

from nfportd.errors import NotPossible

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def distrust(path: Path, found: os.stat_result, users: AbstractSet[int] = frozenset()) -> str | None:
    """Why what was found at a path cannot be trusted, and what mends it; None if it can.

    `users`: who is trusted besides root and this process's own user. An access control list needs no look of its own:
    what it grants others shows in the mode of the group.
    """
    if found.st_uid not in (0, os.geteuid(), *users):
        return f"belongs to {_user(found.st_uid)}, who is neither root nor nfportd's user; run: chown root {path}"
    mode = stat.S_IMODE(found.st_mode)
    if mode & _WRITABLE:
        return f"can be written to by others (mode {mode:04o}); run: chmod go-w {path}"
    return None


def require(directories: Iterable[Path]) -> None:
    """Raise NotPossible where a directory, or a file or directory in it, cannot be trusted."""
    for directory in directories:
        if directory.is_dir():
            for path in (directory, *sorted(directory.iterdir())):
                _require(path)


def _require(path: Path) -> None:
    if why := distrust_entry(path):
        raise NotPossible(f"{path} {why}")


def distrust_entry(path: Path, users: AbstractSet[int] = frozenset()) -> str | None:
    """The same of a directory, or of what is in it; None also for what has gone meanwhile."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    # The mode of a socket says who may connect, that of a link nothing.
    if stat.S_ISSOCK(found.st_mode) or stat.S_ISLNK(found.st_mode):
        return None
    return distrust(path, found, users)


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"

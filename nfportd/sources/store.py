"""What owners were promised over the API, on disk: SQLite, one file that survives a restart, one a reboot too.

Must not know nft or HTTP. The one idea: a content is written down before it comes into force, so an answer means that
both have happened, and a crash between leaves a content that the next start brings into force as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Awaitable, Mapping as AbstractMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nfportd.model import Mapping
from nfportd.wishes import Content, Held, NotStored

_log = logging.getLogger(__name__)

_MAPPINGS = TypeAdapter(list[Mapping])
#: The two files as one connection names them, by whether what is in them survives a reboot.
_FILES = {False: "main", True: "persistent"}


#: Transactions are begun by hand; the connection moves between the thread that works and the one that ends.
_CONNECTION: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}


#: Contents of so many mappings are written at once, where that takes no disk.
_FEW = 1000
#: linux/magic.h: TMPFS_MAGIC, RAMFS_MAGIC. More bytes than struct statfs has.
_MEMORY, _STATFS = (0x01021994, 0x858458F6), 256


class _Corrupt(Exception):
    def __init__(self, persistent: bool, error: Exception) -> None:
        self.persistent, self.error = persistent, error
        super().__init__()


class Store:
    """The contents of API owners. Writes to a disk run in a thread of their own: a slow one stops neither reads nor
    traffic. To memory, as /run is, they take 50 microseconds, and the way to the thread and back 300: so they do not.

    Both files hang on one connection, with rollback journals: only so does SQLite commit to several files atomically
    (https://www.sqlite.org/lang_attach.html), and an owner may move from one to the other.
    """

    def __init__(self, volatile: Path, persistent: Path) -> None:
        self._paths = {False: volatile, True: persistent}
        self._database: sqlite3.Connection | None = None
        self._owners: dict[bool, set[str]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._at_work: asyncio.Future[None] | None = None
        self._in_memory = False

    async def load(self) -> tuple[dict[str, Held], bool]:
        """Read everything; and tell whether something was lost, because a file was corrupt and has been set aside.

        A file that can be neither read nor made is logged; what should be written to it is refused from then on.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def keep(self, held: AbstractMapping[str, Held | None]) -> Awaitable[None]:
        """Write down what these owners hold, all or none. Raises NotStored, and then nothing is changed."""
        loop = asyncio.get_running_loop()
        if not self._at_once(held):
            self._at_work = loop.run_in_executor(self._thread, self._keep, dict(held))
            return self._at_work
        done: asyncio.Future[None] = loop.create_future()
        try:
            self._keep(dict(held))
        except NotStored as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        return done

    def _at_once(self, held: AbstractMapping[str, Held | None]) -> bool:
        """Whether writing these down takes no time."""
        busy = self._at_work is not None and not self._at_work.done()
        if not self._in_memory or busy or self._owners.get(True, set()) & held.keys():
            return False
        contents = [each.content for each in held.values() if each]
        return not any(each.persistent for each in contents) and sum(len(c.mappings) for c in contents) <= _FEW

    def close(self) -> None:
        """Close the files."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        if self._database:
            self._database.close()

    def _load(self) -> tuple[dict[str, Held], bool]:
        lost = False
        while True:
            try:
                return self._open_all(), lost
            except _Corrupt as corrupt:
                # A file that cannot be moved out of the way would be met again and again.
                lost = True
                self._set_aside(corrupt)

    def _open_all(self) -> dict[str, Held]:
        self._close()
        self._owners.clear()
        found: dict[str, Held] = {}
        for persistent in self._paths:
            try:
                held = self._open(persistent)
            except (OSError, sqlite3.OperationalError) as error:
                _log.error("%s: %s; what asks to be kept there is refused", self._paths[persistent], error)
                # The other file still hangs on something.
                self._database = self._database if persistent else sqlite3.connect(":memory:", **_CONNECTION)
            except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
                raise _Corrupt(persistent, error) from None
            else:
                self._owners[persistent] = set(held)
                found |= held
        return found

    def _open(self, persistent: bool) -> dict[str, Held]:
        path, name = self._paths[persistent], _FILES[persistent]
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Whoever may read a database may lock it, and a write that takes no thread would wait for that.
        path.touch(mode=0o600)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        if not persistent:
            self._database = sqlite3.connect(path, **_CONNECTION)
            self._in_memory = _is_memory(path)
        database = self._database
        assert database
        if persistent:
            database.execute("ATTACH ? AS persistent", (str(path),))
        database.execute(f"PRAGMA {name}.journal_mode=TRUNCATE")
        # A commit is on disk when it returns, where there is a disk.
        flush = "OFF" if not persistent and self._in_memory else "FULL"
        database.execute(f"PRAGMA {name}.synchronous={flush}")
        columns = "owner TEXT PRIMARY KEY, since REAL NOT NULL, content TEXT NOT NULL"
        database.execute(f"CREATE TABLE IF NOT EXISTS {name}.owners ({columns})")
        verdict = database.execute(f"PRAGMA {name}.quick_check").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        rows = database.execute(f"SELECT owner, since, content FROM {name}.owners").fetchall()  # nosec B608
        return {owner: Held(_content(json.loads(text), persistent), since) for owner, since, text in rows}

    def _set_aside(self, corrupt: _Corrupt) -> None:
        self._close()
        path = self._paths[corrupt.persistent]
        aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}")
        path.replace(aside)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        text = "%s is corrupt (%s), moved to %s; its mappings serve on from the kernel"
        _log.critical(text, path, corrupt.error, aside)

    def _keep(self, held: dict[str, Held | None]) -> None:
        kept = {p: {o: h for o, h in held.items() if h is not None and h.content.persistent == p} for p in self._paths}
        gone = {p: self._owners.get(p, set()) & held.keys() - kept[p].keys() for p in self._paths}
        for persistent in self._paths:
            if kept[persistent] and persistent not in self._owners:
                raise NotStored(f"{self._paths[persistent]} could not be opened at the start")
        database = self._database
        if database is None or not any((*kept.values(), *gone.values())):
            return
        try:
            database.execute("BEGIN")
            for persistent in self._owners:
                if not kept[persistent] and not gone[persistent]:
                    # Not even a lock is taken on the other file, whose disk may hang.
                    continue
                name = _FILES[persistent]
                rows = [(o, h.since, json.dumps(_row(h.content))) for o, h in kept[persistent].items()]
                database.executemany(_UPSERT.format(name), rows)
                database.executemany(f"DELETE FROM {name}.owners WHERE owner = ?", [(o,) for o in gone[persistent]])  # nosec B608
            database.execute("COMMIT")
        except sqlite3.Error as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise NotStored(f"{' and '.join(str(p) for p in self._paths.values())}: {error}") from None
        for persistent, owners in self._owners.items():
            # In place: a change costs nothing for the owners that it does not touch.
            owners.update(kept[persistent])
            owners.difference_update(gone[persistent])


def peek(path: Path, *, persistent: bool) -> dict[str, Held]:
    """What a file holds, read beside a daemon that may use it, and without changing it.

    Raises sqlite3.Error, and ValueError, KeyError or TypeError for what no daemon of this version has written.
    """
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        verdict = database.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        rows = database.execute("SELECT owner, since, content FROM owners").fetchall()
    return {owner: Held(_content(json.loads(text), persistent), since) for owner, since, text in rows}


def _is_memory(path: Path) -> bool:
    """Whether a file's system keeps it in memory: f_type of statfs(2)."""
    found = ctypes.create_string_buffer(_STATFS)
    known = ctypes.CDLL(None).statfs(os.fsencode(path), found) == 0
    return known and struct.unpack_from("l", found)[0] in _MEMORY


_UPSERT = "INSERT OR REPLACE INTO {}.owners VALUES (?, ?, ?)"


def _row(content: Content) -> dict[str, Any]:
    return {
        "mappings": [mapping.written() for mapping in content.mappings],
        "expires_at": content.expires_at,
        "pid": content.pid,
        "netns": content.netns,
        "bound_to": content.bound_to,
    }


def _content(row: dict[str, Any], persistent: bool) -> Content:
    mappings = _MAPPINGS.validate_python(row["mappings"])
    return Content(
        mappings=dict.fromkeys(mappings, 0),
        persistent=persistent,
        expires_at=row["expires_at"],
        pid=row["pid"],
        netns=row["netns"],
        bound_to=row["bound_to"],
    )

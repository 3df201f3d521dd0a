"""What the daemon and the files say, gathered for doctor: status, mappings, settings, drop-ins, the store.

Must not judge, nor ask the kernel. The one idea: a daemon that answers knows best; where none does, the files say what
it would be asked for.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from nfportd import check, settings, trust
from nfportd.client import Client, Json, NotReachable, Problem
from nfportd.desired import Desired
from nfportd.doctor.facts import Contact, Daemon, Door, Files, Published, Trouble
from nfportd.errors import InvalidInput
from nfportd.model import Mapping
from nfportd.sources import dropins, store

#: Seconds for each answer of the daemon.
_PATIENCE = 5.0
_USER = "nfportd"
_STORE = "mappings.db"
_MAPPING = TypeAdapter(Mapping)


class Places(NamedTuple):
    """Where the daemon has its things; the defaults are those of nfportd. The socket is in the run directory."""

    socket: Path = Path("/run/nfportd/nfportd.sock")
    config: Path = Path("/etc/nfportd/nfportd.yaml")
    dropins: Path = Path("/etc/nfportd.d")
    state_dir: Path = Path("/var/lib/nfportd")


class Said(NamedTuple):
    """All that was found without the kernel."""

    daemon: Daemon
    published: tuple[Published, ...]
    files: Files
    mark_bit: int
    #: Targets that some mapping isolates, also one that was not asked for.
    isolated: frozenset[Door] = frozenset()


def ask(places: Places) -> Said:
    """Ask the daemon, and read what it would read."""
    daemon, mappings = _daemon(str(places.socket))
    wrong, chosen = _settings(places.config)
    distrusted = tuple(_distrusted(places))
    stored, unreadable = _stored(places)
    if daemon.status is not None:
        published = tuple(map(_published, mappings))
        broken = tuple(text for texts in daemon.status["files"].values() for text in texts)
    else:
        drafted, broken = _drafted(places.dropins)
        published = drafted + stored
    files = Files(broken, tuple(_ignored(places.dropins)), wrong, distrusted, unreadable, chosen.manage_sysctls)
    isolated = frozenset(door for each in published if each.mapping.isolate for door in each.doors())
    return Said(daemon, published, files, chosen.mark_bit, isolated)


def _daemon(path: str) -> tuple[Daemon, list[Json]]:
    """The daemon by its socket, and its mappings, if it answers."""
    contact, detail = _knock(path)
    if contact is not Contact.ANSWERS:
        return Daemon(path, contact, None, detail), []
    try:
        with Client(path, timeout=_PATIENCE) as client:
            status = client.get("/v1/status")
            return Daemon(path, contact, status), client.get("/v1/mappings")["mappings"]
    except Problem as problem:
        contact, detail = Contact.DENIED if problem.name == "denied" else Contact.SILENT, str(problem)
    except NotReachable as error:
        contact, detail = Contact.SILENT, str(error).removeprefix(f"{path}: ")
    return Daemon(path, contact, None, detail), []


def _knock(path: str) -> tuple[Contact, str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(path)
        except FileNotFoundError:
            return Contact.NO_SOCKET, ""
        except ConnectionRefusedError:
            return Contact.NOBODY, ""
        except PermissionError:
            return Contact.DENIED, f"{path} is closed to you"
        except OSError:
            pass  # a full backlog, at which a client waits
    return Contact.ANSWERS, ""


def _published(said: Json) -> Published:
    fields = {name: said[name] for name in Mapping.__dataclass_fields__ if said.get(name) is not None}
    since = datetime.fromisoformat(said["since"]).timestamp()
    mapping = _MAPPING.validate_python(fields)
    relayed = said.get("loopback6") == "relay"
    return Published(mapping, said["owner"], said["state"], said.get("reason") or "", since, relayed)


def _settings(path: Path) -> tuple[tuple[str, ...], settings.Settings]:
    """What is wrong in the settings, and the settings, or the defaults."""
    try:
        return (), settings.load(path)
    except InvalidInput as error:
        readable = os.access(path, os.R_OK)
        return tuple(map(str, error.problems)) if readable else (), settings.Settings()


def _drafted(directory: Path) -> tuple[tuple[Published, ...], tuple[str, ...]]:
    """What drop-ins say, and what is wrong in them; without those that this user may not read."""
    found = [path for path in check.files([directory]) if os.access(path, os.R_OK)] if directory.is_dir() else []
    published: list[Published] = []
    for path in found:
        with contextlib.suppress(InvalidInput, FileNotFoundError):
            published += [Published(mapping, dropins.owner(path.name)) for mapping in dropins.read(path)]
    return tuple(published), tuple(map(str, check.problems(found, Desired(), trusted=True)))


def _ignored(directory: Path) -> Iterator[str]:
    """Files that somebody may have meant to be drop-ins."""
    with contextlib.suppress(OSError):
        yield from (str(path) for path in sorted(directory.iterdir()) if dropins.looks_like_one(path.name))


def _stored(places: Places) -> tuple[tuple[Published, ...], tuple[Trouble, ...]]:
    """What the store holds, and which of its files cannot be read."""
    published: list[Published] = []
    unreadable: list[Trouble] = []
    for persistent, directory in ((False, places.socket.parent), (True, places.state_dir)):
        path = directory / _STORE
        if not os.access(path, os.R_OK):
            continue  # there is none, or it is not for this user
        try:
            for owner, held in store.peek(path, persistent=persistent).items():
                published += [Published(mapping, owner, since=held.since) for mapping in held.content.mappings]
        except (OSError, sqlite3.Error, ValueError, KeyError, TypeError) as error:
            unreadable.append(Trouble(str(path), str(error).splitlines()[0]))
    return tuple(published), tuple(unreadable)


def _distrusted(places: Places) -> Iterator[Trouble]:
    """What in the daemon's directories others can write to."""
    users = {0, os.geteuid()}
    with contextlib.suppress(KeyError):
        users.add(pwd.getpwnam(_USER).pw_uid)
    run_dir = places.socket.parent
    # A socket may have been put elsewhere, as in /tmp.
    for directory in (*([run_dir] if (run_dir / "lock").exists() else []), places.state_dir):
        with contextlib.suppress(OSError):
            for path in (directory, *sorted(directory.iterdir())):
                if why := trust.distrust_entry(path, users):
                    yield Trouble(str(path), why)

"""The directory of drop-ins: reads files when told, keeps the last good content of those that are broken.

Must not know the kernel. The one idea: one file is one owner; what a file wishes changes only when the whole file is
right, and its last good content survives a restart in the run directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from nfportd import document, trust, validation
from nfportd.errors import InvalidInput, Problem
from nfportd.messages import Message, about
from nfportd.model import Mapping
from nfportd.sources.kept import Kept

_log = logging.getLogger(__name__)

#: What owners wish: their mappings with the lines in which they begin.
Wishes = dict[str, dict[Mapping, int]]


def is_dropin(name: str) -> bool:
    """Whether a file name is one of ours; editors' scratch files begin with a dot or end otherwise."""
    return name.endswith(".yaml") and not name.startswith((".", "#"))


def looks_like_one(name: str) -> bool:
    """Whether somebody may have meant a file name to be one of ours."""
    return name.endswith((".yml", ".YAML", ".json"))


def owner(name: str) -> str:
    """The owner that a file is."""
    return f"file:{name}"


def read(path: Path, *, trusted: bool = True) -> dict[Mapping, int]:
    """The mappings of one file. Raises InvalidInput, also where the file cannot be read; FileNotFoundError.

    `trusted`: nor where others can write to it.
    """
    return validation.mappings(_content(path, trusted=trusted), str(path))


def _content(path: Path, *, trusted: bool = True) -> bytes:
    try:
        # O_NONBLOCK: else a fifo waits for a writer for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InvalidInput([Problem(str(path), 0, 0, "is not a regular file")])
            if trusted and (why := trust.distrust(path, found)):
                raise InvalidInput([Problem(str(path), 0, 0, why)])
            # Not more than can be taken, whatever the size of the file.
            return file.read(document.MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        kind = _Short if error.errno in _PASSING else InvalidInput
        raise kind([Problem(str(path), 0, 0, f"cannot be read: {error.strerror}")]) from None


class _Short(InvalidInput):
    """A file could not be read for want of something that may be there again at any time."""


#: Such errors: descriptors, memory, a disk that failed once.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


class DropIns:
    """What the files of a directory wish. `last_good` keeps copies of the content in force, `kept` what that means."""

    def __init__(self, directory: Path, last_good: Path, kept: Kept) -> None:
        self.directory = directory
        self._last_good = last_good
        self._validated = kept
        #: By digest, what was validated since `keep`.
        self._fresh: dict[bytes, dict[Mapping, int]] = {}
        self._digests: dict[str, bytes] = {}
        self.problems: dict[str, tuple[Problem, ...]] = {}
        #: Whether something could not be read that may be read soon, though nobody touches it.
        self.unread = False

    def changes(self, names: Iterable[str] | None) -> Wishes:
        """Read these files (None: all) and return what the changed ones wish; a vanished one wishes nothing.

        A broken file is logged and not in the answer: what it wished before goes on.
        """
        if names is None:
            self.unread = False
            names = {*self._listed(), *self._digests, *self.problems, *self._kept()}
        elif not all(map(is_dropin, names)):
            # A link beside the drop-ins may be what they lead through, as in a mounted ConfigMap.
            names = {*names, *self._links()}
        wishes: Wishes = {}
        for name in sorted(filter(is_dropin, names)):
            try:
                wished = self._changed(name)
            except InvalidInput as error:
                self.unread |= isinstance(error, _Short)
                wished = self._broken(name, error.problems)
            if wished is not None:
                wishes[owner(name)] = wished
        return wishes

    def keep(self) -> None:
        """Let the next start know what the files were validated to. Not at the same time as `changes`."""
        fresh, self._fresh = self._fresh, {}
        self._validated.update(fresh, set(self._digests.values()))

    def _listed(self) -> list[str]:
        try:
            found = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            _log.error("%s: cannot be read: %s; its files' last good content stays", self.directory, error.strerror)
            self.unread |= error.errno in _PASSING
            return list(self._digests)
        for name in sorted(found):
            if looks_like_one(name):
                _log.warning("%s/%s: ignored, only files named *.yaml are read", self.directory, name)
        return found

    def _links(self) -> list[str]:
        try:
            return [path.name for path in self.directory.iterdir() if path.is_symlink()]
        except OSError:
            return []

    def _changed(self, name: str) -> dict[Mapping, int] | None:
        try:
            self._distrust_directory()
            content = _content(self.directory / name)
        except FileNotFoundError:
            self._digests.pop(name, None)
            self.problems.pop(name, None)
            (self._last_good / name).unlink(missing_ok=True)
            return {}
        digest = hashlib.sha256(content).digest()
        if self._digests.get(name) == digest:
            self.problems.pop(name, None)
            return None
        wished = self._validated.take(digest)
        if wished is None:
            wished = self._fresh[digest] = validation.mappings(content, str(self.directory / name))
        self._digests[name] = digest
        self.problems.pop(name, None)
        self._keep(name, content)
        return wished

    def _distrust_directory(self) -> None:
        """Raise InvalidInput where others can replace the files; FileNotFoundError where there is no directory."""
        if why := trust.distrust(self.directory, self.directory.stat()):
            raise InvalidInput([Problem(str(self.directory), 0, 0, why)])

    def _broken(self, name: str, problems: tuple[Problem, ...]) -> dict[Mapping, int] | None:
        self.problems[name] = problems
        for problem in problems:
            _log.error("%s", problem, extra=about(Message.INVALID, owner(name)))
        if name in self._digests:
            _log.error(
                "%s/%s: its last good content stays in force",
                self.directory,
                name,
                extra=about(Message.INVALID, owner(name)),
            )
            return None
        try:
            wished = read(self._last_good / name)
        except (FileNotFoundError, InvalidInput):
            _log.error(
                "%s/%s: nothing of it is in force", self.directory, name, extra=about(Message.INVALID, owner(name))
            )
            return None
        _log.error(
            "%s/%s: the good content of an earlier run stays in force",
            self.directory,
            name,
            extra=about(Message.INVALID, owner(name)),
        )
        self._digests[name] = b""
        return wished

    def _kept(self) -> list[str]:
        try:
            return [path.name for path in self._last_good.iterdir()]
        except FileNotFoundError:
            return []

    def _keep(self, name: str, content: bytes) -> None:
        scratch = self._last_good / f".{name}.new"
        try:
            self._last_good.mkdir(mode=0o700, exist_ok=True)
            scratch.write_bytes(content)
            scratch.replace(self._last_good / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            _log.warning("%s: no copy of %s is kept (%s)", self._last_good, name, error.strerror)

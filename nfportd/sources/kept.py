"""What a file was validated to, by its digest: a start takes it from here and need not validate what has not changed.

Must not know where files are, nor what is in force. The one idea: an entry is called by the bytes of the file and by
all that decides what they mean, so it is right or nobody asks for it; whatever is odd about one, the file is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping as AbstractMapping, Set as AbstractSet
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import pydantic

from nfportd import document, errors, model, notation, trust, validation
from nfportd.model import Mapping, Protocol
from nfportd.notation import Listen, Ports, Target

_log = logging.getLogger(__name__)

#: Smaller files are validated in a few milliseconds.
FEW = 100
#: An entry is not larger than a file may be: aliases of YAML make more of a text than its size.
MOST = document.MAX_BYTES
#: What decides which mappings a text is; and this file, which decides how they are written.
RULES = (document, errors, model, notation, validation, sys.modules[__name__])
#: So many mappings are read from JSON at once: all at once would take more memory than the mappings.
_BATCH = 1000

#: What each mapping has of its own; the rest is written once for all that agree in it.
_OWN = ("listen", "targets", "name", "comment")
_SHARED = tuple(name for name in Mapping.__dataclass_fields__ if name not in _OWN)
_shared = attrgetter(*_SHARED)
#: Sets the fields of a mapping without validating it again.
_PUT = tuple(getattr(Mapping, name).__set__ for name in (*_OWN, *_SHARED))
_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_ports = lru_cache(16)(Ports)


def encode(mappings: AbstractMapping[Mapping, int]) -> Iterator[bytes]:
    """A line for each mapping, in their order."""
    seen: dict[tuple[Any, ...], int] = {}
    for mapping, line in mappings.items():
        listen, shared = mapping.listen, _shared(mapping)
        number = seen.get(shared)
        if number is None:
            seen[shared] = len(seen)
        row = (
            *(line, mapping.name, mapping.comment),
            *(listen.address, listen.family, listen.ports.first, listen.ports.last),
            [(each.address, each.family, each.ports.first, each.ports.last) for each in mapping.targets],
            shared if number is None else number,
        )
        yield _json(row).encode() + b"\n"


def decode(lines: Iterable[bytes]) -> dict[Mapping, int]:
    """The mappings that were encoded."""
    found: dict[Mapping, int] = {}
    seen: list[tuple[Any, ...]] = []
    # Many mappings lead to the same addresses.
    texts: dict[str, str] = {}
    for line, name, comment, address, family, first, last, targets, shared in _rows(lines):
        if isinstance(shared, list):
            options = _options(shared)
            seen.append(options)
        else:
            options = seen[shared]
        made = object.__new__(Mapping)
        own = (
            Listen(texts.setdefault(address, address), family, _ports(first, last)),
            tuple([Target(texts.setdefault(to, to), kind, _ports(low, high)) for to, kind, low, high in targets]),
            name,
            comment,
        )
        for put, value in zip(_PUT, (*own, *options), strict=True):
            put(made, value)
        found[made] = line
    return found


def _rows(lines: Iterable[bytes]) -> Iterator[list[Any]]:
    lines = iter(lines)
    while batch := b",".join(islice(lines, _BATCH)):
        yield from json.loads(b"[" + batch + b"]")


def _options(written: list[Any]) -> tuple[Any, ...]:
    named = dict(zip(_SHARED, written, strict=True))
    named |= {"protocol": tuple(map(Protocol, named["protocol"])), "sources": tuple(named["sources"])}
    return tuple(named.values())


class Kept:
    """What files were validated to, in a directory that goes with a reboot."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Now, for an upgrade may replace the sources of what runs.
        self._rules = _rules()

    def take(self, digest: bytes) -> dict[Mapping, int] | None:
        """What the file with this digest was validated to; None where that is not known for sure."""
        path = self._path(digest)
        try:
            return decode(self._lines(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError) as error:
            _log.debug("%s: not taken (%s); the file is read", path, error)
            return None

    def update(self, fresh: AbstractMapping[bytes, AbstractMapping[Mapping, int]], digests: AbstractSet[bytes]) -> None:
        """Keep what is fresh of the files with these digests, and nothing of any other file."""
        paths = set(map(self._path, digests))
        for path in self._present() - paths:
            with contextlib.suppress(OSError):
                path.unlink()
        for digest in digests & fresh.keys():
            if len(fresh[digest]) >= FEW:
                self._write(self._path(digest), fresh[digest])

    def _path(self, digest: bytes) -> Path:
        return self._directory / hashlib.sha256(self._rules + digest).hexdigest()

    def _present(self) -> set[Path]:
        try:
            return set(self._directory.iterdir())
        except OSError:
            return set()

    def _lines(self, path: Path) -> list[bytes]:
        """Raises OSError or ValueError where it is not what was written, or others could have written it."""
        with open(path, "rb", opener=_opener) as file:
            for place, found in ((self._directory, self._directory.lstat()), (path, os.fstat(file.fileno()))):
                if why := trust.distrust(place, found):
                    raise ValueError(why)
            *lines, checksum = file.read(MOST + 100).splitlines(keepends=True) or [b""]
        summed = hashlib.sha256(path.name.encode())
        for line in lines:
            summed.update(line)
        if checksum != summed.hexdigest().encode():
            raise ValueError("is damaged")
        return lines

    def _write(self, path: Path, mappings: AbstractMapping[Mapping, int]) -> None:
        scratch = path.with_suffix(".new")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with open(scratch, "wb", opener=_opener) as file:
                checksum = hashlib.sha256(path.name.encode())
                for line in encode(mappings):
                    checksum.update(line)
                    file.write(line)
                    if file.tell() > MOST:
                        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                file.write(checksum.hexdigest().encode())
            scratch.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            _log.info("%s: not kept (%s); the next start validates the file again", path, error.strerror)


def _opener(path: str, flags: int) -> int:
    # O_NONBLOCK: else a fifo waits for its other end for ever.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _rules() -> bytes:
    """All that decides, beside its bytes, what a file is validated to."""
    found = hashlib.sha256(f"{sys.version}\n{document.READER}\n{pydantic.VERSION}\n".encode())
    for each in RULES:
        found.update(Path(str(each.__file__)).read_bytes())
    return found.digest()

"""What owners ask for, as values: contents, wishes with their conditions, and what became of them.

Must not know how a wish is carried out. The one idea: a wish names whole contents of owners, so that the same wish
again changes nothing; whoever is promised an answer gets all of it or none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter

from nfportd.desired import Claim
from nfportd.errors import NfportdError
from nfportd.model import Blocker, Key, Mapping, listens

#: Times that are remembered as text: all mappings of an owner have the same one.
_REMEMBERED = 64


@lru_cache(_REMEMBERED)
def rfc3339(seconds: float) -> str:
    """Seconds since the epoch, as RFC 3339 writes them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


#: What of a mapping stands for itself in JSON.
_OTHERS = attrgetter(*(name for name in Mapping.__dataclass_fields__ if name not in ("listen", "targets")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that one owner wishes: mappings (with the lines in which they begin, 0 where there is no file), and how long.

    `expires_at`: seconds since the epoch; `pid`, `netns`: the mappings go when that process or namespace has gone;
    `bound_to` tells which they were, for a pid or path may belong to another after a restart.
    """

    mappings: AbstractMapping[Mapping, int]
    persistent: bool = False
    expires_at: float | None = None
    pid: int | None = None
    netns: str | None = None
    bound_to: str = ""

    @property
    def etag(self) -> str:
        """Names the content: equal contents have equal tags. A renewed deadline does not count."""
        wished = [(str(m.listen), [str(target) for target in m.targets], _OTHERS(m)) for m in self.mappings]
        text = json.dumps([wished, self.persistent, self.pid, self.netns])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Held:
    """A content in force, and since when (seconds since the epoch) its owner has had any.

    `later`: the mappings that came, or became what they are, after that, and when.
    """

    content: Content
    since: float
    later: AbstractMapping[Mapping, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """New contents of owners; None: nothing more.

    A `promised` wish comes true as a whole or is refused; otherwise keys that others hold are waited for.
    `matches` are the tags of which an owner's content must have one now ("" for none, "*" for any). `since` are the
    times from which contents have been held before, where they are known.
    """

    owners: AbstractMapping[str, Content | None]
    promised: bool = False
    dry_run: bool = False
    matches: AbstractMapping[str, frozenset[str]] = field(default_factory=dict)
    since: AbstractMapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A claim that does not hold some of its keys, and the one that holds the first of them."""

    claim: Claim
    holder: Claim
    keys: tuple[Key, ...]


@dataclass(slots=True)
class Outcome:
    """What became of a wish: mappings added and removed by it, claims that wait, claims that the kernel refused, and
    keys that stay out because a process of this host listens there, and that are in force all the same; and what its
    owners hold then."""

    added: int = 0
    removed: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    refused: dict[Claim, str] = field(default_factory=dict)
    blocked: dict[Key, Blocker] = field(default_factory=dict)
    shadowed: AbstractMapping[Key, Blocker] = field(default_factory=dict)
    held: dict[str, Held | None] = field(default_factory=dict)


class KeyTaken(NfportdError):
    """Another owner holds a key that a promised wish needs."""

    def __init__(self, key: Key, holder: Claim, since: float) -> None:
        self.key, self.holder, self.since = key, holder, since
        super().__init__(f"{key} is held by {holder}")


class PortInUse(NfportdError):
    """A process of this host listens on a port that a promised wish needs."""

    def __init__(self, key: Key, address: str, process: tuple[int, str] | None) -> None:
        self.key, self.address, self.process = key, address, process
        where = f"{address} port {key.port}"
        super().__init__(f"{key}: {listens(process)} on {where}; stop it, or set shadow_listener: true")


class PreconditionFailed(NfportdError):
    """An owner's content is not what the wish was made for."""

    def __init__(self, owner: str, etag: str | None) -> None:
        self.owner, self.etag = owner, etag
        super().__init__(f"{owner} has {f'the etag {etag}' if etag else 'no mappings'} now; read it again")


class NotStored(NfportdError):
    """The store did not take a content, so it is not in force either."""

"""What requests and answers look like: the types that validate are the types that OpenAPI shows.

Must not know HTTP. The one idea: a body becomes a content or a wish, or an error that names its place.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass as validated
from pydantic_core import PydanticCustomError

from nfportd.errors import Malformed
from nfportd.model import Key, Mapping
from nfportd.notation import describe
from nfportd.validation import MAX_KEYS
from nfportd.wishes import Content

_TEN_YEARS = 10 * 365 * 86400
_STRICT = ConfigDict(extra="forbid")


def _disjoint(mappings: tuple[Mapping, ...]) -> tuple[Mapping, ...]:
    if sum(mapping.size for mapping in mappings) > MAX_KEYS:
        raise PydanticCustomError("range", "{text}", {"text": f"more than {MAX_KEYS:,} keys"})
    claimed: dict[Key, int] = {}
    for number, mapping in enumerate(mappings):
        for key in mapping.claimed():
            first = claimed.setdefault(key, number)
            if first != number:
                text = f"{key} is claimed already by /mappings/{first}"
                raise PydanticCustomError("range", "{text}", {"at": number, "text": text})
    return mappings


@validated(frozen=True, slots=True, kw_only=True, config=_STRICT)
class OwnerBody:
    """All that an owner wishes, and how long: until a deadline, or until a process or a network namespace has gone."""

    mappings: Annotated[tuple[Mapping, ...], AfterValidator(_disjoint)]
    persistent: Annotated[bool, Field(description="Survive a reboot of the host.", strict=True)] = False
    expires_in: Annotated[float | None, Field(strict=True, gt=0, le=_TEN_YEARS, description="Seconds.")] = None
    pid: Annotated[int | None, Field(gt=0, strict=True)] = None
    netns: Annotated[str | None, Field(pattern=r"^/[^\x00]*$", max_length=4096)] = None

    @model_validator(mode="after")
    def _lasts(self) -> OwnerBody:
        if self.persistent and (self.pid or self.netns):
            raise ValueError("no process or namespace survives a reboot; leave out persistent")
        return self

    def content(self, now: float) -> Content:
        """The content, with the deadline counted from `now` (seconds since the epoch)."""
        return Content(
            mappings=dict.fromkeys(self.mappings, 0),
            persistent=self.persistent,
            expires_at=now + self.expires_in if self.expires_in else None,
            pid=self.pid,
            netns=self.netns,
        )


def _not_a_file(name: str) -> str:
    if name.startswith("file:"):
        raise ValueError("owners that begin with file: are drop-ins; change the file instead")
    return name


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}$"
OwnerName = Annotated[str, Field(pattern=_NAME), AfterValidator(_not_a_file)]


@validated(frozen=True, slots=True, kw_only=True, config=_STRICT)
class TransactionBody:
    """New contents of several owners, all or none; null takes an owner's mappings away."""

    owners: Annotated[dict[OwnerName, OwnerBody | None], Field(min_length=1, max_length=10_000)]


@validated(frozen=True, slots=True, kw_only=True, config=_STRICT)
class CheckBody:
    """What would happen if this owner wished this."""

    owner: OwnerName
    mappings: Annotated[tuple[Mapping, ...], AfterValidator(_disjoint)]


@validated(frozen=True, slots=True, kw_only=True, config=_STRICT)
class GcBody:
    """Take away the owners whose names begin with the prefix and that are not among the valid ones."""

    prefix: Annotated[str, Field(min_length=1, max_length=255)]
    valid: Annotated[tuple[str, ...], Field(max_length=100_000)]


# What is answered is ours and not validated; its types are for the JSON and for OpenAPI.


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Who holds a key that a mapping waits for."""

    key: str
    owner: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of this host that listens on a mapping's port."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingState:
    """A mapping and what became of it."""

    owner: str
    name: str | None
    listen: str
    protocol: list[str]
    targets: list[str]
    masquerade: str
    on_change: str
    comment: str | None
    sources: list[str] | None
    shadow_listener: bool
    reserve: bool
    isolate: bool
    state: Annotated[str, Field(pattern="^(active|conflict|refused|port-in-use|drift)$")]
    since: str
    loopback6: Annotated[
        str,
        Field(
            pattern="^(kernel|relay|no)$",
            description="How [::1] of the host is served: by the kernel, by the relay in the daemon, or not.",
        ),
    ]
    reason: str | None = None
    conflicts: list[Conflict] = field(default_factory=list)
    process: Process | None = None
    unreached: list[str] = field(default_factory=list)
    changed: str | None = None
    connections: int | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerSummary:
    """An owner, without its mappings."""

    owner: str
    source: str
    etag: str
    since: str
    persistent: bool
    mappings: int
    expires_at: str | None = None
    pid: int | None = None
    netns: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """An owner and its mappings."""

    owner: str
    source: str
    etag: str
    since: str
    persistent: bool
    mappings: list[MappingState]
    expires_at: str | None = None
    pid: int | None = None
    netns: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a wish changed: mappings added and removed, and the owners after it (null: gone)."""

    added: int
    removed: int
    owners: dict[str, Owner | None]
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """Owners by name."""

    owners: list[OwnerSummary]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mappings:
    """Mappings by owner; with counters, or the busiest: how many there are of all, and of all together the connections
    a second, which are counted over `rate_seconds`."""

    mappings: list[MappingState]
    total: int | None = None
    rate: float | None = None
    rate_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of a minute's connections a mapping had."""

    owner: str
    name: str | None
    listen: str
    protocol: list[str]
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """The connections of about a minute, and of its busiest mappings."""

    began: str
    seconds: float
    connections: int
    busiest: list[Share]


@dataclass(frozen=True, slots=True, kw_only=True)
class Minutes:
    """The minutes of the last hour, the oldest first; the one that runs is not among them."""

    minutes: list[Minute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Owners that are gone."""

    removed: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What is wrong in the drop-ins."""

    errors: list[str]


def adapter(of: Any) -> TypeAdapter[Any]:
    """Checks, reads and writes a type; made once a type, for making one costs a millisecond."""
    if of not in _ADAPTERS:
        _ADAPTERS[of] = TypeAdapter(of)
    return _ADAPTERS[of]


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def read(of: Any, content: bytes) -> Any:
    """A body as its type. Raises ValidationError, and Malformed where JSON readers differ: on a key that stands twice,
    of which pydantic takes the last, and on NaN and infinity, which it takes though RFC 8259 has none."""
    # Where this fails otherwise, so will what comes after, and knows the place.
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(content.decode(), object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
    return adapter(of).validate_json(content)


def _once(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise Malformed(f"key {describe(next(name for name in names if names.count(name) > 1))} is written twice")


def _finite(text: str) -> None:
    if not math.isfinite(float(text)):
        raise Malformed(f"{describe(text)} is no number")

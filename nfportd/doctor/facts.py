"""What doctor knows of a host, as values.

Must not judge nor gather. The one idea: everything that a judgement needs is in one value, and what could not be read
is None, so that "fine" and "not looked at" cannot be mixed up.
"""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from nfportd import firewalls
from nfportd.model import Blocker, Key, Mapping
from nfportd.notation import Target
from nfportd.ruleset import Flags
from nfportd.topology import Network


class Published(NamedTuple):
    """A mapping, whose it is, and what the daemon says became of it (`""` where no daemon answers)."""

    mapping: Mapping
    owner: str
    state: str = ""
    reason: str = ""
    #: Seconds since the epoch.
    since: float | None = None
    line: int = 0

    @property
    def title(self) -> str:
        """How people call it: its name, else where it listens."""
        return self.mapping.name or str(self.mapping.listen)


class Contact(StrEnum):
    """How the daemon's socket answers."""

    ANSWERS = "answers"
    NO_SOCKET = "no socket"
    NOBODY = "nobody listens"
    DENIED = "denied"
    SILENT = "no answer"


class Daemon(NamedTuple):
    """The daemon by its socket. `status`: /v1/status, where it answers. `detail`: in words, where it does not."""

    socket: str
    contact: Contact
    status: AbstractMapping[str, Any] | None = None
    detail: str = ""


class Kept(NamedTuple):
    """A file or directory of the daemon's, and what is wrong with it."""

    path: str
    trouble: str


class Files(NamedTuple):
    """What is on disk: problems of drop-ins, of the settings, of what others can write to, and of the store."""

    dropins: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    distrusted: tuple[Kept, ...] = ()
    unreadable: tuple[Kept, ...] = ()


class Nftables(NamedTuple):
    """nftables as root sees it. `unusable`: why libnftables does not work. `refused`: why the kernel would not take
    our table. `skeleton`: whether our table's chains are ours; `lacking`: mappings of which it has not the elements."""

    unusable: str | None = None
    version: tuple[int, ...] = ()
    owner_persist: bool = False
    refused: str | None = None
    flags: Flags | None = None
    skeleton: bool | None = None
    lacking: tuple[str, ...] = ()
    stopped: tuple[firewalls.Finding, ...] | None = None
    translated: tuple[Translated, ...] | None = None


class Translated(NamedTuple):
    """Rules of others that translate what a mapping is for, before our table does."""

    mapping: str
    key: Key
    #: The rules, as people look them up.
    place: str
    firewall: str
    certain: bool
    commands: tuple[str, ...] = ()


class Interface(NamedTuple):
    """A link: whether it is set up, whether it has a carrier, its kind (`bridge`, `veth`)."""

    name: str
    up: bool
    carrier: bool
    kind: str


class Way(NamedTuple):
    """Where the kernel sends a packet for an address. `trouble`: why nowhere. `local`: the address is this host's."""

    link: str = ""
    gateway: str | None = None
    local: bool = False
    trouble: str = ""


class Outcome(StrEnum):
    """What became of a short connection to a target."""

    ANSWERS = "answers"
    REFUSED = "refused"
    REJECTED = "rejected"
    SILENT = "no answer"
    #: The host's own rules or a want of descriptors kept us from asking.
    NOT_ASKED = "not asked"


class Door(NamedTuple):
    """A target by one protocol."""

    target: Target
    protocol: str

    def __str__(self) -> str:
        return f"{self.target}/{self.protocol}"


class Conntrack(NamedTuple):
    """Entries of the connection tracking table, and how many it takes."""

    entries: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A host at one time."""

    #: Seconds since the epoch.
    now: float
    daemon: Daemon
    published: tuple[Published, ...] = ()
    #: Whether `published` is only what was asked for.
    chosen: bool = False
    files: Files = field(default_factory=Files)
    #: None: it takes CAP_NET_ADMIN.
    nftables: Nftables | None = None
    sysctls: AbstractMapping[str, str | None] = field(default_factory=dict)
    network: Network = field(default_factory=Network)
    interfaces: AbstractMapping[str, Interface] = field(default_factory=dict)
    #: Links with a route that takes answers to ::1.
    loopback_links: frozenset[str] = frozenset()
    ways: AbstractMapping[str, Way] = field(default_factory=dict)
    #: States of neighbours (`FAILED`, `REACHABLE`) by address and link.
    neighbours: AbstractMapping[tuple[str, str], str] = field(default_factory=dict)
    #: None: not asked, for the number of doors is limited.
    doors: AbstractMapping[Door, Outcome] = field(default_factory=dict)
    #: Doors that were not tried, for there are too many.
    untried: int = 0
    #: Packets that the reverse path filter dropped while doors were tried.
    reverse_path_drops: int = 0
    listeners: AbstractMapping[Key, Blocker] = field(default_factory=dict)
    conntrack: Conntrack | None = None

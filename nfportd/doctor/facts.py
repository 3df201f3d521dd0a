"""What doctor knows of a host, as values.

Must not judge nor gather. The one idea: everything that a judgement needs is in one value, and what could not be read
is None, so that "fine" and "not looked at" cannot be mixed up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping as AbstractMapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from nfportd.firewalls import Finding as Stopped
from nfportd.forwarding import Place
from nfportd.model import Blocker, Key, Mapping
from nfportd.notation import Family, Target
from nfportd.ruleset import Flags
from nfportd.topology import Network, Topology


class Published(NamedTuple):
    """A mapping, whose it is, and what the daemon says became of it (`""` where no daemon answers)."""

    mapping: Mapping
    owner: str
    state: str = ""
    reason: str = ""
    #: Seconds since the epoch.
    since: float | None = None
    #: Whether a relay in the daemon serves [::1], where the kernel cannot.
    relayed: bool = False

    @property
    def title(self) -> str:
        """How people call it: its name, else where it listens."""
        return self.mapping.name or str(self.mapping.listen)

    @property
    def wanted(self) -> bool:
        """Whether it is in force, or would be if the host were as it should be."""
        return self.state not in ("conflict", "refused", "port-in-use")

    def doors(self) -> Iterator[Door]:
        """Its targets by each protocol, a range by its first port."""
        for target in self.mapping.targets:
            for protocol in self.mapping.protocol:
                yield Door(target, str(protocol))

    def takes_loopback(self) -> bool:
        """Whether connections to 127.0.0.0/8 or ::1 can reach it."""
        address = self.mapping.listen.address
        return address is None or ipaddress.ip_address(address).is_loopback


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

    @property
    def gone(self) -> bool:
        """Whether none runs."""
        return self.contact in (Contact.NO_SOCKET, Contact.NOBODY)


class Trouble(NamedTuple):
    """A file or directory of the daemon's, and what is wrong with it."""

    path: str
    what: str


class Files(NamedTuple):
    """What is wrong on disk: in drop-ins and settings, with what others can write to, and with the store.

    `ignored`: files beside the drop-ins whose names look as if they were meant to be some.
    """

    dropins: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    distrusted: tuple[Trouble, ...] = ()
    unreadable: tuple[Trouble, ...] = ()
    #: Whether nfportd sets the sysctls that it needs.
    manage_sysctls: bool = True


class Translated(NamedTuple):
    """A rule of others that translates what a mapping is for, before our table does."""

    title: str
    key: Key
    place: Place
    certain: bool


class Nftables(NamedTuple):
    """nftables as root sees it. `unusable`: why libnftables does not work. `refused`: why the kernel would not take
    our table. `ours`: whether our table's chains are as they were written. `lacking`: titles of the mappings whose
    elements it has not, looked for where no daemon answers. `unread`: why others' rules cannot be read."""

    unusable: str | None = None
    version: str = ""
    refused: str | None = None
    flags: Flags | None = None
    ours: bool = True
    lacking: tuple[str, ...] = ()
    stopped: tuple[Stopped, ...] = ()
    translated: tuple[Translated, ...] = ()
    unread: str | None = None


class Interface(NamedTuple):
    """A link: whether it is set up, whether it has a carrier, its kind (`bridge`, `veth`), its addresses with their
    prefixes (`10.88.0.1/16`)."""

    name: str
    up: bool
    carrier: bool
    kind: str
    addresses: tuple[str, ...] = ()

    def covers(self, address: str) -> bool:
        """Whether an address is a neighbour by one of the link's prefixes."""
        wanted = ipaddress.ip_address(address)
        return any(wanted in ipaddress.ip_interface(each).network for each in self.addresses)


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
    #: The host's own rules, or a want of descriptors, kept us from asking.
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
    """A host at one time. Nothing is in `doors` but what was tried."""

    #: Seconds since the epoch.
    now: float
    daemon: Daemon
    published: tuple[Published, ...] = ()
    files: Files = field(default_factory=Files)
    #: None: it takes CAP_NET_ADMIN.
    nftables: Nftables | None = None
    #: Values of parameters under net, by name (`ipv4/ip_forward`); None where the kernel has no such.
    sysctls: AbstractMapping[str, str | None] = field(default_factory=dict)
    network: Network = field(default_factory=Network)
    interfaces: AbstractMapping[str, Interface] = field(default_factory=dict)
    #: Links with a route that takes answers to ::1.
    loopback_links: frozenset[str] = frozenset()
    #: By address of a target or of a listen.
    ways: AbstractMapping[str, Way] = field(default_factory=dict)
    #: States of neighbours (`FAILED`, `REACHABLE`) by address and link, after the doors were tried.
    neighbours: AbstractMapping[tuple[str, str], str] = field(default_factory=dict)
    doors: AbstractMapping[Door, Outcome] = field(default_factory=dict)
    #: The same by a source that is no neighbour of the target's, with that source.
    doors_from_afar: AbstractMapping[Door, tuple[Outcome, str]] = field(default_factory=dict)
    #: Packets that the reverse path filter has dropped meanwhile.
    reverse_path_drops: int = 0
    #: Who listens on keys of mappings, nfportd itself apart.
    listeners: AbstractMapping[Key, Blocker] = field(default_factory=dict)
    conntrack: Conntrack | None = None

    def of_family(self, family: Family) -> list[Published]:
        """The mappings with a target of this family that is another host's."""
        return [
            each
            for each in self.published
            if each.wanted and any(t.family == family and not self.way(t.address).local for t in each.mapping.targets)
        ]

    def way(self, address: str) -> Way:
        """Where packets for an address go."""
        return self.ways.get(address, Way(trouble="not looked at"))

    def links_of(self, published: Published, family: Family) -> set[str]:
        """The links by which a mapping's targets of one family are reached, that of this host itself apart."""
        ways = (self.way(target.address) for target in published.mapping.targets if target.family == family)
        return {way.link for way in ways if way.link and not way.local}

    def uplink(self, family: Family) -> str | None:
        """The link of the default route."""
        return Topology(self.network).uplink(family)

    @property
    def withdrawn(self) -> bool:
        """Whether a stop has taken everything back: no daemon answers, and there is no table, or it is not ours."""
        nft = self.nftables
        if nft is None or self.daemon.status is not None:
            return False
        return nft.flags is None or (self.daemon.gone and "owner" in nft.flags)


def titles(published: list[Published]) -> tuple[str, ...]:
    """How people call these mappings."""
    return tuple(dict.fromkeys(each.title for each in published))

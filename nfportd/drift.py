"""What others have done to our table, by what the kernel tells of their transactions.

Must not talk to the kernel: bytes in, values out. The one idea: a notification says which element it is about and what
became of it, so the mirror follows and nothing is listed; only of rules, chains and sets it is enough to know that
somebody touched them.

Layout: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h. A transaction's notifications come in its order and
end with one of a new generation, which names the process (nf_tables_commit in net/netfilter/nf_tables_api.c).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nfportd import ruleset
from nfportd.desired import ABSENT, Absent, Parts, Slot
from nfportd.notation import brief

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_NFTABLES, _INET = 10, 1  # NFNL_SUBSYS_NFTABLES, NFPROTO_INET

# enum nf_tables_msg_types; what a `destroy` took away is told as such.
_TABLE_GONE = (2, 26)
_SET_GONE = (11, 29)
_ELEMENT, _ELEMENT_GONE = 12, (14, 30)
_NEW_GENERATION = 15

# Attributes; the table's name is the first of every kind of message.
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*; NFTA_SET_NAME is 2 too
_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10  # NFTA_SET_ELEM_*
_CATCHALL = 2  # NFT_SET_ELEM_CATCHALL
_PROCESS_ID, _PROCESS_NAME = 2, 3  # NFTA_GEN_PROC_*

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
#: Bytes of a field in a concatenated key or value; each field begins at a multiple of four.
_SIZES = {"ipv4_addr": 4, "ipv6_addr": 16, "inet_proto": 1, "inet_service": 2, "ifname": 16}


class Author(NamedTuple):
    """The process that sent a transaction; its pid is that of the first pid namespace."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{brief(self.name)} (pid {self.pid})"


@dataclass(slots=True)
class Drift:
    """What others did to our table. `elements` and `emptied` say what is there now, as far as it is known."""

    #: Notifications were lost or could not be read: anything may have happened.
    lost: bool = False
    #: The table, chains, sets or rules were touched.
    skeleton: bool = False
    #: Sets of which every element has gone, before those in `elements` came.
    emptied: set[str] = field(default_factory=set)
    elements: dict[Slot, Parts | Absent | None] = field(default_factory=dict)
    authors: dict[Author, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.lost or self.skeleton or bool(self.emptied or self.elements)

    def __str__(self) -> str:
        """What was done and by whom, for people."""
        done = []
        if self.lost:
            done.append("changes that could not be followed")
        if self.emptied == ruleset.ELEMENT_SETS:
            done.append("the table was deleted")
        elif self.skeleton:
            done.append("chains, sets or rules were changed")
        if self.elements:
            done.append(f"{len(self.elements)} element{'s were' if len(self.elements) > 1 else ' was'} changed")
        return f"{', '.join(done)} by {', '.join(map(str, self.authors)) or 'an unknown process'}"


class Reader:
    """Gathers notifications into a drift."""

    def __init__(self) -> None:
        self._drift = Drift()
        # Of the transaction whose end has not been seen.
        self._touched = False
        #: Transactions of others, whatever they changed.
        self.transactions = 0

    def feed(self, datagram: bytes) -> None:
        """Take what the kernel sent; what cannot be understood counts as lost. Raises nothing."""
        try:
            for kind, family, body in _messages(datagram):
                if kind == _NEW_GENERATION:
                    self._end(body)
                elif family == _INET and _name(body) == ruleset.TABLE:
                    self._touched = True
                    self._touch(kind, body)
        except (struct.error, ValueError, LookupError):
            self._drift.lost = True

    def lose(self) -> None:
        """Notifications were lost."""
        self._drift.lost, self._touched = True, False

    @property
    def ready(self) -> bool:
        """Whether somebody has touched our table, and everything of that transaction has been told."""
        return bool(self._drift) and not self._touched

    @property
    def pending(self) -> bool:
        """Whether somebody has touched our table, or is just being told to have done so."""
        return bool(self._drift) or self._touched

    def take(self) -> Drift:
        """What has gathered since the last time."""
        if not self.ready:
            return Drift()
        drift, self._drift = self._drift, Drift()
        return drift

    def _end(self, body: memoryview) -> None:
        self.transactions += 1
        if not self._touched:
            return
        self._touched = False
        said = dict(_attributes(body))
        name = bytes(said.get(_PROCESS_NAME, b"")).rstrip(b"\0").decode(errors="replace")
        pid = int.from_bytes(said.get(_PROCESS_ID, b""), "big")
        self._drift.authors[Author(name or "unknown", pid)] = None

    def _touch(self, kind: int, body: memoryview) -> None:
        drift = self._drift
        if kind == _ELEMENT:
            drift.elements.update(_elements(body))
        elif kind in _ELEMENT_GONE:
            drift.elements.update((slot, ABSENT) for slot, _ in _elements(body))
        else:
            drift.skeleton = True
        if kind in _TABLE_GONE:
            drift.emptied |= ruleset.ELEMENT_SETS
            drift.elements.clear()
        elif kind in _SET_GONE:
            name = _text(dict(_attributes(body))[_SET])
            drift.emptied |= {name} & ruleset.ELEMENT_SETS
            drift.elements = {slot: value for slot, value in drift.elements.items() if slot.set != name}


def _messages(datagram: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Kind, family and attributes of each nf_tables message."""
    rest = memoryview(datagram)
    while rest:
        length, kind, *_ = _HEADER.unpack_from(rest)
        if not _HEADER.size <= length <= len(rest):
            raise ValueError("a message says that it is longer than what came")
        if kind >> 8 == _NFTABLES:
            family, *_ = _FAMILY.unpack_from(rest, _HEADER.size)
            yield kind & 0xFF, family, rest[_HEADER.size + _FAMILY.size : length]
        rest = rest[_aligned(length) :]


def _attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise ValueError("an attribute says that it is longer than what came")
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]  # without NLA_F_NESTED, NLA_F_NET_BYTEORDER
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _name(body: memoryview) -> str:
    kind, value = next(_attributes(body), (0, body))
    return _text(value) if kind == _TABLE else ""


def _text(value: memoryview) -> str:
    return bytes(value).split(b"\0", 1)[0].decode()


def _elements(body: memoryview) -> Iterator[tuple[Slot, Parts | None]]:
    """Each element of a message, with its value. Raises ValueError or KeyError for one that we would not write."""
    said = dict(_attributes(body))
    name = _text(said[_SET])
    key, value, flags = ruleset.shape(name)
    for _, element in _attributes(said[_ELEMENTS]):
        parts = dict(_attributes(element))
        if int.from_bytes(parts.get(_FLAGS, b""), "big") & _CATCHALL:
            raise ValueError("an element for everything else")
        found = _fields(key, _data(parts[_KEY]))
        if "interval" in flags:
            last = _fields(key, _data(parts.get(_KEY_END, parts[_KEY])))
            if found[1:] != last[1:]:
                raise ValueError("a range of more than addresses")
            found = (_prefix(str(found[0]), str(last[0])), *found[1:])
        data = parts.get(_DATA)
        yield Slot(name, found), _fields(tuple(value.split(" . ")), _data(data)) if value and data else None


def _data(nested: memoryview) -> memoryview:
    return dict(_attributes(nested))[1]  # NFTA_DATA_VALUE


def _fields(kinds: tuple[str, ...], data: memoryview) -> Parts:
    if len(data) != sum(_aligned(_SIZES[kind]) for kind in kinds):
        raise ValueError("an element of another size than its set's")
    found: list[str | int] = []
    for kind in kinds:
        found.append(_field(kind, bytes(data[: _SIZES[kind]])))
        data = data[_aligned(_SIZES[kind]) :]
    return tuple(found)


def _field(kind: str, raw: bytes) -> str | int:
    match kind:
        case "ipv4_addr" | "ipv6_addr":
            return str(ipaddress.ip_address(raw))
        case "ifname":
            name, _, rest = raw.partition(b"\0")
            if rest.strip(b"\0"):
                raise ValueError("the name of an interface with something behind it")
            return name.decode()
        case "inet_proto":
            return _PROTOCOLS.get(raw[0], raw[0])
    return int.from_bytes(raw, "big")


def _prefix(first: str, last: str) -> str:
    """A range as nft lists it: a prefix where it is one."""
    start, end = ipaddress.ip_address(first), ipaddress.ip_address(last)
    networks = list(ipaddress.summarize_address_range(start, end))
    return str(networks[0]) if len(networks) == 1 else f"{first}-{last}"

"""Entries of connection tracking, by the kernel's own word: dumped by a filter, deleted one by one or by a filter.

Must not know mappings, nor which entries are to go. The one idea: the kernel filters by what a tuple names
(CTA_FILTER, Linux 5.8) and by the status (Linux 5.15); an entry that is to go is named by its own bytes.

Layout: linux/netfilter/nfnetlink_conntrack.h; the bits of a filter: net/netfilter/nf_internals.h.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator, Mapping as AbstractMapping
from typing import NamedTuple

from nfportd.kernel.netlink import NETFILTER, Netlink
from nfportd.model import Endpoint
from nfportd.netlink import attribute, attributes, nested
from nfportd.notation import Family

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_ORIGINAL, _REPLY, _STATUS, _FILTER, _STATUS_MASK = 1, 2, 3, 25, 26  # CTA_*
_IP, _PROTO = 1, 2  # CTA_TUPLE_*
_SOURCE, _DESTINATION = {4: 1, 6: 3}, {4: 2, 6: 4}  # CTA_IP_V4_*, CTA_IP_V6_*
_NUMBER, _FROM, _TO = 1, 2, 3  # CTA_PROTO_*
_OF_ORIGINAL, _OF_REPLY = 1, 2  # CTA_FILTER_*_FLAGS
_BY_SOURCE, _BY_DESTINATION, _BY_NUMBER, _BY_FROM, _BY_TO = 0x1, 0x2, 0x8, 0x10, 0x20  # CTA_FILTER_F_*
_FAMILIES: dict[Family, socket.AddressFamily] = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER_SIZE = 4  # struct nfgenmsg
#: Seconds for a piece of a dump: the kernel may walk a long way to the next entry.
_PATIENCE = 5.0


class Tuple(NamedTuple):
    """One direction of packets, as far as it is told."""

    number: int
    source: str | None = None
    destination: str | None = None
    sport: int | None = None
    dport: int | None = None


class Entry(NamedTuple):
    """A flow: how its first packet went, and who answers it. `name` are the bytes by which the kernel knows it."""

    original: Tuple
    answered_by: Endpoint
    status: int
    name: bytes


class Entries:
    """The entries of the network namespace of the first question."""

    def __init__(self) -> None:
        self._kernel = Netlink(NETFILTER, _PATIENCE)

    def close(self) -> None:
        """Close the socket."""
        self._kernel.close()

    def dump(self, family: Family, original: Tuple, lacking: int = 0) -> Iterator[Entry]:
        """The entries that match; `lacking`: and have none of these bits of the status. Raises OSError, ValueError."""
        body = _head(family) + _filtered(family, original)
        if lacking:
            body += attribute(_STATUS, bytes(4)) + attribute(_STATUS_MASK, lacking.to_bytes(4, "big"))
        for answer in self._kernel.answers(_GET, body, dump=True):
            entry = _read(family, dict(attributes(answer[_HEADER_SIZE:])))
            # Looked at here too, for an older kernel does not know such a filter.
            if not entry.status & lacking:
                yield entry

    def delete(self, family: Family, entry: Entry) -> None:
        """Delete one; it may have ended by itself. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._kernel.tell(_DELETE, _head(family) + nested(_ORIGINAL, entry.name))

    def delete_all(self, family: Family, original: Tuple, reply: Tuple | None = None) -> None:
        """Delete those that match, without a dump. Raises OSError."""
        self._kernel.tell(_DELETE, _head(family) + _filtered(family, original, reply))


def _head(family: Family) -> bytes:
    return bytes((_FAMILIES[family], 0, 0, 0))


def _filtered(family: Family, original: Tuple, reply: Tuple | None = None) -> bytes:
    """What entries must have, and the bits that say what of it counts."""
    ways = [(_ORIGINAL, _OF_ORIGINAL, original)] + ([(_REPLY, _OF_REPLY, reply)] if reply else [])
    flags = [attribute(counts, _bits(each).to_bytes(4, sys.byteorder)) for _, counts, each in ways]
    return b"".join(nested(kind, _written(family, each)) for kind, _, each in ways) + nested(_FILTER, *flags)


def _bits(wanted: Tuple) -> int:
    bits = (_BY_NUMBER, _BY_SOURCE, _BY_DESTINATION, _BY_FROM, _BY_TO)
    return sum(bit for bit, value in zip(bits, wanted, strict=True) if value is not None)


def _written(family: Family, wanted: Tuple) -> bytes:
    addresses = (_SOURCE[family], wanted.source), (_DESTINATION[family], wanted.destination)
    ports = (_FROM, wanted.sport), (_TO, wanted.dport)
    packed = [attribute(kind, socket.inet_pton(_FAMILIES[family], each)) for kind, each in addresses if each]
    numbers = [attribute(kind, each.to_bytes(2, "big")) for kind, each in ports if each is not None]
    protocol = nested(_PROTO, attribute(_NUMBER, bytes([wanted.number])), *numbers)
    return (nested(_IP, *packed) if packed else b"") + protocol


def _read(family: Family, said: AbstractMapping[int, memoryview]) -> Entry:
    original, reply = _tuple(family, said[_ORIGINAL]), _tuple(family, said[_REPLY])
    answered_by = Endpoint(reply.source or "", reply.sport or 0)
    return Entry(original, answered_by, int.from_bytes(said.get(_STATUS, b""), "big"), bytes(said[_ORIGINAL]))


def _tuple(family: Family, told: memoryview) -> Tuple:
    parts = dict(attributes(told))
    addresses, ports = dict(attributes(parts[_IP])), dict(attributes(parts[_PROTO]))
    source, destination = (
        socket.inet_ntop(_FAMILIES[family], addresses[each[family]]) for each in (_SOURCE, _DESTINATION)
    )
    sport, dport = (int.from_bytes(ports.get(each, b""), "big") for each in (_FROM, _TO))
    return Tuple(ports[_NUMBER][0], source, destination, sport, dport)

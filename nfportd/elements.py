"""Our sets' elements in the kernel's words: read as slots and values, and written as a transaction.

Must not talk to the kernel: bytes in, values out, or the other way round. The one idea: an element as we write it has
one layout, so it is read and written at fixed places (60,000 in 0.2 s); what looks otherwise is cut into its
attributes, or left to libnftables.

Layout: linux/netfilter/nf_tables.h, nfnetlink.h; the order of an element's parts: nf_tables_fill_setelem in
net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping as AbstractMapping
from functools import lru_cache
from typing import NamedTuple

from nfportd import ruleset
from nfportd.desired import Delta, Parts, Slot
from nfportd.netlink import attributes, named, nested, request, text

_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_ELEMENT = 1  # NFTA_LIST_ELEM
_KEY, _DATA, _FLAGS, _USER_DATA, _EXPRESSION, _KEY_END = 1, 2, 3, 6, 7, 10  # NFTA_SET_ELEM_*
_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT
_VALUE = 1  # NFTA_DATA_VALUE
_CATCHALL = 2  # NFT_SET_ELEM_CATCHALL
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_TYPE = 0x3FFF  # NLA_TYPE_MASK

#: nlmsg_type and nlmsg_flags of what a transaction is made of.
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_*
_ADD, _DELETE = 10 << 8 | 12, 10 << 8 | 14  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWSETELEM and _DELSETELEM
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400  # NLM_F_*
_BATCH, _INET = bytes((0, 0, 0, 10)), bytes((1, 0, 0, 0))  # struct nfgenmsg: family, version, subsystem
#: The sequence number of all its messages; libnftables counts from 0.
SEQUENCE = 0x6E667064
#: Elements in one message: an attribute has at most 64 KiB, and an answer repeats the message that is refused.
_TOGETHER = 256

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_NUMBERS = {name: number for number, name in _PROTOCOLS.items()}
#: The fields of a concatenated key or value, as struct has them; each begins at a multiple of four bytes.
_FORMATS = {"ipv4_addr": "4s", "ipv6_addr": "16s", "inet_proto": "B3x", "inet_service": "H2x", "ifname": "16s"}
_LINK_SIZE = 16  # IFNAMSIZ


def read(body: memoryview) -> Iterator[tuple[Slot, Parts | None]]:
    """Each element in the attributes of a message, with its value.

    Raises ValueError or KeyError for one that we would not write.
    """
    said = dict(attributes(body))
    name = text(said[_SET])
    layout = _layout(name)
    for _, element in attributes(said[_ELEMENTS]):
        key, value = layout.at_once(element) or layout.in_parts(dict(attributes(element)))
        yield Slot(name, key), value


def transaction(change: Delta, table: str = ruleset.TABLE) -> bytes | None:
    """A delta as one transaction, removals first, of which the kernel answers the last message.

    None where it has an element that we would not write, which others' may be: those libnftables can name.
    """
    try:
        messages = [
            (kind, flags, named(_TABLE, table) + named(_SET, name) + nested(_ELEMENTS, *written[at : at + _TOGETHER]))
            for kind, flags, slots in ((_DELETE, _REQUEST, change.remove), (_ADD, _REQUEST | _CREATE, change.add))
            for name, written in _by_set(slots, values=kind == _ADD).items()
            for at in range(0, len(written), _TOGETHER)
        ]
    except (LookupError, TypeError, ValueError, struct.error):
        return None
    last = len(messages) - 1
    inside = (
        request(kind, flags | (_ACK if number == last else 0), _INET + body, SEQUENCE)
        for number, (kind, flags, body) in enumerate(messages)
    )
    begin, end = (request(kind, _REQUEST, _BATCH, SEQUENCE) for kind in (_BEGIN, _END))
    return b"".join([begin, *inside, end])


def _by_set(slots: AbstractMapping[Slot, Parts | None], *, values: bool) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for (name, key), value in slots.items():
        found.setdefault(name, []).append(nested(_ELEMENT, *_layout(name).written(key, value if values else None)))
    return found


def gathered(bodies: Iterable[memoryview]) -> dict[Parts, Parts | None]:
    """The elements of one set, from all messages about it. Raises as `read` does."""
    return {slot.key: value for body in bodies for slot, value in read(body)}


def comment(bodies: Iterable[memoryview]) -> str | None:
    """The comment of the only element of a set; None where there is none, or not one element.

    nft keeps it in the element's user data, of which each part has a type and a length of one byte
    (NFTNL_UDATA_SET_ELEM_COMMENT in libnftnl/udata.h). Raises as `read` does.
    """
    found = [element for body in bodies for _, element in attributes(dict(attributes(body))[_ELEMENTS])]
    data = bytes(dict(attributes(found[0])).get(_USER_DATA, b"")) if len(found) == 1 else b""
    while len(data) >= 2:
        kind, length = data[:2]
        if kind == _COMMENT:
            return data[2 : 2 + length].rstrip(b"\0").decode()
        data = data[2 + length :]
    return None


class _Fields(NamedTuple):
    """How a key or value is laid out: the attributes around it, its bytes, and what each field means."""

    head: bytes
    fields: struct.Struct
    meanings: tuple[Callable[..., str | int], ...]
    writers: tuple[Callable[..., bytes | int], ...]

    @classmethod
    def of(cls, attribute: int, kinds: tuple[str, ...]) -> _Fields:
        fields = struct.Struct(">" + "".join(_FORMATS[kind] for kind in kinds))
        inner = _ATTRIBUTE.pack(_ATTRIBUTE.size + fields.size, _VALUE)
        outer = _ATTRIBUTE.pack(2 * _ATTRIBUTE.size + fields.size, attribute)
        return cls(
            outer + inner, fields, tuple(_MEANINGS[kind] for kind in kinds), tuple(_WRITERS[kind] for kind in kinds)
        )

    @property
    def size(self) -> int:
        return len(self.head) + self.fields.size

    def parts(self, data: memoryview, at: int = 0) -> Parts:
        """The fields that begin at a place."""
        found = self.fields.unpack_from(data, at)
        return tuple([meaning(each) for meaning, each in zip(self.meanings, found, strict=True)])

    def written(self, parts: Parts) -> bytes:
        """The attribute of such fields."""
        values = [write(part) for write, part in zip(self.writers, parts, strict=True)]
        return self.head + self.fields.pack(*values)

    def whole(self, data: memoryview) -> Parts:
        """The fields of which an attribute consists."""
        value = dict(attributes(data))[_VALUE]
        if len(value) != self.fields.size:
            raise ValueError("an element of another size than its set's")
        return self.parts(value)


class _Layout(NamedTuple):
    """How the elements of a set are laid out."""

    key: _Fields
    value: _Fields | None
    #: The last key of a range, in a set of ranges.
    end: _Fields | None

    def at_once(self, element: memoryview) -> tuple[Parts, Parts | None] | None:
        """Key and value of an element of the usual form; None where it has another one."""
        key, value = self.key, self.value
        if self.end or element[: len(key.head)] != key.head:
            return None
        if value is None:
            return (key.parts(element, len(key.head)), None) if len(element) == key.size else None
        start = key.size + len(value.head)
        if element[key.size : start] != value.head or not _only_counts(element, key.size + value.size):
            return None
        return key.parts(element, len(key.head)), value.parts(element, start)

    def in_parts(self, parts: dict[int, memoryview]) -> tuple[Parts, Parts | None]:
        """The same of any form."""
        if int.from_bytes(parts.get(_FLAGS, b""), "big") & _CATCHALL:
            raise ValueError("an element for everything else")
        found = self.key.whole(parts[_KEY])
        if self.end:
            last = self.key.whole(parts.get(_KEY_END, parts[_KEY]))
            if found[1:] != last[1:]:
                raise ValueError("a range of more than addresses")
            found = (_prefix(str(found[0]), str(last[0])), *found[1:])
        return found, self.value.whole(parts[_DATA]) if self.value and _DATA in parts else None

    def written(self, key: Parts, value: Parts | None) -> list[bytes]:
        """The attributes of an element."""
        if self.end:
            first, last = _range(key[0])
            return [self.key.written((first, *key[1:])), self.end.written((last, *key[1:]))]
        if value is None:
            return [self.key.written(key)]
        if self.value is None:
            raise ValueError("an element of a set has no value")
        return [self.key.written(key), self.value.written(value)]


def _only_counts(element: memoryview, at: int) -> bool:
    """Whether nothing but one expression follows."""
    if at + _ATTRIBUTE.size > len(element):
        return at == len(element)
    length, kind = _ATTRIBUTE.unpack_from(element, at)
    return bool(at + length == len(element) and kind & _TYPE == _EXPRESSION)


def _address(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))


def _protocol(number: int) -> str | int:
    return _PROTOCOLS.get(number, number)


def _port(number: int) -> int:
    return number


def _link(raw: bytes) -> str:
    name, _, rest = raw.partition(b"\0")
    if rest.strip(b"\0"):
        raise ValueError("the name of an interface with something behind it")
    return name.decode()


#: Addresses that are remembered as text: many elements lead to the same ones.
_REMEMBERED = 4096
_MEANINGS: dict[str, Callable[..., str | int]] = {
    "ipv4_addr": lru_cache(_REMEMBERED)(_address),
    "ipv6_addr": lru_cache(_REMEMBERED)(_address),
    "inet_proto": _protocol,
    "inet_service": _port,
    "ifname": _link,
}


def _link_written(name: str) -> bytes:
    if not 0 < len(written := name.encode()) < _LINK_SIZE or b"\0" in written:
        raise ValueError("not the name of an interface")
    return written


_WRITERS: dict[str, Callable[..., bytes | int]] = {
    "ipv4_addr": lru_cache(_REMEMBERED)(lambda written: ipaddress.IPv4Address(written).packed),
    "ipv6_addr": lru_cache(_REMEMBERED)(lambda written: ipaddress.IPv6Address(written).packed),
    "inet_proto": _NUMBERS.__getitem__,
    "inet_service": _port,
    "ifname": _link_written,
}


@lru_cache
def _layout(name: str) -> _Layout:
    key, value, flags = ruleset.shape(name)
    fields = _Fields.of(_DATA, tuple(value.split(" . "))) if value else None
    return _Layout(_Fields.of(_KEY, key), fields, _Fields.of(_KEY_END, key) if "interval" in flags else None)


@lru_cache(_REMEMBERED)
def _range(prefix: str) -> tuple[str, str]:
    """The first and the last address of a prefix."""
    network = ipaddress.ip_network(prefix)
    return str(network[0]), str(network[-1])


def _prefix(first: str, last: str) -> str:
    """A range as nft lists it: a prefix where it is one."""
    start, end = ipaddress.ip_address(first), ipaddress.ip_address(last)
    networks = list(ipaddress.summarize_address_range(start, end))
    return str(networks[0]) if len(networks) == 1 else f"{first}-{last}"

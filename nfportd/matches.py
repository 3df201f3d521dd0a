"""Whether a packet matches a condition of a rule, as `nft -j` lists it (libnftables-json(5)): yes, no, or a doubt.

Must not know chains or verdicts. The one idea: of a packet that has not come yet some fields are known and others are
not, so an answer has more than two values, and a set that was not listed is a question for who can ask the kernel.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any

from nfportd.notation import Family


class Doubt(Enum):
    """Why it cannot be told. `CLIENT`: it depends on who connects, and when; `OPAQUE`: what is asked cannot be read."""

    CLIENT = 1
    OPAQUE = 2


Answer = bool | Doubt


def either(answers: Iterable[Answer]) -> Answer:
    """Whether one of them is yes."""
    seen = set(answers)
    return next((answer for answer in (True, Doubt.OPAQUE, Doubt.CLIENT) if answer in seen), False)


def both(answers: Iterable[Answer]) -> Answer:
    """Whether all of them are yes."""
    return negated(either(map(negated, answers)))


def negated(answer: Answer) -> Answer:
    """The contrary."""
    return answer if isinstance(answer, Doubt) else not answer


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection through a mapping, or of its answers, as it passes a hook.

    None: it is not known; an interface of no name: there is none. `listen_port`: where the client had sent it. Where
    it is not `translated`, the destination is not the target's yet; `local`: it is an address of this host.
    """

    family: Family
    protocol: str
    saddr: str | None = None
    sport: int | None = None
    daddr: str | None = None
    dport: int | None = None
    iif: str | None = None
    oif: str | None = None
    listen_port: int | None = None
    reply: bool = False
    translated: bool = True
    local: bool = False

    def answered(self) -> Packet:
        """The first packet that comes back."""
        return replace(
            self,
            saddr=self.daddr,
            sport=self.dport,
            daddr=self.saddr,
            dport=self.sport,
            iif=self.oif,
            oif=self.iif,
            reply=True,
        )


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that cannot be told, but for what it surely is not."""

    why: Doubt = Doubt.CLIENT
    never: tuple[object, ...] = ()


#: A packet has no such field; no condition on it is true.
_ABSENT = object()
_SOMEBODY = Unknown()
_OPAQUE = Unknown(Doubt.OPAQUE)
#: What is forwarded has come by a real link.
_SOME_LINK = Unknown(never=("lo",))
#: What fib finds for a source whose answers have a way.
_SOME_WAY = Unknown(never=(False,))

#: Where /etc/protocols is missing (package netbase), nft lists numbers.
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_PORTS = ("sport", "dport")
#: Bytes of the parts of keys.
_SIZES = {"ipv4_addr": 4, "ipv6_addr": 16, "inet_proto": 1, "inet_service": 2, "ifname": 16}

#: Whether a set, by its name, has a key.
Contains = Callable[[str, tuple[str | int, ...]], Answer]


def matches(condition: Any, packet: Packet, contains: Contains) -> Answer:
    """Whether a `match` statement lets a packet go on to the rest of its rule."""
    left = value(condition["left"], packet)
    operator, right = condition["op"], condition["right"]
    if left is _ABSENT:
        return False
    if isinstance(left, frozenset):
        return _bits(operator, left, right)
    if operator in ("==", "in", "!="):
        found = same(left, right, contains)
        return negated(found) if operator == "!=" else found
    if isinstance(left, Unknown):
        return left.why
    if isinstance(left, int) and isinstance(right, int):
        return {"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}.get(
            operator, Doubt.OPAQUE
        )
    return Doubt.OPAQUE


def value(expression: Any, packet: Packet) -> Any:
    """What an expression is for a packet: a number, text, a set of flags, a tuple; an Unknown, or absent."""
    match expression:
        case {"meta": {"key": key}}:
            return _meta(key, packet)
        case {"payload": {"protocol": protocol, "field": field}}:
            return _payload(protocol, field, packet)
        case {"ct": {"key": key, **more}}:
            return _tracked(str(key), str(more.get("dir", "")), packet)
        case {"fib": {"result": result, "flags": flags}}:
            return _fib(result, flags, packet)
        case {"concat": parts}:
            values = tuple(value(part, packet) for part in parts)
            return _ABSENT if _ABSENT in values else values
        case {"&": [inside, mask]}:
            return _masked(value(inside, packet), mask)
    return _OPAQUE


def _fib(result: str, flags: Any, packet: Packet) -> Any:
    if result != "type" or "daddr" not in flags:
        return _SOME_WAY  # that a source has one is taken for granted
    if packet.local and {"iif", "oif"} & set(flags):
        return _OPAQUE  # whether this very link has the address is not known
    return "local" if packet.local else "unicast"


def _meta(key: str, packet: Packet) -> Any:
    match key:
        case "iif" | "iifname":
            return _SOME_LINK if packet.iif is None else packet.iif
        case "oif" | "oifname":
            return _SOME_LINK if packet.oif is None else packet.oif
        case "l4proto":
            return packet.protocol
        case "nfproto":
            return f"ipv{packet.family}"
        case "protocol":
            return "ip" if packet.family == 4 else "ip6"
    return _SOMEBODY


def _payload(protocol: str, field: str, packet: Packet) -> Any:
    if protocol in ("ip", "ip6"):
        if protocol != ("ip" if packet.family == 4 else "ip6"):
            return _ABSENT
        return packet.protocol if field in ("protocol", "nexthdr") else _address(field, packet)
    if protocol in ("icmp", "icmpv6", "igmp", "tcp", "udp", "udplite", "sctp", "dccp", "esp", "ah", "comp"):
        if protocol != packet.protocol:
            return _ABSENT
    elif protocol != "th":
        return _OPAQUE
    if field == "flags" and protocol == "tcp":
        return frozenset({"syn", "ack"} if packet.reply else {"syn"})
    if field in _PORTS:
        return (packet.sport if field == "sport" else packet.dport) or _SOMEBODY
    return _SOMEBODY


def _address(field: str, packet: Packet) -> Any:
    own, other = (packet.saddr, packet.daddr) if field == "saddr" else (packet.daddr, packet.saddr)
    # A target that calls itself is not the client that we think of.
    return (own or Unknown(never=(other,))) if field in ("saddr", "daddr") else _SOMEBODY


def _tracked(key: str, direction: str, packet: Packet) -> Any:
    if key == "state":
        return frozenset({"established" if packet.reply else "new"})
    if key == "status":
        # `translated`: bits without a name, which is why `ct status dnat` as an equation is never true.
        done = {"dnat", "translated"} if packet.translated else set()
        return frozenset(done | ({"seen-reply", "confirmed"} if packet.reply else set()))
    if key == "direction":
        return "reply" if packet.reply else "original"
    if (key, direction) == ("proto-dst", "original"):
        return packet.listen_port or (not packet.translated and packet.dport) or _SOMEBODY
    return packet.protocol if key == "protocol" else _SOMEBODY


def _masked(inside: Any, mask: Any) -> Any:
    if isinstance(inside, frozenset):
        names = _names(mask)
        return _OPAQUE if names is None else inside & names
    return inside if isinstance(inside, Unknown) or inside is _ABSENT else _OPAQUE


def _names(written: Any) -> frozenset[str] | None:
    """Flags as nft lists them; 1.0.6 a list, 1.1.3 an expression."""
    match written:
        case 0:
            return frozenset()
        case str():
            return frozenset({written})
        case [*_] | {"|": [*_]}:
            parts = [_names(part) for part in (written if isinstance(written, list) else written["|"])]
            known = [part for part in parts if part is not None]
            return frozenset().union(*known) if len(known) == len(parts) else None
    return None


def _bits(operator: str, left: frozenset[str], right: Any) -> Answer:
    written = right["set"] if isinstance(right, dict) and "set" in right else [right]
    asked = [_names(each) for each in written]
    if None in asked:
        return Doubt.OPAQUE
    if operator in ("in", "!"):
        shared = any(left & (each or frozenset()) for each in asked)
        return shared if operator == "in" else not shared
    if operator in ("==", "!="):
        return (left in asked) == (operator == "==")
    return Doubt.OPAQUE


def same(left: Any, right: Any, contains: Contains) -> Answer:
    """Whether a value is the one that nft lists, or among those."""
    match right:
        case {"set": [*elements]}:
            return either(same(left, element, contains) for element in elements)
        case {"elem": {"val": inside}}:
            return same(left, inside, contains)
        case {"concat": [*parts]} if isinstance(left, tuple) and len(left) == len(parts):
            return both(same(one, other, contains) for one, other in zip(left, parts, strict=True))
        case str() if right.startswith("@"):
            return _in_set(left, right.removeprefix("@"), contains)
    if isinstance(left, Unknown):
        return False if not isinstance(right, dict | list) and right in left.never else left.why
    if isinstance(left, frozenset):
        return _bits("==", left, right)
    return left is not _ABSENT and _is(left, right)


def _is(left: Any, right: Any) -> Answer:
    match right:
        case {"prefix": {"addr": address, "len": length}}:
            return _between(left, address, length)
        case {"range": [first, last]}:
            return _number(first) <= _number(left) <= _number(last)
        case str() if right.endswith("*") and isinstance(left, str):
            return left.startswith(right.removesuffix("*"))
        case str() | int():
            return left == right or -1 != _number(left) == _number(right)
    return Doubt.OPAQUE


def _in_set(left: Any, name: str, contains: Contains) -> Answer:
    parts = left if isinstance(left, tuple) else (left,)
    doubts = [part.why for part in parts if isinstance(part, Unknown)]
    if doubts:
        return either(doubts)
    return False if _ABSENT in parts else contains(name, parts)


def encoded(parts: tuple[str | int, ...], types: tuple[str, ...]) -> bytes | None:
    """A key as the kernel has it, by the types of its parts; None for types that a packet's fields do not have."""
    if len(parts) != len(types) or not all(kind in _SIZES for kind in types):
        return None
    fields = [_field(part, kind) for part, kind in zip(parts, types, strict=True)]
    # In a concatenation each begins at a multiple of four.
    return fields[0] if len(fields) == 1 else b"".join(each + bytes(-len(each) % 4) for each in fields)


def _field(part: str | int, kind: str) -> bytes:
    size = _SIZES[kind]
    if kind == "ifname":
        return str(part).encode()[: size - 1].ljust(size, b"\0")
    return max(_number(part), 0).to_bytes(size, "big")


def _between(left: Any, address: str, length: int) -> Answer:
    if not _is_address(address):
        return str(left).startswith(address.rstrip("*"))
    hidden = (32 if ":" not in address else 128) - length
    return (":" in address) == (":" in str(left)) and _number(left) >> hidden == _number(address) >> hidden


@lru_cache(1 << 14)
def _is_address(text: Any) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return isinstance(text, str)


@lru_cache(1 << 14)
def _number(part: Any) -> int:
    """For comparison: an address, a protocol or a port as a number; -1 for anything else."""
    if isinstance(part, str):
        return int(ipaddress.ip_address(part)) if _is_address(part) else _NUMBERS.get(part, -1)
    return part if isinstance(part, int) else -1


# Of linux/netfilter/xt_conntrack.h; struct xt_conntrack_mtinfo3 has the four masks at byte 146.
_CONNTRACK = struct.Struct("=146x4H")
_STATE, _STATUS, _STATE_ALIAS = 1 << 0, 1 << 6, 1 << 13
_ESTABLISHED, _NEW, _DNAT = 1 << 1, 1 << 3, 1 << 7  # XT_CONNTRACK_STATE_BIT
_SEEN_REPLY, _CONFIRMED, _DST_NAT = 1 << 1, 1 << 3, 1 << 5  # enum ip_conntrack_status
# Of linux/netfilter/xt_multiport.h: struct xt_multiport_v1.
_MULTIPORT = struct.Struct("=BB15H15BB")
_DESTINATIONS = 1
# Of linux/netfilter/xt_addrtype.h: struct xt_addrtype_info_v1, XT_ADDRTYPE_*.
_ADDRTYPE = struct.Struct("=HHI")
_UNICAST_TYPE, _LOCAL_TYPE, _INVERT_DEST, _OF_ONE_LINK = 1 << 1, 1 << 2, 1 << 1, 1 << 2 | 1 << 3


def xt_matches(entry: Any, packet: Packet) -> Answer:
    """Whether a match of iptables-nft lets a packet go on. nft lists its name only; `rev` (an int) and `info` (bytes)
    are what the kernel has besides."""
    match entry:
        case {"name": "comment"}:
            return True
        case {"name": "icmp" | "icmp6"}:
            return False
        case {"name": "conntrack" | "state", "rev": 2 | 3, "info": bytes(info)} if len(info) >= _CONNTRACK.size:
            return _xt_conntrack(info, packet)
        case {"name": "multiport", "rev": 1, "info": bytes(info)} if len(info) >= _MULTIPORT.size:
            return _xt_multiport(info, packet)
        case {"name": "addrtype", "rev": 1, "info": bytes(info)} if len(info) >= _ADDRTYPE.size:
            return _xt_addrtype(info, packet)
        case {"name": "limit" | "hashlimit" | "connlimit" | "recent" | "statistic" | "time" | "quota" | "mark"}:
            return Doubt.CLIENT
    return Doubt.OPAQUE


def _xt_conntrack(info: bytes, packet: Packet) -> Answer:
    asked, inverted, states, statuses = _CONNTRACK.unpack_from(info)
    answers: list[Answer] = []
    if asked & _STATE:
        mine = (_DNAT if packet.translated else 0) | (_ESTABLISHED if packet.reply else _NEW)
        answers.append(bool(mine & states) != bool(inverted & _STATE))
    if asked & _STATUS:
        mine = (_DST_NAT if packet.translated else 0) | (_SEEN_REPLY | _CONFIRMED if packet.reply else 0)
        answers.append(bool(mine & statuses) != bool(inverted & _STATUS))
    if asked & ~(_STATE | _STATUS | _STATE_ALIAS):
        answers.append(Doubt.OPAQUE)
    return both(answers)


def _xt_multiport(info: bytes, packet: Packet) -> Answer:
    sides, count, *rest = _MULTIPORT.unpack_from(info)
    ports, goes_on, inverted = rest[:15], rest[15:30], rest[30]
    if sides != _DESTINATIONS:
        return Doubt.CLIENT
    if packet.dport is None:
        return Doubt.CLIENT
    found, number = False, 0
    while number < min(count, 15):
        last = number + 1 if goes_on[number] and number < 14 else number
        found |= ports[number] <= packet.dport <= ports[last]
        number = last + 1
    return found != bool(inverted)


def _xt_addrtype(info: bytes, packet: Packet) -> Answer:
    source, destination, flags = _ADDRTYPE.unpack_from(info)
    if source or flags & _OF_ONE_LINK:
        return Doubt.OPAQUE
    mine = _LOCAL_TYPE if packet.local else _UNICAST_TYPE
    return bool(destination & mine) != bool(flags & _INVERT_DEST)

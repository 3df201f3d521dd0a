"""What base chains of type nat make of a packet's addresses, and whether they come before ours.

Must not ask the kernel. The one idea: the first base chain of a hook that translates a connection is the last that is
asked (nf_nat_inet_fn in net/netfilter/nf_nat_core.c), so another program's DNAT before ours takes the connection.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from nfportd import forwarding
from nfportd.forwarding import FAMILIES, TRANSLATIONS, Chain, Hooked, Lookups, Place, Ruleset, Verdict, Walk
from nfportd.matches import Answer, Packet
from nfportd.ruleset import TABLE

# Of linux/netfilter/nf_nat.h: nf_nat_range2, which begins as nf_nat_range does; nf_nat_ipv4_multi_range_compat.
_RANGE, _MULTI_RANGE = struct.Struct("=I16s16s2s2s"), struct.Struct("=II4s4s2s2s")
_MAPS_ADDRESS, _MAPS_PORT = 1, 2  # NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
_XT: dict[str, Verdict] = {name.upper(): kind for name, kind in TRANSLATIONS.items()}


class Translation(NamedTuple):
    """What a base chain does to a packet: `place` is the rule, its verdict says how (`dnat`, `redirect`, `masquerade`,
    `snat`; or `drop` and the like), its `to` where to, as far as that can be read (`10.0.0.1:80`, `:80`).

    Certain: the chain does this, or another of those that are found of it; else it may let the packet pass.
    """

    base: Chain
    place: Place
    certain: bool


class Order(NamedTuple):
    """The nat base chains of others by when they are called: before ours, at its priority but made earlier, after it.

    At one priority the chain that was made last is called first (nf_hook_entries_grow in net/netfilter/core.c). Tables
    are listed as they were made. A new chain in an old table is not told from an old one, hence `level`.
    """

    before: tuple[Hooked, ...]
    level: tuple[Hooked, ...]
    after: tuple[Hooked, ...]


def order(listing: Any, hook: str) -> Order:
    """Read it from what `nft -j list chains` gives, for `prerouting` or `output` (or `postrouting`).

    Where there is no table of ours, every chain is before it.
    """
    found = [base for base in forwarding.bases(listing, hook) if base.type == "nat"]
    mine = next((base for base in found if base.chain[:2] == ("inet", TABLE)), None)
    if mine is None:
        return Order(_as_called(found), (), ())
    place = found.index(mine)
    level = [base for base in found[:place] if base.priority == mine.priority]
    before = [base for base in found if base.priority <= mine.priority and base is not mine and base not in level]
    after = [base for base in found if base.priority > mine.priority]
    return Order(_as_called(before), _as_called(level), _as_called(after))


def _as_called(bases: Iterable[Hooked]) -> tuple[Hooked, ...]:
    """Of those of one priority, the last made first."""
    newest_first = list(bases)[::-1]
    return tuple(sorted(newest_first, key=lambda base: base.priority))


def translations(ruleset: Ruleset, packet: Packet, lookups: Lookups) -> list[Translation]:
    """What becomes of a packet in the nat base chains of a ruleset (its `bases`, in their order, up to the first that
    certainly translates or drops it).

    The packet is the one that the hook sees: for prerouting and output `translated` is false and the destination the
    client's, `local` if this host has that address. For bases before ours:
    `ruleset._replace(bases=order(chains, hook).before)`. What elements are asked for is noted in `lookups`.
    """
    walk = _NatWalk(ruleset, packet, lookups)
    found: list[Translation] = []
    for base in ruleset.bases:
        if base.type != "nat" or base.chain.family not in FAMILIES[packet.family]:
            continue
        outcome = walk.follow(base.chain)
        places = outcome.stops
        if outcome.returns and base.policy == "drop":
            places += (Place(base.chain, None, "drop"),)
        certain = not outcome.accepts and not (outcome.returns and base.policy != "drop")
        found += [Translation(base.chain, place, certain) for place in dict.fromkeys(places)]
        if certain:
            break
    return found


class _NatWalk(Walk):
    """The way of a packet through chains whose rules may translate it."""

    def ends(self, chain: Chain, hit: Answer, statement: Any) -> Iterable[tuple[Answer, Any]] | None:
        match statement:
            case {"xt": {"type": "target", "name": name, "info": bytes(info)}} if name in _XT:
                return [(hit, {"translation": (_XT[name], _xt_to(info, self.packet.family))})]
            case {"xt": {"type": "target", "name": name}} if name in _XT:
                return [(hit, {"translation": (_XT[name], "")})]
            case dict():
                for kind in statement.keys() & TRANSLATIONS.keys():
                    return self._translated(chain, hit, TRANSLATIONS[kind], statement[kind] or {})
        return super().ends(chain, hit, statement)

    def _translated(self, chain: Chain, hit: Answer, kind: Verdict, said: Any) -> Iterator[tuple[Answer, Any]]:
        address, port = said.get("addr", ""), said.get("port")
        written = "" if port is None else str(port) if isinstance(port, int) else _written(port) or "?"
        if not (isinstance(address, dict) and "map" in address):
            yield hit, {"translation": (kind, _joined(_written(address), written))}
            return
        # Where a map has no such key, the rest of the rule is not looked at.
        for chosen, found in self.choices(chain, hit, address["map"]["key"], address["map"]["data"]):
            yield chosen, {"translation": (kind, _joined(_written(found), written))}


def _written(said: Any) -> str:
    """An address, perhaps with a port, of a statement or an element; nothing where it cannot be read."""
    match said:
        case str() | int():
            return str(said)
        case bytes() if len(said) in (4, 8, 16, 20):
            size = 4 if len(said) < 16 else 16
            port = str(int.from_bytes(said[size : size + 2], "big")) if len(said) > size else ""
            return _joined(str(ipaddress.ip_address(said[:size])), port)
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"concat": [str(address), int(port)]}:
            return _joined(address, str(port))
        case {"elem": {"val": inside}}:
            return _written(inside)
    return ""


def _joined(address: str, port: str) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _xt_to(info: bytes, family: int) -> str:
    """The address and port in a target of iptables."""
    if len(info) >= _RANGE.size:
        flags, first, last, low, high = _RANGE.unpack_from(info)
    elif len(info) >= _MULTI_RANGE.size:
        _, flags, first, last, low, high = _MULTI_RANGE.unpack_from(info)
    else:
        return ""
    size = 4 if family == 4 else 16
    addresses = [str(ipaddress.ip_address(each[:size])) for each in (first, last)] if flags & _MAPS_ADDRESS else []
    ports = [str(int.from_bytes(each, "big")) for each in (low, high)] if flags & _MAPS_PORT else []
    return _joined("-".join(dict.fromkeys(addresses)), "-".join(dict.fromkeys(ports)))

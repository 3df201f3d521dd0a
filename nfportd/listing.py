"""Reading what nft lists of our table, in the shape of nft 1.0.6 and of 1.1.3, whoever wrote it.

Must not run nft: parsed JSON in, values out. The one idea: what is ours is read as it was written, so that it can be
compared; what is not ours is read all the same, in words by which nft can take it out.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping as AbstractMapping
from typing import Any

from nfportd import ruleset
from nfportd.desired import Elements, Parts
from nfportd.ruleset import ELEMENT_SETS, Listed, Shape

#: Where /etc/protocols is missing (package netbase), nft lists numbers.
_PROTOCOLS: dict[str | int, str] = {6: "tcp", 17: "udp", 132: "sctp"}


def parse(listing: dict[str, Any]) -> Listed | None:
    """Read our table from what `nft -j` lists, also among others; None where it is not there.

    Raises ValueError for what no nft that we know would list.
    """
    try:
        return _parse(listing)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the listing has another form ({error!r})") from None


def _parse(listing: dict[str, Any]) -> Listed | None:
    found: dict[str, list[dict[str, Any]]] = {"table": [], "chain": [], "rule": [], "set": [], "map": [], "counter": []}
    for item in listing["nftables"]:
        for kind, value in item.items():
            table = value.get("name" if kind == "table" else "table")
            if kind in found and table == ruleset.TABLE and value["family"] == "inet":
                found[kind].append(value)
    if not found["table"]:
        return None
    listed_sets = {s["name"]: s for s in found["set"] + found["map"]}
    elements: Elements = {}
    for name in sorted(ELEMENT_SETS):
        listed = listed_sets.get(name, {})
        ours = listed and _shape(listed) == ruleset.shape(name)
        elements[name] = dict(_elements(name, listed)) if ours else {}
    return Listed(
        elements,
        {c["name"]: (c.get("type"), c.get("hook"), c.get("prio"), c.get("policy")) for c in found["chain"]},
        {name: _shape(s) for name, s in listed_sets.items()},
        _rules(found["rule"]),
        _comment(listed_sets.get("fingerprint", {})),
        tuple(sorted(_listed(found["table"][0].get("flags")))),
        frozenset(c["name"] for c in found["counter"]),
        _packets(found["counter"], ruleset.BLOCKED),
        _packets(found["counter"], ruleset.BYPASSED),
    )


def _packets(listed: list[dict[str, Any]], names: AbstractMapping[int, str]) -> dict[int, int]:
    """What the counters of these names say; one that is missing says 0."""
    return {family: sum(c["packets"] for c in listed if c["name"] == name) for family, name in names.items()}


def _shape(listed: dict[str, Any]) -> Shape:
    data = listed.get("map")
    # nft 1.1.3 lists a concatenated value as a list, 1.0.6 as text.
    value = " . ".join(data) if isinstance(data, list) else data
    return tuple(_listed(listed.get("type"))), value, tuple(_listed(listed.get("flags")))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _rules(rules: list[dict[str, Any]]) -> str:
    """All rules in order, chain by chain, without what changes by itself (handles, counters)."""
    chains: dict[str, list[Any]] = {}
    for rule in rules:
        plain = [{"counter": None} if _counts(statement) else statement for statement in rule["expr"]]
        chains.setdefault(rule["chain"], []).append(plain)
    return json.dumps(chains, sort_keys=True)


def _counts(statement: dict[str, Any]) -> bool:
    """Whether this is a counter with values of its own, not the name of one."""
    return isinstance(statement.get("counter"), dict)


def _comment(listed: dict[str, Any]) -> str | None:
    """The comment of the only element."""
    elements = listed.get("elem", [])
    if len(elements) == 1 and isinstance(elements[0], dict) and "elem" in elements[0]:
        comment = elements[0]["elem"].get("comment")
        return str(comment) if comment else None
    return None


def _elements(name: str, listed: dict[str, Any]) -> Iterable[tuple[Parts, Parts | None]]:
    is_map = bool(listed.get("map"))
    for item in listed.get("elem", []):
        key, value = item if is_map else (item, None)
        inside = key.get("elem") if isinstance(key, dict) else None
        key = inside["val"] if inside else key
        if key == "*":
            yield ruleset.OTHERS, _parts(value) if value is not None else None
            continue
        parts = _parts(key)
        if name.startswith(("onlink", "allowed")):
            parts = (_prefix(key["concat"][0]), *parts[1:])
        if not name.startswith("onlink"):
            *addresses, protocol, port = parts
            parts = (*addresses, _PROTOCOLS.get(protocol, protocol), port)
        yield parts, _parts(value) if value is not None else None


def _parts(listed: Any) -> Parts:
    return tuple(map(_part, listed["concat"]))


def _part(listed: Any) -> str | int:
    match listed:
        case {"prefix": {"addr": address}} if ":" not in address and "." not in address:
            return f"{address}*"  # of interface names; not ours either
        case {"prefix": {"addr": address, "len": length}}:
            return str(ipaddress.ip_network(f"{address}/{length}", strict=False))
        case {"range": [first, last]}:
            # Somebody else's, for we write prefixes only; in nft's words it can be taken out.
            return f"{first}-{last}"
        case str() if "." in listed and ":" in listed:
            # inet_ntop writes an IPv6 address that begins with 96 zero bits with an IPv4 tail, Python does not.
            return str(ipaddress.ip_address(listed))
        case str() | int():
            return listed
    return json.dumps(listed)


def _prefix(listed: Any) -> str:
    """A prefix in the form of str(ip_network): nft lists one of full length as an address."""
    return str(_part(listed)) if isinstance(listed, dict) else str(ipaddress.ip_network(listed))

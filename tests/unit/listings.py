"""What `nft -j list table inet nfportd` says, in the shape of nft 1.0.6 and of 1.1.3; made of few words.

It must not know how listings are read. The one idea: a complete table of this version, to which tests do harm.
"""

from __future__ import annotations

import copy
from typing import Any

Listing = dict[str, Any]

_BASE = {
    "admission": ("filter", "prerouting", -110),
    "prerouting": ("nat", "prerouting", -100),
    "output": ("nat", "output", -100),
    "postrouting": ("nat", "postrouting", 99),
    "isolation_forward": ("filter", "forward", 0),
    "isolation_output": ("filter", "output", 0),
    "isolation_input": ("filter", "input", 0),
    "loopback_guard": ("filter", "input", -300),
}
_PLAIN = (
    *("dispatch", "dispatch_addr", "masquerade_addr", "masquerade_any", "masquerading", "from_elsewhere", "isolation"),
    *("admit_addr4", "admit_addr6", "admit_any4", "admit_any6"),
)


def _head(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {kind: {"family": "inet", "name": name, "table": "nfportd", "handle": 1, **more}}


def _set(name: str, key: list[str] | str, version: str, elements: list[Any], **more: Any) -> dict[str, Any]:
    found = {"type": key, **more}
    if elements:
        found["elem"] = elements
    if "map" in more:
        # A concatenated value is text in 1.0.6 and a list in 1.1.3.
        family = more["map"]
        found["map"] = [family, "inet_service"] if version == "1.1.3" else f"{family} . inet_service"
        found["stmt"] = [{"counter": None}]
    return _head("map" if "map" in more else "set", name, **found)


def concat(*parts: Any) -> dict[str, Any]:
    return {"concat": list(parts)}


def counted(key: dict[str, Any], packets: int = 0) -> dict[str, Any]:
    return {"elem": {"val": key, "counter": {"packets": packets, "bytes": 60 * packets}}}


def prefix(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}


def rule(chain: str, *statements: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "nfportd", "chain": chain, "handle": 20, "expr": list(statements)}}


def table(version: str = "1.0.6", fingerprint: str | None = "abc", **elements: list[Any]) -> Listing:
    """The whole table with these elements by set."""
    flags = {"flags": ["owner", "persist"]} if version == "1.1.3" else {}
    items: list[dict[str, Any]] = [
        {"metainfo": {"version": version, "release_name": "x", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "nfportd", "handle": 1, **flags}},
    ]
    for f in (4, 6):
        found = elements.get
        ip, wild = f"ipv{f}_addr", ["inet_proto", "inet_service"]
        items += [
            _set(f"any{f}", wild, version, found(f"any{f}", []), map=ip),
            _set(f"addr{f}", [ip, *wild], version, found(f"addr{f}", []), map=ip),
            _set(f"always_any{f}", wild, version, found(f"always_any{f}", [])),
            _set(f"always_addr{f}", [ip, *wild], version, found(f"always_addr{f}", [])),
            _set(f"never_any{f}", wild, version, found(f"never_any{f}", [])),
            _set(f"never_addr{f}", [ip, *wild], version, found(f"never_addr{f}", [])),
            _set(f"guarded_any{f}", wild, version, found(f"guarded_any{f}", [])),
            _set(f"guarded_addr{f}", [ip, *wild], version, found(f"guarded_addr{f}", [])),
            _set(f"open_addr{f}", [ip, *wild], version, found(f"open_addr{f}", [])),
            _set(f"allowed_any{f}", [ip, *wild], version, found(f"allowed_any{f}", []), flags=["interval"]),
            _set(f"allowed_addr{f}", [ip, ip, *wild], version, found(f"allowed_addr{f}", []), flags=["interval"]),
            _head("counter", f"blocked{f}", packets=0, bytes=0),
            _set(f"isolated{f}", [ip, *wild], version, found(f"isolated{f}", [])),
            _head("counter", f"bypassed{f}", packets=0, bytes=0),
            _set(f"onlink{f}", [ip, "ifname"], version, found(f"onlink{f}", []), flags=["interval"]),
        ]
    mark = [{"elem": {"val": 1, "comment": fingerprint}}] if fingerprint else []
    items.append(_set("fingerprint", "mark", version, mark))
    for name, (kind, hook, priority) in _BASE.items():
        items.append(_head("chain", name, type=kind, hook=hook, prio=priority, policy="accept"))
    items += [_head("chain", name) for name in _PLAIN]
    items.append(rule("from_elsewhere", {"counter": {"packets": 5, "bytes": 300}}, {"drop": None}))
    return {"nftables": items}


def without(listing: Listing, name: str) -> Listing:
    """The listing without the chain, set or map of this name."""
    kept = [item for item in listing["nftables"] if all(each.get("name") != name for each in item.values())]
    return {"nftables": kept}


def changed(listing: Listing, of: str, **values: Any) -> Listing:
    """The listing with other values in the chain, set or map of this name."""
    made = copy.deepcopy(listing)
    for item in made["nftables"]:
        for each in item.values():
            if each.get("name") == of:
                each.update(values)
    return made


def extended(listing: Listing, kind: str, name: str, **values: Any) -> Listing:
    """The listing with one chain, set, map or counter more."""
    return {"nftables": [*listing["nftables"], _head(kind, name, **values)]}

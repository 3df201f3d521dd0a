"""A host as its report shows it: mappings of every state, an hour of traffic, hostile names, for tests of the page.

It must not know how a page looks. The one idea: one set of facts with everything in it, the same each time.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from nfportd.client import Json
from nfportd.report.page import Facts

NOW = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)
HOSTILE = "<script>document.title='taken'</script>"
QUOTING = "\"><img src=x onerror=alert(1)>'&amp;"
WIDE = "cni:production-network/" + "3f2ad01c9e7b" * 8 + "/eth0"


def ago(minutes: float) -> str:
    return (NOW - timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def mapping(owner: str, name: str | None, listen: str, *targets: str, **more: Any) -> Json:
    usual: Json = {"protocol": ["tcp"], "state": "active", "since": ago(4000), "changed": None, "unreached": []}
    usual |= {"conflicts": [], "reason": None, "connections": 0, "rate": 0.0}
    return {"owner": owner, "name": name, "listen": listen, "targets": list(targets), **usual, **more}


HOLDER = {"key": "0.0.0.0:8080/tcp", "owner": "file:web.yaml", "since": ago(4000)}
MAPPINGS = [
    mapping("file:web.yaml", "web", "8080", "10.88.0.11:80", "[fd88::11]:80", connections=1_234_567, rate=812.5),
    mapping("file:web.yaml", "shop", "8443", "10.88.0.12:8443", connections=48_211, rate=31.0, changed=ago(95)),
    mapping("file:xlate.yaml", "late", "8080", "10.88.0.13:80", state="conflict", conflicts=[HOLDER]),
    mapping("file:far.yaml", "far", "9000", "203.0.113.9:9000", unreached=["203.0.113.9"]),
    mapping("api:ci", None, "7000", "10.88.0.14:7000", state="refused", reason="No space left on device"),
    mapping(WIDE, "pod", "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:20000-20099", "[fd88:1:2:3:4:5:6:7]:20000-20099"),
    mapping("api:nfportctl", HOSTILE, "5432", "10.88.0.12:5432", connections=12, rate=0.02, changed=ago(3)),
    mapping("api:nfportctl", QUOTING, "5433", "10.88.0.12:5433"),
    mapping("api:nfportctl", "sip", "5060", "10.88.0.15:5060", protocol=["tcp", "udp"], connections=903, rate=4.4),
]


def _shares(minute: int) -> dict[str, int]:
    busy = int(30_000 + 12_000 * math.sin(minute / 9) + (25_000 if minute in (41, 42) else 0))
    return {"web": busy, "shop": 1500 + 40 * minute, "sip": 180 if minute % 7 else 900, HOSTILE: int(minute == 50)}


def minutes(count: int = 60) -> list[Json]:
    found = []
    for number in range(60 - count, 60):
        named = {each["name"]: each for each in MAPPINGS}
        shares = [
            {**{key: named[name][key] for key in ("owner", "name", "listen", "protocol")}, "connections": connections}
            for name, connections in _shares(number).items()
            if connections
        ]
        began, total = ago(60 - number), sum(share["connections"] for share in shares)
        found.append({"began": began, "seconds": 60.0, "connections": total, "busiest": shares})
    return found


STATUS: Json = {
    "version": "0.1.0",
    "since": ago(4000),
    "table": "intact",
    "repairs": {"count": 0, "last": None, "fight": False},
    "connections": {"rate": 848.0, "last_hour": 2_033_646},
    "forwarding": [
        {
            "chain": "inet filter forward",
            "firewall": "nftables",
            "certain": True,
            "targets": ["10.88.0.15:5060"],
            "why": ["policy drop"],
            "commands": ["nft insert rule inet filter forward ct status dnat accept"],
        }
    ],
    "refused": [each for each in MAPPINGS if each["state"] == "refused"],
    "port_in_use": [],
    "conflicts": [each for each in MAPPINGS if each["state"] == "conflict"],
    "files": {"broken.yaml": ["broken.yaml:3:9: unknown key 'protocl'; did you mean protocol?"]},
    "unreached": ["203.0.113.9"],
}
EVENTS = [
    {"seq": 1, "time": ago(95), "kind": "changed", "owner": "file:web.yaml", "key": "8443/tcp", "target": "10.88.0.12"},
    {"seq": 2, "time": ago(20), "kind": "repaired", "owner": "", "detail": "2 elements that nft (pid 812) deleted"},
    {"seq": 3, "time": ago(3), "kind": "added", "owner": "api:nfportctl", "key": "5432/tcp", "detail": HOSTILE},
    {"seq": 4, "time": ago(2), "kind": "added", "owner": WIDE, "key": "20000-20099/tcp", "detail": "pod"},
]


def finding(severity: str, what: str, why: str, *commands: str, mappings: tuple[str, ...] = ()) -> Json:
    usual = {"severity": severity, "what": what, "why": why}
    return {**usual, "cause": "test", "mappings": list(mappings), "commands": list(commands)}


FINDINGS = [
    finding(
        "error",
        "chain inet filter forward (nftables) stops what is forwarded to 10.88.0.15:5060",
        "policy drop",
        "nft insert rule inet filter forward ct status dnat accept",
        mappings=("sip",),
    ),
    finding("error", "7000/tcp to 10.88.0.14:7000 is not in force (refused)", "No space left on device"),
    finding(
        "warning",
        '"late" 8080/tcp to 10.88.0.13:80 is not in force (waiting: conflict)',
        "0.0.0.0:8080/tcp is held by file:web.yaml",
        mappings=("late", HOSTILE),
    ),
    finding("error", "drop-in broken.yaml is broken", "broken.yaml:3:9: unknown key 'protocl'", "nfportd check"),
    finding("error", "no route leads to target 203.0.113.9", "connections to it fail", "ip route get 203.0.113.9"),
]


def facts(**more: Any) -> Facts:
    whole = Facts(STATUS, MAPPINGS, 848.0, minutes(), FINDINGS, ("table", "routes"), EVENTS, "gateway.example", NOW)
    return whole._replace(**more)

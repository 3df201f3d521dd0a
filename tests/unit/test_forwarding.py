"""A packet followed through rules as nft lists them.

It must not run nft. The one idea: a forward chain of a few rules, and whether it stops a connection's first packet.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from nfportd import forwarding
from nfportd.forwarding import Chain, Lookups, Question
from nfportd.matches import Packet

PACKET = Packet(4, "tcp", None, None, "10.88.0.11", 80, "eth0", "br0", 8080)
ACCEPT, DROP, RETURN, REJECT = {"accept": None}, {"drop": None}, {"return": None}, {"reject": {"type": "icmp"}}
SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
PROTO = {"meta": {"key": "l4proto"}}
STATE, STATUS = {"ct": {"key": "state"}}, {"ct": {"key": "status"}}
IIF, OIF = {"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}
FLAGS = {"payload": {"protocol": "tcp", "field": "flags"}}
LIMIT = {"limit": {"rate": 3, "per": "minute"}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}


def is_(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


def jump(name: str, verb: str = "jump") -> Any:
    return {verb: {"target": name}}


def listing(
    policy: str, chains: dict[str, list[list[Any]]], family: str = "ip", priority: int = 0, table: str = "t"
) -> Any:
    """What nft lists of a table with chains; `f` is the base chain."""
    found: list[Any] = [{"metainfo": {}}, {"table": {"family": family, "name": table}}]
    for name, rules in chains.items():
        chain: dict[str, Any] = {"family": family, "table": table, "name": name}
        found.append({"chain": chain})
        if name == "f":
            chain |= {"type": "filter", "hook": "forward", "prio": priority, "policy": policy}
        at = {"family": family, "table": table, "chain": name}
        found += [{"rule": {**at, "handle": number, "expr": rule}} for number, rule in enumerate(rules, 10)]
    found.append({"map": {"family": family, "table": table, "name": "m", "type": ["ipv4_addr", "inet_service"]}})
    found.append({"set": {"family": family, "table": table, "name": "links", "type": "ifname"}})
    found.append({"set": {"family": family, "table": table, "name": "odd", "type": "mark"}})
    return {"nftables": found}


def stops(policy: str, *rules: list[Any], packet: Packet = PACKET, **chains: list[list[Any]]) -> str:
    """`passes`, `stops` or `may stop`."""
    found = forwarding.obstacles(forwarding.read([listing(policy, {"f": list(rules), **chains})]), packet, Lookups())
    return "passes" if not found else "stops" if found[0].certain else "may stop"


@pytest.mark.parametrize(
    ("condition", "hit"),
    [
        (is_(DADDR, "10.88.0.11"), True),
        (is_(DADDR, "10.88.0.12"), False),
        (is_(DADDR, "10.88.0.12", "!="), True),
        (is_(DADDR, {"prefix": {"addr": "10.88.0.0", "len": 16}}), True),
        (is_(DADDR, {"range": ["10.88.0.1", "10.88.0.10"]}), False),
        (is_(DADDR, {"set": ["10.0.0.1", {"range": ["10.88.0.1", "10.88.0.20"]}]}), True),
        (is_(DPORT, 80), True),
        (is_(DPORT, {"set": [22, {"range": [90, 100]}]}), False),
        (is_(DPORT, {"range": [1, 1024]}), True),
        (is_(DPORT, 1024, ">="), False),
        (is_({"payload": {"protocol": "udp", "field": "dport"}}, 80), False),
        (is_({"payload": {"protocol": "udp", "field": "dport"}}, 80, "!="), False),
        (is_({"payload": {"protocol": "th", "field": "dport"}}, 80), True),
        (is_({"payload": {"protocol": "ip6", "field": "daddr"}}, "fd88::11", "!="), False),
        (is_(PROTO, {"set": ["tcp", "udp"]}), True),
        (is_(PROTO, 6), True),
        (is_(IIF, "eth0"), True),
        (is_(IIF, "docker0"), False),
        (is_(OIF, "br*"), True),
        (is_(OIF, {"set": ["veth*", "docker0"]}), False),
        (is_({"concat": [IIF, OIF]}, {"set": [{"concat": ["eth0", "br0"]}]}), True),
        (is_({"concat": [IIF, OIF]}, {"set": [{"concat": ["eth1", "br0"]}]}), False),
        (is_(STATE, "new", "in"), True),
        (is_(STATE, ["established", "related"], "in"), False),
        (is_(STATE, {"set": ["established", "related"]}), False),
        (is_(STATE, "new", "!="), False),
        (is_(STATUS, "dnat", "in"), True),
        (is_(STATUS, ["snat", "dnat"], "in"), True),
        (is_(STATUS, "dnat", "!"), False),
        (is_({"&": [STATUS, "dnat"]}, 0), False),
        (is_({"ct": {"key": "proto-dst", "dir": "original"}}, 8080), True),
        (is_({"ct": {"key": "direction"}}, "reply"), False),
        (is_({"&": [FLAGS, ["fin", "syn", "rst", "ack"]]}, "syn", "!="), False),
        (is_({"&": [FLAGS, {"|": ["fin", "syn", "rst", "ack"]}]}, "syn"), True),
        (is_({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), False),
        (is_({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False), False),
        (is_({"meta": {"key": "nfproto"}}, "ipv6"), False),
    ],
)
def test_conditions(condition: Any, hit: bool) -> None:
    assert stops("drop", [condition, COUNTER, ACCEPT]) == ("passes" if hit else "stops")
    assert stops("accept", [condition, COUNTER, DROP]) == ("stops" if hit else "passes")


@pytest.mark.parametrize("condition", [is_(SADDR, "192.0.2.1"), LIMIT, {"ct count": {"val": 9}}, is_(SADDR, "@m")])
def test_what_depends_on_the_client_is_not_held_against_all(condition: Any) -> None:
    assert stops("accept", [condition, DROP]) == "passes"
    assert stops("drop", [condition, ACCEPT]) == "may stop"


@pytest.mark.parametrize(
    "condition", [{"xt": {"type": "match", "name": "rt"}}, {"unheard": 1}, is_({"new": 1}, 2), is_(DADDR, "@odd")]
)
def test_what_cannot_be_read_is_a_doubt_either_way(condition: Any) -> None:
    assert stops("accept", [condition, DROP]) == "may stop"
    assert stops("drop", [condition, ACCEPT]) == "may stop"
    assert stops("drop", [condition, DROP]) == "stops"


def test_without_an_uplink_any_link_may_be_the_clients_but_not_lo() -> None:
    somewhere = replace(PACKET, iif=None)

    assert stops("drop", [is_(IIF, "eth0"), ACCEPT], packet=somewhere) == "may stop"
    assert stops("drop", [is_(IIF, "lo"), ACCEPT], packet=somewhere) == "stops"


def test_jumps_gotos_and_returns() -> None:
    assert stops("accept", [jump("x")], [DROP], x=[[RETURN], [ACCEPT]]) == "stops"
    assert stops("accept", [jump("x", "goto")], [DROP], x=[[RETURN], [DROP]]) == "passes"
    assert stops("drop", [jump("x", "goto")], [ACCEPT], x=[]) == "stops"
    assert stops("drop", [jump("x")], x=[[jump("y")], [REJECT]], y=[[ACCEPT]]) == "passes"
    assert stops("accept", [is_(SADDR, "192.0.2.1"), jump("x")], x=[[REJECT]]) == "passes"
    assert stops("accept", [is_(DPORT, 80), jump("x")], [ACCEPT], x=[[is_(DPORT, 22), ACCEPT], [REJECT]]) == "stops"


def test_verdict_maps() -> None:
    states = {"set": [["established", ACCEPT], ["invalid", DROP], ["new", jump("x")]]}

    assert stops("drop", [{"vmap": {"key": STATE, "data": states}}], x=[[ACCEPT]]) == "passes"
    assert stops("accept", [{"vmap": {"key": STATE, "data": states}}], x=[[REJECT]]) == "stops"
    assert stops("accept", [{"vmap": {"key": DPORT, "data": {"set": [[22, DROP]]}}}]) == "passes"
    assert stops("drop", [{"vmap": {"key": SADDR, "data": {"set": [["192.0.2.1", ACCEPT]]}}}]) == "may stop"


def test_elements_that_nft_has_not_listed_are_asked_for() -> None:
    rule = [{"vmap": {"key": {"concat": [DADDR, DPORT]}, "data": "@m"}}]
    ruleset = forwarding.read([listing("accept", {"f": [rule, [is_(OIF, "@links"), DROP]], "x": [[DROP]]})])
    lookups = Lookups()
    in_map = Question("ip", "t", "m", bytes([10, 88, 0, 11, 0, 80, 0, 0]))
    in_set = Question("ip", "t", "links", b"br0".ljust(16, b"\0"))

    (doubted,) = forwarding.obstacles(ruleset, PACKET, lookups)
    assert (doubted.certain, lookups.open) == (False, {in_map, in_set})

    lookups.answers = {in_map: False, in_set: False}
    assert forwarding.obstacles(ruleset, PACKET, lookups) == []
    lookups.answers = {in_map: "goto x", in_set: False}
    assert forwarding.obstacles(ruleset, PACKET, lookups)[0].places[0].chain == Chain("ip", "t", "x")
    lookups.answers = {in_map: False, in_set: True}
    assert forwarding.obstacles(ruleset, PACKET, lookups)[0].certain


def test_every_base_chain_has_a_say_in_the_order_of_priority() -> None:
    late = listing("drop", {"f": []}, "inet", 10, "late")
    early = listing("drop", {"f": []}, "ip", -5, "early")
    six = listing("drop", {"f": []}, "ip6", 0, "six")
    open_ = listing("drop", {"f": [[ACCEPT]]}, "inet", -200, "open")
    ruleset = forwarding.read([late, early, six, open_])

    four = forwarding.obstacles(ruleset, PACKET, Lookups())
    other = forwarding.obstacles(ruleset, Packet(6, "tcp", daddr="fd88::11", dport=80), Lookups())

    assert [str(each.base) for each in four] == ["ip early f", "inet late f"]
    assert [str(each.base) for each in other] == ["ip6 six f", "inet late f"]
    assert str(four[0].places[0]) == "policy drop of chain ip early f"


def test_answers_come_back_by_the_other_links() -> None:
    back = PACKET.answered()

    assert stops("drop", [is_(STATE, ["established"], "in"), ACCEPT], packet=back) == "passes"
    assert stops("drop", [is_(STATE, "new", "in"), ACCEPT], packet=back) == "stops"
    assert stops("drop", [is_(IIF, "br0"), is_(OIF, "eth0"), ACCEPT], packet=back) == "passes"
    assert stops("drop", [is_(SADDR, "10.88.0.11"), ACCEPT], packet=back) == "passes"
    assert stops("drop", [is_(DADDR, "10.88.0.11"), ACCEPT], packet=back) == "stops"
    assert stops("drop", [is_(STATUS, "dnat", "in"), ACCEPT], packet=back) == "passes"


def xt(name: str, rev: int, info: bytes) -> Any:
    return {"xt": {"type": "match", "name": name, "rev": rev, "info": info}}


def conntrack(asked: int, inverted: int = 0, states: int = 0, statuses: int = 0) -> Any:
    """As iptables 1.8 has it: struct xt_conntrack_mtinfo3."""
    return xt("conntrack", 3, struct.pack("=146x4H14x", asked, inverted, states, statuses))


def multiport(*ports: int, inverted: int = 0, to: int = 1) -> Any:
    """The last two as a range."""
    goes_on = [0] * 15
    goes_on[len(ports) - 2] = 1
    padded = [*ports, *[0] * (15 - len(ports))]
    return xt("multiport", 1, struct.pack("=BB15H15BB", to, len(ports), *padded, *goes_on, inverted))


@pytest.mark.parametrize(
    ("match", "found"),
    [
        (conntrack(0x2001, states=0x80), "passes"),  # --ctstate DNAT
        (conntrack(0x2001, states=0x06), "stops"),  # --ctstate RELATED,ESTABLISHED
        (conntrack(0x2001, inverted=1, states=0x08), "stops"),  # ! --ctstate NEW
        (conntrack(0x0040, statuses=0x02), "stops"),  # --ctstatus SEEN_REPLY
        (conntrack(0x0200, states=0), "may stop"),  # --ctorigdstport
        (xt("conntrack", 9, bytes(168)), "may stop"),
        (xt("conntrack", 3, bytes(20)), "may stop"),
        (xt("comment", 0, b"hello"), "passes"),
        (xt("icmp", 0, bytes(8)), "stops"),
        (multiport(22, 79, 90), "passes"),
        (multiport(22, 81, 90), "stops"),
        (multiport(22, 79, 90, inverted=1), "stops"),
        (multiport(22, 79, 90, to=0), "may stop"),
    ],
)
def test_matches_of_iptables(match: Any, found: str) -> None:
    assert stops("drop", [match, COUNTER, ACCEPT]) == found


def test_targets_of_iptables() -> None:
    assert stops("accept", [{"xt": {"type": "target", "name": "REJECT"}}]) == "stops"
    assert stops("accept", [{"xt": {"type": "target", "name": "LOG"}}]) == "passes"
    assert stops("accept", [{"xt": {"type": "target", "name": "NFQUEUE"}}]) == "may stop"


def test_what_the_kernel_has_of_iptables_takes_its_place() -> None:
    bare = {"xt": {"type": "match", "name": "conntrack"}}
    ruleset = forwarding.read([listing("drop", {"f": [[bare, ACCEPT]]})])
    (chain,) = forwarding.opaque(ruleset)

    forwarding.complete(ruleset, chain, {10: [conntrack(1, states=0x80)["xt"]]})

    assert forwarding.obstacles(ruleset, PACKET, Lookups()) == []


@pytest.mark.parametrize("name", ["a b", "x; flush ruleset", 'q"', "", 7])
def test_a_name_that_nft_could_not_read_back_is_left_alone(name: Any) -> None:
    found = listing("drop", {"f": []})
    found["nftables"][2]["chain"]["table"] = name

    assert forwarding.bases(found) == []

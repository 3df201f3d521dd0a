"""What others' nat chains make of a packet, by rules as nft lists them.

It must not run nft. The one idea: a chain of a few rules, and the translations that are found of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfportd import forwarding, translation
from nfportd.forwarding import Chain, Lookups, Question
from nfportd.matches import Packet
from tests.unit.test_forwarding import ACCEPT, DADDR, DPORT, DROP, RETURN, SADDR, is_, jump

PACKET = Packet(4, "tcp", "198.51.100.7", None, "192.0.2.1", 8080, "eth0", "", translated=False, local=True)
DNAT = {"dnat": {"addr": "10.0.0.9", "port": 80}}
LOCAL = is_({"fib": {"result": "type", "flags": ["daddr"]}}, "local")


def base(family: str = "ip", table: str = "nat", priority: int = -100, policy: str = "accept") -> Any:
    chain = {"family": family, "table": table, "name": "pre", "type": "nat", "hook": "prerouting"}
    return {"chain": {**chain, "prio": priority, "policy": policy}}


def ruleset(*rules: list[Any], policy: str = "accept", **chains: list[list[Any]]) -> forwarding.Ruleset:
    at = {"family": "ip", "table": "nat"}
    found = [base(policy=policy), {"map": {**at, "name": "m", "type": ["ipv4_addr", "inet_service"]}}]
    for name, inside in {"pre": list(rules), **chains}.items():
        found += [{"rule": {**at, "chain": name, "handle": 10 + n, "expr": rule}} for n, rule in enumerate(inside)]
    return forwarding.read([{"nftables": found}], "prerouting")


def told(*rules: list[Any], packet: Packet = PACKET, **more: Any) -> list[str]:
    """`dnat 10.0.0.9:80`, with `may` in front where it is not certain."""
    found = translation.translations(ruleset(*rules, **more), packet, Lookups())
    return [("" if each.certain else "may ") + f"{each.place.verdict} {each.place.to}".strip() for each in found]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (DNAT, "dnat 10.0.0.9:80"),
        ({"dnat": {"family": "ip", "addr": "10.0.0.9"}}, "dnat 10.0.0.9"),
        ({"dnat": {"family": "ip6", "addr": "fd00::9", "port": 80}}, "dnat [fd00::9]:80"),
        ({"dnat": {"addr": {"range": ["10.0.0.8", "10.0.0.9"]}}}, "dnat 10.0.0.8-10.0.0.9"),
        ({"redirect": {"port": 90}}, "redirect :90"),
        ({"redirect": None}, "redirect"),
        ({"masquerade": None}, "masquerade"),
        ({"dnat": {"addr": {"map": {"key": DPORT, "data": {"set": [[80, "10.0.0.1"], [8080, "10.0.0.2"]]}}}}},
         "dnat 10.0.0.2"),
    ],
)  # fmt: skip
def test_what_a_statement_does(statement: Any, found: str) -> None:
    assert told([is_(DPORT, 8080), statement]) == [found]
    assert told([is_(DPORT, 8081), statement]) == []
    assert told([LOCAL, {"counter": None}, statement]) == [found]


def test_a_verdict_before_it_decides() -> None:
    assert told([is_(DADDR, "192.0.2.1"), RETURN], [DNAT]) == []
    assert told([ACCEPT], [DNAT]) == []
    assert told([is_(SADDR, "198.51.100.7"), DROP], [DNAT]) == ["drop"]
    assert told([jump("x")], [DROP], x=[[is_(DPORT, 8080), DNAT]]) == ["dnat 10.0.0.9:80"]
    assert told(policy="drop") == ["drop"]


def test_what_depends_on_a_client_that_is_not_known_may_be() -> None:
    anybody = replace(PACKET, saddr=None)

    assert told([is_(SADDR, "198.51.100.7"), DNAT], packet=anybody) == ["may dnat 10.0.0.9:80"]
    assert told([is_({"meta": {"key": "mark"}}, 5), DNAT]) == ["may dnat 10.0.0.9:80"]


def test_a_map_that_spreads_takes_every_packet() -> None:
    key = {"numgen": {"mode": "random", "mod": 2, "offset": 0}}
    data = {"set": [[0, {"concat": ["10.0.0.1", 80]}], [1, {"concat": ["10.0.0.2", 80]}]]}

    assert told([{"dnat": {"addr": {"map": {"key": key, "data": data}}}}]) == ["dnat 10.0.0.1:80", "dnat 10.0.0.2:80"]


def test_elements_of_a_named_map_are_asked_for() -> None:
    mapped = {"dnat": {"addr": {"map": {"key": {"concat": [DADDR, DPORT]}, "data": "@m"}}}}
    rules, lookups = ruleset([mapped]), Lookups()
    question = Question("ip", "nat", "m", bytes([192, 0, 2, 1, 0x1F, 0x90, 0, 0]))

    (doubted,) = translation.translations(rules, PACKET, lookups)
    assert (doubted.certain, lookups.open) == (False, {question})

    lookups.answers = {question: bytes([10, 0, 0, 9, 0, 80, 0, 0])}
    (found,) = translation.translations(rules, PACKET, lookups)
    assert (found.certain, str(found.place)) == (True, "rule 10 of chain ip nat pre (dnat to 10.0.0.9:80)")
    lookups.answers = {question: False}
    assert translation.translations(rules, PACKET, lookups) == []


def xt(kind: str, name: str, info: str, rev: int = 0) -> Any:
    return {"xt": {"type": kind, "name": name, "rev": rev, "info": bytes.fromhex(info)}}


TO_LOCAL, NOT_LOCAL = "0000040000000000", "0000040002000000"


@pytest.mark.parametrize(
    ("family", "target", "found"),
    [
        (4, xt("target", "DNAT", f"03000000{'0a030303' + 24 * '0'}{'0a030303' + 24 * '0'}00500050" + 16 * "0", 2),
         "dnat 10.3.3.3:80"),
        (6, xt("target", "DNAT", f"01000000{'fd' + 29 * '0' + '1'}{'fd' + 29 * '0' + '1'}" + 24 * "0", 2),
         "dnat fd00::1"),
        (4, xt("target", "REDIRECT", "0100000002000000" + 16 * "0" + "0052005200000000"), "redirect :82"),
        (4, xt("target", "MASQUERADE", "01" + 46 * "0"), "masquerade"),
        (4, {"xt": {"type": "target", "name": "DNAT"}}, "dnat"),
    ],
)  # fmt: skip
def test_targets_of_iptables(family: Any, target: Any, found: str) -> None:
    """The bytes are those that the kernel has after iptables-nft 1.8.9."""
    packet = replace(PACKET, family=family)
    rules = ruleset([xt("match", "addrtype", TO_LOCAL, 1), target])
    chain = Chain("ip" if family == 4 else "ip6", "nat", "pre")
    rules = rules._replace(
        bases=tuple(each._replace(chain=chain) for each in rules.bases),
        rules={chain: next(iter(rules.rules.values()))},
    )

    (translated,) = translation.translations(rules, packet, Lookups())

    assert f"{translated.place.verdict} {translated.place.to}".strip() == found
    assert translated.certain
    assert told([xt("match", "addrtype", NOT_LOCAL, 1), target]) == []


def test_the_first_that_surely_translates_is_the_last_that_is_asked() -> None:
    rules = ruleset([is_({"meta": {"key": "mark"}}, 5), DNAT])
    early, late = rules.bases[0], rules.bases[0]._replace(chain=Chain("ip", "nat", "late"))
    rules.rules[late.chain] = [forwarding.Rule(1, [{"redirect": None}])]

    found = translation.translations(rules._replace(bases=(early, late, early)), PACKET, Lookups())

    assert [(each.base.name, each.certain) for each in found] == [("pre", False), ("late", True)]


def test_of_one_priority_the_last_made_comes_first() -> None:
    tables = (("old", -100), ("late", -90), ("nfportd", -100), ("new", -100), ("newer", -100), ("early", -150))
    listed = {"nftables": [base("inet", name, priority) for name, priority in tables]}

    found = translation.order(listed, "prerouting")

    assert [each.chain.table for each in found.before] == ["early", "newer", "new"]
    assert [each.chain.table for each in found.level] == ["old"]
    assert [each.chain.table for each in found.after] == ["late"]
    del listed["nftables"][2]
    assert [each.chain.table for each in translation.order(listed, "prerouting").before][-1] == "late"

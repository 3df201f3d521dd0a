"""Which conntrack entries go when a key moves, and which stay.

It must not talk to the kernel. The one idea: a key moves on a host with three addresses; the filters that follow.
"""

from __future__ import annotations

import pytest

from nfportd import flows
from nfportd.desired import Delta, Slot
from nfportd.flows import Barred, Moved, StaleFlows
from nfportd.model import Endpoint, Key, Mapping, Protocol
from nfportd.notation import Family
from tests.unit.reading import key, mapping

OLD, NEW, OTHER = Endpoint("10.88.0.11", 80), Endpoint("10.88.0.12", 80), Endpoint("10.88.0.13", 80)
LOCAL: list[tuple[Family, str]] = [(4, "127.0.0.1"), (4, "192.0.2.1"), (6, "2001:db8::1")]
UDP = key(53, protocol="udp")
UDP_ONE = key(53, "192.0.2.1", "udp")


def stale(moved: Moved, elements: dict[Key, Endpoint] | None = None) -> set[StaleFlows]:
    now = dict(elements or {})
    if moved.after:
        now[moved.key] = moved.after
    found = list(flows.stale([moved], now.get, LOCAL))
    assert len(found) == len(set(found)), "a filter twice"
    return set(found)


def entry(address: str | None, answered_by: Endpoint | None, protocol: str = "udp", port: int = 53) -> StaleFlows:
    return StaleFlows(6 if ":" in (address or "") else 4, Protocol(protocol), address, port, answered_by)


def not_by(spared: Endpoint, address: str) -> StaleFlows:
    return entry(address, None)._replace(spared=spared)


@pytest.mark.parametrize("protocol", ["udp", "sctp"])
@pytest.mark.parametrize("after", [NEW, None])
def test_flows_to_the_old_target_go(protocol: str, after: Endpoint | None) -> None:
    moved = Moved(key(53, protocol=protocol), OLD, after, cut=False)

    assert stale(moved) == {entry(None, OLD, protocol)}


@pytest.mark.parametrize("after", [NEW, None])
def test_flows_to_the_old_target_of_one_address_go(after: Endpoint | None) -> None:
    assert stale(Moved(UDP_ONE, OLD, after, cut=False)) == {entry("192.0.2.1", OLD)}


@pytest.mark.parametrize("address", [None, "192.0.2.1"])
@pytest.mark.parametrize("after", [NEW, None])
def test_of_tcp_flows_those_go_that_the_old_target_has_not_answered(
    address: str | None, after: Endpoint | None
) -> None:
    opening = StaleFlows(4, Protocol.TCP, address, 80, OLD, opening=True)

    assert stale(Moved(key(80, address), OLD, after, cut=False)) == {opening}


@pytest.mark.parametrize("address", [None, "192.0.2.1"])
def test_a_tcp_key_that_appears_leaves_flows_alone(address: str | None) -> None:
    assert stale(Moved(key(80, address), None, NEW, cut=False)) == set()


@pytest.mark.parametrize("after", [NEW, None])
def test_tcp_flows_that_are_to_be_cut_go(after: Endpoint | None) -> None:
    assert stale(Moved(key(80), OLD, after, cut=True)) == {entry(None, OLD, "tcp", 80)}


def test_nothing_is_cut_where_there_was_no_target() -> None:
    assert stale(Moved(key(80), None, NEW, cut=True)) == set()


RELAY, SIX = Endpoint("::1", 40000), Endpoint("fd88::11", 80)


@pytest.mark.parametrize(("before", "after"), [(None, RELAY), (SIX, RELAY), (RELAY, SIX), (RELAY, None)])
def test_what_comes_to_the_relay_or_from_it_loses_no_connection(
    before: Endpoint | None, after: Endpoint | None
) -> None:
    """Its target is the same; only attempts go, which nobody would answer on the old way. UDP flows go as ever."""
    attempts = entry("::1", before, "tcp", 80)._replace(attempts=True, spared=None if before else after)

    assert stale(Moved(key(80, "::1"), before, after, cut=True)) == {attempts}
    assert stale(Moved(key(80, "::1", "udp"), before, after, cut=True)) == {
        attempts._replace(attempts=False, protocol=Protocol.UDP)
    }


def test_a_key_that_appears_takes_over_what_this_host_or_anybody_answered() -> None:
    assert stale(Moved(UDP, None, NEW, cut=False)) == {not_by(NEW, "127.0.0.1"), not_by(NEW, "192.0.2.1")}


def test_a_key_of_one_address_that_appears_takes_over_what_anybody_answered() -> None:
    assert stale(Moved(UDP_ONE, None, NEW, cut=False)) == {not_by(NEW, "192.0.2.1")}


def test_an_ipv6_key_that_appears_takes_over_on_ipv6_addresses() -> None:
    moved = Moved(key(53, protocol="udp", family=6), None, Endpoint("fd88::12", 53), cut=False)

    assert stale(moved) == {not_by(Endpoint("fd88::12", 53), "2001:db8::1")}


def test_a_wildcard_that_appears_leaves_alone_the_address_that_has_a_key_of_its_own() -> None:
    assert stale(Moved(UDP, None, NEW, cut=False), {UDP_ONE: OTHER}) == {not_by(NEW, "127.0.0.1")}


def test_flows_of_an_address_with_another_target_are_told_apart_by_who_answers() -> None:
    assert stale(Moved(UDP, OLD, NEW, cut=False), {UDP_ONE: OTHER}) == {entry(None, OLD)}


def test_flows_of_an_address_with_the_same_target_are_told_apart_by_the_address() -> None:
    assert stale(Moved(UDP, OLD, NEW, cut=False), {UDP_ONE: OLD}) == {entry("127.0.0.1", OLD)}


def test_a_key_of_one_address_that_goes_leaves_the_wildcards_flows_elsewhere_alone() -> None:
    assert stale(Moved(UDP_ONE, OLD, None, cut=False), {UDP: OTHER}) == {entry("192.0.2.1", OLD)}


def test_each_key_that_moved_is_looked_at() -> None:
    moved = [Moved(key(port, protocol="udp"), OLD, NEW, cut=False) for port in (53, 54)]

    assert {found.port for found in flows.stale(moved, lambda _: None, LOCAL)} == {53, 54}


HTTP = ("tcp", 80)
NEAR = "198.51.100.0/24"
WEB, WEB_ONE = key(80), key(80, "192.0.2.1")
GUARDED = mapping(80, sources=[NEAR])


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (Delta({Slot("allowed_any4", (NEAR, *HTTP)): None}, {}), {WEB}),
        (Delta({}, {Slot("guarded_any4", HTTP): None, Slot("allowed_any4", (NEAR, *HTTP)): None}), {WEB}),
        (Delta({}, {Slot("guarded_addr4", ("192.0.2.1", *HTTP)): None}), {WEB_ONE}),
        (Delta({Slot("guarded_any4", HTTP): None}, {Slot("allowed_any4", (NEAR, *HTTP)): None}), set()),
        (Delta({Slot("any4", HTTP): None}, {Slot("open_addr4", ("192.0.2.1", *HTTP)): None}), set()),
    ],
)
def test_keys_on_which_a_source_lost_its_right(change: Delta, keys: set[Key]) -> None:
    assert flows.narrowed(change) == keys


def barred(follows: Mapping | None, elements: dict[Key, Endpoint], *keys: Key) -> list[Barred]:
    return list(flows.barred(keys, lambda _: follows, elements.get, LOCAL))


@pytest.mark.parametrize(
    ("follows", "elements"), [(None, {WEB: OLD}), (mapping(80), {WEB: OLD}), (GUARDED, {})], ids=["gone", "open", "out"]
)
def test_a_key_that_nobody_guards_bars_nobody(follows: Mapping | None, elements: dict[Key, Endpoint]) -> None:
    assert barred(follows, elements, WEB) == []


@pytest.mark.parametrize(
    ("source", "destination", "answered_by", "bars"),
    [
        pytest.param("203.0.113.9", "192.0.2.1", OLD, True, id="another source"),
        pytest.param("203.0.113.9", "192.0.2.1", OTHER, True, id="to an older target"),
        pytest.param("198.51.100.9", "192.0.2.1", OLD, False, id="an allowed source"),
        pytest.param("192.0.2.1", "192.0.2.1", OLD, False, id="the host by its address"),
        pytest.param("127.0.0.9", "127.0.0.1", OLD, False, id="the host by loopback"),
        pytest.param("203.0.113.9", "203.0.113.80", OTHER, False, id="no address of this host"),
        pytest.param("203.0.113.9", "203.0.113.80", OLD, True, id="local by a route"),
    ],
)
def test_whom_a_guarded_wildcard_bars(source: str, destination: str, answered_by: Endpoint, bars: bool) -> None:
    (found,) = barred(GUARDED, {WEB: OLD}, WEB)

    assert found.bars(source, destination, answered_by) is bars


def test_a_guarded_wildcard_leaves_a_listen_address_alone() -> None:
    (found,) = barred(GUARDED, {WEB: OLD, WEB_ONE: OLD}, WEB)

    assert not found.bars("203.0.113.9", "192.0.2.1", OLD)


def test_a_guarded_listen_address_bars_at_that_address() -> None:
    (found,) = barred(GUARDED, {WEB_ONE: OLD}, WEB_ONE)

    assert [found.bars("203.0.113.9", to, OLD) for to in ("192.0.2.1", "192.0.2.2")] == [True, False]


def test_sources_of_the_other_family_spare_nobody() -> None:
    six = key(80, family=6)
    (found,) = barred(GUARDED, {six: Endpoint("fd88::11", 80)}, six)

    assert (found.spare, found.bars("2001:db8::9", "2001:db8::1", OLD)) == ((), True)

"""Reading what nft lists: both shapes of it, and tables that somebody else or another version made.

It must not run nft. The one idea: a listing in, elements and what must be made anew out.
"""

from __future__ import annotations

import pytest

from nfportd import ruleset
from nfportd.desired import Parts
from nfportd.listing import parse
from nfportd.ruleset import Listed
from tests.unit.listings import (
    Listing,
    changed,
    concat,
    counted,
    extended,
    prefix,
    rule,
    table,
    without,
)

T1 = concat("10.88.0.11", 80)
HTTP = counted(concat("tcp", 8080), 7)


def read(listing: Listing) -> Listed:
    found = parse(listing)
    assert found is not None
    return found


@pytest.fixture(params=["1.0.6", "1.1.3"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_no_table() -> None:
    assert parse({"nftables": [{"metainfo": {"version": "1.0.6"}}]}) is None


def test_an_empty_table_of_ours_needs_nothing_anew(version: str) -> None:
    assert ruleset.sets_to_replace(read(table(version))) == []


def test_elements_of_maps(version: str) -> None:
    found = read(
        table(version, any4=[[HTTP, T1]], addr6=[[counted(concat("2001:db8::1", "udp", 53)), concat("fd88::11", 53)]])
    )

    assert (found.elements["any4"], found.elements["addr6"]) == (
        {("tcp", 8080): ("10.88.0.11", 80)},
        {("2001:db8::1", "udp", 53): ("fd88::11", 53)},
    )


def test_elements_of_sets(version: str) -> None:
    found = read(table(version, always_any4=[concat("tcp", 8080)], isolated6=[concat("fd88::11", 17, 53)]))

    assert (found.elements["always_any4"], found.elements["isolated6"]) == (
        {("tcp", 8080): None},
        {("fd88::11", "udp", 53): None},
    )


def test_an_element_without_a_counter_is_an_element() -> None:
    assert read(table(any4=[[concat("tcp", 8080), T1]])).elements["any4"] == {("tcp", 8080): ("10.88.0.11", 80)}


@pytest.mark.parametrize(
    ("name", "listed", "key"),
    [
        ("onlink4", concat(prefix("10.88.0.0", 24), "br0"), ("10.88.0.0/24", "br0")),
        ("onlink4", concat("10.88.1.2", "veth3"), ("10.88.1.2/32", "veth3")),
        ("onlink6", concat(prefix("fd88::", 64), "br0"), ("fd88::/64", "br0")),
        ("onlink6", concat("fd88::11", "veth3"), ("fd88::11/128", "veth3")),
        ("allowed_any4", concat(prefix("192.0.2.0", 24), "tcp", 80), ("192.0.2.0/24", "tcp", 80)),
        ("allowed_any6", concat("2001:db8::7", 6, 80), ("2001:db8::7/128", "tcp", 80)),
        ("allowed_addr4", concat("192.0.2.7", "192.0.2.1", "udp", 53), ("192.0.2.7/32", "192.0.2.1", "udp", 53)),
        ("allowed_any4", concat({"range": ["10.0.0.1", "10.0.0.9"]}, "tcp", 80), ("10.0.0.1-10.0.0.9", "tcp", 80)),
        ("allowed_any4", concat("192.0.2.7", "tcp", {"range": [80, 90]}), ("192.0.2.7/32", "tcp", "80-90")),
    ],
)
def test_prefixes_and_ranges_are_read_as_they_are_written(name: str, listed: object, key: Parts) -> None:
    assert read(changed(table(), name, elem=[listed])).elements[name] == {key: None}


@pytest.mark.parametrize(("number", "name"), [(6, "tcp"), (17, "udp"), (132, "sctp")])
def test_protocols_are_numbers_where_etc_protocols_is_missing(number: int, name: str) -> None:
    found = read(table(any4=[[counted(concat(number, 80), 3), T1]], always_any4=[concat(number, 80)]))

    assert (found.elements["any4"], found.elements["always_any4"]) == (
        {(name, 80): ("10.88.0.11", 80)},
        {(name, 80): None},
    )


def test_a_protocol_that_is_not_ours_stays_what_it_is() -> None:
    assert list(read(table(any4=[[counted(concat("dccp", 80)), T1]])).elements["any4"]) == [("dccp", 80)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["persist", "owner"], ("owner", "persist")), ("dormant", ("dormant",)), (None, ()), ([], ())],
)
def test_flags_of_the_table(flags: object, expected: tuple[str, ...]) -> None:
    assert read(changed(table(), "nfportd", flags=flags)).flags == expected


def test_the_fingerprint_is_the_comment_of_an_element() -> None:
    assert (read(table()).fingerprint, read(table(fingerprint=None)).fingerprint) == ("abc", None)


def test_a_table_without_the_set_of_the_fingerprint_has_none() -> None:
    assert read(without(table(), "fingerprint")).fingerprint is None


def test_chains_with_what_cannot_be_changed_in_place() -> None:
    chains = read(table()).chains

    assert (chains["postrouting"], chains["dispatch"]) == (("nat", "postrouting", 99, "accept"), (None,) * 4)


def test_rules_are_the_same_whatever_their_counters_and_handles_say() -> None:
    counting = [{"counter": {"packets": number, "bytes": number}} for number in (1, 2)]
    one, other = ({"nftables": [*table()["nftables"], rule("dispatch", each)]} for each in counting)

    assert read(one).rules == read(other).rules


def test_rules_that_count_by_name_differ_by_the_name() -> None:
    one, other = ({"nftables": [*table()["nftables"], rule("dispatch", {"counter": name})]} for name in ("a", "b"))

    assert read(one).rules != read(other).rules


def test_packets_of_blocked_sources_by_family(version: str) -> None:
    assert read(changed(table(version), "blocked6", packets=7)).blocked == {4: 0, 6: 7}


def test_a_table_of_before_has_blocked_nothing() -> None:
    assert read(without(without(table(), "blocked4"), "blocked6")).blocked == {4: 0, 6: 0}


def test_packets_past_the_mappings_by_family(version: str) -> None:
    assert read(changed(table(version), "bypassed4", packets=3)).bypassed == {4: 3, 6: 0}


def test_the_fingerprint_does_not_depend_on_counters() -> None:
    one, other = (read(changed(table(), "blocked4", packets=packets)) for packets in (1, 2))

    assert ruleset.fingerprint(13, one) == ruleset.fingerprint(13, other)


def test_rules_in_another_order_are_other_rules() -> None:
    drop, accept = rule("dispatch", {"drop": None}), rule("dispatch", {"accept": None})
    one, other = ({"nftables": [*table()["nftables"], *both]} for both in ([drop, accept], [accept, drop]))

    assert read(one).rules != read(other).rules


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda found: changed(found, "any4", type="inet_service"), id="a key that is no concatenation"),
        pytest.param(lambda found: changed(found, "any4", map="ipv4_addr"), id="a value that is no concatenation"),
        pytest.param(lambda found: changed(found, "any4", type=["inet_service", "inet_proto"]), id="another order"),
        pytest.param(lambda found: changed(found, "onlink4", flags=None), id="an interval set without intervals"),
        pytest.param(lambda found: changed(found, "always_any4", flags=["timeout"]), id="a set with time-outs"),
        pytest.param(lambda found: extended(found, "set", "extra", type="mark"), id="a set of another version"),
    ],
)
def test_a_set_of_another_shape_is_made_anew(harm: object) -> None:
    assert callable(harm)
    found = read(harm(table()))

    assert len(ruleset.sets_to_replace(found)) == 1


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param([[80, "10.88.0.11"]], id="plain"),
        pytest.param([[{"elem": {"val": 80, "counter": {"packets": 1, "bytes": 1}}}, "10.88.0.11"]], id="counted"),
        pytest.param([[{"range": [80, 90]}, "10.88.0.11"]], id="ranges"),
    ],
)
def test_elements_of_a_map_of_another_shape_are_not_read(elements: list[object]) -> None:
    found = read(changed(table(), "any4", type="inet_service", map="ipv4_addr", elem=elements))

    assert found.elements["any4"] == {}


def test_a_map_that_is_missing_has_no_elements() -> None:
    assert read(without(table(), "any4")).elements["any4"] == {}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("onlink4", concat({"range": ["10.88.0.1", "10.88.0.9"]}, "br0")),
        ("onlink4", concat(prefix("10.88.0.0", 24), {"prefix": {"addr": "br", "len": 16}})),
        ("onlink6", concat({"set": ["fd88::1"]}, "br0")),
    ],
)
def test_an_element_in_words_that_we_never_write_is_not_lost(name: str, key: object) -> None:
    assert len(read(changed(table(), name, elem=[key])).elements[name]) == 1

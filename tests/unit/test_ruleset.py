"""The table's text: what a reader can paste, and how a table of another version becomes ours.

It must not run nft. The one idea: commands as lines, in the order in which the kernel takes them.
"""

from __future__ import annotations

import re

import pytest

from nfportd import ruleset
from nfportd.listing import parse
from nfportd.ruleset import Listed
from tests.unit.listings import Listing, changed, concat, counted, extended, table, without


def read(listing: Listing) -> Listed:
    found = parse(listing)
    assert found is not None
    return found


def commands(listing: Listing) -> list[str]:
    """What is said before the skeleton to make the listed table ours."""
    before, _, _ = ruleset.refill(read(listing), 13, ()).partition("table inet nfportd {")
    return before.splitlines()


@pytest.mark.parametrize(
    ("bit", "mark", "others"),
    [(13, "0x2000", "0xffffdfff"), (0, "0x1", "0xfffffffe"), (31, "0x80000000", "0x7fffffff")],
)
def test_the_mark_bit_and_all_others(bit: int, mark: str, others: str) -> None:
    text = ruleset.skeleton(bit)

    assert (set(re.findall(r"\| (0x\w+)", text)), set(re.findall(r"set meta mark & (0x\w+)", text))) == (
        {mark},
        {others},
    )


def test_nothing_is_left_to_fill_in() -> None:
    assert "$" not in ruleset.skeleton(13)


@pytest.mark.parametrize(
    ("flags", "line"), [((), "table inet nfportd {"), (("owner", "persist"), "  flags owner, persist;")]
)
def test_flags_stand_at_the_top(flags: tuple[str, ...], line: str) -> None:
    assert line in ruleset.skeleton(13, flags).splitlines()[:2]


def test_the_skeleton_of_another_name() -> None:
    assert ruleset.skeleton(13, (), "other").startswith("table inet other {")


def test_what_has_a_loopback_address_and_is_no_answer_is_dropped_before_anything_takes_it() -> None:
    text = ruleset.skeleton(13)
    guard, left = (
        text.partition(f"chain {name} {{")[2].partition("}\n")[0] for name in ("loopback_guard", "from_elsewhere")
    )

    assert re.findall(r"ip6? ([sd]addr \S+) goto from_elsewhere", guard) == [
        *("daddr 127.0.0.0/8", "saddr 127.0.0.0/8"),
        *("daddr ::1", "saddr ::1"),
    ]
    assert [line.strip() for line in left.splitlines()[1:5]] == [
        "ip saddr 127.0.0.0/8 ct direction original counter drop",
        "ip6 saddr ::1 ct direction original counter drop",
        "ct status & (snat | dnat) != 0 return",
        "counter drop",
    ]


def test_a_table_of_ours_is_flushed_and_filled_and_nothing_of_it_deleted() -> None:
    assert [line for line in commands(table()) if not line.startswith("flush ")] == []


def test_every_chain_is_flushed() -> None:
    flushed = {line.split()[-1] for line in commands(table()) if line.startswith("flush chain inet nfportd ")}

    admission = {"admission", "admit_addr4", "admit_addr6", "admit_any4", "admit_any6"}
    isolation = {"isolation", "isolation_forward", "isolation_output", "isolation_input"}
    translation = {"prerouting", "output", "postrouting", "dispatch", "dispatch_addr", "masquerading"}
    wishes = {"masquerade_addr", "masquerade_any"}
    assert flushed == {"loopback_guard", "from_elsewhere", *translation, *wishes, *admission, *isolation}


def test_the_old_fingerprint_goes() -> None:
    assert "flush set inet nfportd fingerprint" in commands(table())


def test_a_table_without_a_fingerprint_has_nothing_to_flush_there() -> None:
    assert not [line for line in commands(without(table(), "fingerprint")) if "fingerprint" in line]


def test_elements_of_sets_that_stay_are_not_touched() -> None:
    listing = table(any4=[[counted(concat("tcp", 80)), concat("10.88.0.11", 80)]])

    assert not [line for line in commands(listing) if " any4" in line]


@pytest.mark.parametrize(
    ("listing", "deletion"),
    [
        pytest.param(
            extended(table(), "chain", "extra"), "delete chain inet nfportd extra", id="a chain we do not know"
        ),
        pytest.param(
            changed(table(), "postrouting", prio=101), "delete chain inet nfportd postrouting", id="another priority"
        ),
        pytest.param(
            changed(table(), "dispatch", type="nat", hook="input", prio=0, policy="accept"),
            "delete chain inet nfportd dispatch",
            id="a hook where there should be none",
        ),
        pytest.param(extended(table(), "set", "extra", type="mark"), "delete set inet nfportd extra", id="a set"),
        pytest.param(
            extended(table(), "map", "extra", type="mark", map="ipv4_addr"), "delete map inet nfportd extra", id="a map"
        ),
        pytest.param(
            extended(table(), "counter", "extra", packets=1, bytes=60),
            "delete counter inet nfportd extra",
            id="a counter",
        ),
        pytest.param(changed(table(), "any4", type="inet_service"), "delete map inet nfportd any4", id="another type"),
    ],
)
def test_what_this_version_does_not_know_is_deleted(listing: Listing, deletion: str) -> None:
    assert [line for line in commands(listing) if line.startswith("delete ")] == [deletion]


def test_a_chain_is_flushed_before_it_or_what_it_uses_is_deleted() -> None:
    listing = extended(extended(table(), "chain", "old"), "set", "extra", type="mark")
    verbs = [line.split()[0] for line in commands(listing) if "fingerprint" not in line]

    assert verbs == sorted(verbs, key=["flush", "delete"].index)


def test_the_fingerprint_tells_versions_of_nft_and_mark_bits_apart() -> None:
    one = read(table())
    digests = {
        ruleset.fingerprint(13, one),
        ruleset.fingerprint(14, one),
        ruleset.fingerprint(13, one._replace(rules="{}")),
    }

    assert len(digests) == 3


def test_the_fingerprint_does_not_depend_on_elements() -> None:
    full = read(table(any4=[[counted(concat("tcp", 80)), concat("10.88.0.11", 80)]]))

    assert ruleset.fingerprint(13, full) == ruleset.fingerprint(13, read(table()))


def test_the_fingerprint_is_left_as_a_comment() -> None:
    assert ruleset.set_fingerprint("abc") == 'add element inet nfportd fingerprint { 0x1 comment "abc" }\n'


def test_a_policy_is_set_in_place_for_a_chain_made_anew_loses_its_hook_for_a_moment() -> None:
    text = ruleset.refill(read(changed(table(), "loopback_guard", policy="drop")), 13, ())
    assert "delete " not in text
    assert "hook input priority raw; policy accept;" in text


def test_chains_on_demand_are_neither_missed_nor_written_without_elements() -> None:
    listing = without(table(), "admission")

    assert not ruleset.has_others(read(listing))
    assert "chain admission" not in ruleset.skeleton(13)
    assert "inet nfportd admission" not in ruleset.refill(read(listing), 13, ())


def test_chains_on_demand_are_missed_and_written_where_there_are_elements() -> None:
    listing = without(table(guarded_any4=[concat("tcp", 80)]), "admission")
    text = ruleset.refill(read(listing), 13, ())

    assert ruleset.has_others(read(listing))
    assert "add rule inet nfportd admission ct state != new return" in text.splitlines()


def test_a_plain_chain_on_demand_is_there_without_its_rules() -> None:
    assert re.findall(r"chain (\w+) { }", ruleset.skeleton(13)) == [
        "dispatch_addr",
        "masquerade_addr",
        "masquerade_any",
    ]
    assert "add rule inet nfportd dispatch_addr" not in ruleset.refill(read(table()), 13, ())


def test_a_mapping_of_one_address_brings_its_lookup_and_nothing_more() -> None:
    listing = table(addr4=[[counted(concat("192.0.2.1", "tcp", 80)), concat("10.88.0.11", 80)]])

    assert ruleset.needed(read(listing).elements) == {"dispatch_addr"}
    assert ruleset.on_demand(read(without(listing, "admission"))) & {"dispatch_addr", "admission"} == {"dispatch_addr"}


def test_every_chain_on_demand_is_known() -> None:
    names = {name for name, _, _ in ruleset._BLOCK.findall(ruleset.SKELETON.template)}

    assert ruleset._ON_DEMAND.keys() < names
    assert ruleset._BASE_CHAINS.keys() < names

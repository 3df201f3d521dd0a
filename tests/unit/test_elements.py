"""Elements: in which slot a key stands, what a delta between two states is, and the nft text of it.

It must not run nft. The one idea: states are dictionaries, a delta is what turns one into the other.
"""

from __future__ import annotations

import copy

import pytest

from nfportd import desired, origins, ruleset
from nfportd.desired import ABSENT, Absent, Delta, Desired, Elements, Parts, Slot
from nfportd.model import Endpoint, Key
from tests.unit.reading import key, mapping

HTTP: Parts = ("tcp", 80)
T1: Parts = ("10.88.0.11", 80)
T2: Parts = ("10.88.0.12", 80)
ANY = Slot("any4", HTTP)
ALWAYS = Slot("always_any4", HTTP)
GUARDED = Slot("guarded_any4", HTTP)
NEAR, FAR = "192.0.2.0/24", "198.51.100.7/32"


def wanted(listen: object, targets: object = "10.88.0.11:80", **more: object) -> dict[Slot, Parts | Absent | None]:
    state = Desired()
    state.replace("file:web.yaml", {mapping(listen, targets, **more): 2})
    return {slot: value for slot, value in state.wanted_of_all().items() if value is not ABSENT}


@pytest.mark.parametrize(
    ("listen", "target", "slot"),
    [
        (80, "10.88.0.11:8", Slot("any4", ("tcp", 80))),
        ("0.0.0.0:80", "10.88.0.11:8", Slot("any4", ("tcp", 80))),
        ("[::]:80", "[fd88::11]:8", Slot("any6", ("tcp", 80))),
        ("192.0.2.1:80", "10.88.0.11:8", Slot("addr4", ("192.0.2.1", "tcp", 80))),
        ("[2001:db8::1]:80", "[fd88::11]:8", Slot("addr6", ("2001:db8::1", "tcp", 80))),
    ],
)
def test_the_slot_of_a_key(listen: object, target: str, slot: Slot) -> None:
    assert next(iter(wanted(listen, target))) == slot


@pytest.mark.parametrize(
    ("listen", "target", "slot"),
    [
        (80, "10.88.0.11:8", Slot("always_any4", ("tcp", 80))),
        ("[::]:80", "[fd88::11]:8", Slot("always_any6", ("tcp", 80))),
        ("192.0.2.1:80", "10.88.0.11:8", Slot("always_addr4", ("192.0.2.1", "tcp", 80))),
        ("[2001:db8::1]:80", "[fd88::11]:8", Slot("always_addr6", ("2001:db8::1", "tcp", 80))),
    ],
)
def test_masquerade_always_takes_a_second_slot(listen: object, target: str, slot: Slot) -> None:
    assert wanted(listen, target, masquerade="always").get(slot, "missing") is None


@pytest.mark.parametrize(("listen", "name"), [(80, "never_any4"), ("192.0.2.1:80", "never_addr4")])
def test_masquerade_never_takes_a_second_slot(listen: object, name: str) -> None:
    found = {slot.set for slot in wanted(listen, "10.88.0.11:8", masquerade="never")}

    assert (name in found, {each for each in found if each.startswith("always")}) == (True, set())


def test_the_value_of_an_element_is_the_target() -> None:
    assert wanted("80-81", "10.88.0.11:90-91") == {
        Slot("any4", ("tcp", 80)): ("10.88.0.11", 90),
        Slot("any4", ("tcp", 81)): ("10.88.0.11", 91),
    }


def test_a_key_that_nobody_claims_wants_its_slots_empty() -> None:
    assert Desired().wanted({key(80): None}) == {ANY: ABSENT}


@pytest.mark.parametrize("address", [None, "192.0.2.1"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_the_key_of_its_slots_is_the_key_that_made_them(address: str | None, protocol: str) -> None:
    made = key(80, address, protocol)

    assert [desired.key_of(slot) for slot in desired.slots(made)] == [made, made, made]


@pytest.mark.parametrize(
    "more", [{"masquerade": "always"}, {"masquerade": "never"}, {"sources": ["192.0.2.0/24", "198.51.100.7"]}]
)
@pytest.mark.parametrize("listen", [80, "192.0.2.1:80"])
def test_the_key_of_every_other_slot_is_the_key_that_made_it(listen: object, more: dict[str, object]) -> None:
    made = wanted(listen, **more)

    assert {desired.key_of(slot) for slot in made} == {key(80, "192.0.2.1" if listen != 80 else None)}


def allowed(source: str) -> Slot:
    return Slot("allowed_any4", (source, *HTTP))


def test_sources_take_a_slot_each_before_the_key() -> None:
    assert wanted(80, "10.88.0.11:80", sources=[NEAR, "198.51.100.7"]) == {
        ANY: T1,
        GUARDED: None,
        allowed(NEAR): None,
        allowed(FAR): None,
    }


def test_sources_of_a_listen_address_stand_before_it() -> None:
    parts = ("2001:db8::1", "tcp", 80)

    assert set(wanted("[2001:db8::1]:80", "[fd88::11]:80", sources=["2001:db8::/32"])) == {
        Slot("addr6", parts),
        Slot("guarded_addr6", parts),
        Slot("allowed_addr6", ("2001:db8::/32", *parts)),
    }


def test_a_listen_address_without_sources_is_open() -> None:
    parts = ("192.0.2.1", "tcp", 80)

    assert set(wanted("192.0.2.1:80")) == {Slot("addr4", parts), Slot("open_addr4", parts)}


def test_where_no_source_is_of_a_family_nobody_of_it_is_allowed() -> None:
    made = wanted(80, ["10.88.0.11:80", "[fd88::11]:80"], sources=[NEAR])

    assert sorted(slot.set for slot in made) == ["allowed_any4", "any4", "any6", "guarded_any4", "guarded_any6"]


@pytest.mark.parametrize(
    ("before", "after", "gone"),
    [
        ({"sources": [NEAR, FAR]}, {"sources": [FAR]}, {allowed(NEAR)}),
        ({"sources": [NEAR]}, {}, {GUARDED, allowed(NEAR)}),
        ({"masquerade": "always"}, {"sources": [NEAR]}, {ALWAYS}),
        ({"sources": [NEAR], "masquerade": "always"}, None, {ANY, GUARDED, ALWAYS, allowed(NEAR)}),
    ],
)
def test_slots_of_the_mapping_before_are_emptied(
    before: dict[str, object], after: dict[str, object] | None, gone: set[Slot]
) -> None:
    state = Desired()
    state.replace("file:web.yaml", {mapping(80, **before): 2})
    touched = state.replace("file:web.yaml", {} if after is None else {mapping(80, **after): 2})

    assert {slot for slot, value in state.wanted(touched).items() if value is ABSENT} == gone


def test_a_blocked_key_wants_none_of_its_slots() -> None:
    state, web = Desired(), key(80)
    state.replace("file:web.yaml", {mapping(80, sources=[NEAR]): 2})
    state.block({web}, {web: ("0.0.0.0", None)})

    assert set(state.wanted({web: state.holder(web)}).values()) == {ABSENT}


def test_the_sources_of_keys_are_found_in_the_elements() -> None:
    state = Desired()
    state.replace("file:a", {mapping(80, ["10.88.0.11:80", "[fd88::11]:80"], sources=[NEAR, FAR]): 2})
    state.replace("file:b", {mapping("192.0.2.1:81"): 2})
    elements: Elements = {}
    desired.apply(elements, desired.delta({}, state.wanted_of_all()))

    assert origins.sources_in(elements) == {key(80): (NEAR, FAR), key(80, family=6): ("0.0.0.0/32",)}


@pytest.mark.parametrize(
    "slot",
    [
        Slot("onlink4", ("10.88.0.0/24", "br0")),
        Slot("any4", ("dccp", 80)),
        Slot("any4", (33, 80)),
        Slot("allowed_any4", (NEAR, "tcp", "80-90")),
        Slot("any4", ("tcp", "80-90")),
        Slot("extra_any4", ("tcp", 80)),
    ],
)
def test_slots_that_no_key_leads_to(slot: Slot) -> None:
    assert desired.key_of(slot) is None


@pytest.mark.parametrize(
    ("have", "want", "delta"),
    [
        pytest.param({}, {ANY: T1}, Delta({}, {ANY: T1}), id="new"),
        pytest.param({"any4": {HTTP: T1}}, {ANY: T1}, Delta({}, {}), id="right already"),
        pytest.param({"any4": {HTTP: T1}}, {ANY: T2}, Delta({ANY: T1}, {ANY: T2}), id="changed"),
        pytest.param({"any4": {HTTP: T1}}, {ANY: ABSENT}, Delta({ANY: T1}, {}), id="gone"),
        pytest.param({"any4": {HTTP: T1}}, {}, Delta({}, {}), id="not asked for"),
        pytest.param({"any4": {}}, {ANY: ABSENT}, Delta({}, {}), id="not there already"),
        pytest.param({}, {ALWAYS: None}, Delta({}, {ALWAYS: None}), id="new in a set"),
        pytest.param({"always_any4": {HTTP: None}}, {ALWAYS: None}, Delta({}, {}), id="in the set already"),
        pytest.param({"always_any4": {HTTP: None}}, {ALWAYS: ABSENT}, Delta({ALWAYS: None}, {}), id="out of a set"),
    ],
)
def test_delta(have: Elements, want: dict[Slot, Parts | Absent | None], delta: Delta) -> None:
    assert desired.delta(have, want) == delta


def test_an_empty_delta_is_false() -> None:
    assert (bool(Delta({}, {})), bool(Delta({ANY: T1}, {})), bool(Delta({}, {ALWAYS: None}))) == (False, True, True)


def test_a_delta_brings_the_state_there() -> None:
    state: Elements = {"any4": {HTTP: T1, ("udp", 53): T1}}

    desired.apply(state, Delta({ANY: T1, Slot("any4", ("udp", 53)): T1}, {ANY: T2, ALWAYS: None}))

    assert state == {"any4": {HTTP: T2}, "always_any4": {HTTP: None}}


def test_asking_for_a_delta_changes_nothing() -> None:
    state: Elements = {"any4": {HTTP: T1}}
    before = copy.deepcopy(state)

    desired.delta(state, {ANY: T2, ALWAYS: None})

    assert state == before


@pytest.mark.parametrize(
    ("which", "endpoint"),
    [
        (key(80), Endpoint("10.88.0.11", 80)),
        (key(81), None),
        (key(80, family=6), None),
        (key(80, "192.0.2.1"), None),
    ],
)
def test_where_a_key_goes_by_the_elements(which: Key, endpoint: Endpoint | None) -> None:
    assert desired.endpoint_in({"any4": {HTTP: T1}}, which) == endpoint


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        pytest.param(Delta({}, {}), "", id="nothing"),
        pytest.param(Delta({}, {ANY: T1}), "add element inet nfportd any4 { tcp . 80 : 10.88.0.11 . 80 }\n", id="map"),
        pytest.param(Delta({}, {ALWAYS: None}), "add element inet nfportd always_any4 { tcp . 80 }\n", id="set"),
        pytest.param(
            Delta({ANY: T1}, {}), "delete element inet nfportd any4 { tcp . 80 }\n", id="a removal names the key"
        ),
        pytest.param(
            Delta({ANY: T1}, {ANY: T2}),
            "delete element inet nfportd any4 { tcp . 80 }\n"
            "add element inet nfportd any4 { tcp . 80 : 10.88.0.12 . 80 }\n",
            id="a change removes first",
        ),
        pytest.param(
            Delta({}, {Slot("addr6", ("2001:db8::1", "udp", 53)): ("fd88::11", 5353)}),
            "add element inet nfportd addr6 { 2001:db8::1 . udp . 53 : fd88::11 . 5353 }\n",
            id="IPv6",
        ),
        pytest.param(
            Delta({}, {Slot("onlink4", ("10.88.0.0/24", "fwd")): None}),
            'add element inet nfportd onlink4 { 10.88.0.0/24 . "fwd" }\n',
            id="an interface may be called like a keyword",
        ),
        pytest.param(
            Delta({}, {Slot("any4", ("tcp", port)): T1 for port in (80, 81)} | {ALWAYS: None}),
            "add element inet nfportd any4 { tcp . 80 : 10.88.0.11 . 80, tcp . 81 : 10.88.0.11 . 80 }\n"
            "add element inet nfportd always_any4 { tcp . 80 }\n",
            id="one command a set",
        ),
    ],
)
def test_text(delta: Delta, text: str) -> None:
    assert ruleset.text(delta) == text


def test_text_for_another_table() -> None:
    assert ruleset.text(Delta({}, {ALWAYS: None}), "other") == "add element inet other always_any4 { tcp . 80 }\n"

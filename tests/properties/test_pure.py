"""The pure modules under random changes: claims, elements, deltas, topology.

It must not touch the kernel. The one idea: whatever the way, the state is that of the plain model.
"""

from __future__ import annotations

import copy
import ipaddress
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings, strategies as st

from nfportd import desired, elements as elements_of, netlink, ruleset
from nfportd.desired import ABSENT, Absent, Delta, Desired, Elements, Parts, Reached, Slot
from nfportd.model import Mapping
from nfportd.notation import Family
from nfportd.topology import Link, Network, Route, Topology
from tests.properties import model
from tests.properties.strategies import OWNERS, TARGETS, Wishes, changes, elements, files, mappings

MANY = settings(max_examples=80, deadline=None)
#: NFNL_MSG_BATCH_BEGIN and _END, NFT_MSG_NEWSETELEM.
BEGIN, END, NEW_ELEMENT = 16, 17, 12
Changes = list[tuple[str, dict[Mapping, int]]]


def everything(state: Elements) -> dict[Slot, Parts | Absent | None]:
    return {Slot(name, key): value for name, inside in state.items() for key, value in inside.items()}


def entered(steps: Changes) -> tuple[Desired, Wishes]:
    state, wishes = Desired(), Wishes()
    for owner, wish in steps:
        state.replace(owner, wish)
        wishes[owner] = wish
    return state, wishes


def wanted(state: Desired) -> Elements:
    found: Elements = {name: {} for name in model.NAMES}
    desired.apply(found, desired.delta({}, state.wanted_of_all()))
    return found


@MANY
@given(elements(), elements())
def test_a_delta_turns_one_state_into_the_other(one: Elements, other: Elements) -> None:
    want = dict.fromkeys(everything(one), ABSENT) | everything(other)

    state = copy.deepcopy(one)
    desired.apply(state, desired.delta(one, want))

    assert everything(state) == everything(other)


@MANY
@given(elements(), elements())
def test_a_transaction_says_a_delta_as_the_kernel_would(one: Elements, other: Elements) -> None:
    change = desired.delta(one, dict.fromkeys(everything(one), ABSENT) | everything(other))
    found = Delta({}, {})
    transaction = elements_of.transaction(change)
    assert transaction
    kinds = []
    for kind, content in netlink.messages(transaction):
        kinds.append(kind & 0xFF)
        if kind >> 8:
            (found.add if kind & 0xFF == NEW_ELEMENT else found.remove).update(elements_of.read(content[4:]))

    assert kinds == [BEGIN, *sorted(kinds[1:-1], reverse=True), END]
    assert (found.remove, found.add) == (dict.fromkeys(change.remove), change.add)


@pytest.mark.parametrize(
    "slot",
    [
        Slot("any4", ("*",)),
        Slot("any4", (33, 80)),
        Slot("any4", ("dccp", 80)),
        Slot("any4", ("tcp", "80-90")),
        Slot("any4", ("tcp", 80, 80)),
        Slot("addr4", ("fd88::11", "tcp", 80)),
        Slot("addr6", ("10.88.0.11", "tcp", 80)),
        Slot("onlink4", ("192.0.2.1-192.0.2.5", "eth0")),
        Slot("onlink4", ("192.0.2.0/24", "a-name-of-16-by.")),
        Slot("allowed_any4", ("192.0.2.0/24", "tcp", "80-90")),
        Slot("another", ("tcp", 80)),
    ],
)
def test_what_we_would_not_write_is_for_libnftables_to_name(slot: Slot) -> None:
    assert elements_of.transaction(Delta({slot: None}, {})) is None


def test_a_large_delta_is_cut_into_messages() -> None:
    """An attribute has at most 64 KiB."""
    slots = {Slot("addr6", ("fd88::11", "tcp", port)): ("fd88::12", port) for port in range(1, 3000)}
    transaction = elements_of.transaction(Delta({}, dict(slots)))
    assert transaction
    bodies = [content[4:] for kind, content in netlink.messages(transaction) if kind >> 8]

    assert max(map(len, bodies)) < 1 << 15
    assert {slot: value for body in bodies for slot, value in elements_of.read(body)} == slots


@MANY
@given(elements(), elements())
def test_a_delta_holds_nothing_that_is_right_already(one: Elements, other: Elements) -> None:
    change = desired.delta(one, dict.fromkeys(everything(one), ABSENT) | everything(other))

    assert [slot for slot in change.add if everything(one).get(slot, ABSENT) == change.add[slot]] == []


@MANY
@given(elements(), elements())
def test_the_text_of_a_delta_removes_before_it_adds(one: Elements, other: Elements) -> None:
    lines = ruleset.text(desired.delta(one, dict.fromkeys(everything(one), ABSENT) | everything(other))).splitlines()
    verbs = [line.split()[0] for line in lines]

    assert verbs == sorted(verbs, key=["delete", "add"].index)


@MANY
@given(mappings())
def test_a_mapping_leads_each_of_its_keys_to_a_port_of_its_own(mapping: Mapping) -> None:
    pairs = list(mapping.endpoints())
    keys = Counter(key for key, _ in pairs)
    ends = Counter((key.protocol, key.family, endpoint) for key, endpoint in pairs)

    assert set(keys.values()) | set(ends.values()) == {1}


@MANY
@given(mappings())
def test_the_offset_in_a_range_is_the_same_on_both_sides(mapping: Mapping) -> None:
    shifts = {(key.family, endpoint.port - key.port) for key, endpoint in mapping.endpoints()}

    assert len(shifts) == len(mapping.targets)


@MANY
@given(mappings())
def test_each_key_alone_goes_where_all_of_them_go(mapping: Mapping) -> None:
    assert {key: mapping.endpoint(key) for key, _ in mapping.endpoints()} == dict(mapping.endpoints())


@MANY
@given(mappings())
def test_a_mapping_has_as_many_keys_as_it_says(mapping: Mapping) -> None:
    assert mapping.size == len(list(mapping.endpoints()))


@MANY
@given(changes())
def test_the_first_owner_in_order_holds_a_key(steps: Changes) -> None:
    state, wishes = entered(steps)

    holders = {key: claim.owner for key in state.claimed() if (claim := state.holder(key))}
    assert holders == {key: owner for key, (owner, _, _) in model.held(wishes).items()}


@MANY
@given(changes())
def test_elements_follow_from_the_wishes_whatever_came_before(steps: Changes) -> None:
    state, wishes = entered(steps)

    assert wanted(state) == model.elements(wishes)


@MANY
@given(changes())
def test_what_is_touched_is_enough(steps: Changes) -> None:
    state, wishes, found = Desired(), Wishes(), Elements()
    for owner, wish in steps:
        desired.apply(found, desired.delta(found, state.wanted(state.replace(owner, wish))))
        wishes[owner] = wish

    assert everything(found) == everything(model.elements(wishes))


@MANY
@given(changes(), files())
def test_what_is_touched_is_named_with_its_holder_before(steps: Changes, wish: dict[Mapping, int]) -> None:
    state, _ = entered(steps)
    before = {key: state.holder(key) for key in state.claimed()}

    touched = state.replace(OWNERS[0], wish)

    assert touched == {key: before.get(key) for key in touched}


@MANY
@given(changes(), st.sampled_from(OWNERS), files())
def test_an_owner_that_came_and_went_leaves_no_trace(steps: Changes, owner: str, wish: dict[Mapping, int]) -> None:
    others = [(who, what) for who, what in steps if who != owner]
    without, _ = entered(others)
    state, _ = entered([*others, (owner, wish), (owner, {})])

    assert (wanted(state), set(state.claimed()), state.count(), set(state.owners()), set(state.reached())) == (
        wanted(without),
        set(without.claimed()),
        without.count(),
        set(without.owners()),
        set(without.reached()),
    )


@MANY
@given(changes())
def test_every_claim_holds_or_waits(steps: Changes) -> None:
    state, wishes = entered(steps)
    waiting = {(claim.owner, key) for claim, keys in state.waiting(state.claimed()).items() for key in keys}
    holding = {(claim.owner, key) for key in state.claimed() if (claim := state.holder(key))}

    claims = [(owner, key) for owner, wish in wishes.items() for mapping in wish for key, _ in mapping.endpoints()]
    assert (waiting | holding, waiting & holding) == (set(claims), set())


@MANY
@given(changes(), st.lists(st.booleans(), min_size=8, max_size=8))
def test_changes_of_targets_add_up_to_the_targets(steps: Changes, ask: list[bool]) -> None:
    state, known = Desired(), set[Reached]()
    for (owner, wish), now in zip(steps, ask, strict=False):
        state.replace(owner, wish)
        if now:
            for reached, used in state.reached_changes().items():
                assert (reached in known) != used, "told twice"
                known = known | {reached} if used else known - {reached}
    for reached, used in state.reached_changes().items():
        known = known | {reached} if used else known - {reached}

    assert known == set(state.reached())


LINKS = tuple(Link(index, name) for index, name in enumerate(("lo", "br0", "veth3", "odd name"), start=1))
PREFIXES: dict[Family, tuple[str, ...]] = {
    4: ("0.0.0.0/0", "10.0.0.0/8", "10.88.0.0/16", "10.88.0.0/24", "10.88.0.128/25", "10.88.0.11/32", "10.88.1.2/32"),
    6: ("::/0", "fd00::/8", "fd88::/64", "fd88::11/128", "fd88:0:0:1::/64", "2001:db8::/32"),
}
routes = (
    st.sampled_from(get_args(Family))
    .flatmap(
        lambda family: st.builds(
            Route,
            family=st.just(family),
            prefix=st.sampled_from(PREFIXES[family]),
            interface=st.integers(1, len(LINKS) + 1),
            metric=st.sampled_from([0, 100]),
            on_link=st.booleans(),
        )
    )
    .filter(lambda route: not (route.on_link and route.prefix.endswith("/0")))
)
networks = st.lists(routes, max_size=8).map(lambda found: Network(LINKS, tuple(found)))
reached = st.sampled_from(get_args(Family)).flatmap(
    lambda family: st.builds(
        Reached,
        family=st.just(family),
        address=st.sampled_from([target.strip("[]") for target in TARGETS[family]]),
        loopback=st.booleans(),
    )
)


@MANY
@given(networks, st.lists(reached, unique=True), st.data())
def test_targets_that_come_and_go_need_what_a_new_topology_needs(
    network: Network, targets: list[Reached], data: st.DataObject
) -> None:
    found = Topology(network, targets)
    gone = data.draw(st.lists(st.sampled_from(targets), unique=True)) if targets else []
    for target in gone:
        found.remove(target)

    assert found.needs == Topology(network, [each for each in targets if each not in gone]).needs


@MANY
@given(networks, st.lists(reached, unique=True))
def test_no_on_link_prefix_lies_in_another_of_its_link(network: Network, targets: list[Reached]) -> None:
    slots = [need for need in Topology(network, targets).needs if isinstance(need, Slot)]
    nets = [(ipaddress.ip_network(str(prefix)), link) for prefix, link in (slot.key for slot in slots)]

    nested = [
        (one, other)
        for one, link in nets
        for other, of in nets
        if one != other and link == of and one.version == other.version and one.overlaps(other)
    ]
    assert nested == [], "the kernel refuses an interval inside another"


@MANY
@given(networks, st.lists(reached, max_size=3))
def test_the_neighbours_of_targets_are_those_of_the_plain_model(network: Network, targets: list[Reached]) -> None:
    slots = {need for need in Topology(network, targets).needs if isinstance(need, Slot)}
    plain = {link.index: link.name for link in LINKS[:3]}
    found = set[Slot]()
    for index, name in plain.items():
        links = {route.prefix: name for route in network.routes if route.on_link and route.interface == index}
        addresses = {target.address for target in targets}
        found |= {Slot(slot, (prefix, link)) for slot, prefix, link in model.on_link(addresses, links)}

    assert slots == found

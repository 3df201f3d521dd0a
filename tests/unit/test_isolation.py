"""Isolated targets as elements: who makes a target one, and when the last of them is gone.

It must not run nft. The one idea: two mappings that lead to one target, put in and taken out in every way, and what
should then be in the slot of that target.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nfportd import desired, origins
from nfportd.desired import ABSENT, Absent, Desired, Elements, Parts, Slot
from nfportd.model import Mapping
from nfportd.register import Register
from nfportd.service import Service
from nfportd.wishes import Content, Wish
from tests.unit.reading import key, mapping

T1, T2 = Slot("isolated4", ("10.88.0.11", "tcp", 80)), Slot("isolated4", ("10.88.0.12", "tcp", 80))
ONE, TWO = mapping(8080, "10.88.0.11:80", isolate=True), mapping(8081, "10.88.0.11:80", isolate=True)
PLAIN = mapping(8082, "10.88.0.11:80")
#: On the key of ONE, to another target.
RIVAL = mapping(8080, "10.88.0.12:80", isolate=True)


def state(**owners: Mapping) -> Desired:
    """Each owner with one mapping; files, so they are in order of their names."""
    made = Desired()
    for owner, each in owners.items():
        made.replace(f"file:{owner}", {each: 2})
    return made


def isolation(wanted: dict[Slot, Parts | Absent | None]) -> dict[Slot, Parts | Absent | None]:
    return {slot: value for slot, value in wanted.items() if slot.set.startswith("isolated")}


def replaced(of: Desired, owner: str, *mappings: Mapping) -> dict[Slot, Parts | Absent | None]:
    """What should be in the slots of targets that a change touches."""
    return isolation(of.wanted(of.replace(f"file:{owner}", dict.fromkeys(mappings, 2))))


def test_a_slot_for_each_target_address_protocol_and_port() -> None:
    ranged = mapping("8080-8081", ["10.88.0.11:90-91", "[fd88::11]:80-81"], protocol=["tcp", "udp"], isolate=True)

    assert isolation(state(a=ranged).wanted_of_all()) == {
        Slot(f"isolated{family}", (address, protocol, first + offset)): None
        for family, address, first in ((4, "10.88.0.11", 90), (6, "fd88::11", 80))
        for protocol in ("tcp", "udp")
        for offset in (0, 1)
    }


def test_without_the_option_there_is_no_slot() -> None:
    assert isolation(state(a=PLAIN).wanted_of_all()) == {}


def test_the_last_of_two_mappings_opens_their_target() -> None:
    both = state(a=ONE, b=TWO)

    assert replaced(both, "a") == {T1: None}
    assert replaced(both, "b") == {T1: ABSENT}


def test_a_mapping_without_the_option_neither_keeps_nor_opens_a_target() -> None:
    both = state(a=ONE, b=PLAIN)

    assert replaced(both, "b") == {}
    assert isolation(both.wanted_of_all()) == {T1: None}
    both.replace("file:b", {PLAIN: 2})
    assert replaced(both, "a") == {T1: ABSENT}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_mapping_that_waits_for_its_key_isolates_nothing(order: tuple[str, str]) -> None:
    both = state(**{owner: {"a": ONE, "b": RIVAL}[owner] for owner in order})

    assert isolation(both.wanted_of_all()) == {T1: None}
    assert replaced(both, "b") == {T1: None}


def test_the_target_of_the_next_holder_is_isolated_and_that_of_the_one_before_opened() -> None:
    both = state(a=ONE, b=RIVAL)

    assert replaced(both, "a") == {T1: ABSENT, T2: None}
    assert replaced(both, "a", ONE) == {T1: None, T2: ABSENT}


def test_a_mapping_that_moves_takes_isolation_along() -> None:
    one = state(a=ONE)

    assert replaced(one, "a", RIVAL) == {T1: ABSENT, T2: None}
    assert replaced(one, "a", mapping(8080, "10.88.0.12:80")) == {T2: ABSENT}


def test_a_line_that_moves_changes_nothing() -> None:
    one = state(a=ONE)

    assert one.replace("file:a", {ONE: 7}) == {}
    assert isolation(one.wanted_of_all()) == {T1: None}
    assert replaced(one, "a") == {T1: ABSENT}


def test_the_target_of_a_key_on_which_a_process_listens_stays_isolated() -> None:
    one = state(a=ONE)
    one.block({key(8080)}, {key(8080): ("0.0.0.0", None)})

    assert one.wanted_of_all() == {Slot("any4", ("tcp", 8080)): ABSENT, T1: None}


def test_what_should_be_in_a_slot_that_somebody_touched() -> None:
    one = state(a=ONE)

    assert (one.isolation(T1), one.isolation(T2), one.isolation(Slot("onlink4", ("10.0.0.0/8", "br0")))) == (
        None,
        ABSENT,
        ABSENT,
    )


def test_an_isolated_target_belongs_to_no_key() -> None:
    assert desired.key_of(T1) is None


def test_a_refused_element_is_the_mapping_s_where_one_asked_for_it() -> None:
    both = state(a=ONE, b=TWO)

    assert both.isolator(T1) is None
    both.replace("file:a", {})
    assert (both.isolator(T1), both.isolator(T2)) == (both.holder(key(8081)), None)


def test_who_asks_for_drift_is_told_of_an_opened_target() -> None:
    """By a table that has lost it: of both mappings that want it, and not of the one that does not."""
    register = Register()
    register.take(
        Wish(owners={"api:me": Content(mappings=dict.fromkeys([ONE, TWO, PLAIN], 0))}), 0.0, bool, lambda _: {}
    )

    async def state() -> str:
        return "intact"

    async def holds(elements: dict[Slot, Parts | None]) -> bool:
        return T1 not in elements

    table = SimpleNamespace(state=state, holds=holds, uncertain=False)
    kernel: Any = SimpleNamespace(
        table=table, host=None, relay=None, monitor=SimpleNamespace(stirred=None, quiet=lambda: True)
    )
    nft: Any = SimpleNamespace(list_table=None)
    nowhere: Any = None
    service = Service(register, kernel, nft, nowhere, nowhere)
    reconciler: Any = SimpleNamespace(enforcer=SimpleNamespace(refused={}))
    service.reconciler = reconciler

    assert asyncio.run(service.drift("api:me")).keys() == {ONE, TWO}


def test_which_keys_lead_to_an_isolated_target_by_the_elements() -> None:
    elements: Elements = {}
    made = state(a=ONE, b=PLAIN, c=mapping(8083, "10.88.0.12:80"))
    desired.apply(elements, desired.delta({}, made.wanted_of_all()))

    assert [origins.isolates_in(elements, key(port)) for port in (8080, 8082, 8083, 8084)] == [True, True, False, False]

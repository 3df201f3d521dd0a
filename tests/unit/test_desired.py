"""Who holds a key when files come, change and go; and the elements that follow from it.

It must not know nft. The one idea: owners act in turn, and after each turn a key goes where the reader expects.
"""

from __future__ import annotations

import pytest

from nfportd.desired import Desired, Reached
from nfportd.model import Key, Mapping
from tests.unit.reading import key, mapping

A, B, C = "file:10-a.yaml", "file:20-b.yaml", "file:30-c.yaml"
WEB = key(8080)


def to(host: int, listen: object = 8080, **more: str) -> Mapping:
    """A mapping to 10.88.0.<host>."""
    return mapping(listen, f"10.88.0.{host}:80", name=f"m{host}", **more)


def goes(desired: Desired, which: Key = WEB) -> str | None:
    holder = desired.holder(which)
    return str(holder.mapping.endpoint(which)) if holder else None


def test_nobody_claims_a_key_of_which_nobody_spoke() -> None:
    assert (goes(Desired()), Desired().claims(WEB)) == (None, ())


def test_a_claim_holds_its_key() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})

    assert goes(desired) == "10.88.0.1:80"


@pytest.mark.parametrize("order", [(A, B), (B, A)])
def test_the_first_file_in_lexical_order_holds_whatever_the_order_of_arrival(order: tuple[str, str]) -> None:
    desired = Desired()
    for owner in order:
        desired.replace(owner, {to(1 if owner == A else 2): 2})

    assert goes(desired) == "10.88.0.1:80"


def test_the_other_one_waits() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})
    desired.replace(B, {to(2): 7})

    assert {str(claim): keys for claim, keys in desired.waiting(desired.claimed()).items()} == {
        'mapping "m2" (file:20-b.yaml line 7)': [WEB]
    }


def test_letting_go_makes_room_for_the_next_in_order() -> None:
    desired = Desired()
    for host, owner in ((3, C), (2, B), (1, A)):
        desired.replace(owner, {to(host): 2})

    seen = [goes(desired)]
    for owner in (A, B, C):
        desired.replace(owner, {})
        seen.append(goes(desired))
    assert seen == ["10.88.0.1:80", "10.88.0.2:80", "10.88.0.3:80", None]


def test_one_that_waits_may_go_and_nothing_changes() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})
    desired.replace(B, {to(2): 2})
    desired.replace(B, {})

    assert (goes(desired), desired.waiting([WEB])) == ("10.88.0.1:80", {})


def test_a_wildcard_and_an_address_do_not_wait_for_each_other() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})
    desired.replace(B, {to(2, "192.0.2.1:8080"): 2})

    assert (goes(desired), goes(desired, key(8080, "192.0.2.1"))) == ("10.88.0.1:80", "10.88.0.2:80")


def test_a_range_waits_only_where_it_overlaps() -> None:
    desired = Desired()
    desired.replace(A, {to(1, 8081): 2})
    desired.replace(B, {mapping("8080-8082", "10.88.0.2:90-92"): 2})

    assert [goes(desired, key(port)) for port in (8080, 8081, 8082)] == [
        "10.88.0.2:90",
        "10.88.0.1:80",
        "10.88.0.2:92",
    ]


def test_a_change_touches_the_keys_of_what_went_and_of_what_came() -> None:
    desired = Desired()
    desired.replace(A, {to(1, 8080): 2, to(1, 8081): 5})

    assert set(desired.replace(A, {to(1, 8081): 2, to(1, 8082): 5})) == {key(8080), key(8082)}


def test_a_touched_key_tells_who_held_it_before() -> None:
    desired = Desired()
    desired.replace(B, {to(2): 2})

    touched = desired.replace(A, {to(1): 2})

    assert {which: str(claim) for which, claim in touched.items()} == {WEB: 'mapping "m2" (file:20-b.yaml line 2)'}


def test_the_same_again_touches_nothing() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})

    assert desired.replace(A, {to(1): 2}) == {}


def test_a_mapping_that_only_moves_to_another_line_touches_nothing() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})

    assert desired.replace(A, {to(1): 9}) == {}


def test_a_mapping_that_moved_is_named_by_its_new_line() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})
    desired.replace(A, {to(1): 9})

    assert str(desired.holder(WEB)) == 'mapping "m1" (file:10-a.yaml line 9)'


def test_a_mapping_that_stayed_over_a_change_goes_with_its_file() -> None:
    desired = Desired()
    desired.replace(A, {to(1, 8080): 2})
    desired.replace(A, {to(1, 8080): 2, to(1, 8081): 5})
    desired.replace(A, {})

    assert (list(desired.claimed()), desired.count(), list(desired.reached())) == ([], 0, [])


def test_a_mapping_that_stayed_over_a_change_can_be_changed() -> None:
    desired = Desired()
    desired.replace(A, {to(1, 8080): 2})
    desired.replace(A, {to(1, 8080): 2, to(1, 8081): 5})
    desired.replace(A, {to(2, 8080): 2, to(1, 8081): 5})

    assert goes(desired) == "10.88.0.2:80"


def test_mappings_are_counted_over_all_owners() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2, to(1, 8081): 5})
    desired.replace(B, {to(2): 2})

    assert (desired.count(), set(desired.owners())) == (3, {A, B})


def test_an_owner_without_mappings_is_none() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})
    desired.replace(A, {})

    assert list(desired.owners()) == []


LOOPBACK, OTHER = Reached(4, "10.88.0.1", True), Reached(4, "10.88.0.1", False)


def test_a_target_comes_into_use_once() -> None:
    desired = Desired()
    desired.replace(A, {to(1, 8080): 2, to(1, 8081): 5})
    first = desired.reached_changes()
    desired.replace(B, {to(1, 8082): 2})

    assert (first, desired.reached_changes()) == ({LOOPBACK: True}, {})


def test_a_target_goes_out_of_use_with_its_last_key() -> None:
    desired = Desired()
    desired.replace(A, {to(1, 8080): 2})
    desired.replace(B, {to(1, 8081): 2})
    desired.reached_changes()

    desired.replace(A, {})
    halfway = desired.reached_changes()
    desired.replace(B, {})

    assert (halfway, desired.reached_changes()) == ({}, {LOOPBACK: False})


def test_a_target_that_came_and_went_unasked_is_no_change() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})
    desired.replace(A, {})

    assert desired.reached_changes() == {}


def test_a_target_that_went_and_came_back_unasked_is_no_change() -> None:
    desired = Desired()
    desired.replace(A, {to(1): 2})
    desired.reached_changes()
    desired.replace(A, {})
    desired.replace(A, {to(1): 2})

    assert desired.reached_changes() == {}


@pytest.mark.parametrize(
    ("listen", "reached"),
    [(8080, LOOPBACK), ("127.0.0.1:8080", LOOPBACK), ("192.0.2.1:8080", OTHER)],
)
def test_whether_loopback_connections_reach_a_target(listen: object, reached: Reached) -> None:
    desired = Desired()
    desired.replace(A, {to(1, listen): 2})

    assert list(desired.reached()) == [reached]

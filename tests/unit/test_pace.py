"""How repairs are paced: at once for a while, a share of the time in a fight, at once again after a peace.

It must not sleep. The one idea: the clock is a number that the test moves.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from nfportd.pace import Pace


def repair(pace: Pace, took: float, pause: float, seconds: float) -> list[float]:
    """Repairs for so many seconds, each as soon as it may be after a pause; the times at which they ended."""
    now, ends = 1000.0, []
    while now < 1000.0 + seconds:
        now += pause + pace.delay(now + pause) + took
        pace.spend(now, took)
        ends.append(now)
    return ends


def test_the_first_repair_waits_for_nothing() -> None:
    assert Pace().delay(0.0) == 0.0


@pytest.mark.parametrize(("took", "pause", "count"), [(0.008, 0.01, 100), (1.3, 0.5, 10)])
def test_some_repairs_in_a_row_are_immediate(took: float, pause: float, count: int) -> None:
    pace = Pace()
    ends = repair(pace, took, pause, count * (took + pause) - 0.001)
    assert len(ends) == count
    assert not pace.fight


@pytest.mark.parametrize(("took", "pause"), [(0.008, 0.0), (0.1, 0.01), (1.5, 0.0)])
def test_in_a_fight_repairs_take_a_fifth_of_the_time(took: float, pause: float) -> None:
    pace = Pace()
    ends = repair(pace, took, pause, 120)
    assert pace.fight
    late = [end for end in ends if end > 1060]
    assert len(late) * took <= 0.25 * 60
    assert all(later - sooner >= 0.1 for sooner, later in pairwise(late))


def test_a_slow_fight_is_one_too() -> None:
    pace = Pace()
    repair(pace, 0.001, 0.5, 30)
    assert pace.fight


def test_now_and_then_is_no_fight() -> None:
    pace = Pace()
    repair(pace, 0.01, 12.0, 3600)
    assert not pace.fight


def test_peace_ends_a_fight() -> None:
    pace = Pace()
    last = repair(pace, 0.1, 0.0, 60)[-1]
    assert pace.fight
    assert pace.delay(last + 0.01) > 0
    assert pace.delay(last + 10.0) == 0.0
    assert not pace.fight

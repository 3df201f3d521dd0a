"""The judgement of a chaos run: who may fail when, and that everybody else may not.

Must not need a kernel. The one idea: made-up windows and connections.
"""

from __future__ import annotations

import pytest

from tests.chaos import faults, plan
from tests.chaos.judgement import Judgement, Window, distribution
from tests.chaos.traffic import ANSWERED, Connection

WAY, STREAM = "outside tcp4 t1", "outside stream4 t1"


def judged(kind: str, *connections: Connection) -> Judgement:
    """A fault from 10 s on, repaired at 12 s."""
    return Judgement(faults.ALL, [Window(kind, 10.0, 10.1, 12.0)], connections)


def failed(begun: float, ended: float = 0.0, way: str = WAY) -> Connection:
    return Connection(way, begun, ended or begun + 0.01, "ECONNREFUSED")


def answered(begun: float) -> Connection:
    return Connection(WAY, begun, begun + 0.01, ANSWERED)


@pytest.mark.parametrize("begun", [9.6, 10.0, 11.0, 12.0])
def test_who_begins_in_a_window_may_fail(begun: float) -> None:
    found = judged("map flushed", failed(begun))

    assert (found.wrong, found.excused) == ([], {"map flushed": 1})


@pytest.mark.parametrize("begun", [9.0, 12.5])
def test_who_begins_before_or_after_it_may_not(begun: float) -> None:
    assert len(judged("map flushed", failed(begun)).wrong) == 1


def test_a_window_lasts_until_a_new_connection_gets_through() -> None:
    early = judged("map flushed", failed(12.4), answered(12.2))
    late = judged("map flushed", failed(12.4), answered(12.6))
    never = judged("map flushed", failed(17.5), answered(18.0))

    assert (len(early.wrong), len(late.wrong), len(never.wrong)) == (1, 0, 1)
    assert early.disturbed[WAY] < late.disturbed[WAY] < never.disturbed[WAY]


@pytest.mark.parametrize("kind", ["killed", "store full", "files of garbage", "map flushed"])
def test_a_window_is_only_for_the_ways_that_its_fault_stops(kind: str) -> None:
    way = WAY if kind != "map flushed" else "outside tcp6 t1"

    assert len(judged(kind, failed(11.0, way=way)).wrong) == 1


def test_a_stream_ends_only_by_what_breaks_it() -> None:
    assert len(judged("map flushed", failed(11.0, 11.5, STREAM)).wrong) == 1
    assert judged("flush ruleset", failed(11.0, 11.5, STREAM)).wrong == []
    assert len(judged("flush ruleset", failed(13.0, 13.5, STREAM)).wrong) == 1


def test_the_distribution_names_each_kind() -> None:
    windows = [Window("killed", 0.0, 0.0, seconds / 1000) for seconds in range(1, 101)]
    line = distribution(windows, {"killed": 3}).splitlines()[1]

    assert line.split() == ["killed", "100", "51.0", "91.0", "100.0", "100.0", "3"]


def test_a_plan_follows_from_its_seed_and_deals_every_kind() -> None:
    first, again, other = (plan.steps(seed, list(faults.ALL)) for seed in (1, 1, 2))
    dealt = [next(first) for _ in faults.ALL]

    assert dealt == [next(again) for _ in faults.ALL]
    assert dealt != [next(other) for _ in faults.ALL]
    assert {step.kind for step in dealt} == set(faults.ALL)

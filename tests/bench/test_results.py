"""The rows that benches save: medians, spreads, goals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import results
from bench.results import Row, base, high, row, verdict


def test_a_row_holds_the_median_and_what_a_tenth_is_below_and_above() -> None:
    made = row("PUT", 100, "nfportd", [float(n) for n in range(101)], "ms", goal=60.0)

    assert (made["median"], made["low"], made["high"], made["rounds"], made["goal"]) == (50, 10, 90, 101, 60)


def test_a_row_of_one_round_has_no_spread_and_no_goal_unless_it_is_given() -> None:
    made = row("PUT", 100, "nfportd", [7.0], "ms")

    assert (made["median"], made["low"], made["high"]) == (7, 7, 7)
    assert "goal" not in made


def test_the_slowest_rounds_are_told_from_the_median_to_the_most() -> None:
    made = high("repair", 100, "nfportd", [float(n) for n in range(200)], "ms")

    assert (made["low"], made["median"], made["high"]) == (99.5, 198, 199)


@pytest.mark.parametrize(
    ("better", "median", "goal", "expected"),
    [
        ("less", 0.9, 1.0, "met"),
        ("less", 1.0, 1.0, "met"),
        ("less", 1.5, 1.0, "missed by 50%"),
        ("more", 3000.0, 3000.0, "met"),
        ("more", 1500.0, 3000.0, "missed by 50%"),
        ("less", 2.0, 0.0, "missed by 2 ms"),
        ("less", 0.0, 0.0, "met"),
        ("less", 1.0, "flat", ""),
    ],
)
def test_a_verdict_says_by_how_much_a_goal_is_missed(
    better: str, median: float, goal: float | str, expected: str
) -> None:
    made = row("PUT", 0, "nfportd", [median], "ms", "less" if better == "less" else "more", goal)

    assert verdict(made) == expected


def test_a_peer_is_held_against_ours_of_the_same_group_size_and_unit() -> None:
    ours = [row("ADD", size, "nfportd, CNI", [1.0], "ms") for size in (0, 100)]
    theirs = row("ADD", 100, "portmap nftables", [40.0], "ms")
    alone = row("DEL", 100, "portmap nftables", [40.0], "ms")

    assert base([*ours, theirs], theirs) is ours[1]
    assert base([*ours, alone], alone) is None
    assert base(ours, ours[0]) is None


def test_a_file_holds_what_was_measured_where_and_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PLACE", tmp_path / "results")
    rows: list[Row] = [row("PUT", 0, "nfportd", [1.0, 2.0], "ms")]

    found = json.loads(results.save("control", "One PUT.", rows).read_text())

    assert found["what"] == "One PUT."
    assert set(found["machine"]) == {"kernel", "cores", "cpu", "nft", "python", "load", "date"}
    assert found["rows"] == rows

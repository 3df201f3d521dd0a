"""Where the time goes: the clocks' places in nfportd, and whose a moment is."""

from __future__ import annotations

import asyncio

import pytest

from bench import clocks, profile
from bench.clocks import KERNEL, NFT, PHASES, Interval
from bench.profile import REST, Window, parts
from bench.results import TOGETHER


@pytest.mark.parametrize("path", PHASES)
def test_every_clock_finds_its_function(path: str) -> None:
    _, _, function = clocks.target(path)

    assert callable(function)


def test_a_moment_is_the_innermost_phases() -> None:
    intervals = [Interval(0.0, 2.0, "start"), Interval(10.0, 20.0, "outer"), Interval(12.0, 15.0, "inner")]

    assert parts(Window(8.0, 21.0), intervals) == {REST: 3.0, "outer": 7.0, "inner": 3.0}


def test_a_command_is_divided_into_libnftables_and_kernel() -> None:
    intervals = [Interval(10.0, 20.0, "asked"), Interval(12.0, 16.0, NFT, computed=0.25)]

    assert parts(Window(10.0, 20.0), intervals) == {"asked": 6.0, NFT: 1.0, KERNEL: 3.0}


def test_parts_make_the_whole() -> None:
    rows = profile._rows("PUT", 0, [{NFT: 0.001, KERNEL: 0.002, REST: 0.003}], "ms", 1000)

    assert [(row["who"], round(row["median"], 6)) for row in rows] == [
        (NFT, 1.0),
        (KERNEL, 2.0),
        (REST, 3.0),
        (TOGETHER, 6.0),
    ]


def test_clocked_functions_do_the_same_and_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Interval] = []
    monkeypatch.setattr(clocks, "_noted", noted)

    async def waits(value: int) -> int:
        await asyncio.sleep(0)
        return value

    assert clocks.clocked(lambda value: value + 1, "computed")(1) == 2
    assert asyncio.run(clocks.clocked(waits, "waited")(3)) == 3
    assert [each.phase for each in noted] == ["computed", "waited"]
    assert all(each.end >= each.begin for each in noted)

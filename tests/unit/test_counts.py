"""When connections are counted: each minute, once for all who ask together, and not at all where it fails.

It must not read a kernel. The one idea: readings are laid out, and the minute is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from nfportd import counts
from nfportd.counts import Counts
from nfportd.kernel.counters import Counted

WEB = b"4web"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_the_minutes_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_MINUTE", 0.01)
    said = iter(range(1000))
    made = Counts(lambda: Counted({WEB: next(said)}, complete=True), dict)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(made.run(), 0.5))

    assert [minute.connections for minute in made.traffic.minutes][:3] == [1, 1, 1]


def test_who_ask_together_share_a_reading() -> None:
    asked: list[int] = []

    def read() -> Counted:
        asked.append(1)
        return Counted({WEB: len(asked)}, complete=True)

    async def test() -> None:
        made = Counts(read, dict)
        answers = await asyncio.gather(*(made.now() for _ in range(10)))
        assert ([each.connections(WEB) for each in answers], len(asked)) == ([1] * 10, 1)

    run(test())


def test_a_reading_that_fails_leaves_what_was_known(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([Counted({WEB: 7}, complete=True)])

    def read() -> Counted:
        for each in answers:
            return each
        raise OSError(105, "No buffer space available")

    async def test() -> None:
        made = Counts(read, dict)
        await made.now()
        assert (await made.now()).connections(WEB) == 7

    run(test())
    assert "No buffer space available" in caplog.text

"""Readings that are shared: few for many who ask, and none older than the question.

Must not know tasks. The one idea: a reading is a number that counts up.
"""

from __future__ import annotations

import asyncio

from nfportd.shared import Shared


def test_who_asks_while_one_runs_shares_the_next() -> None:
    begun: list[int] = []

    async def read() -> int:
        begun.append(len(begun))
        await asyncio.sleep(0.02)
        return begun[-1]

    async def ask() -> list[int]:
        shared = Shared(read)
        first = [asyncio.create_task(shared()) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert begun == [0]
        later = [asyncio.create_task(shared()) for _ in range(5)]
        await asyncio.sleep(0)
        later[0].cancel()
        return [*await asyncio.gather(*first), *await asyncio.gather(*later[1:])]

    assert asyncio.run(ask()) == [0] * 5 + [1] * 4
    assert begun == [0, 1]

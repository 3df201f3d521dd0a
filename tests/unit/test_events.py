"""The ring of events: what is kept, what a follower gets, when it is let go.

It must not open a socket. The one idea: a follower is an iterator, and time is what the test says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from nfportd.events import Event, Events, Kind


def ring(size: int = 4, count: int = 0) -> Events:
    """Events numbered from 1, the first `count` of them there."""
    made = Events(size, first=1, clock=lambda: 1_700_000_000.25)
    for number in range(1, count + 1):
        made.add(Kind.ADDED, f"api:{number}")
    return made


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 5))


async def take(follower: AsyncIterator[Event], count: int) -> list[tuple[int, str]]:
    """The next `count` events: number and kind."""
    return [(event.seq, event.kind.value) for event in [await anext(follower) for _ in range(count)]]


def test_an_event_is_a_line_of_json_without_what_is_not_known() -> None:
    events = ring()
    events.add(Kind.ADDED, "api:me", key="0.0.0.0:8080/tcp", target="10.88.0.11:80")

    (event,) = events.since(0).events

    assert json.loads(event.json()) == {
        "seq": 1,
        "time": "2023-11-14T22:13:20.250Z",
        "kind": "added",
        "owner": "api:me",
        "key": "0.0.0.0:8080/tcp",
        "target": "10.88.0.11:80",
    }


def test_a_detail_of_several_lines_is_one_line() -> None:
    events = ring()
    events.add(Kind.REFUSED, "api:me", detail="nft says:\nno")

    assert "\n" not in events.since(0).events[0].json()


@pytest.mark.parametrize(
    ("count", "since", "numbers", "lost"),
    [
        (0, 0, [], False),
        (3, 0, [1, 2, 3], False),
        (3, 2, [3], False),
        (3, 3, [], False),
        (9, 0, [6, 7, 8, 9], False),
        (9, 5, [6, 7, 8, 9], False),
        (9, 4, [6, 7, 8, 9], True),
        (3, 99, [1, 2, 3], True),
    ],
)
def test_since(count: int, since: int, numbers: list[int], lost: bool) -> None:
    found = ring(4, count).since(since)

    assert ([event.seq for event in found.events], found.lost) == (numbers, lost)


def test_numbers_grow_across_restarts() -> None:
    now = 1_700_000_000.0
    before = Events(clock=lambda: now)
    for _ in range(1_000):
        before.add(Kind.ADDED)
    after = Events(clock=lambda: now + 1)

    assert (after.last > before.last, after.since(before.last).lost) == (True, True)


def test_numbers_are_exact_in_every_json_reader() -> None:
    assert Events(clock=lambda: 4_000_000_000.0).last < 2**53


def test_a_follower_gets_what_was_and_what_comes() -> None:
    async def test() -> None:
        events = ring(4, 2)
        follower = events.follow(1)
        assert await take(follower, 1) == [(2, "added")]
        waiting = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.add(Kind.REMOVED)
        assert (await waiting).seq == 3

    run(test())


def test_a_follower_without_a_number_gets_what_comes_only() -> None:
    async def test() -> None:
        events = ring(4, 2)
        waiting = asyncio.ensure_future(anext(events.follow()))
        await asyncio.sleep(0)
        events.add(Kind.RELOAD)
        assert (await waiting).seq == 3

    run(test())


def test_all_followers_get_every_event_in_order() -> None:
    async def test() -> None:
        events = ring(100)

        async def follow() -> list[tuple[int, str]]:
            return await take(events.follow(0), 50)

        following = [asyncio.create_task(follow()) for _ in range(10)]
        for number in range(50):
            events.add(Kind.ADDED)
            if number % 7 == 0:
                await asyncio.sleep(0)
        assert await asyncio.gather(*following) == [[(seq, "added") for seq in range(1, 51)]] * 10

    run(test())


def test_a_slow_follower_is_let_go_with_a_last_event() -> None:
    async def test() -> None:
        events = ring(4, 1)
        follower = events.follow(0)
        assert await take(follower, 1) == [(1, "added")]
        for _ in range(10):
            events.add(Kind.ADDED)
        last = await anext(follower)
        assert (last.kind, last.seq, last.detail) == (
            Kind.LOST,
            7,
            "events after 1 and before 8 are no longer known; read the state anew",
        )
        with pytest.raises(StopAsyncIteration):
            await anext(follower)
        # Its number is where to go on.
        assert await take(events.follow(last.seq), 4) == [(seq, "added") for seq in (8, 9, 10, 11)]

    run(test())


@pytest.mark.parametrize("since", [1, 99])
def test_a_follower_that_comes_too_late_is_told_and_goes_on(since: int) -> None:
    async def test() -> None:
        follower = ring(4, 9).follow(since)
        assert await take(follower, 5) == [(5, "lost"), *((seq, "added") for seq in (6, 7, 8, 9))]

    run(test())


def test_from_zero_is_from_the_oldest_and_loses_nothing() -> None:
    async def test() -> None:
        assert await take(ring(4, 9).follow(0), 4) == [(seq, "added") for seq in (6, 7, 8, 9)]

    run(test())


def test_at_the_end_followers_read_the_rest_and_end() -> None:
    async def test() -> None:
        events = ring()
        following = asyncio.create_task(_all(events.follow(0)))
        await asyncio.sleep(0)
        events.add(Kind.REMOVED)
        events.close()
        assert [event.seq for event in await following] == [1]

    run(test())


async def _all(follower: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in follower]

"""Elements as nft and the kernel take and list them: by text, past libnftables, and what is refused.

It must not know mappings. The one idea: what goes in one way is held against what comes out another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given

from nfportd import desired, elements as elements_of, ruleset
from nfportd.desired import ABSENT, Absent, Delta, Elements, Parts, Slot
from nfportd.errors import KernelRefused
from nfportd.kernel.nft import Nft
from tests.api.calling import eventually
from tests.properties.inside import KERNEL, Inside, body
from tests.properties.strategies import elements

T1: Parts = ("10.88.0.11", 80)
WEB_SLOT = Slot("any4", ("tcp", 8080))


def everything(state: Elements) -> dict[Slot, Parts | Absent | None]:
    return {slot: state[slot.set][slot.key] for slot in desired.all_slots(state)}


@KERNEL
@given(elements(), elements())
def test_what_is_listed_is_what_was_written(inside: Inside, one: Elements, other: Elements) -> None:
    inside.space.nft("add table inet nfportd; delete table inet nfportd\n" + ruleset.skeleton(13))
    inside.space.nft(ruleset.text(desired.delta({}, everything(one))))
    gone: dict[Slot, Parts | Absent | None] = dict.fromkeys(everything(one), ABSENT)
    inside.space.nft(ruleset.text(desired.delta(one, gone | everything(other))))

    assert inside.elements() == other
    inside.space.nft("delete table inet nfportd")


@KERNEL
@given(elements(), elements())
def test_both_ways_of_writing_elements_lead_to_the_same_table(inside: Inside, one: Elements, other: Elements) -> None:
    gone: dict[Slot, Parts | Absent | None] = dict.fromkeys(everything(one), ABSENT)
    changes = desired.delta({}, everything(one)), desired.delta(one, gone | everything(other))

    async def listings(write: Write) -> list[list[str]]:
        with contextlib.closing(Nft()) as nft:
            await nft.run("add table inet nfportd; delete table inet nfportd\n" + ruleset.skeleton(13))
            found = []
            for change in filter(None, changes):
                await write(nft, change)
                found.append(body(await nft.shown("list table inet nfportd")) + held(inside.elements()))
            await nft.run("delete table inet nfportd")
        return found

    assert inside.do(listings(past)) == inside.do(listings(through))


Write = Callable[[Nft, Delta], Coroutine[Any, Any, None]]


async def past(nft: Nft, change: Delta) -> None:
    """Write a delta past libnftables."""
    batch = elements_of.transaction(change)
    assert batch
    await nft.write(batch)


async def through(nft: Nft, change: Delta) -> None:
    """Write a delta by libnftables."""
    await nft.run(ruleset.text(change))


def held(state: Elements) -> list[str]:
    return sorted(map(str, everything(state).items()))


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (Delta({}, {WEB_SLOT: ("10.88.0.12", 80)}), "File exists (the key is there already with another value)"),
        (Delta({Slot("any4", ("udp", 1)): None}, {}), "No such file or directory"),
        # So many refusals that the socket does not take them all.
        (Delta({Slot("any4", ("udp", port)): None for port in range(1, 60_000)}, {}), "No such file or directory"),
    ],
)
def test_what_the_kernel_refuses_leaves_nothing(inside: Inside, refused: Delta, reason: str) -> None:
    """Not what comes before it, nor what comes after it, and the next one does not hear of it."""
    before, after = Slot("any6", ("tcp", 80)), Slot("onlink4", ("10.88.0.0/16", "br0"))
    change = Delta(refused.remove, {before: ("fd88::11", 80), **refused.add, after: None})

    async def attempt() -> tuple[str, str]:
        with contextlib.closing(Nft()) as nft:
            await nft.run("add table inet nfportd; delete table inet nfportd\n" + ruleset.skeleton(13))
            await past(nft, Delta({}, {WEB_SLOT: T1}))
            said = []
            for write in (past, through):
                with pytest.raises(KernelRefused) as refusal:
                    await write(nft, change)
                said.append(refusal.value.reason)
            await past(nft, Delta({WEB_SLOT: T1}, {after: None}))
        return said[0], said[1]

    one, other = inside.do(attempt())
    assert one == reason
    assert other in (reason, "No buffer space available")
    assert inside.elements() == {name: {} for name in ruleset.ELEMENT_SETS} | {after.set: {after.key: None}}
    inside.space.nft("delete table inet nfportd")


def test_elements_are_written_while_many_are(inside: Inside) -> None:
    """A long transaction holds up neither the event loop nor the order of what follows; nor does its caller's end."""
    many = Delta({}, {Slot("any4", ("tcp", port)): T1 for port in range(1, 60_001)})

    async def both() -> int:
        with contextlib.closing(Nft()) as nft:
            await nft.run("add table inet nfportd; delete table inet nfportd\n" + ruleset.skeleton(13))
            long, turns = asyncio.create_task(past(nft, many)), 0
            while turns < 2:
                await asyncio.sleep(0)
                turns += not long.done()
            long.cancel()
            await past(nft, Delta({Slot("any4", ("tcp", 9)): T1}, {Slot("any4", ("udp", 9)): T1}))
            await asyncio.gather(long, return_exceptions=True)
            return turns

    assert inside.do(both()) == 2
    # While the kernel makes room for so many it lists them incompletely.
    eventually(lambda: len(inside.elements()["any4"]), 60_000)
    found = inside.elements()["any4"]
    assert (("tcp", 9) in found, found["udp", 9]) == (False, T1)
    inside.space.nft("delete table inet nfportd")


@KERNEL
@given(elements())
def test_both_ways_of_running_nft_list_the_same(inside: Inside, one: Elements) -> None:
    async def through_library() -> Elements:
        nft = Nft()
        try:
            await nft.run("add table inet nfportd; delete table inet nfportd\n" + ruleset.skeleton(13))
            await nft.run(ruleset.text(desired.delta({}, everything(one))))
            found = await nft.list_table()
            await nft.run("delete table inet nfportd")
        finally:
            nft.close()
        assert found is not None
        return found.elements

    assert inside.do(through_library()) == one


@pytest.mark.parametrize(
    "text",
    [
        "add element inet nfportd any4 { * : 10.88.0.11 . 80 }",
        "add element inet nfportd onlink4 { 192.0.2.1-192.0.2.5 . eth0 }",
        "add element inet nfportd allowed_any4 { 192.0.2.0/24 . tcp . 80-90 }",
    ],
)
def test_elements_that_we_would_not_write_are_listed_beside_ours(inside: Inside, text: str) -> None:
    async def listed() -> Elements:
        nft = Nft()
        try:
            await nft.run("add table inet nfportd; delete table inet nfportd\n" + ruleset.skeleton(13))
            await nft.run(f"add element inet nfportd any6 {{ tcp . 80 : fd88::11 . 80 }}\n{text}")
            found = await nft.list_table()
        finally:
            nft.close()
        assert found is not None
        return found.elements

    found = inside.do(listed())

    assert found["any6"] == {("tcp", 80): ("fd88::11", 80)}
    assert found == inside.elements()
    assert sum(map(len, found.values())) == 2
    inside.space.nft("delete table inet nfportd")

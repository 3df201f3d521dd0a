"""When the mirror follows what others did, and when the table is read anew.

It must not run nft: what is asked of it is written down. The one idea: a table of 60,000 elements takes seconds to
read, so each reading needs a reason.
"""

from __future__ import annotations

import asyncio
from typing import cast

from nfportd import ruleset
from nfportd.desired import ABSENT, Delta, Elements, Slot
from nfportd.drift import Drift
from nfportd.kernel.nft import Nft
from nfportd.ruleset import Listed
from nfportd.table import Table

WEB, DNS = Slot("any4", ("tcp", 8080)), Slot("any4", ("udp", 53))
TARGET, OTHER = ("10.88.0.11", 80), ("10.88.0.99", 9)


class Asked:
    """In nft's place: there is no table, and everything is taken."""

    died = False

    def __init__(self) -> None:
        self.readings = 0
        self.texts: list[str] = []

    async def run(self, text: str) -> None:
        self.texts.append(text)

    async def write(self, batch: bytes) -> None:
        """It is taken."""

    async def list_table(self, *, whole: bool = True) -> Listed | None:
        self.readings += whole
        return None

    def flags(self) -> ruleset.Flags | None:
        return None


def filled(nft: Asked) -> Table:
    """A table that has just been given two elements."""
    table = Table(cast(Nft, nft), 13)
    change = Delta({}, {WEB: TARGET, DNS: TARGET})
    asyncio.run(table.commit(lambda: change, lambda: change, lambda slot: slot))
    return table


def follow(table: Table, drift: Drift) -> Elements | None:
    return asyncio.run(table.follow(drift))


def test_a_lost_table_is_known_from_the_mirror() -> None:
    nft = Asked()
    table = filled(nft)

    gone = follow(table, Drift(skeleton=True, emptied=set(ruleset.ELEMENT_SETS)))

    assert gone == {"any4": {WEB.key: TARGET, DNS.key: TARGET}}
    assert nft.readings == 0
    assert table.elements == {name: {} for name in ruleset.ELEMENT_SETS}


def test_a_lost_map_leaves_the_others_alone() -> None:
    table = filled(Asked())
    table.elements["any6"] = {("tcp", 80): ("fd88::11", 80)}

    assert follow(table, Drift(emptied={"any6"})) == {"any6": {("tcp", 80): ("fd88::11", 80)}}
    assert table.elements["any4"] == {WEB.key: TARGET, DNS.key: TARGET}


def test_news_that_may_be_older_than_what_was_written_leads_to_a_reading() -> None:
    nft = Asked()

    assert follow(filled(nft), Drift(elements={WEB: OTHER})) is None
    assert nft.readings == 1


def test_younger_news_is_followed() -> None:
    nft = Asked()
    table = filled(nft)
    table.caught_up()

    assert follow(table, Drift(elements={WEB: OTHER, DNS: ABSENT})) == {}
    assert (nft.readings, table.elements) == (0, {"any4": {WEB.key: OTHER}})

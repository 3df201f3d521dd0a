"""What the kernel's elements tell when the store that knew their owners is lost.

It must not open a store or the kernel. The one idea: elements in, mappings out, and the same elements follow again.
"""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from nfportd import desired
from nfportd.desired import RECOVERED, Desired, Elements
from nfportd.model import Mapping
from nfportd.sources import recovery
from nfportd.sources.store import Store
from nfportd.wishes import Content, Held
from tests.unit.reading import mapping

BOTH = ["10.88.0.11:80", "[fd88::11]:80"]


class Lost:
    """A store that could not be read."""

    async def load(self) -> tuple[dict[str, object], bool]:
        return {}, True

    async def keep(self, contents: object) -> None:
        """Recovered contents are promised from now on."""


def in_kernel(wished: dict[Mapping, int]) -> Elements:
    state, elements = Desired(), Elements()
    state.replace(RECOVERED, wished)
    desired.apply(elements, desired.delta({}, state.wanted_of_all()))
    return elements


@pytest.mark.parametrize(
    "was",
    [
        pytest.param(mapping(80, BOTH, protocol=["tcp", "udp"]), id="wildcard"),
        pytest.param(mapping("192.0.2.1:80-82", "10.88.0.11:80-82", masquerade="always"), id="address, always"),
        pytest.param(mapping("[2001:db8::1]:80", "[fd88::11]:80", masquerade="never"), id="address, never"),
        pytest.param(mapping(80, BOTH, masquerade="never"), id="never"),
        pytest.param(mapping("80-81", ["10.88.0.11:90-91", "[fd88::11]:80-81"], isolate=True), id="isolate"),
        pytest.param(mapping(80, BOTH, sources=["192.0.2.0/24", "2001:db8::/32"]), id="sources"),
        pytest.param(mapping(80, BOTH, sources=["192.0.2.0/24"]), id="sources of one family"),
        pytest.param(mapping("[2001:db8::1]:80", "[fd88::11]:80", sources=["192.0.2.7"]), id="nobody"),
    ],
)
def test_what_was_in_force_stays_so(was: Mapping) -> None:
    elements = in_kernel({was: 0})

    (held,) = asyncio.run(recovery.promised(cast("Store", Lost()), elements)).held.values()

    assert in_kernel(dict(held.content.mappings)) == elements


def test_what_the_other_file_knows_is_not_found_twice() -> None:
    """Else a DELETE of its owner would leave the port open."""
    known, unknown = mapping(80, BOTH), mapping(81, BOTH)

    class Half(Lost):
        async def load(self) -> tuple[dict[str, object], bool]:
            return {"api:web": Held(Content(mappings={known: 0}, persistent=True), 1.0)}, True

    held = asyncio.run(recovery.promised(cast("Store", Half()), in_kernel({known: 0, unknown: 0}))).held

    assert in_kernel(dict(held[RECOVERED].content.mappings)) == in_kernel({unknown: 0})

"""The start: what owners were promised before, from the store, or where that was lost, from the kernel's elements.

Must not talk to the kernel. The one idea: a promise outlives the process; where nobody knows any more who got it,
the elements serve on under an owner of their own until somebody claims their keys.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping as AbstractMapping
from typing import NamedTuple

from nfportd import desired, origins
from nfportd.desired import RECOVERED, Elements
from nfportd.model import Key, Mapping
from nfportd.notation import join_port, parse_listen, parse_target
from nfportd.sources.store import Store
from nfportd.wishes import Content, Held, NotStored, Wish

_log = logging.getLogger(__name__)


class Promised(NamedTuple):
    """Contents by owner."""

    held: AbstractMapping[str, Held]

    def wish(self, files: AbstractMapping[str, Content | None]) -> Wish:
        """These contents and those of drop-ins in one wish: an adopted table loses nothing in between."""
        contents = {owner: held.content for owner, held in self.held.items()}
        return Wish(owners={**contents, **files}, since={owner: held.since for owner, held in self.held.items()})


NONE = Promised({})


async def promised(store: Store, elements: Elements) -> Promised:
    """What the store holds and is not over; after a loss, also what the kernel holds, as the owner recovered:store."""
    held, lost = await store.load()
    now = time.time()
    over = [owner for owner, each in held.items() if _over(each.content, now)]
    for owner in over:
        del held[owner]
    with contextlib.suppress(NotStored):  # then they are over at the next start too
        await store.keep(dict.fromkeys(over))
    if lost:
        # What the other file still knows has its owner, and must go with it.
        owned = {
            key
            for owner, each in held.items()
            if owner != RECOVERED
            for mapping in each.content.mappings
            for key in mapping.claimed()
        }
        unknown = [each for each in from_elements(elements) if not owned.intersection(each.claimed())]
        found = Content(mappings=dict.fromkeys(unknown, 0))
        held[RECOVERED] = Held(found, now)
        try:
            await store.keep({RECOVERED: held[RECOVERED]})
        except NotStored as error:
            _log.error("%s; the mappings found in the kernel serve on until the next restart only", error)
    return Promised(held)


def contents(wished: AbstractMapping[str, AbstractMapping[Mapping, int]]) -> dict[str, Content | None]:
    """What drop-ins wish, as contents."""
    return {owner: Content(mappings=mappings) if mappings else None for owner, mappings in wished.items()}


def _over(content: Content, now: float) -> bool:
    return content.expires_at is not None and content.expires_at <= now


def from_elements(elements: Elements) -> list[Mapping]:
    """The mappings that would have led to these elements; of what others added, only what could be one.

    Those that lead to the relay are none: they follow from others, or no longer say where a key on [::1] went.
    """
    found = []
    sources = origins.sources_in(elements)
    for slot in desired.all_slots(elements):
        key = desired.key_of(slot)
        endpoint = key and desired.endpoint_in(elements, key)
        if key and slot == desired.slots(key)[0] and endpoint and endpoint.address != desired.LOOPBACK:
            try:
                found.append(_mapping(elements, key, sources.get(key, ())))
            except ValueError as error:
                _log.warning("what the kernel holds for %s is no mapping and goes: %s", key, str(error).splitlines()[0])
    return found


def _mapping(elements: Elements, key: Key, sources: tuple[str, ...]) -> Mapping:
    """Raises ValueError where no mapping leads to what stands under this key."""
    wildcard = "0.0.0.0" if key.family == 4 else "::"
    return Mapping(
        listen=parse_listen(join_port(key.address or wildcard, str(key.port))),
        protocol=(key.protocol,),
        targets=(parse_target(str(desired.endpoint_in(elements, key))),),
        masquerade=origins.masquerade_in(elements, key),
        sources=sources,
        isolate=origins.isolates_in(elements, key),
    )

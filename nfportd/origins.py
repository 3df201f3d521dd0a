"""What elements tell of the mapping that led to them, for where nobody knows it any more.

Must not ask the kernel: elements in, values out. The one idea: each key of a mapping leaves its wishes in sets of
their own, so they can be read back key by key.
"""

from __future__ import annotations

from typing import Literal

from nfportd import desired
from nfportd.desired import Elements
from nfportd.model import Key

#: A list of sources that names nobody of a family, for it is of the other.
_NOBODY = {4: "::/128", 6: "0.0.0.0/32"}


def masquerade_in(elements: Elements, key: Key) -> Literal["auto", "always", "never"]:
    """What a key's mapping says of masquerading by these elements."""
    _, always, never = desired.slots(key)
    if always.key in elements.get(always.set, {}):
        return "always"
    return "never" if never.key in elements.get(never.set, {}) else "auto"


def isolates_in(elements: Elements, key: Key) -> bool:
    """Whether a key's target is isolated by these elements, for this key or for another one."""
    endpoint = desired.endpoint_in(elements, key)
    if endpoint is None:
        return False
    slot = desired.isolated(key, endpoint)
    return slot.key in elements.get(slot.set, {})


def sources_in(elements: Elements) -> dict[Key, tuple[str, ...]]:
    """The sources of every guarded key by these elements. Where nobody of its family is allowed: one of the other."""
    found: dict[Key, tuple[str, ...]] = {}
    for slot in desired.all_slots({name: inside for name, inside in elements.items() if name.startswith("guarded_")}):
        if key := desired.key_of(slot):
            found[key] = ()
    for slot in desired.all_slots({name: inside for name, inside in elements.items() if name.startswith("allowed_")}):
        key = desired.key_of(slot)
        if key in found:
            found[key] = (*found[key], str(slot.key[0]))
    return {key: sources or (_NOBODY[key.family],) for key, sources in found.items()}

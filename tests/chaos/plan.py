"""Which fault comes when: a function of the seed alone.

Must not know how a fault is made. The one idea: all kinds are dealt like cards, so that each comes as often as the
others, and a short run has met nearly all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: Seconds of peace after a repair.
PEACE = (0.05, 0.8)


class Step(NamedTuple):
    """One fault. `chance` decides what the fault leaves open: which element, which file."""

    number: int
    kind: str
    chance: float
    peace: float


def steps(seed: int, kinds: Sequence[str]) -> Iterator[Step]:
    """Faults without end."""
    dealer = random.Random(seed)
    number = 0
    while True:
        for kind in dealer.sample(sorted(kinds), len(kinds)):
            number += 1
            yield Step(number, kind, dealer.random(), dealer.uniform(*PEACE))

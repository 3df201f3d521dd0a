"""How much is tried: the same few inputs in every `make test`, new ones without end in `make fuzz`.

It must not know what is tried. The one idea: a long run is rounds with seeds that are printed; a seed and a number of
examples say everything about a round, so no database of examples is kept.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

#: Set by `make fuzz`: how many times the examples of the short run.
FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
LONG = FACTOR > 1


def tries(examples: int) -> settings:
    """So many examples in the short run, which is the same every time."""
    return settings(
        max_examples=examples * FACTOR,
        derandomize=not LONG,
        database=None,
        deadline=None,
        print_blob=LONG,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection in the body: a full one walks all that this process of tests holds, for half a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The body may take so much CPU time of this process; an endless loop in it is ended with its traceback."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    began = time.process_time()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    # A loop in C sees no signal until it is done.
    assert time.process_time() - began < seconds

"""The daemon's event loop in a namespace of its own, for tests of what it does to a real table.

It must not know what is tested. The one idea: what runs in the thread opens its sockets there, and the table is listed
by another process.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

from nfportd import ruleset
from nfportd.desired import Elements
from nfportd.listing import parse
from tests.netns import Namespace

T = TypeVar("T")

KERNEL = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Inside:
    """An event loop in a thread in a namespace; what it opens stays there."""

    def __init__(self, space: Namespace) -> None:
        self.space = space
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="inside")
        self._thread.start()

    def _run(self) -> None:
        with self.space.entered():
            self._loop.run_forever()

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def elements(self) -> Elements:
        """The table as another process lists it."""
        listing = json.loads(self.space.run(["nft", "-j", "list", "table", "inet", "nfportd"]).stdout)
        found = parse(listing)
        assert found is not None
        assert ruleset.sets_to_replace(found) == []
        return found.elements


def body(listing: str) -> list[str]:
    """A table's lines in any order, without those that say who owns it: a live table cannot be given an owner."""
    lines = filter(None, listing.splitlines())
    return sorted(line for line in lines if "flags owner" not in line and not line.startswith("table "))

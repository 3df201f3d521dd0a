"""One trace from beginning to end: what is told without a packet, and what is seen of one.

Must not print. The one idea: whatever ends it, a signal included, what it opened and made goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Any

from nfportd.kernel.nft import Nft
from nfportd.trace.facts import Explanation, Flow
from nfportd.trace.live import Seen, watch
from nfportd.trace.reading import Reading


class Ended(Exception):
    """A signal ended it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"ended by {signal.Signals(number).name}")


def run(
    flow: Flow, mappings: list[dict[str, Any]] | None, seconds: int, ready: Callable[[], None]
) -> tuple[Explanation, Seen | None]:
    """Explain a connection, and watch one for some seconds (0: do not); `ready` is called when its packet may come.

    `mappings`: what the API tells of the port; None where nobody answers. Raises NoRights, NfportdError, Ended.
    """
    ended: list[int] = []
    try:
        return asyncio.run(_run(flow, mappings, seconds, ready, ended))
    except asyncio.CancelledError:
        raise Ended(ended[0]) from None


async def _run(
    flow: Flow, mappings: list[dict[str, Any]] | None, seconds: int, ready: Callable[[], None], ended: list[int]
) -> tuple[Explanation, Seen | None]:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task

    def end(number: int) -> None:
        ended.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    with contextlib.closing(Nft()) as nft, contextlib.closing(Reading(nft)) as reading:
        explained = await reading.explain(flow, mappings)
        return explained, await watch(nft, flow, seconds, explained, ready) if seconds else None

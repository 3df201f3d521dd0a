"""Looks for rules of other programs that stop connections through mappings, and tells of them.

Must not judge rules: forwarding and firewalls do. The one idea: others' rules are read when something has changed,
after some quiet and by a libnftables of its own, so that no change of ours waits for a large ruleset.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from itertools import islice

from nfportd import firewalls
from nfportd.errors import KernelRefused
from nfportd.firewalls import Connection, Finding
from nfportd.kernel import others
from nfportd.kernel.nft import Nft, NftDied
from nfportd.messages import Message, about
from nfportd.open_forward import OpenForward
from nfportd.reconciler import Reconciler

_log = logging.getLogger(__name__)

#: Seconds from a change to the look: changes come in bursts.
_SETTLE = 0.3
#: Seconds from one look to the next.
_PAUSE = 3.0
#: Seconds after which a firewall that could not be asked to open is asked again.
_AGAIN = 10.0
#: Seconds for which who asks gets what was found last.
_FRESH = 0.2
#: The same after nft has crashed over others' rules (1.0.6 does over a table that a newer one gave an owner).
_AFTER_CRASH = 600.0
#: So many connections are followed.
_MOST = 200


class Obstacles:
    """What others' rules stop. `stirred`: set by who knows that rules or mappings have changed.

    `opener`: who opens what it can of that, where the settings want it.
    """

    def __init__(
        self, nft: Nft, reconciler: Reconciler, stirred: asyncio.Event, opener: OpenForward | None = None
    ) -> None:
        self._nft = nft
        self._reconciler = reconciler
        self._stirred = stirred
        self._opener = opener
        self._turn = asyncio.Lock()
        self._looked, self._fresh = -_AFTER_CRASH, _FRESH
        self._trouble = ""
        self._found: list[Finding] = []

    def close(self) -> None:
        """End what reads the rules."""
        self._nft.close()

    async def run(self) -> None:
        """Look after each change, until cancelled."""
        while True:
            await self._stirred.wait()
            await asyncio.sleep(_SETTLE)
            self._stirred.clear()
            found = await self.look()
            if self._opener and not await self._opener.follow(self._connections(), found):
                asyncio.get_running_loop().call_later(_AGAIN, self._stirred.set)
            await asyncio.sleep(_PAUSE)

    async def look(self) -> list[Finding]:
        """What stops connections through mappings now; the log tells what is new, and what has gone."""
        async with self._turn:
            if time.monotonic() - self._looked > self._fresh:
                self._fresh = _FRESH
                await self._look()
                # Looks are rare, and a process that waits for them takes memory.
                self._nft.close()
                self._looked = time.monotonic()
            return self._found

    async def _look(self) -> None:
        asked = list(islice(self._connections(), _MOST))
        try:
            found = await others.stops(self._nft, asked)
        except Exception as error:  # others write what they like, and nft lists it as its version likes
            if repr(error) != self._trouble:
                known = isinstance(error, KernelRefused | OSError)
                _log.warning("the rules of other programs cannot be read: %s", error, exc_info=not known)
            self._trouble = repr(error)
            self._fresh = _AFTER_CRASH if isinstance(error, NftDied) else _FRESH
            return
        self._trouble = ""
        self._tell(found)
        self._found = found

    def _connections(self) -> Iterator[Connection]:
        topology, seen = self._reconciler.enforcer.topology, set[Connection]()
        for held in self._reconciler.register.held.values():
            for mapping in held.content.mappings:
                for connection in firewalls.connections(mapping, topology):
                    if connection not in seen:
                        seen.add(connection)
                        yield connection

    def _tell(self, found: list[Finding]) -> None:
        before = {(each.chain, each.firewall, each.certain): each for each in self._found}
        now = {(each.chain, each.firewall, each.certain): each for each in found}
        for key in before.keys() - now.keys():
            chain, firewall, _ = key
            if not any(other[:2] == key[:2] for other in now):
                _log.info(
                    "chain %s (%s) lets pass what is forwarded", chain, firewall, extra=about(Message.LET_THROUGH)
                )
        for key in now.keys() - before.keys():
            level = logging.WARNING if now[key].certain else logging.INFO
            _log.log(level, "%s", now[key], extra=about(Message.STOPPED_BY_OTHERS))

"""Connection tracking: delete entries by a filter that the kernel applies.

Must not know mappings. The one idea: one request with CTA_FILTER (Linux 5.8, net/netfilter/nf_conntrack_netlink.c)
walks the table in the kernel and nothing is dumped. There are exceptions. IPv6 addresses in such a filter match
everything but themselves (ctnetlink_filter_match_tuple, seen on Linux 6.18), so the kernel filters IPv6 flows by
protocol and port only, and the rest is picked here; so are flows that are told by who does not answer them. And a walk
takes 0.2 to 0.6 ms with 262,144 buckets, a dump 10 ms, for it locks each: for very many keys at once one dump of
their protocol is cheaper.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterable, Sequence

from nfportd.flows import Barred, StaleFlows
from nfportd.kernel.entries import Entries, Entry, Tuple
from nfportd.model import Protocol
from nfportd.notation import Family

_log = logging.getLogger(__name__)

#: More requests than this at once cost more than a dump of some thousand flows.
MANY = 1000

_NUMBER = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: 132}
#: Bits of an entry's status (linux/netfilter/nf_conntrack_common.h): IPS_SEEN_REPLY; IPS_ASSURED, which TCP is once it
#: is established; IPS_DST_NAT.
_ANSWERED, _ASSURED, _TRANSLATED = 0x2, 0x4, 0x20
#: Seconds for which TCP flows that are opening are gathered, so that many changes cost one dump; clients repeat a SYN
#: after one second (RFC 6298, 2.1).
_GATHERING = 0.1
#: Deleting what nobody waits for rests so many times as long as it took, but no more than so many seconds: a fifth of
#: the time goes to it where it takes up to a quarter of a second.
_REST, _LONGEST_REST = 4.0, 1.0
#: So many entries of a dump are read before others have their turn: some milliseconds.
_AT_ONCE = 500


class Conntrack:
    """The flows of one network namespace; one conversation with the kernel at a time."""

    def __init__(self) -> None:
        self._entries = Entries()
        self._turn = asyncio.Lock()
        self._due: dict[StaleFlows | Barred, None] = {}
        self._working: asyncio.Task[None] | None = None
        self._opening: dict[StaleFlows, None] = {}
        self._gathering: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Close the socket."""
        for task in (self._working, self._gathering):
            if task:
                task.cancel()
        self._entries.close()

    async def delete(self, stale: Sequence[StaleFlows], barred: Sequence[Barred] = ()) -> None:
        """Delete the entries that match any of these. A refusal is logged, and the rest goes on."""
        async with self._turn:
            await self._delete_barred(barred)
            await self._delete_stale(stale)

    def delete_later(self, stale: Sequence[StaleFlows], barred: Sequence[Barred]) -> None:
        """The same, without waiting for it: a dump of thousands of flows takes a second."""
        self._due |= dict.fromkeys([*stale, *barred])
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    def delete_opening(self, stale: Iterable[StaleFlows]) -> None:
        """Delete the matching entries that nobody has answered, soon; nobody waits for it."""
        self._opening |= dict.fromkeys(stale)
        if self._opening and (self._gathering is None or self._gathering.done()):
            self._gathering = asyncio.create_task(self._gather())

    async def _gather(self) -> None:
        while self._opening:
            await asyncio.sleep(_GATHERING)
            due, self._opening = self._opening, {}
            await self.delete(list(due))

    async def _work(self) -> None:
        while self._due:
            due, self._due = self._due, {}
            stale = [each for each in due if isinstance(each, StaleFlows)]
            began = time.monotonic()
            await self.delete(stale, [each for each in due if isinstance(each, Barred)])
            # In a fight with another program there is at once more to do.
            await asyncio.sleep(min(_LONGEST_REST, _REST * (time.monotonic() - began)))

    async def _delete_barred(self, barred: Sequence[Barred]) -> None:
        """Delete translated entries by their source, from dumps of their ports."""
        by_port: dict[tuple[Family, Protocol, int], list[Barred]] = {}
        for flows in barred:
            family, _, protocol, port = flows.key
            by_port.setdefault((family, protocol, port), []).append(flows)
        many = len(by_port) > MANY
        dumps = {(family, protocol, None if many else port) for family, protocol, port in by_port}
        try:
            for family, protocol, only in dumps:
                for entry in await self._dump(family, protocol, only):
                    original = entry.original
                    at_port = by_port.get((family, protocol, original.dport or 0), ())
                    ends = (original.source or "", original.destination or "", entry.answered_by)
                    if entry.status & _TRANSLATED and any(flows.bars(*ends) for flows in at_port):
                        self._entries.delete(family, entry)
        except (OSError, ValueError, LookupError) as error:
            _log.warning("conntrack did not delete flows of sources that may not connect any more (%s)", error)

    async def _delete_stale(self, stale: Sequence[StaleFlows]) -> None:
        by_filter: list[StaleFlows] = []
        by_port: dict[tuple[Family, Protocol, int], list[StaleFlows]] = {}
        for flows in stale:
            if flows.opening or flows.attempts:
                continue
            if flows.family == 4 and flows.answered_by:
                by_filter.append(flows)
            else:
                by_port.setdefault((flows.family, flows.protocol, flows.port), []).append(flows)
        try:
            await self._pick_lacking(_ANSWERED, [flows for flows in stale if flows.opening])
            await self._pick_lacking(_ASSURED, [flows for flows in stale if flows.attempts])
            if len(by_filter) + len(by_port) > MANY:
                await self._pick([flows for flows in stale if not flows.opening and not flows.attempts])
                return
            for flows in by_filter:
                self._delete(flows)
            for (_, _, port), picked in by_port.items():
                await self._pick(picked, port)
        except (OSError, ValueError, LookupError) as error:
            _log.warning("conntrack did not delete stale flows (%s); clients may meet their old target", error)

    async def _pick_lacking(self, status: int, stale: Sequence[StaleFlows]) -> None:
        """Delete of the entries that match those that lack this bit: few, on a port with thousands of connections."""
        ports = {flows.port for flows in stale}
        await self._pick(stale, ports.pop() if len(ports) == 1 else None, lacking=status)

    def _delete(self, flows: StaleFlows) -> None:
        number = _NUMBER[flows.protocol]
        original = Tuple(number, destination=flows.address, dport=flows.port)
        reply = (
            Tuple(number, source=flows.answered_by.address, sport=flows.answered_by.port) if flows.answered_by else None
        )
        self._entries.delete_all(flows.family, original, reply)

    async def _pick(self, stale: Sequence[StaleFlows], port: int | None = None, *, lacking: int = 0) -> None:
        """Delete the entries that match, one by one, from a dump of their protocols and, if given, one port."""
        wanted: dict[tuple[Family, Protocol], dict[tuple[str | None, int], list[StaleFlows]]] = {}
        for flows in stale:
            by_listen = wanted.setdefault((flows.family, flows.protocol), {})
            by_listen.setdefault((flows.address, flows.port), []).append(flows)
        for (family, protocol), by_listen in wanted.items():
            for entry in await self._dump(family, protocol, port, lacking):
                original, answered = entry.original, entry.answered_by
                there = [
                    *by_listen.get((original.destination, original.dport or 0), ()),
                    *by_listen.get((None, original.dport or 0), ()),
                ]
                if any(f.answered_by in (None, answered) and f.spared != answered for f in there):
                    self._entries.delete(family, entry)

    async def _dump(self, family: Family, protocol: Protocol, port: int | None, lacking: int = 0) -> list[Entry]:
        """Every entry of a protocol and, if given, one original port; or those that lack a bit of the status."""
        found: list[Entry] = []
        for entry in self._entries.dump(family, Tuple(_NUMBER[protocol], dport=port), lacking):
            found.append(entry)
            if len(found) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

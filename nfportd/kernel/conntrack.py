"""Connection tracking: delete entries by a filter that the kernel applies.

Must not know mappings. The one idea: one request with CTA_FILTER (Linux 5.8, net/netfilter/nf_conntrack_netlink.c)
walks the table in the kernel and nothing is dumped. There are exceptions. IPv6 addresses in such a filter match
everything but themselves (ctnetlink_filter_match_tuple, seen on Linux 6.18), so the kernel filters IPv6 flows by
protocol and port only, and the rest is picked here; so are flows that are told by who does not answer them. And a walk
takes 0.2 to 0.6 ms with 262,144 buckets, so for very many keys at once one dump of their protocol is cheaper.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import IPCTNL_MSG_CT_GET, AsyncNFCTSocket, NFCTAttrTuple, nfct_msg

from nfportd.flows import Barred, StaleFlows
from nfportd.model import Endpoint, Protocol
from nfportd.notation import Family

_log = logging.getLogger(__name__)

#: More requests than this at once cost more than a dump of some thousand flows (75 microseconds each).
MANY = 1000

_NUMBER = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: 132}
#: Bits of an entry's status (linux/netfilter/nf_conntrack_common.h): IPS_SEEN_REPLY; IPS_ASSURED, which TCP is once it
#: is established; IPS_DST_NAT.
_ANSWERED, _ASSURED, _TRANSLATED = 0x2, 0x4, 0x20
#: Seconds for which TCP flows that are opening are gathered, so that many changes cost one dump; clients repeat a SYN
#: after one second (RFC 6298, 2.1).
_GATHERING = 0.1
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class _Entry(NamedTuple):
    original: NFCTAttrTuple
    answered_by: Endpoint
    translated: bool


class Conntrack:
    """One socket a family: the family of a request is a property of pyroute2's socket."""

    def __init__(self) -> None:
        self._sockets: dict[Family, AsyncNFCTSocket] = {}
        self._turn = asyncio.Lock()
        self._due: dict[StaleFlows | Barred, None] = {}
        self._working: asyncio.Task[None] | None = None
        self._opening: dict[StaleFlows, None] = {}
        self._gathering: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Close the sockets."""
        for task in (self._working, self._gathering):
            if task:
                task.cancel()
        for sock in self._sockets.values():
            sock.close()

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
            await self.delete(stale, [each for each in due if isinstance(each, Barred)])

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
                for entry in await self._entries(family, protocol, only):
                    original = entry.original
                    at_port = by_port.get((family, protocol, original.dport), ())
                    ends = (original.saddr, original.daddr, entry.answered_by)
                    if entry.translated and any(flows.bars(*ends) for flows in at_port):
                        await self._delete_one(self._socket(family), original)
        except (NetlinkError, OSError) as error:
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
                await self._delete(flows)
            for (_, _, port), picked in by_port.items():
                await self._pick(picked, port)
        except (NetlinkError, OSError) as error:
            _log.warning("conntrack did not delete stale flows (%s); clients may meet their old target", error)

    async def _pick_lacking(self, status: int, stale: Sequence[StaleFlows]) -> None:
        """Delete of the entries that match those that lack this bit: few, on a port with thousands of connections."""
        ports = {flows.port for flows in stale}
        await self._pick(stale, ports.pop() if len(ports) == 1 else None, lacking=status)

    def _socket(self, family: Family) -> AsyncNFCTSocket:
        if family not in self._sockets:
            self._sockets[family] = AsyncNFCTSocket(_FAMILY[family])
        return self._sockets[family]

    async def _delete(self, flows: StaleFlows) -> None:
        family, number = _FAMILY[flows.family], _NUMBER[flows.protocol]
        original = NFCTAttrTuple(family=family, daddr=flows.address, proto=number, dport=flows.port)
        original.attrs()  # computes .flags
        flags = [["CTA_FILTER_ORIG_FLAGS", original.flags]]
        request = {"tuple_orig": original}
        if flows.answered_by:
            address, port = flows.answered_by
            reply = NFCTAttrTuple(family=family, saddr=address, proto=number, sport=port)
            reply.attrs()
            flags.append(["CTA_FILTER_REPLY_FLAGS", reply.flags])
            request["tuple_reply"] = reply
        await self._socket(flows.family).entry("del", cta_filter={"attrs": flags}, **request)

    async def _pick(self, stale: Sequence[StaleFlows], port: int | None = None, *, lacking: int = 0) -> None:
        """Delete the entries that match, one by one, from a dump of their protocols and, if given, one port."""
        wanted: dict[tuple[Family, Protocol], dict[tuple[str | None, int], list[StaleFlows]]] = {}
        for flows in stale:
            by_listen = wanted.setdefault((flows.family, flows.protocol), {})
            by_listen.setdefault((flows.address, flows.port), []).append(flows)
        for (family, protocol), by_listen in wanted.items():
            for entry in await self._entries(family, protocol, port, lacking=lacking):
                original, answered = entry.original, entry.answered_by
                there = [
                    *by_listen.get((original.daddr, original.dport), ()),
                    *by_listen.get((None, original.dport), ()),
                ]
                if any(f.answered_by in (None, answered) and f.spared != answered for f in there):
                    await self._delete_one(self._socket(family), original)

    async def _entries(self, family: Family, protocol: Protocol, port: int | None, *, lacking: int = 0) -> list[_Entry]:
        """Every entry of a protocol and, if given, one original port; or those that lack a bit of the status."""
        found = []
        async for entry in await self._dump(family, protocol, port, lacking):
            original, reply = _tuple(entry, "CTA_TUPLE_ORIG"), _tuple(entry, "CTA_TUPLE_REPLY")
            status = entry.get_attr("CTA_STATUS") or 0
            # Looked at here too, for an older kernel does not know such a filter.
            if not status & lacking:
                found.append(_Entry(original, Endpoint(reply.saddr, reply.sport), bool(status & _TRANSLATED)))
        return found

    async def _dump(self, family: Family, protocol: Protocol, port: int | None, lacking: int) -> Any:
        original = NFCTAttrTuple(family=_FAMILY[family], proto=_NUMBER[protocol], dport=port)
        if not lacking:
            return await self._socket(family).dump(tuple_orig=original)
        original.attrs()
        flags = {"attrs": [["CTA_FILTER_ORIG_FLAGS", original.flags]]}
        # pyroute2's own dump asks for a tuple or for a status, the kernel takes both (Linux 5.15).
        request = nfct_msg.create_from(tuple_orig=original, cta_filter=flags, status=0, status_mask=lacking)
        return await self._socket(family).request(request, IPCTNL_MSG_CT_GET, msg_flags=NLM_F_REQUEST | NLM_F_DUMP)

    async def _delete_one(self, sock: AsyncNFCTSocket, original: NFCTAttrTuple) -> None:
        try:
            await sock.entry("del", tuple_orig=original)
        except NetlinkError as error:
            if error.code != errno.ENOENT:  # it ended by itself meanwhile
                raise


def _tuple(entry: Any, name: str) -> Any:
    """One direction of an entry; pyroute2's own reading leaves out the ports of SCTP."""
    listed = entry.get_attr(name)
    family = entry["nfgen_family"]
    version = "V4" if family == socket.AF_INET else "V6"
    addresses, ports = listed.get_attr("CTA_TUPLE_IP"), listed.get_attr("CTA_TUPLE_PROTO")
    return NFCTAttrTuple(
        family=family,
        saddr=addresses.get_attr(f"CTA_IP_{version}_SRC"),
        daddr=addresses.get_attr(f"CTA_IP_{version}_DST"),
        proto=ports.get_attr("CTA_PROTO_NUM"),
        sport=ports.get_attr("CTA_PROTO_SRC_PORT"),
        dport=ports.get_attr("CTA_PROTO_DST_PORT"),
    )

"""The kernel's own word on the way of a packet: routes, neighbours, links.

Must not decide what follows from it. The one idea: the kernel is asked what it would do (RTM_GETROUTE with the source
and the link by which a packet comes), so policy rules, reverse path checks and all are in the answer.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nfportd.trace.facts import Route, Way

# linux/rtnetlink.h, RTN_*
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
# linux/neighbour.h: NUD_*, NTF_USE
_STATES = {1: "INCOMPLETE", 2: "REACHABLE", 4: "STALE", 8: "DELAY", 16: "PROBE", 32: "FAILED", 64: "NOARP"}
_STATES |= {128: "PERMANENT", 0: ""}
_USE = 0x1
#: Seconds for an address on a link to answer; a link takes milliseconds, the kernel gives up after three.
_PATIENCE, _PAUSE = 1.0, 0.02


class Paths:
    """Asks in the network namespace in which this is made."""

    def __init__(self) -> None:
        self._ipr = AsyncIPRoute()

    def close(self) -> None:
        """Close the socket."""
        self._ipr.close()

    async def way(self, asked: Route) -> Way:
        """The route that a packet would take."""
        more: dict[str, Any] = {}
        if asked.source:
            more["src"] = asked.source
        try:
            if asked.link:
                more["iif"] = socket.if_nametoindex(asked.link)
            (found,) = await self._ipr.route("get", dst=asked.to, **more)
        except NetlinkError as error:
            return Way("", error=error.code)
        except OSError as error:  # there is no such link
            return Way("", error=error.errno or 0)
        link = dict(socket.if_nameindex()).get(found.get("RTA_OIF"), "")
        via = found.get("RTA_VIA") or {}
        gateway = found.get("RTA_GATEWAY") or via.get("addr") or ""
        kind = _KINDS.get(found["type"], str(found["type"]))
        return Way(kind, link, str(gateway), str(found.get("RTA_PREFSRC") or ""))

    async def neighbour(self, link: str, address: str) -> str:
        """The state of an address on a link. Where it is not known the kernel looks for it, as for any packet to it."""
        try:
            index = socket.if_nametoindex(link)
        except OSError:  # it has gone
            return ""
        until = asyncio.get_running_loop().time() + _PATIENCE
        state = await self._state(index, address)
        if state not in ("", "INCOMPLETE", "FAILED"):
            return state
        try:
            await self._ipr.neigh("replace", dst=address, ifindex=index, flags=_USE, state=0)
        except NetlinkError:
            return state
        while (state := await self._state(index, address)) in ("", "INCOMPLETE"):
            if asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(_PAUSE)
        return state

    async def _state(self, index: int, address: str) -> str:
        async for message in await self._ipr.neigh("dump", ifindex=index, dst=address):
            if message["ifindex"] == index and message.get("NDA_DST") == address:
                return _STATES.get(message["state"], str(message["state"]))
        return ""

    async def is_bridge(self, link: str) -> bool:
        """Whether a link is a bridge."""
        try:
            (found,) = await self._ipr.link("get", index=socket.if_nametoindex(link))
        except (NetlinkError, OSError):  # it has gone
            return False
        info = found.get("IFLA_LINKINFO")
        return bool(info and info.get("IFLA_INFO_KIND") == "bridge")

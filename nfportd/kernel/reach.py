"""How this host reaches addresses: links, the kernel's own choice of a route, neighbours. For one look, not to follow.

Must not judge. The one idea: the kernel is asked where it would send a packet, so that rules, tables and metrics need
not be understood here.

Layout: linux/rtnetlink.h, linux/neighbour.h, linux/if.h.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nfportd.doctor.facts import Interface, Way

_LOCAL = 2  # RTN_LOCAL
_UP, _LOWER_UP = 0x1, 0x10000  # IFF_UP, IFF_LOWER_UP
#: NUD_*
_STATES = {0x01: "INCOMPLETE", 0x02: "REACHABLE", 0x04: "STALE", 0x08: "DELAY", 0x10: "PROBE", 0x20: "FAILED"}
_STATES |= {0x40: "NOARP", 0x80: "PERMANENT"}
#: What the kernel answers where a route says that there is none (fib_props in net/ipv4/fib_semantics.c).
_TROUBLES = {
    errno.ENETUNREACH: "no route",
    errno.EHOSTUNREACH: "a route of type unreachable",
    errno.EINVAL: "a route of type blackhole",
    errno.EACCES: "a route of type prohibit",
}


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Reach:
    """One netlink socket in the network namespace in which this is made."""

    def __init__(self) -> None:
        self._ipr = AsyncIPRoute()
        self._names = dict(socket.if_nameindex())

    def close(self) -> None:
        """Close the socket."""
        self._ipr.close()

    async def ways(self, addresses: Iterable[str]) -> dict[str, Way]:
        """Where a packet of this host's own for each address would go. About 0.3 ms each."""
        return {address: await self._way(address) for address in addresses}

    async def _way(self, address: str) -> Way:
        try:
            (route, *_) = await self._ipr.route("get", dst=address, family=_family(address))
        except NetlinkError as error:
            return Way(trouble=_TROUBLES.get(error.code, os.strerror(error.code)))
        via = route.get("RTA_VIA")
        gateway = route.get("RTA_GATEWAY") or (via["addr"] if via else None)
        return Way(self._names.get(route.get("RTA_OIF"), ""), gateway, route["type"] == _LOCAL)

    async def interfaces(self) -> dict[str, Interface]:
        """The links by name."""
        addresses: dict[int, list[str]] = {}
        async for message in await self._ipr.addr("dump"):
            written = f"{message.get('IFA_LOCAL') or message.get('IFA_ADDRESS')}/{message['prefixlen']}"
            addresses.setdefault(message["index"], []).append(written)
        found = {}
        async for message in await self._ipr.link("dump"):
            name, kind = message.get("IFLA_IFNAME"), (message.get("IFLA_LINKINFO") or {}).get("IFLA_INFO_KIND")
            up, carrier = bool(message["flags"] & _UP), bool(message["flags"] & _LOWER_UP)
            found[name] = Interface(name, up, carrier, kind or "", tuple(addresses.get(message["index"], ())))
        return found

    async def neighbours(self) -> dict[tuple[str, str], str]:
        """The state of each neighbour, by its address and link."""
        found = {}
        async for message in await self._ipr.neigh("dump"):
            link = self._names.get(message["ifindex"], "")
            found[str(message.get("NDA_DST")), link] = _STATES.get(message["state"], "NONE")
        return found

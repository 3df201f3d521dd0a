"""Links, routes and addresses of the network namespace: a snapshot when asked, a wake-up when something changed.

Must not decide what follows from them: topology does. The one idea: a change only says that there was one and the
state is read anew, so that a lost event (ENOBUFS) is an event like any other.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nfportd.kernel import bridges
from nfportd.kernel.netlink import Netlink
from nfportd.netlink import attributes
from nfportd.notation import Family
from nfportd.topology import Link, Network, Route

_log = logging.getLogger(__name__)

# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE,
# RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF, which tell of forwarding (but not of route_localnet)
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << (24 - 1) | 1 << (25 - 1)
#: Seconds from an event to the wake-up: events come in bursts.
_SETTLE = 0.02
_MAIN, _LOCAL = 254, 255
_UNICAST, _LOCAL_TYPE = 1, 2
_PROTO_RA = 9
#: struct nlmsghdr with length and type; which are about a link, and where its index stands (linux/rtnetlink.h).
_HEADER = struct.Struct("=IH10x")
_OF_LINKS = (16, 17)  # RTM_NEWLINK, RTM_DELLINK
_INDEX = struct.Struct("=4xi")
_GET_ROUTE = 26  # RTM_GETROUTE
_ROUTE = struct.Struct("=BB2xBB6x")  # struct rtmsg: family, length of the destination, table, protocol
_DESTINATION, _OUT = 1, 4  # RTA_DST, RTA_OIF
_LOOPBACK = bytes(15) + b"\x01"

#: Marks the routes that nfportd adds (rtm_protocol; free in /etc/iproute2/rt_protos), so that a later run knows them.
ROUTE_PROTOCOL = 110
#: Metrics above the kernel's own routes. One a link: an equal metric would replace another link's route.
_METRIC_BASE = 4096
_OURS = (socket.AF_INET6, 128, _LOCAL, ROUTE_PROTOCOL)


class NetworkWatch:
    """The network of the namespace in which this is made. `wake` is called some time after it has changed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        #: Whether something may have changed since the last snapshot.
        self.changed = False
        #: Indices of links that were set up, down or otherwise before the last snapshot: the kernel takes routes along.
        self.moved: set[int] = set()
        self._moving: set[int] = set()
        self._wake = wake
        self._settling: asyncio.TimerHandle | None = None
        # Whether bridges call ip6tables, as it was at the last snapshot; the kernel tells nobody.
        self._called: str | None = None
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._events.bind((0, _GROUPS))
        asyncio.get_running_loop().add_reader(self._events, self._drain)
        self._ipr = AsyncIPRoute()
        self._kernel = Netlink(socket.NETLINK_ROUTE, strict=True)

    def close(self) -> None:
        """Stop watching."""
        if self._settling:
            self._settling.cancel()
        asyncio.get_running_loop().remove_reader(self._events)
        self._events.close()
        self._ipr.close()
        self._kernel.close()

    def _drain(self) -> None:
        try:
            while datagram := self._events.recv(65536):
                self._moving.update(_links_in(datagram))
        except BlockingIOError:
            pass
        except OSError as error:
            _log.debug("network events were lost (%s); the state is read anew", error.strerror)
        self.doubt()

    def doubt(self) -> None:
        """Have the network read anew, and what the host must allow looked at."""
        self.changed = True
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE, self._settle)

    def look(self) -> None:
        """Have the network read anew if something changed of which the kernel tells nobody."""
        if bridges.called() != self._called:
            self.doubt()

    def _settle(self) -> None:
        self._settling = None
        if self.changed:
            self._wake()

    async def snapshot(self) -> Network:
        """The network now. Costs about 0.2 ms a route."""
        self.changed = False
        self.moved, self._moving = self._moving, set()
        try:
            return await self._read()
        except BaseException:
            self.doubt()
            raise

    async def _read(self) -> Network:
        links = tuple(Link(index, name) for index, name in socket.if_nameindex())
        routes: list[Route] = []
        async for message in await self._ipr.route("dump", table=_MAIN):
            routes += _routes(message)
        addresses: set[tuple[Family, str]] = set()
        async for message in await self._ipr.addr("dump"):
            address = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            addresses.add((4 if message["family"] == socket.AF_INET else 6, str(address)))
        self._called = bridges.called()
        # Without the module no bridge calls, whatever its options say.
        filtered = frozenset[int]() if self._called is None else bridges.filtered(calls_all=self._called != "0")
        return Network(links, tuple(routes), frozenset(addresses), filtered)

    def loopback_links(self) -> frozenset[Link]:
        """The links on which nfportd has put a route that takes answers to ::1. Raises OSError."""
        request = _ROUTE.pack(socket.AF_INET6, 0, _LOCAL, ROUTE_PROTOCOL)
        found = set()
        for route in self._kernel.answers(_GET_ROUTE, request, dump=True):
            said = dict(attributes(route[_ROUTE.size :]))
            if _ROUTE.unpack_from(route) == _OURS and bytes(said.get(_DESTINATION, b"")) == _LOOPBACK and _OUT in said:
                found.add(int.from_bytes(said[_OUT], sys.byteorder))
        return frozenset(Link(index, name) for index, name in socket.if_nameindex() if index in found)

    async def set_loopback(self, link: Link, *, present: bool) -> None:
        """Add or remove the route by which a link takes answers to ::1.

        The kernel looks for a local route on the link by which a packet arrives (net/ipv6/route.c, strict lookup for
        loopback destinations); a packet that comes with ::1 in its header is dropped before (ip6_rcv_core).
        """
        try:
            await self._ipr.route(
                "add" if present else "del",
                dst="::1/128",
                oif=link.index,
                table=_LOCAL,
                type="local",
                priority=_METRIC_BASE + link.index,
                proto=ROUTE_PROTOCOL,
                family=socket.AF_INET6,
            )
        except NetlinkError as error:
            if error.code not in (errno.ESRCH, errno.EEXIST, errno.ENODEV):  # it is so already, or the link has gone
                _log.error("route local ::1 dev %s: %s; [::1] will not reach its targets", link.name, error)


def _links_in(datagram: bytes) -> Iterator[int]:
    """The indices of the links that messages are about."""
    at = 0
    while at + _HEADER.size + _INDEX.size <= len(datagram):
        length, kind = _HEADER.unpack_from(datagram, at)
        if kind in _OF_LINKS:
            yield _INDEX.unpack_from(datagram, at + _HEADER.size)[0]
        at += max(_HEADER.size, (length + 3) & ~3)


def _routes(message: Any) -> list[Route]:
    """The paths of one route; not those without an interface (blackhole, unreachable)."""
    if message["type"] != _UNICAST or message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return []
    family: Any = 4 if message["family"] == socket.AF_INET else 6
    default = "0.0.0.0" if family == 4 else "::"
    prefix = f"{message.get('RTA_DST') or default}/{message['dst_len']}"
    paths = message.get("RTA_MULTIPATH") or [message]
    return [
        Route(
            family,
            prefix,
            path.get("RTA_OIF") or path["oif"],
            message.get("RTA_PRIORITY") or 0,
            message["dst_len"] > 0 and path.get("RTA_GATEWAY") is None and path.get("RTA_VIA") is None,
            message["proto"] == _PROTO_RA,
        )
        for path in paths
        if path.get("RTA_OIF") or (path is not message and path["oif"])
    ]

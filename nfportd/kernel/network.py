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
from collections.abc import Callable, Iterator

from nfportd.kernel import bridges
from nfportd.kernel.routes import Routes
from nfportd.topology import Link, Network

_log = logging.getLogger(__name__)

# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE,
# RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF, which tell of forwarding (but not of route_localnet)
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << (24 - 1) | 1 << (25 - 1)
#: Seconds from an event to the wake-up: events come in bursts.
_SETTLE = 0.02
#: struct nlmsghdr with length and type; which are about a link, and where its index stands (linux/rtnetlink.h).
_HEADER = struct.Struct("=IH10x")
_OF_LINKS = (16, 17)  # RTM_NEWLINK, RTM_DELLINK
_INDEX = struct.Struct("=4xi")


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
        self._routes = Routes()

    def close(self) -> None:
        """Stop watching."""
        if self._settling:
            self._settling.cancel()
        asyncio.get_running_loop().remove_reader(self._events)
        self._events.close()
        self._routes.close()

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
        """The network now. Costs some 10 microseconds a route."""
        self.changed = False
        self.moved, self._moving = self._moving, set()
        try:
            return await self._read()
        except BaseException:
            self.doubt()
            raise

    async def _read(self) -> Network:
        links = tuple(Link(index, name) for index, name in socket.if_nameindex())
        # Beside the API: a router has very many.
        routes = await asyncio.to_thread(self._routes.of_main)
        addresses = self._routes.addresses()
        self._called = bridges.called()
        # Without the module no bridge calls, whatever its options say.
        filtered = frozenset[int]() if self._called is None else bridges.filtered(calls_all=self._called != "0")
        return Network(links, tuple(routes), addresses, filtered)

    def loopback_links(self) -> frozenset[Link]:
        """The links on which nfportd has put a route that takes answers to ::1."""
        names = dict(socket.if_nameindex())
        return frozenset(Link(index, names[index]) for index in self._routes.loopback() if index in names)

    def set_loopback(self, link: Link, *, present: bool) -> None:
        """Add or remove the route by which a link takes answers to ::1.

        The kernel looks for a local route on the link by which a packet arrives (net/ipv6/route.c, strict lookup for
        loopback destinations); a packet that comes with ::1 in its header is dropped before (ip6_rcv_core).
        """
        try:
            self._routes.set_loopback(link.index, present=present)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EEXIST, errno.ENODEV):  # it is so already, or the link has gone
                text = "route local ::1 dev %s: %s; [::1] will not reach its targets"
                _log.error(text, link.name, error.strerror)


def _links_in(datagram: bytes) -> Iterator[int]:
    """The indices of the links that messages are about."""
    at = 0
    while at + _HEADER.size + _INDEX.size <= len(datagram):
        length, kind = _HEADER.unpack_from(datagram, at)
        if kind in _OF_LINKS:
            yield _INDEX.unpack_from(datagram, at + _HEADER.size)[0]
        at += max(_HEADER.size, (length + 3) & ~3)

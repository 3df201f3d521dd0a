"""Routes and addresses by the kernel's own word, and the routes by which links take answers to ::1.

Must not decide what follows from them: topology does. The one idea: a message is read for the few attributes that
matter here, some microseconds each, for a router may have very many.

Layout: linux/rtnetlink.h, linux/if_addr.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping as AbstractMapping

from nfportd.kernel.netlink import CREATE, Netlink
from nfportd.netlink import attribute, attributes
from nfportd.notation import Family
from nfportd.topology import Route

_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE, _GET_ADDRESS = 24, 25, 26, 22  # RTM_*
_ROUTE = struct.Struct("=8BI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_PATH = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface
_ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg: family, prefixlen, flags, scope, index
_TO, _LINK, _GATEWAY, _PRIORITY, _PATHS, _TABLE, _VIA = 1, 4, 5, 6, 9, 15, 18  # RTA_*
_OF_LINK, _OWN = 1, 2  # IFA_ADDRESS, IFA_LOCAL
_MAIN, _LOCAL = 254, 255  # RT_TABLE_*
_UNICAST, _LOCAL_TYPE = 1, 2  # RTN_*
_ADVERTISED = 9  # RTPROT_RA
_NUMBER = struct.Struct("=I")

#: Marks the routes that nfportd adds (rtm_protocol; free in /etc/iproute2/rt_protos), so that a later run knows them.
PROTOCOL = 110
#: Metrics above the kernel's own routes. One a link: an equal metric would replace another link's route.
_METRIC_BASE = 4096

_FAMILIES: dict[int, Family] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_LOOPBACK = socket.inet_pton(socket.AF_INET6, "::1")


class Routes:
    """Asks in the network namespace in which this is made."""

    def __init__(self) -> None:
        self._kernel = Netlink(socket.NETLINK_ROUTE, strict=True)
        # Asked by a thread, which goes on where whoever waits for it is cancelled.
        self._of_main = Netlink(socket.NETLINK_ROUTE, strict=True)
        self._kernel.open()
        self._of_main.open()

    def close(self) -> None:
        """Close the sockets."""
        self._kernel.close()
        self._of_main.close()

    def of_main(self) -> list[Route]:
        """The paths of the main table; may be asked beside the others. Raises OSError, ValueError."""
        request = _ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)
        return [path for body in self._of_main.answers(_GET_ROUTE, request, dump=True) for path in paths(body)]

    def addresses(self) -> frozenset[tuple[Family, str]]:
        """The host's addresses. Raises OSError, ValueError."""
        request = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return frozenset(filter(None, map(_address, self._kernel.answers(_GET_ADDRESS, request, dump=True))))

    def loopback(self) -> Iterator[int]:
        """The links that have a route of ours. Raises OSError, ValueError."""
        request = _ROUTE.pack(socket.AF_INET6, 0, 0, 0, _LOCAL, PROTOCOL, 0, 0, 0)
        for body in self._kernel.answers(_GET_ROUTE, request, dump=True):
            said = dict(attributes(body[_ROUTE.size :]))
            if bytes(said.get(_TO, b"")) == _LOOPBACK and _LINK in said:
                yield _number(said[_LINK])

    def set_loopback(self, link: int, *, present: bool) -> None:
        """Add or remove the route of a link. Raises OSError."""
        head = _ROUTE.pack(socket.AF_INET6, 128, 0, 0, _LOCAL, PROTOCOL, 0, _LOCAL_TYPE, 0)
        numbers = attribute(_LINK, _NUMBER.pack(link)) + attribute(_PRIORITY, _NUMBER.pack(_METRIC_BASE + link))
        body = head + attribute(_TO, _LOOPBACK) + numbers
        self._kernel.tell(_NEW_ROUTE if present else _DELETE_ROUTE, body, CREATE if present else 0)


def paths(body: memoryview) -> list[Route]:
    """The paths of one route of the main table; not those without an interface (blackhole, unreachable)."""
    number, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    family = _FAMILIES.get(number)
    if family is None or kind != _UNICAST:
        return []
    said = dict(attributes(body[_ROUTE.size :]))
    if (_number(said[_TABLE]) if _TABLE in said else table) != _MAIN:
        return []
    to = socket.inet_ntop(number, said[_TO]) if _TO in said else "0.0.0.0" if family == 4 else "::"
    priority = _number(said[_PRIORITY]) if _PRIORITY in said else 0
    return [
        Route(
            family,
            f"{to}/{length}",
            link,
            priority,
            length > 0 and _GATEWAY not in path and _VIA not in path,
            protocol == _ADVERTISED,
        )
        for link, path in _each(said)
    ]


def _each(said: AbstractMapping[int, memoryview]) -> Iterator[tuple[int, AbstractMapping[int, memoryview]]]:
    """The interface of each path, and what is said of it. Raises ValueError."""
    if _PATHS not in said:
        if _LINK in said:
            yield _number(said[_LINK]), said
        return
    rest = said[_PATHS]
    while rest:
        if len(rest) < _PATH.size:
            raise ValueError("a path that is cut off")
        length, _, _, link = _PATH.unpack_from(rest)
        if not _PATH.size <= length <= len(rest):
            raise ValueError("a path that says that it is longer than what came")
        if link:
            yield link, dict(attributes(rest[_PATH.size : length]))
        rest = rest[(length + 3) & ~3 :]


def _address(body: memoryview) -> tuple[Family, str] | None:
    number, *_ = _ADDRESS.unpack_from(body)
    family, said = _FAMILIES.get(number), dict(attributes(body[_ADDRESS.size :]))
    found = said.get(_OWN, said.get(_OF_LINK))
    return (family, socket.inet_ntop(number, found)) if family and found is not None else None


def _number(value: memoryview) -> int:
    return int(_NUMBER.unpack(value)[0])

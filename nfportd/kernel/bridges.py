"""Links whose packets a bridge hands to ip6tables before IPv6 itself sees them (br_netfilter).

Must not decide what follows: topology does. The one idea: it takes the namespace's parameter or the bridge's own
option (net/bridge/br_netfilter_hooks.c, br_nf_pre_routing), and it holds for what stands on the bridge, such as a VLAN
interface, as well.

Layout: linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping as AbstractMapping
from typing import NamedTuple

from nfportd.kernel import sysctl
from nfportd.kernel.netlink import Netlink
from nfportd.netlink import attribute, attributes, text

#: The parameter of the namespace; there is none without the module br_netfilter.
PARAMETER = "bridge/bridge-nf-call-ip6tables"

_GET_LINK = 18  # RTM_GETLINK
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_BELOW, _INFO, _EXT_MASK, _BELOW_ELSEWHERE = 5, 18, 29, 37  # IFLA_LINK, _LINKINFO, _EXT_MASK, _LINK_NETNSID
_KIND, _DATA = 1, 2  # IFLA_INFO_KIND, IFLA_INFO_DATA
_CALL_IP6TABLES = 37  # IFLA_BR_NF_CALL_IP6TABLES
_WITHOUT_STATISTICS = (8).to_bytes(4, "little")  # RTEXT_FILTER_SKIP_STATS


class _Found(NamedTuple):
    below: int | None
    bridge: bool
    calls: bool


def filtered(calls_all: bool) -> frozenset[int]:
    """The indices of these links; `calls_all`: the parameter is 1. Costs some 20 microseconds a link.

    Raises OSError.
    """
    request = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_EXT_MASK, _WITHOUT_STATISTICS)
    with contextlib.closing(Netlink(socket.NETLINK_ROUTE)) as kernel:
        links = dict(map(_read, kernel.answers(_GET_LINK, request, dump=True)))
    return frozenset(index for index in links if _is_filtered(index, links, calls_all))


def called() -> str | None:
    """The parameter's value; None without br_netfilter."""
    return sysctl.read(PARAMETER)


def _read(body: memoryview) -> tuple[int, _Found]:
    _, _, index, _, _ = _LINK.unpack_from(body)
    said = dict(attributes(body[_LINK.size :]))
    info = dict(attributes(said.get(_INFO, b"")))
    # A link below that is in another namespace has that one's number.
    below = None if _BELOW_ELSEWHERE in said or _BELOW not in said else struct.unpack("=i", said[_BELOW])[0]
    bridge = text(info.get(_KIND, b"")) == "bridge"
    calls = bridge and dict(attributes(info.get(_DATA, b""))).get(_CALL_IP6TABLES, b"\0") != b"\0"
    return index, _Found(below, bridge, calls)


def _is_filtered(index: int, links: AbstractMapping[int, _Found], calls_all: bool) -> bool:
    seen: set[int] = set()
    at: int | None = index
    # The two ends of a veth pair are below each other.
    while at is not None and at in links and at not in seen:
        seen.add(at)
        if links[at].bridge:
            return calls_all or links[at].calls
        at = links[at].below
    return False

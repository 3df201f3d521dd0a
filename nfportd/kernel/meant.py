"""Which port a client meant before its connection was translated to the relay's own.

Must not know mappings. The one idea: conntrack remembers both, so one socket can serve any number of ports.

Layout: linux/netfilter/nfnetlink_conntrack.h, linux/netfilter_ipv6/ip6_tables.h.
"""

from __future__ import annotations

import socket

from nfportd.kernel.netlink import NETFILTER, Netlink
from nfportd.netlink import attribute, attributes, nested

_ORIGINAL_DST = 80  # IP6T_SO_ORIGINAL_DST, of TCP and SCTP only (ipv6_getorigdst in nf_conntrack_proto.c)
_SOCKADDR_IN6 = 28
_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_HEADER = bytes((socket.AF_INET6, 0, 0, 0))  # struct nfgenmsg
_ORIGINAL, _REPLY = 1, 2  # CTA_TUPLE_*
_IP, _PROTO = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_SOURCE, _DESTINATION = 3, 4  # CTA_IP_V6_*
_NUMBER, _FROM_PORT, _TO_PORT = 1, 2, 3  # CTA_PROTO_*


def tcp_port(accepted: socket.socket) -> int:
    """The port to which the client of an accepted connection connected. Raises OSError where conntrack knows none."""
    return int.from_bytes(accepted.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DST, _SOCKADDR_IN6)[2:4], "big")


class UdpPorts:
    """Asks for datagrams, in the network namespace of the first of them."""

    def __init__(self) -> None:
        self._conntrack = Netlink(NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._conntrack.close()

    def port(self, client: tuple[str, int], own: tuple[str, int]) -> int:
        """The port to which a datagram went that came from `client` to `own`. Raises OSError where none is known."""
        reply = nested(
            _REPLY,
            nested(_IP, attribute(_SOURCE, _packed(own[0])), attribute(_DESTINATION, _packed(client[0]))),
            nested(
                _PROTO,
                attribute(_NUMBER, bytes([socket.IPPROTO_UDP])),
                attribute(_FROM_PORT, own[1].to_bytes(2, "big")),
                attribute(_TO_PORT, client[1].to_bytes(2, "big")),
            ),
        )
        (entry,) = self._conntrack.answers(_GET, _HEADER + reply)
        original = dict(attributes(dict(attributes(entry[len(_HEADER) :]))[_ORIGINAL]))
        return int.from_bytes(dict(attributes(original[_PROTO]))[_TO_PORT], "big")


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)

"""A table that marks the packets of one connection, and what the kernel tells of their way (NFT_MSG_TRACE).

Must not talk to the kernel: text out, bytes in, values out. The one idea: nftables follows a packet whose `nftrace` is
set through every table; a table of its own sets it, so no other table is touched, and the address in it expires, so a
table that is left behind marks nothing.

Layout: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h (enum nft_trace_attributes).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from nfportd import ruleset
from nfportd.forwarding import Chain
from nfportd.netlink import attributes, of_nftables, text
from nfportd.notation import join_port
from nfportd.trace.facts import Flow

NAME = "nfportd_trace"
#: Chains that mark what is sent, and what is answered: those run when conntrack knows whose answer it is (-200).
ASKING, ANSWERING = ("sent_in", "sent_out"), ("answered_in", "answered_out")
#: Marked packets a second.
_RATE = "limit rate 10/second burst 10 packets"

_TRACE = 17  # NFT_MSG_TRACE
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
# NFTA_TRACE_*
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT, _IIF, _OIF, _POLICY = 8, 9, 10, 12, 16
_CODE, _TO = 1, 2  # NFTA_VERDICT_*
_TYPES = {1: "policy", 2: "return", 3: "rule"}  # enum nft_trace_types
_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16


def table(flow: Flow, seconds: int, *, owned: bool) -> str:
    """The table for a connection, as nft input. `owned`: the kernel removes it with the process that made it.

    Only the first packet of a connection is marked, and its answers that conntrack knows: the one SYN of TCP.
    """
    ip = "ip" if flow.family == 4 else "ip6"
    to = f"{ip} daddr {flow.to} " if flow.to else "fib daddr type local "
    original = f"ct original {ip} daddr {flow.to} " if flow.to else ""
    first = "tcp flags & (fin | syn | rst | ack) == syn " if flow.protocol == "tcp" else ""
    mark = f"{_RATE} meta nftrace set 1"
    sent = f"{ip} saddr @from {to}{flow.protocol} dport {flow.port} {first}{mark}"
    answered = (
        f"ct direction reply ct original {ip} saddr @from {original}meta l4proto {flow.protocol} "
        f"ct original proto-dst {flow.port} {mark}"
    )
    chains = "".join(
        f"  chain {name} {{ type filter hook {hook} priority {priority}; policy accept;\n    {rule}\n  }}\n"
        for name, hook, priority, rule in (
            (ASKING[0], "prerouting", -350, sent),
            (ASKING[1], "output", -350, sent),
            (ANSWERING[0], "prerouting", -199, answered),
            (ANSWERING[1], "output", -199, answered),
        )
    )
    flags = "  flags owner;\n" if owned else ""
    element = f"{flow.source} timeout {seconds}s"
    source = f"  set from {{ type ipv{flow.family}_addr; flags timeout; elements = {{ {element} }}\n  }}\n"
    return f"table inet {NAME} {{\n{flags}{source}{chains}}}\n"


def removal(*, owned: bool) -> str:
    """What removes the table, whether it is there or not, as nft input."""
    # Without its flag a table that has an owner is not added to (nf_tables_updtable in net/netfilter/nf_tables_api.c).
    return f"{ruleset.empty_table(('owner',) if owned else (), NAME)}delete table inet {NAME}\n"


class Event(NamedTuple):
    """One thing that the kernel tells of a packet: the verdict of a rule (by its handle) or of a chain's policy.

    `packet`: its addresses at that moment, where they are told; `link_in`, `link_out`: indices of links, 0 for none.
    """

    id: int
    chain: Chain
    kind: str
    verdict: str
    handle: int
    packet: str
    flags: str
    link_in: int
    link_out: int

    @property
    def decided(self) -> bool:
        """Whether a rule or a policy did something; the end of a chain is told as a rule without a handle."""
        return self.kind != "rule" or self.handle > 0


def read(datagram: bytes) -> Iterator[Event]:
    """The events in what the kernel sent; what is something else is left out. Raises ValueError for what is cut off."""
    for kind, family, said in of_nftables(datagram):
        if kind == _TRACE:
            yield _event(family, dict(attributes(said)))


def _event(family: int, said: dict[int, memoryview]) -> Event:
    def number(kind: int) -> int:
        return int.from_bytes(said.get(kind, b""), "big")

    verdict = dict(attributes(said.get(_VERDICT, b"")))
    code = int.from_bytes(verdict.get(_CODE, b""), "big", signed=True)
    if _VERDICT not in said and _POLICY in said:
        code = number(_POLICY)
    chain = Chain(_FAMILIES.get(family, str(family)), text(said.get(_TABLE, b"")), text(said.get(_CHAIN, b"")))
    word = _VERDICTS.get(code if code < 0 else code & 0xFF, str(code))
    to = f" {text(verdict[_TO])}" if _TO in verdict else ""
    packet, flags = _packet(bytes(said.get(_NETWORK, b"")), bytes(said.get(_TRANSPORT, b"")))
    return Event(
        number(_ID),
        chain,
        _TYPES.get(number(_TYPE), "rule"),
        f"{word}{to}",
        number(_HANDLE),
        packet,
        flags,
        number(_IIF),
        number(_OIF),
    )


def _packet(network: bytes, transport: bytes) -> tuple[str, str]:
    """Addresses and ports, and the flags of TCP, of headers; '' where they are not told."""
    version = network[0] >> 4 if network else 0
    if version == 4 and len(network) >= 20:
        protocol, source, to = network[9], network[12:16], network[16:20]
    elif version == 6 and len(network) >= 40:
        protocol, source, to = network[6], network[8:24], network[24:40]
    else:
        return "", ""
    ports = [str(int.from_bytes(transport[at : at + 2], "big")) for at in (0, 2)] if len(transport) >= 4 else ["?", "?"]
    one, other = str(ipaddress.ip_address(source)), str(ipaddress.ip_address(to))
    flags = ""
    if protocol == 6 and len(transport) >= 14:
        set_ = transport[13]
        flags = " ".join(
            name for bit, name in ((_SYN, "SYN"), (_RST, "RST"), (_FIN, "FIN"), (_ACK, "ACK")) if set_ & bit
        )
    return f"{join_port(one, ports[0])} to {join_port(other, ports[1])}", flags

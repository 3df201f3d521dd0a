"""What the kernel has of others' rules and libnftables does not list: parts of iptables, and single elements.

Must not judge it: forwarding and matches do. The one idea: libnftables lists of a part of iptables its name only, and
reads a whole set to get one element (0.6 s for 40,000); the kernel itself tells both at once.

Layout: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netfilter/nf_tables_compat.h.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

_NETLINK_NETFILTER = 12  # linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_NUMBER = struct.Struct("=i")
_TYPE = 0x3FFF  # NLA_TYPE_MASK
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST, _DUMP = 0x1, 0x301  # NLM_F_REQUEST, with NLM_F_DUMP
_GET_RULE, _GET_ELEMENT = 10 << 8 | 7, 10 << 8 | 13  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM
_FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}  # enum nfproto
_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS = 1, 2, 3, 4  # NFTA_RULE_*
_SET, _ELEMENTS, _LIST_ELEMENT = 2, 3, 1  # NFTA_SET_ELEM_LIST_SET, _ELEMENTS, NFTA_LIST_ELEM
_KEY, _DATA, _VALUE, _VERDICT = 1, 2, 1, 2  # NFTA_SET_ELEM_KEY, _DATA, NFTA_DATA_VALUE, _VERDICT
_CODE, _TO = 1, 2  # NFTA_VERDICT_CODE, _CHAIN
#: enum nft_verdicts, and NF_DROP, NF_ACCEPT, NF_QUEUE.
_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_EXPR_NAME, _EXPR_DATA = 1, 2  # NFTA_EXPR_*
_NAME, _REVISION, _INFO = 1, 2, 3  # NFTA_MATCH_* and NFTA_TARGET_* alike
_DATAGRAM = 1 << 18
#: Seconds; the kernel answers at once.
_PATIENCE = 5.0


def xt_parts(family: str, table: str, chain: str) -> dict[int, list[dict[str, Any]]]:
    """The parts of iptables in a chain's rules, by the rules' handles: type (`match`, `target`), name, rev, info.

    Raises OSError where the kernel does not tell.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    with _asked(_GET_RULE, _DUMP, family, _named(_TABLE, table) + _named(_CHAIN, chain)) as answers:
        for answer in answers:
            rule = dict(_attributes(answer))
            found[int.from_bytes(rule[_HANDLE], "big")] = list(_parts(rule.get(_EXPRESSIONS, b"")))
    return found


def element(family: str, table: str, name: str, key: bytes) -> str | bytes | bool:
    """Whether a set has a key, and in a map what stands there: the verdict, as nft writes it, or the value's bytes.

    Raises OSError where the kernel does not tell.
    """
    wanted = _attribute(_LIST_ELEMENT, _attribute(_KEY, _attribute(_VALUE, key)))
    body = _named(_TABLE, table) + _named(_SET, name) + _attribute(_ELEMENTS, wanted)
    try:
        with _asked(_GET_ELEMENT, _REQUEST, family, body) as answers:
            elements = dict(_attributes(next(answers)))[_ELEMENTS]
    except FileNotFoundError:
        return False
    value = dict(_attributes(dict(_attributes(dict(_attributes(elements))[_LIST_ELEMENT])).get(_DATA, b"")))
    if _VERDICT not in value:
        return value.get(_VALUE, True)
    verdict = dict(_attributes(value[_VERDICT]))
    kind = _VERDICTS.get(int.from_bytes(verdict[_CODE], "big", signed=True), "unknown")
    return f"{kind} {_text(verdict[_TO])}" if _TO in verdict else kind


@contextlib.contextmanager
def _asked(kind: int, flags: int, family: str, body: bytes) -> Iterator[Iterator[bytes]]:
    """The attributes of each message with which the kernel answers. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asked:
        asked.settimeout(_PATIENCE)
        length = _HEADER.size + _FAMILY.size + len(body)
        asked.send(_HEADER.pack(length, kind, flags, 1, 0) + _FAMILY.pack(_FAMILIES[family], 0, 0) + body)
        yield _answers(asked)


def _answers(asked: socket.socket) -> Iterator[bytes]:
    while True:
        for kind, message in _messages(asked.recv(_DATAGRAM)):
            if kind in (_ERROR, _DONE):
                (number,) = _NUMBER.unpack_from(message)
                if number:
                    raise OSError(-number, "nf_tables does not tell")
                return
            yield message[_FAMILY.size :]


def _named(kind: int, name: str) -> bytes:
    return _attribute(kind, name.encode() + b"\0")


def _attribute(kind: int, content: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + bytes(-len(content) % 4)


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, at)
        yield kind, datagram[at + _HEADER.size : at + length]
        at += length + -length % 4


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        yield kind & _TYPE, content[at + _ATTRIBUTE.size : at + length]
        at += max(length, _ATTRIBUTE.size) + -length % 4


def _parts(expressions: bytes) -> Iterator[dict[str, Any]]:
    for _, expression in _attributes(expressions):
        inside = dict(_attributes(expression))
        kind = _text(inside[_EXPR_NAME])
        if kind in ("match", "target"):
            part = dict(_attributes(inside[_EXPR_DATA]))
            revision = int.from_bytes(part[_REVISION], "big")
            yield {"type": kind, "name": _text(part[_NAME]), "rev": revision, "info": part[_INFO]}


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode(errors="replace")

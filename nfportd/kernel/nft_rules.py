"""What the kernel has of others' rules and libnftables does not list: parts of iptables, and single elements.

Must not judge it: forwarding and matches do. The one idea: libnftables lists of a part of iptables its name only, and
reads a whole set to get one element (0.6 s for 40,000); the kernel itself tells both at once.

Layout: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netfilter/nf_tables_compat.h.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from nfportd.kernel.netlink import NfTables
from nfportd.netlink import attribute, attributes, named, text

_GET_RULE, _GET_ELEMENT = 7, 13  # NFT_MSG_GETRULE, NFT_MSG_GETSETELEM
_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS = 1, 2, 3, 4  # NFTA_RULE_*
_SET, _ELEMENTS, _LIST_ELEMENT = 2, 3, 1  # NFTA_SET_ELEM_LIST_SET, _ELEMENTS, NFTA_LIST_ELEM
_KEY, _DATA, _VALUE, _VERDICT = 1, 2, 1, 2  # NFTA_SET_ELEM_KEY, _DATA, NFTA_DATA_VALUE, _VERDICT
_CODE, _TO = 1, 2  # NFTA_VERDICT_CODE, _CHAIN
#: enum nft_verdicts, and NF_DROP, NF_ACCEPT, NF_QUEUE.
_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_EXPR_NAME, _EXPR_DATA = 1, 2  # NFTA_EXPR_*
_NAME, _REVISION, _INFO = 1, 2, 3  # NFTA_MATCH_* and NFTA_TARGET_* alike


def xt_parts(family: str, table: str, chain: str) -> dict[int, list[dict[str, Any]]]:
    """The parts of iptables in a chain's rules, by the rules' handles: type (`match`, `target`), name, rev, info.

    Raises OSError where the kernel does not tell.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    with contextlib.closing(NfTables()) as kernel:
        wanted = named(_TABLE, table), named(_CHAIN, chain)
        for answer in kernel.answers(_GET_RULE, *wanted, family=family, dump=True):
            rule = dict(attributes(answer))
            found[int.from_bytes(rule[_HANDLE], "big")] = list(_parts(rule.get(_EXPRESSIONS, b"")))
    return found


def element(family: str, table: str, name: str, key: bytes) -> str | bytes | bool:
    """Whether a set has a key, and in a map what stands there: the verdict, as nft writes it, or the value's bytes.

    Raises OSError where the kernel does not tell.
    """
    wanted = attribute(_ELEMENTS, attribute(_LIST_ELEMENT, attribute(_KEY, attribute(_VALUE, key))))
    try:
        with contextlib.closing(NfTables()) as kernel:
            (answer,) = kernel.answers(_GET_ELEMENT, named(_TABLE, table), named(_SET, name), wanted, family=family)
    except FileNotFoundError:
        return False
    elements = dict(attributes(dict(attributes(answer))[_ELEMENTS]))
    value = dict(attributes(dict(attributes(elements[_LIST_ELEMENT])).get(_DATA, b"")))
    if _VERDICT not in value:
        return bytes(value[_VALUE]) if _VALUE in value else True
    verdict = dict(attributes(value[_VERDICT]))
    kind = _VERDICTS.get(int.from_bytes(verdict[_CODE], "big", signed=True), "unknown")
    return f"{kind} {text(verdict[_TO])}" if _TO in verdict else kind


def _parts(expressions: memoryview | bytes) -> Iterator[dict[str, Any]]:
    for _, expression in attributes(expressions):
        inside = dict(attributes(expression))
        kind = text(inside[_EXPR_NAME])
        if kind in ("match", "target"):
            part = dict(attributes(inside[_EXPR_DATA]))
            revision = int.from_bytes(part[_REVISION], "big")
            yield {"type": kind, "name": text(part[_NAME]), "rev": revision, "info": bytes(part[_INFO])}

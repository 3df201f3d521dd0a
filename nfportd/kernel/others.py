"""Reads the rules of other programs, as far as they have a say in what is forwarded.

Must not judge them: forwarding and firewalls do. The one idea: tables are listed without elements, and the few elements
that matter are asked for one by one, so that the size of others' sets costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nfportd import firewalls, forwarding
from nfportd.firewalls import Connection, Finding
from nfportd.forwarding import Lookups, Question, Ruleset
from nfportd.kernel.nft import Nft
from nfportd.kernel.nft_rules import element, xt_parts
from nfportd.notation import Family
from nfportd.ruleset import TABLE

_log = logging.getLogger(__name__)

#: So many rules are followed for all connections (some 20 microseconds each); what stops the first ones seldom lets
#: the others pass.
_RULES = 30_000
#: Elements are asked for so many times: what one says may lead to others.
_ROUNDS = 6
#: Where the kernel names the tables of iptables-legacy; only root may read it.
_LEGACY: dict[Family, Path] = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}


async def stops(nft: Nft, asked: Sequence[Connection]) -> list[Finding]:
    """What of others' rules stops these connections, or may do so. Raises KernelRefused, NftDied and OSError."""
    if not asked:
        return []
    ruleset, lookups = await _read(nft), Lookups()
    asked = asked[: 1 + _RULES // (1 + sum(map(len, ruleset.rules.values())))]
    found = await asyncio.to_thread(firewalls.findings, ruleset, asked, lookups)
    for _ in range(_ROUNDS):
        questions, lookups.open = lookups.open, set()
        if not questions:
            break
        lookups.answers |= await asyncio.to_thread(_elements, questions)
        found = await asyncio.to_thread(firewalls.findings, ruleset, asked, lookups)
    return found + list(_legacy())


async def _read(nft: Nft) -> Ruleset:
    """The tables that have a say in what is forwarded; the others, however large, are not listed."""
    bases = forwarding.bases(await nft.listed("list chains"))
    tables = dict.fromkeys(base.chain[:2] for base in bases if base.chain[:2] != ("inet", TABLE))
    listings = [await nft.listed(f"list table {family} {table}") for family, table in tables]
    ruleset = forwarding.read(listings)
    for chain in forwarding.opaque(ruleset):
        forwarding.complete(ruleset, chain, await asyncio.to_thread(xt_parts, *chain))
    return ruleset


def _elements(questions: Iterable[Question]) -> dict[Question, str | bool]:
    return {question: element(*question) for question in questions}


def _legacy() -> Iterator[Finding]:
    for family, names in _LEGACY.items():
        try:
            if "filter" in names.read_text().split():
                yield firewalls.legacy(family)
        except OSError as error:
            _log.debug("whether iptables-legacy is in use cannot be told: %s", error)

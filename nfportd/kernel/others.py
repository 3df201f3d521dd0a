"""Reads the rules of other programs, as far as they have a say in what is forwarded or translated.

Must not judge them: firewalls and translation do. The one idea: tables are listed without elements, and the few
elements that matter are asked for one by one, so that the size of others' sets costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from nfportd import firewalls, forwarding, translation
from nfportd.firewalls import Connection, Finding
from nfportd.forwarding import Hooked, Lookups, Question, Ruleset
from nfportd.kernel.nft import Nft
from nfportd.kernel.nft_rules import element, xt_parts
from nfportd.matches import Packet
from nfportd.notation import Family
from nfportd.ruleset import TABLE
from nfportd.translation import Translation

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

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
    ruleset = await _read(nft, forwarding.bases(await nft.listed("list chains")), "forward")
    asked = asked[: 1 + _RULES // (1 + sum(map(len, ruleset.rules.values())))]
    found = await _judged(lambda lookups: firewalls.findings(ruleset, asked, lookups))
    return found + list(_legacy())


async def translates(nft: Nft, hook: str, packets: Sequence[Packet]) -> list[list[Translation]]:
    """What nat chains of others make of each packet before ours see it in `prerouting` or `output`.

    Raises KernelRefused, NftDied and OSError.
    """
    bases = translation.order(await nft.listed("list chains"), hook).before
    ruleset = (await _read(nft, bases, hook))._replace(bases=bases)
    packets = packets[: 1 + _RULES // (1 + sum(map(len, ruleset.rules.values())))]
    return await _judged(lambda lookups: [translation.translations(ruleset, each, lookups) for each in packets])


async def _judged(judge: Callable[[Lookups], list[_T]]) -> list[_T]:
    """A judgement, with the elements that it asks for."""
    lookups = Lookups()
    found = await asyncio.to_thread(judge, lookups)
    for _ in range(_ROUNDS):
        questions, lookups.open = lookups.open, set()
        if not questions:
            break
        lookups.answers |= await asyncio.to_thread(_elements, questions)
        found = await asyncio.to_thread(judge, lookups)
    return found


async def _read(nft: Nft, bases: Iterable[Hooked], hook: str) -> Ruleset:
    """The tables of these chains; the others, however large, are not listed."""
    tables = dict.fromkeys(base.chain[:2] for base in bases if base.chain[:2] != ("inet", TABLE))
    ruleset = forwarding.read([await nft.listed(f"list table {family} {table}") for family, table in tables], hook)
    for chain in forwarding.opaque(ruleset):
        forwarding.complete(ruleset, chain, await asyncio.to_thread(xt_parts, *chain))
    return ruleset


def _elements(questions: Iterable[Question]) -> dict[Question, str | bytes | bool]:
    return {question: element(*question) for question in questions}


def _legacy() -> Iterator[Finding]:
    for family, names in _LEGACY.items():
        try:
            if "filter" in names.read_text().split():
                yield firewalls.legacy(family)
        except OSError as error:
            _log.debug("whether iptables-legacy is in use cannot be told: %s", error)

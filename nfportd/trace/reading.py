"""Asks the kernel for what an explanation lacks.

Must not judge: story does. The one idea: ask what is asked for and have it explained anew, until nothing is lacking; so
the cost depends on the rules of others that a packet meets, and not on the number of mappings.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nfportd import forwarding, translation
from nfportd.errors import KernelRefused, NfportdError
from nfportd.forwarding import Chain, Question, Ruleset
from nfportd.kernel import sysctl
from nfportd.kernel.listeners import Listeners, processes
from nfportd.kernel.nft import Nft
from nfportd.kernel.nft_flags import Flags
from nfportd.kernel.nft_rules import element, xt_parts
from nfportd.kernel.path import Paths
from nfportd.model import Key, Protocol, listens
from nfportd.ruleset import TABLE
from nfportd.trace.facts import (
    Asked,
    Bridge,
    Explanation,
    Fact,
    Flow,
    Known,
    Listening,
    Neighbour,
    Others,
    Parameter,
    Route,
    Rules,
)
from nfportd.trace.story import explain
from nfportd.trace.watch import NAME

#: More questions than any way through the hooks leads to.
_MOST = 500


class NoRights(NfportdError):
    """The kernel does not tell this user."""


class Reading:
    """Asks in the network namespace in which this is made."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._paths = Paths()
        self._listings: dict[Chain, Any] = {}
        self._chains: Any = None
        self._trouble = ""

    def close(self) -> None:
        """Close what was opened."""
        self._paths.close()

    async def explain(self, flow: Flow, mappings: list[dict[str, Any]] | None) -> Explanation:
        """What happens to a connection now; `mappings`: what the API tells of the port, None where nobody answers.

        Raises NoRights, NfportdError.
        """
        known = Known(mappings, await self._ours())
        for _ in range(_MOST):
            known.trouble = self._trouble
            try:
                return explain(flow, known)
            except Asked as asked:
                for fact in asked.facts:
                    await self._answer(fact, known)
        raise NfportdError(f"others' rules lead to more than {_MOST} questions; the kernel's ruleset changes meanwhile")

    async def _ours(self) -> frozenset[str]:
        """The names of our base chains in the kernel."""
        flags = Flags()
        try:
            tables = flags.of_tables()
        except PermissionError:
            raise NoRights(
                "trace reads the kernel's tables, which takes root (CAP_NET_ADMIN): sudo nfportctl trace"
            ) from None
        except OSError as error:
            raise NfportdError(f"the kernel's tables cannot be read: {error.strerror}") from None
        finally:
            flags.close()
        try:
            self._chains = await self._nft.listed("list chains")
        except KernelRefused as error:
            self._trouble = str(error)
            self._chains = {"nftables": []}
            return frozenset({"prerouting", "output", "postrouting"} if TABLE in tables else ())
        listed = (item.get("chain", {}) for item in self._chains["nftables"])
        return frozenset(
            chain["name"]
            for chain in listed
            if (chain.get("family"), chain.get("table")) == ("inet", TABLE) and "hook" in chain
        )

    async def _answer(self, fact: Fact, known: Known) -> None:
        match fact:
            case Route():
                known.answers[fact] = await self._paths.way(fact)
            case Neighbour(link, address):
                known.answers[fact] = await self._paths.neighbour(link, address)
            case Bridge(link):
                known.answers[fact] = await self._paths.is_bridge(link)
            case Parameter(name):
                known.answers[fact] = sysctl.read(name)
            case Listening():
                known.answers[fact] = _listener(fact)
            case Rules(hook):
                known.answers[fact] = await self._rules(hook)
            case Question():
                self._look_up(fact, known)

    def _look_up(self, fact: Question, known: Known) -> None:
        try:
            known.answers[fact] = element(*fact)
        except OSError as error:
            if fact.table == TABLE:
                raise NfportdError(f"set {fact.set} of table inet {TABLE} cannot be read: {error.strerror}") from None
            known.unreadable.add(fact)

    async def _rules(self, hook: str) -> Others:
        """Others' base chains of a hook, with all rules of their tables."""
        bases = [each for each in forwarding.bases(self._chains, hook) if each.chain[:2] not in _OURS]
        tables = dict.fromkeys(base.chain._replace(name="") for base in bases)
        try:
            listings = [await self._listing(table) for table in tables]
            ruleset = forwarding.read(listings, hook)
            for chain in forwarding.opaque(ruleset):
                forwarding.complete(ruleset, chain, await asyncio.to_thread(xt_parts, *chain))
        except (KernelRefused, OSError) as error:
            self._trouble = str(error)
            ruleset = Ruleset((), {}, {})
        return Others(ruleset, translation.order(self._chains, hook))

    async def _listing(self, table: Chain) -> Any:
        if table not in self._listings:
            self._listings[table] = await self._nft.listed(f"list table {table.family} {table.table}")
        return self._listings[table]


#: Tables that are not others'.
_OURS = (("inet", TABLE), ("inet", NAME))


def _listener(fact: Listening) -> str:
    listeners = Listeners()
    try:
        found = listeners.on([Key(fact.family, fact.address, Protocol(fact.protocol), fact.port)])
    finally:
        listeners.close()
    known = processes(each.inode for each in found)
    return listens(next((known.get(each.inode) for each in found), None)) if found else ""

"""Watches a real packet of a connection through all tables, and says where it ended.

Must not mark packets itself: kernel/nft_trace does. The one idea: wait for one packet and for its answer, then read it
beside what was expected of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nfportd.errors import KernelRefused
from nfportd.forwarding import Chain
from nfportd.kernel.nft import Nft
from nfportd.kernel.nft_flags import Flags
from nfportd.kernel.nft_trace import Watch
from nfportd.ruleset import OWNED, TABLE
from nfportd.trace import seen
from nfportd.trace.facts import Explanation, Flow, Step
from nfportd.trace.seen import Outcome, Passage
from nfportd.trace.watch import Event

#: Seconds to wait for an answer to a packet, and for the rest of what is told of a packet that has ended.
_ANSWER, _REST = 2.0, 0.2
#: Events that are kept.
_MOST = 500


@dataclass(slots=True)
class Seen:
    """What was seen of a connection, in lines; `arrives`: whether it was answered, or delivered."""

    passages: list[Passage]
    lines: list[str]
    end: str
    commands: tuple[str, ...]
    how: str
    arrives: bool


async def watch(
    nft: Nft, flow: Flow, seconds: int, expected: Explanation, ready: Callable[[], None] = lambda: None
) -> Seen:
    """Watch one connection's first packet and its answer, for so many seconds; `ready` is called when it may come.

    Raises NfportdError.
    """
    watching = Watch()
    try:
        async with watching.marking(nft, flow, seconds, owned=_has_owners()):
            # Made before the packet comes, so that chains that are made meanwhile have no say.
            hooks = _hooks(await nft.listed("list chains"))
            ready()
            events = await _events(watching, hooks, seconds)
        passages = seen.passages(events)
        return await _told(nft, flow, seconds, passages, seen.outcome(passages, hooks), hooks, expected)
    finally:
        watching.close()


async def _events(watching: Watch, hooks: dict[Chain, str], seconds: int) -> list[Event]:
    loop = asyncio.get_running_loop()
    events: list[Event] = []
    until = loop.time() + seconds
    enough = until
    async for event in watching.events(until):
        if event is not None:
            events.append(event)
        elif events:
            how = seen.outcome(seen.passages(events), hooks).how
            begun = min(enough, loop.time() + (_REST if how in ("dropped", "answered", "refused") else _ANSWER))
            enough = begun
        if loop.time() >= enough or len(events) >= _MOST:
            break
    return events


def _has_owners() -> bool:
    """Whether nft and the kernel know owners of tables: ours has one where they do."""
    flags = Flags()
    try:
        return flags.of_tables().get(TABLE) == OWNED
    finally:
        flags.close()


def _hooks(listing: Any) -> dict[Chain, str]:
    chains = (item["chain"] for item in listing["nftables"] if "chain" in item)
    return {Chain(c["family"], c["table"], c["name"]): c["hook"] for c in chains if "hook" in c}


async def _told(
    nft: Nft,
    flow: Flow,
    seconds: int,
    passages: list[Passage],
    end: Outcome,
    hooks: dict[Chain, str],
    expected: Explanation,
) -> Seen:
    lines: list[str] = []
    for each in _worth_showing(passages, end):
        lines += seen.lines(each, hooks)
    commands: tuple[str, ...] = ()
    text = f"no packet of {flow} came in {seconds} s"
    match end.how:
        case "dropped" if end.visit:
            text, commands = await _dropped(nft, end, expected)
        case "answered" if end.answer:
            text = f"answered: {end.answer.packet}" + (f" ({end.answer.flags})" if end.answer.flags else "")
            text += _reason(expected, "; not by a mapping: ")
        case "refused" if end.answer:
            text = f"refused: {end.answer.packet} ({end.answer.flags}); no program listens on the port there"
        case "delivered":
            text = "delivered to this host itself; no answer was seen"
        case "left":
            link = dict(socket.if_nameindex()).get(end.link, "a link")
            last = end.visit.packet if end.visit else ""
            text = f"left by {link}{f', {last}' if last else ''}; no answer came back in {_ANSWER:.0f} s"
            text += (
                _reason(expected, "; ")
                or "; the target drops it, or sends its answers another way than through this host"
            )
        case "lost":
            text = (
                "the kernel dropped it after the chains above, between the hooks (no route, forwarding off, rp_filter)"
            )
            text += _reason(expected, ": ")
    if end.how in ("left", "lost", "nothing"):
        commands = next((step.commands for step in _stops(expected)), ())
    arrives = end.how in ("answered", "delivered") or (
        end.how == "left" and flow.protocol == "udp" and expected.arrives
    )
    return Seen(passages, lines, text, commands, end.how, arrives)


def _worth_showing(passages: list[Passage], end: Outcome) -> Iterator[Passage]:
    """The first question, and the first answer."""
    yield from [each for each in passages if each.asking][:1]
    yield from [each for each in passages if not each.asking][:1]


def _stops(expected: Explanation) -> Iterator[Step]:
    return (step for step in expected.steps if step.verdict == "stops")


def _reason(expected: Explanation, join: str) -> str:
    """What a trace without a packet finds."""
    return next((f"{join}{step.text}" for step in _stops(expected)), "")


async def _dropped(nft: Nft, end: Outcome, expected: Explanation) -> tuple[str, tuple[str, ...]]:
    assert end.visit
    visit, last = end.visit, end.visit.last
    if visit.base[:2] == ("inet", TABLE):
        return f"dropped by chain {visit.base}{_reason(expected, ': ')}", ()
    foretold = next((step for step in expected.steps if step.more.get("chain") == str(visit.base)), None)
    firewall = f" ({foretold.more['firewall']})" if foretold else ""
    what = "the answer was dropped" if end.answer else "dropped"
    if last.kind == "policy":
        text = f"{what} by the policy of chain {visit.base}{firewall}"
    else:
        text = f"{what} by rule {last.handle} of chain {last.chain}{firewall}"
        rule = await _rule(nft, last)
        text += f": {rule}" if rule else ""
    return text, foretold.commands if foretold else (f"nft -a list chain {last.chain}",)


async def _rule(nft: Nft, event: Event) -> str:
    """A rule as nft writes it; '' where it cannot be listed."""
    try:
        listed = await nft.shown(f"list chain {event.chain}")
    except KernelRefused:
        return ""
    for line in listed.splitlines():
        rule, mark, handle = line.rpartition(" # handle ")
        if mark and handle.strip() == str(event.handle):
            return rule.strip()
    return ""

"""Which way a packet took, and where it ended, by what the kernel told of it.

Must not talk to the kernel. The one idea: what the kernel tells of a packet are verdicts; the base chain that was asked
last, and how it answered, say where it is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping as AbstractMapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nfportd.forwarding import Chain
from nfportd.trace.watch import ANSWERING, ASKING, NAME, Event

_LOOPBACK = 1  # LOOPBACK_IFINDEX of net/net_namespace.h

How = Literal["nothing", "dropped", "answered", "refused", "delivered", "left", "lost"]


class Visit(NamedTuple):
    """A base chain that a packet passed: its hook, the last thing that is told of it, and the packet as it came."""

    base: Chain
    hook: str
    last: Event
    packet: str

    @property
    def dropped(self) -> bool:
        """Whether it ended here."""
        return self.last.verdict == "drop"

    def __str__(self) -> str:
        last = self.last
        if last.kind == "policy" or last.verdict in ("continue", "return"):
            return f"policy {last.verdict}" if last.kind == "policy" else "passes"
        where = f"rule {last.handle}" + (f" of chain {last.chain.name}" if last.chain != self.base else "")
        return f"{where}: {last.verdict}"


@dataclass(slots=True)
class Passage:
    """One packet's way: a question (the first packet of a connection) or an answer."""

    asking: bool
    events: list[Event] = field(default_factory=list)

    @property
    def packet(self) -> str:
        """Its addresses as it was first seen."""
        return next((event.packet for event in self.events if event.packet), "a packet")

    @property
    def flags(self) -> str:
        """The flags of TCP."""
        return next((event.flags for event in self.events if event.flags), "")

    def visits(self, hooks: AbstractMapping[Chain, str]) -> list[Visit]:
        """The base chains that it passed, without ours that marked it. `hooks`: those of all base chains."""
        found: list[Visit] = []
        for event in self.events:
            if event.chain.table == NAME:
                continue
            hook = hooks.get(event.chain)
            # A base chain is told again after each of its rules that matched.
            if found and (hook is None or event.chain == found[-1].base):
                found[-1] = found[-1]._replace(last=event) if event.decided else found[-1]
            elif hook is not None:
                found.append(Visit(event.chain, hook, event, event.packet))
        return found


def passages(events: Iterable[Event]) -> list[Passage]:
    """The packets that our table marked, each with what followed. Others may mark packets, too; those are left out."""
    found: list[Passage] = []
    open_: dict[int, Passage] = {}
    for event in events:
        ours = event.chain.table == NAME and event.kind == "rule" and event.decided
        # What this host sends to itself comes in again by lo.
        if ours and not (event.link_in == _LOOPBACK and found):
            open_[event.id] = Passage(event.chain.name in ASKING)
            found.append(open_[event.id])
        elif ours:
            mine = [each for each in found if each.asking == (event.chain.name not in ANSWERING)]
            if mine:
                open_[event.id] = mine[-1]
        if event.id in open_:
            open_[event.id].events.append(event)
    return found


class Outcome(NamedTuple):
    """How it ended; where it was dropped, and by which link it left (an index)."""

    how: How
    visit: Visit | None = None
    answer: Passage | None = None
    link: int = 0


def outcome(found: list[Passage], hooks: AbstractMapping[Chain, str]) -> Outcome:
    """Where the first packet of a connection, or the answer to it, ended."""
    asked = next((each for each in found if each.asking), None)
    if asked is None:
        return Outcome("nothing")
    for each in found:
        visits = each.visits(hooks)
        if visits and visits[-1].dropped:
            return Outcome("dropped", visits[-1], None if each.asking else each)
    answer = next((each for each in found if not each.asking), None)
    if answer:
        return Outcome("refused" if "RST" in answer.flags else "answered", None, answer)
    visits = asked.visits(hooks)
    passed = {visit.hook for visit in visits}
    last = visits[-1] if visits else None
    link = next((event.link_out for event in reversed(asked.events) if event.link_out), 0)
    if "input" in passed:
        return Outcome("delivered", last)
    if passed & {"forward", "postrouting"}:
        return Outcome("left", last, None, link)
    return Outcome("lost", last)


def lines(passage: Passage, hooks: AbstractMapping[Chain, str]) -> Iterator[str]:
    """The way of a packet, a line for each base chain; its addresses where they have changed."""
    flags = f" ({passage.flags})" if passage.flags else ""
    yield f"{'packet' if passage.asking else 'answer'} {passage.packet}{flags}"
    shown = passage.packet
    for visit in passage.visits(hooks):
        if visit.packet and visit.packet != shown:
            shown = visit.packet
            yield f"  now {shown}"
        yield f"  {visit.hook:<11} {visit.base}: {visit}"

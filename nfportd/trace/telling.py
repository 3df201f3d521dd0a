"""What all steps of an explanation have in common: the connection, what is known of the host, and the steps so far.

Must not ask the kernel. The one idea: a step is told as it happens, and the one that stops the connection ends it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any, NoReturn

from nfportd import ruleset, translation
from nfportd.forwarding import Question, Ruleset
from nfportd.matches import Packet, encoded
from nfportd.ruleset import TABLE
from nfportd.trace.facts import Flow, Known, Others, Rules, Step, Verdict, Way
from nfportd.trace.others import Filters, Part
from nfportd.translation import Translation


class End(Exception):
    """The connection goes no further."""


@dataclass(slots=True)
class Hit:
    """An element that was found: in which map (`addr`, `any`), under which key, and the target in it."""

    map: str
    key: str
    target: str
    port: int


class Telling:
    """One connection; `steps` grow as it goes. `link`: by which it comes; '' where it starts here (`local`)."""

    def __init__(self, flow: Flow, known: Known) -> None:
        self.flow = flow
        self.known = known
        self.local = False
        self.link = ""
        self.steps: list[Step] = []
        self.arrives = False
        self.target: str | None = None
        self.seen_as: str | None = None

    @property
    def hook(self) -> str:
        """The hook by which it comes."""
        return "output" if self.local else "prerouting"

    def packet(self) -> Packet:
        """The first packet, as the hook by which it comes sees it."""
        flow = self.flow
        iif, oif = ("", "lo") if self.local else (self.link, "")
        return Packet(flow.family, flow.protocol, flow.source, None, flow.to, flow.port, iif, oif, translated=False,
                      local=True)  # fmt: skip

    def filters(self, hook: str, packet: Packet, *, before: int = 1 << 31, after: int = -(1 << 31),
                 hit: Hit | None = None) -> None:  # fmt: skip
        """Others' filter chains of a hook with priorities below `before` and above `after`."""
        others: Others = self.known(Rules(hook))
        part = Part(hook, before, after, (hit.target, hit.port) if hit else None, self.flow)
        for step in self.known.walked(
            (part, packet), lambda lookups: list(Filters(others.ruleset, part, lookups).steps(packet))
        ):
            self.steps.append(step)
            if step.verdict == "stops":
                raise End

    def translations(self, rules: Ruleset, bases: Any, packet: Packet) -> list[Translation]:
        """What nat chains of others make of a packet."""
        chosen = rules._replace(bases=tuple(bases))
        return self.known.walked(
            (chosen.bases, packet), lambda lookups: translation.translations(chosen, packet, lookups)
        )

    def element(self, name: str, *parts: str | int | None) -> bytes | bool:
        """What a map of ours has under a key, or whether a set has it."""
        if not self.known.ours:
            return False
        key = encoded(tuple(part for part in parts if part is not None), ruleset.shape(name)[0])
        assert key is not None
        found: bytes | bool = self.known(Question("inet", TABLE, name, key))
        return found

    def step(self, at: str, verdict: Verdict, text: str, commands: tuple[str, ...], more: dict[str, Any]) -> None:
        """Tell a step."""
        self.steps.append(Step(at, verdict, text, commands, more))

    def passes(self, at: str, text: str, **more: Any) -> None:
        """Tell that it goes on; `more` is for programs."""
        self.step(at, "passes", text, (), more)

    def may(self, at: str, text: str, *commands: str) -> None:
        """Tell what may stop it."""
        self.step(at, "may stop", text, commands, {})

    def stops(self, at: str, text: str, *commands: str) -> NoReturn:
        """Tell what stops it. Raises End."""
        self.step(at, "stops", text, commands, {})
        raise End


def no_way(way: Way) -> str:
    """Why there is no way to an address."""
    if way.kind:
        return f"the route to it is of type {way.kind}"
    return {errno.ENETUNREACH: "no route", errno.EHOSTUNREACH: "no route"}.get(way.error) or errno.errorcode.get(
        way.error, "no route"
    )

"""What a trace is about, what it must know for that, and what it has to say: values.

Must not ask anybody. The one idea: an explanation is a function of facts; where it lacks one it says which, and whoever
can ask the kernel does so and has it explained anew. So everything that is judged can be tested without a kernel.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from nfportd.forwarding import Lookups, Question, Ruleset
from nfportd.notation import Family, join_port, parse_ports
from nfportd.translation import Order

PROTOCOLS = ("tcp", "udp", "sctp")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection that somebody makes. `to`: None is whatever address of this host the client would take; `zone`: the
    link by which a link-local client comes."""

    family: Family
    protocol: str
    source: str
    to: str | None
    port: int
    zone: str = ""

    @property
    def loopback(self) -> bool:
        """Whether it comes from a loopback address."""
        return ipaddress.ip_address(self.source).is_loopback

    def __str__(self) -> str:
        return f"{self.source} to {join_port(self.to or '*', str(self.port))}/{self.protocol}"


def parse(source: str, to: str) -> Flow:
    """Read `198.51.100.7` and `:8080/tcp`, `127.0.0.1:8080` or `[::1]:8080/udp`.

    Raises ValueError with what is right.
    """
    text, _, zone = source.strip("[]").partition("%")
    come = _address(text, "FROM")
    where, slash, protocol = to.partition("/")
    found = re.fullmatch(r"(?:\[([^]]*)\]:|([^:]*):)?([0-9]+)", where)
    if not found:
        raise ValueError(f"TO {to!r} is no address and port; write :8080/tcp, 127.0.0.1:8080/tcp or [::1]:8080/udp")
    if slash and protocol not in PROTOCOLS:
        raise ValueError(f"TO {to!r}: the protocol is one of {', '.join(PROTOCOLS)}")
    port = parse_ports(found[3]).first
    host = found[1] or found[2]
    address = _address(host, "TO") if host else None
    if address and address.version != come.version:
        raise ValueError(f"{come} and {address} are of different families; no packet goes from one to the other")
    family: Family = 4 if come.version == 4 else 6
    return Flow(family, protocol or "tcp", str(come), str(address) if address else None, port, zone)


def _address(text: str, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{what} {text!r} is no address; write one like 198.51.100.7 or 2001:db8::7") from None


@dataclass(frozen=True, slots=True)
class Route:
    """Which way does the kernel send a packet to an address, from a source, when it has come by a link ('': from here)?
    Answered with a Way."""

    to: str
    source: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """A route. `kind`: local, unicast, blackhole and so on; '' where there is none, and `error` is the kernel's number.

    `source`: the address of this host that it would take by itself.
    """

    kind: str
    link: str = ""
    gateway: str = ""
    source: str = ""
    error: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What does the kernel know of an address on a link? Answered with its state (`REACHABLE`), '' for nothing yet."""

    link: str
    address: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """What is a parameter under /proc/sys/net? Answered with text, or None where the kernel has none."""

    name: str


@dataclass(frozen=True, slots=True)
class Bridge:
    """Is a link a bridge?"""

    link: str


@dataclass(frozen=True, slots=True)
class Listening:
    """Who waits on a port of this host? Answered with a name, '' for nobody."""

    family: Family
    protocol: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Rules:
    """Which base chains do others have on a hook? Answered with Others."""

    hook: str


@dataclass(frozen=True, slots=True)
class Others:
    """Others' base chains of a hook, and their nat chains by when they are called."""

    ruleset: Ruleset
    order: Order


Fact = Route | Neighbour | Parameter | Bridge | Listening | Rules | Question


class Asked(Exception):
    """These facts are lacking."""

    def __init__(self, *facts: Fact) -> None:
        self.facts = facts
        super().__init__(str(facts))


@dataclass(slots=True)
class Known:
    """Facts with their answers. `mappings`: those that listen on the port, as the API tells; None: it does not answer.

    `ours`: our base chains that are in the kernel. `unreadable`: elements of others that the kernel does not tell.
    """

    mappings: list[dict[str, Any]] | None
    ours: frozenset[str]
    answers: dict[Fact, Any] = field(default_factory=dict)
    unreadable: set[Question] = field(default_factory=set)
    #: What walks through others' rules have found, for they are long, and the story begins anew for each fact.
    walks: dict[Any, Any] = field(default_factory=dict)
    #: Why others' rules are not known.
    trouble: str = ""

    def __call__(self, fact: Fact) -> Any:
        """The answer to a question. Raises Asked where there is none yet."""
        if fact not in self.answers:
            raise Asked(fact)
        return self.answers[fact]

    def walked(self, key: Any, walk: Callable[[Lookups], list[_T]]) -> list[_T]:
        """What a walk through others' rules finds, done once. Raises Asked for elements that it must look up."""
        if key not in self.walks:
            lookups = Lookups({fact: answer for fact, answer in self.answers.items() if isinstance(fact, Question)})
            found = walk(lookups)
            if lacking := lookups.open - self.unreadable:
                raise Asked(*lacking)
            self.walks[key] = found
        return self.walks[key]  # type: ignore[no-any-return]


#: `leaves`: it is not for a mapping, whatever becomes of it.
Verdict = Literal["passes", "stops", "may stop", "leaves"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens to a connection. `at`: where, in a word; `commands`: what lets it go on; `more`: for
    programs."""

    at: str
    verdict: Verdict
    text: str
    commands: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps of a connection. `arrives`: whether it reaches a target of a mapping; `target`, `seen_as`: which, and
    the source address that it sees there."""

    flow: Flow
    steps: tuple[Step, ...]
    arrives: bool
    target: str | None = None
    seen_as: str | None = None

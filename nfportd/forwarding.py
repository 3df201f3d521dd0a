"""What becomes of a packet in the base chains of one hook: which of them let it pass, and what in the others stops it.

Must not know whose chains they are, nor ask the kernel. The one idea: a packet goes through every base chain, and each
may drop it for good, whatever the others say; so each is followed by itself, and all that stop it are found at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from nfportd.matches import Answer, Contains, Doubt, Packet, both, encoded, matches, same, value, xt_matches
from nfportd.notation import Family

#: Names that nft's text can hold; the kernel allows any. What has another name is not followed.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
FAMILIES: dict[Family, tuple[str, str]] = {4: ("ip", "inet"), 6: ("ip6", "inet")}


class Chain(NamedTuple):
    """A chain, by the names by which nft knows it."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return " ".join(self)


class Hooked(NamedTuple):
    """A chain that a hook calls; those of lower priority come first."""

    chain: Chain
    priority: int
    policy: str
    type: str


class Rule(NamedTuple):
    """A rule: its handle, and its statements as `nft -j` lists them."""

    handle: int
    statements: list[Any]


class Ruleset(NamedTuple):
    """The base chains of a hook, in the order in which they are called, and the rules of all chains of their tables.

    `sets`: the types of the keys of sets and maps, by family, table and name.
    """

    bases: tuple[Hooked, ...]
    rules: dict[Chain, list[Rule]]
    sets: dict[Chain, tuple[str, ...]]


Verdict = Literal["drop", "reject", "queue", "unknown", "dnat", "redirect", "snat", "masquerade"]


class Place(NamedTuple):
    """Where a packet ends or is translated: at a rule, by its handle, or by the policy of a base chain (None).

    `to`: what the rule makes of the address, where it says so.
    """

    chain: Chain
    handle: int | None
    verdict: Verdict
    to: str = ""

    def __str__(self) -> str:
        if self.handle is None:
            return f"policy {self.verdict} of chain {self.chain}"
        return f"rule {self.handle} of chain {self.chain} ({self.verdict}{f' to {self.to}' if self.to else ''})"


class Obstacle(NamedTuple):
    """A base chain that stops a packet. Not certain: it lets some pass, or has rules that cannot be read."""

    base: Chain
    places: tuple[Place, ...]
    certain: bool


class Question(NamedTuple):
    """Whether a set or map, which was listed without its elements, has this key (as the kernel has it)."""

    family: str
    table: str
    set: str
    key: bytes


@dataclass(slots=True)
class Lookups:
    """What is known of elements: what stands under a key (a verdict, the kernel's bytes in a map, `True` in a set), or
    that it is not there."""

    answers: dict[Question, str | bytes | bool] = field(default_factory=dict)
    open: set[Question] = field(default_factory=set)

    def ask(self, question: Question) -> str | bytes | bool | Doubt:
        """The answer; where there is none yet, a doubt, and the question is noted."""
        if question not in self.answers:
            self.open.add(question)
            return Doubt.OPAQUE
        return self.answers[question]


def bases(listing: Any, hook: str = "forward") -> list[Hooked]:
    """The base chains of a hook in what `nft -j list chains` gives."""
    found = []
    for item in listing["nftables"]:
        chain = item.get("chain", {})
        names = chain.get("family"), chain.get("table"), chain.get("name")
        if chain.get("hook") == hook and names[0] in ("ip", "ip6", "inet") and all(map(_is_plain, names)):
            policy, kind = chain.get("policy", "accept"), chain.get("type", "filter")
            found.append(Hooked(Chain(*names), chain["prio"], policy, kind))
    return sorted(found, key=lambda base: base.priority)


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def read(listings: Iterable[Any], hook: str = "forward") -> Ruleset:
    """The rules in what `nft -j list table` gives for each table that has base chains of a hook."""
    rules: dict[Chain, list[Rule]] = {}
    sets: dict[Chain, tuple[str, ...]] = {}
    found: list[Hooked] = []
    for listing in listings:
        found += bases(listing, hook)
        for item in listing["nftables"]:
            if chain := item.get("chain"):
                rules.setdefault(Chain(chain["family"], chain["table"], chain["name"]), [])
            elif rule := item.get("rule"):
                at = Chain(rule["family"], rule["table"], rule["chain"])
                rules.setdefault(at, []).append(Rule(rule["handle"], rule["expr"]))
            elif keyed := item.get("set") or item.get("map"):
                types = keyed["type"] if isinstance(keyed["type"], list) else [keyed["type"]]
                sets[Chain(keyed["family"], keyed["table"], keyed["name"])] = tuple(map(str, types))
    return Ruleset(tuple(sorted(found, key=lambda base: base.priority)), rules, sets)


def opaque(ruleset: Ruleset) -> set[Chain]:
    """The chains with matches or targets of iptables, of which nft lists no more than the name."""
    return {
        chain
        for chain, rules in ruleset.rules.items()
        if any("xt" in statement for rule in rules for statement in rule.statements if isinstance(statement, dict))
    }


def complete(ruleset: Ruleset, chain: Chain, parts: dict[int, list[dict[str, Any]]]) -> None:
    """Put what the kernel has of a chain's matches and targets of iptables, by the rules' handles, in their places."""
    for rule in ruleset.rules[chain]:
        places = [statement for statement in rule.statements if isinstance(statement, dict) and "xt" in statement]
        found = parts.get(rule.handle, [])
        if len(places) == len(found):
            for place, part in zip(places, found, strict=True):
                place["xt"] = part


def obstacles(ruleset: Ruleset, packet: Packet, lookups: Lookups) -> list[Obstacle]:
    """Every base chain that stops a packet, in the order in which it would meet them."""
    walk = Walk(ruleset, packet, lookups)
    mine = (base for base in ruleset.bases if base.chain.family in FAMILIES[packet.family])
    return [found for base in mine if (found := walk.through(base))]


class Outcome(NamedTuple):
    """How a packet may leave a chain."""

    accepts: bool
    stops: tuple[Place, ...]
    returns: bool


#: Statements that neither end nor choose anything.
_IDLE = {"counter", "log", "mangle", "comment", "notrack", "flow", "last", "secmark", "continue"}
_IDLE |= {"ct helper", "ct timeout", "ct expectation"}
#: Statements that let some packets through and others not, by time or by who was there before.
_BY_TIME = {"limit", "quota", "ct count", "set", "map", "meter"}
_VERDICTS = {"accept", "drop", "reject", "queue", "jump", "goto", "return"}
#: Targets of iptables that end a packet's way; the others only look at it or change it.
_TARGETS = {"REJECT": "reject", "NFQUEUE": "queue"}
_ENDS: dict[str, Verdict] = {"drop": "drop", "reject": "reject", "queue": "queue"}
#: Translations end a packet's way through a base chain of type nat; translation.py reads them.
TRANSLATIONS: dict[str, Verdict] = {
    "dnat": "dnat",
    "redirect": "redirect",
    "snat": "snat",
    "masquerade": "masquerade",
}
#: Keys of maps that spread packets over all of the map's elements.
_SPREADS = {"numgen", "jhash", "symhash"}


class Walk:
    """The way of one packet; a chain is followed once, for what it does depends on the packet alone."""

    def __init__(self, ruleset: Ruleset, packet: Packet, lookups: Lookups) -> None:
        self._rules, self._sets = ruleset.rules, ruleset.sets
        self.packet = packet
        self._lookups = lookups
        self._known: dict[Chain, Outcome] = {}

    def through(self, base: Hooked) -> Obstacle | None:
        """The base chain as an obstacle, if it is one."""
        found = self.follow(base.chain)
        stops, accepts = found.stops, found.accepts
        if found.returns and base.policy == "drop":
            stops += (Place(base.chain, None, "drop"),)
        elif found.returns:
            accepts = True
        # The one before which nothing lets it pass comes last.
        places = tuple(dict.fromkeys(stops)) if accepts else stops[-1:]
        return Obstacle(base.chain, places, not accepts) if stops else None

    def follow(self, chain: Chain) -> Outcome:
        if chain not in self._known:
            self._known[chain] = self._pass(chain)
        return self._known[chain]

    def _pass(self, chain: Chain) -> Outcome:
        accepts, returns = False, False
        stops: tuple[Place, ...] = ()
        for rule in self._rules.get(chain, []):
            for hit, verdict in self._verdicts(chain, rule):
                found = self._outcome(chain, rule, verdict)
                accepts |= found.accepts
                # A drop of some clients is meant for those; we think of one that no rule has singled out.
                stops += tuple(each for each in found.stops if hit is not Doubt.CLIENT or each.verdict in TRANSLATIONS)
                ends = "jump" not in verdict or not found.returns
                returns |= found.returns and "jump" not in verdict
                if hit is True and ends:
                    return Outcome(accepts, stops, returns)
        return Outcome(accepts, stops, True)

    def _outcome(self, chain: Chain, rule: Rule, verdict: Any) -> Outcome:
        match verdict:
            case {"jump": {"target": name}} | {"goto": {"target": name}}:
                return self.follow(chain._replace(name=name))
            case {"accept": _}:
                return Outcome(True, (), False)
            case {"return": _}:
                return Outcome(False, (), True)
            case {"unknown": _}:
                return Outcome(True, (Place(chain, rule.handle, "unknown"),), True)
            case {"translation": (kind, to)}:
                return Outcome(False, (Place(chain, rule.handle, kind, to),), False)
        how = next(kind for kind in _ENDS if kind in verdict)
        # Who reads the queue decides.
        return Outcome(how == "queue", (Place(chain, rule.handle, _ENDS[how]),), False)

    def _verdicts(self, chain: Chain, rule: Rule) -> Iterator[tuple[Answer, Any]]:
        """What a rule may decide, each with whether it does."""
        hit: Answer = True
        for statement in rule.statements:
            ends = self.ends(chain, hit, statement)
            if ends is not None:
                yield from ends
                return
            goes_on = self._goes_on(chain, statement)
            if goes_on is False:
                return
            if goes_on is not True:
                hit = both((hit, goes_on))

    def ends(self, chain: Chain, hit: Answer, statement: Any) -> Iterable[tuple[Answer, Any]] | None:
        """What a statement that ends a rule decides, with whether it does, after conditions with this answer."""
        match statement:
            case {"vmap": {"key": key, "data": verdicts}}:
                return self.choices(chain, hit, key, verdicts)
            case {"xt": {"type": "target", "name": name}} if name in _TARGETS:
                return [(hit, {_TARGETS[name]: None})]
            case dict() if statement.keys() & _VERDICTS:
                return [(hit, statement)]
        return None

    def _goes_on(self, chain: Chain, statement: Any) -> Answer:
        """Whether the rest of a rule is looked at after a statement."""
        match statement:
            case {"match": condition}:
                return matches(condition, self.packet, self._contains(chain))
            case {"xt": {"type": "match"} as entry}:
                return xt_matches(entry, self.packet)
            case {"xt": {"type": "target"}}:
                return True
        kind = next(iter(statement)) if isinstance(statement, dict) else ""
        return True if kind in _IDLE else Doubt.CLIENT if kind in _BY_TIME else Doubt.OPAQUE

    def choices(self, chain: Chain, hit: Answer, key: Any, data: Any) -> Iterator[tuple[Answer, Any]]:
        """What may stand in a map under a key of the packet's, a verdict or a value, each with whether it does."""
        left = value(key, self.packet)
        if isinstance(data, str):
            found: list[str | bytes | bool | Doubt] = []

            def remember(name: str, parts: tuple[str | int, ...]) -> Answer:
                found.append(self._look_up(chain, name, parts))
                return found[0] if isinstance(found[0], Doubt) else bool(found[0])

            there = both((hit, same(left, data, remember)))
            if there is not False:
                yield there, _read_element(found[0] if found else Doubt.OPAQUE)
            return
        choices = data.get("set", [])
        for number, (written, verdict) in enumerate(choices, 1):
            chosen = both((hit, same(left, written, self._contains(chain))))
            if number == len(choices) and key.keys() & _SPREADS:
                chosen = hit  # none of those before
            if chosen is not False:
                yield chosen, verdict

    def _contains(self, chain: Chain) -> Contains:
        def contains(name: str, parts: tuple[str | int, ...]) -> Answer:
            found = self._look_up(chain, name, parts)
            return found if isinstance(found, Doubt) else bool(found)

        return contains

    def _look_up(self, chain: Chain, name: str, parts: tuple[str | int, ...]) -> str | bytes | bool | Doubt:
        key = encoded(parts, self._sets.get(chain._replace(name=name), ()))
        return Doubt.OPAQUE if key is None else self._lookups.ask(Question(chain.family, chain.table, name, key))


def _read_element(found: str | bytes | bool | Doubt) -> Any:
    """A verdict (`goto x`) as `nft -j` would list it; bytes as they are."""
    if isinstance(found, bytes):
        return found
    kind, _, name = found.partition(" ") if isinstance(found, str) else ("unknown", "", "")
    return {kind: {"target": name} if name else None}

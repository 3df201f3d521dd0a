"""What the daemon owes to its callers, in plain dictionaries: who holds which key, what is refused, what is listed.

It must not use the code under test. The one idea: every question is answered anew from who wishes for what, by the
rules of docs/api.md and nothing cleverer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping as AbstractMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.properties.model import NAMES, on_link

RECOVERED = "recovered:store"
WILDCARDS = {4: "0.0.0.0", 6: "::"}
#: Elements as nft writes them: key and value (empty in a set), by set.
Table = dict[str, dict[str, str]]


class Key(NamedTuple):
    """A listen address (none: any), protocol and port."""

    family: int
    address: str | None
    protocol: str
    port: int

    @property
    def set(self) -> str:
        return f"{'addr' if self.address else 'any'}{self.family}"

    @property
    def text(self) -> str:
        return " . ".join([*filter(None, [self.address]), self.protocol, str(self.port)])


@dataclass(frozen=True)
class Entry:
    """One mapping; targets are addresses with the first of as many ports as it listens on.

    The address is one of this host, one that stands for all of a family, or none.
    """

    address: str | None
    port: int
    count: int
    protocols: tuple[str, ...]
    targets: tuple[tuple[str, int], ...]
    masquerade: str = "auto"
    sources: tuple[str, ...] = ()

    @property
    def listen(self) -> str:
        return _endpoint(self.address, self.port, self.count)

    def json(self) -> dict[str, Any]:
        """The mapping as a user writes it."""
        said: dict[str, Any] = {"listen": self.listen, "protocol": list(self.protocols), "masquerade": self.masquerade}
        said["targets"] = [_endpoint(address, port, self.count) for address, port in self.targets]
        return said | ({"sources": list(self.sources)} if self.sources else {})

    def goes(self) -> dict[Key, str]:
        """Where each key goes, as nft writes it."""
        found = {}
        one = None if self.address in WILDCARDS.values() else self.address
        for address, port in self.targets:
            for protocol in self.protocols:
                for offset in range(self.count):
                    key = Key(6 if ":" in address else 4, one, protocol, self.port + offset)
                    found[key] = f"{address} . {port + offset}"
        return found


def _endpoint(address: str | None, port: int, count: int) -> str:
    ports = str(port) if count == 1 else f"{port}-{port + count - 1}"
    if address is None:
        return ports
    return f"[{address}]:{ports}" if ":" in address else f"{address}:{ports}"


Content = tuple[Entry, ...]
Claim = tuple[str, Entry]
#: New contents of owners; None: the owner goes.
Wished = AbstractMapping[str, Content | None]


@dataclass
class Promises:
    """All wishes, and the ports on which processes of the host listen (IPv4, TCP)."""

    links: AbstractMapping[str, str]
    wishes: dict[str, Content] = field(default_factory=dict)
    persistent: set[str] = field(default_factory=set)
    listening: set[int] = field(default_factory=set)
    #: Keys that stay out of force because a process was there first.
    blocked: set[Key] = field(default_factory=set)

    def holders(self, wishes: AbstractMapping[str, Content] | None = None) -> dict[Key, Claim]:
        """Owners of the API come first, then files by name, then what was found when the store was lost."""
        wishes = self.wishes if wishes is None else wishes
        found: dict[Key, Claim] = {}
        for owner in sorted(wishes, key=lambda name: (name == RECOVERED, name.startswith("file:"), name)):
            for entry in wishes[owner]:
                for key in entry.goes():
                    found.setdefault(key, (owner, entry))
        return found

    def refusal(self, wished: Wished) -> str | None:
        """Why the API must refuse these contents; None: it must not."""
        before, after = self.holders(), self.holders(self._with(wished))
        for key in self._changed(wished):
            mine = [owner for owner, content in wished.items() if any(key in entry.goes() for entry in content or ())]
            others = {claims[key][0] for claims in (before, after) if key in claims} - {*wished, RECOVERED}
            if len(mine) > 1 or (mine and others):
                return "conflict"
        return "port-in-use" if self._in_the_way(wished) else None

    def fulfil(self, wished: Wished, persistent: Iterable[str] = ()) -> None:
        """These contents replace the owners' former ones."""
        blocked = self._in_the_way(wished)
        self.blocked = self.blocked - self._changed(wished) | blocked
        self.wishes = self._with(wished)
        self.persistent = (self.persistent - wished.keys() | set(persistent)) & self.wishes.keys()

    def _with(self, wished: Wished) -> dict[str, Content]:
        return {owner: content for owner, content in {**self.wishes, **wished}.items() if content is not None}

    def _changed(self, wished: Wished) -> set[Key]:
        changed: set[Key] = set()
        for owner, content in wished.items():
            for entry in set(content or ()) ^ set(self.wishes.get(owner, ())):
                changed |= entry.goes().keys()
        return changed

    def _in_the_way(self, wished: Wished) -> set[Key]:
        """Keys that would be taken anew, and on which a process listens."""
        after = self.holders(self._with(wished))
        in_force = self.holders().keys() - self.blocked
        return {key for key in self._changed(wished) - in_force if key in after and self._listened(key)}

    def _listened(self, key: Key) -> bool:
        return key.port in self.listening and key.family == 4 and key.protocol == "tcp"

    def silence(self, port: int) -> None:
        """The process that listened has ended."""
        self.listening.discard(port)
        self.blocked = {key for key in self.blocked if key.port != port}

    def reborn(self, found: Table, *, lost: Iterable[bool] = (), corrupt: bool = False) -> None:
        """A new life that finds these elements in the kernel.

        `lost`: which stores are gone (True: that of persistent contents); `corrupt`: and it shows.
        """
        for persistent in lost:
            for owner in [o for o in self.wishes if not o.startswith("file:") and (o in self.persistent) == persistent]:
                del self.wishes[owner]
        self.persistent &= self.wishes.keys()
        if corrupt:
            known = self.holders({o: c for o, c in self.wishes.items() if not o.startswith("file:") and o != RECOVERED})
            entries = recovered(found)
            self.wishes[RECOVERED] = tuple(entry for entry in entries if not entry.goes().keys() & known.keys())
        in_force = {(name, text) for name, inside in found.items() for text in inside}
        # What was promised before holds against any process.
        self.blocked = {
            key
            for key, (owner, _) in self.holders().items()
            if owner.startswith("file:") and self._listened(key) and (key.set, key.text) not in in_force
        }

    def states(self) -> dict[tuple[str, str, str], str]:
        """What the API lists: the state of each mapping by owner, listen and protocols."""
        holders, found = self.holders(), {}
        for owner, content in self.wishes.items():
            for entry in content:
                mine = [holders[key] == (owner, entry) for key in entry.goes()]
                state = "active"
                if owner.startswith("file:") and not all(mine):
                    state = "conflict"
                elif any(key in self.blocked for key, held in zip(entry.goes(), mine, strict=True) if held):
                    state = "port-in-use"
                found[owner, entry.listen, "+".join(entry.protocols)] = state
        return found

    def elements(self) -> Table:
        """Every element that the table must have, and no other."""
        table: Table = {name: {} for name in NAMES}
        for key, (_, entry) in self.holders().items():
            if key in self.blocked:
                continue
            table[key.set][key.text] = entry.goes()[key]
            if entry.masquerade != "auto":
                table[f"{entry.masquerade}_{key.set}"][key.text] = ""
            if entry.sources:
                table[f"guarded_{key.set}"][key.text] = ""
            elif key.address:
                table[f"open_{key.set}"][key.text] = ""
            for source in entry.sources:
                if (":" in source) == (key.family == 6):
                    table[f"allowed_{key.set}"][f"{source} . {key.text}"] = ""
        targets = {address for content in self.wishes.values() for entry in content for address, _ in entry.targets}
        for name, prefix, link in on_link(targets, self.links):
            table[name][f"{prefix} . {link}"] = ""
        return table


def recovered(found: Table) -> Content:
    """What these elements say that somebody once wished for; one mapping a key."""
    entries = []
    for name in ("any4", "any6", "addr4", "addr6"):
        for text, value in found.get(name, {}).items():
            *address, protocol, port = text.split(" . ")
            if protocol not in ("tcp", "udp", "sctp"):
                continue
            family = int(name[-1])
            target, target_port = value.split(" . ")
            masquerade = next((kind for kind in ("always", "never") if text in found[f"{kind}_{name}"]), "auto")
            allowed = [each.split(" . ", 1) for each in found[f"allowed_{name}"]]
            sources = [prefix for prefix, key in allowed if key == text]
            if text in found[f"guarded_{name}"]:
                # Nobody of this family is said by a prefix of the other.
                sources = sources or ["::/128" if family == 4 else "0.0.0.0/32"]
            entries.append(
                Entry(
                    address[0] if address else WILDCARDS[family],
                    int(port),
                    1,
                    (protocol,),
                    ((target, int(target_port)),),
                    masquerade,
                    tuple(sources),
                )
            )
    return tuple(entries)

"""What others have done to our table, by what the kernel tells of their transactions.

Must not talk to the kernel: bytes in, values out. The one idea: a notification says which element it is about and what
became of it, so the mirror follows and nothing is listed; only of rules, chains and sets it is enough to know that
somebody touched them.

Layout: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h. A transaction's notifications come in its order and
end with one of a new generation, which names the process (nf_tables_commit in net/netfilter/nf_tables_api.c).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from nfportd import elements, ruleset
from nfportd.desired import ABSENT, Absent, Parts, Slot
from nfportd.netlink import attributes, of_nftables, text
from nfportd.notation import brief

_INET = 1  # NFPROTO_INET

# enum nf_tables_msg_types; what a `destroy` took away is told as such.
_TABLE_GONE = (2, 26)
_SET_GONE = (11, 29)
_ELEMENT, _ELEMENT_GONE = 12, (14, 30)
_NEW_GENERATION = 15

# Attributes; the table's name is the first of every kind of message.
_TABLE, _SET = 1, 2  # NFTA_SET_TABLE, NFTA_SET_NAME
_PROCESS_ID, _PROCESS_NAME = 2, 3  # NFTA_GEN_PROC_*


class Author(NamedTuple):
    """The process that sent a transaction; its pid is that of the first pid namespace."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{brief(self.name)} (pid {self.pid})"


@dataclass(slots=True)
class Drift:
    """What others did to our table. `elements` and `emptied` say what is there now, as far as it is known."""

    #: Notifications were lost or could not be read: anything may have happened.
    lost: bool = False
    #: The table, chains, sets or rules were touched.
    skeleton: bool = False
    #: Sets of which every element has gone, before those in `elements` came.
    emptied: set[str] = field(default_factory=set)
    elements: dict[Slot, Parts | Absent | None] = field(default_factory=dict)
    authors: dict[Author, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.lost or self.skeleton or bool(self.emptied or self.elements)

    def __str__(self) -> str:
        """What was done and by whom, for people."""
        done = []
        if self.lost:
            done.append("changes that could not be followed")
        if self.emptied == ruleset.ELEMENT_SETS:
            done.append("the table was deleted")
        elif self.skeleton:
            done.append("chains, sets or rules were changed")
        if self.elements:
            done.append(f"{len(self.elements)} element{'s were' if len(self.elements) > 1 else ' was'} changed")
        return f"{', '.join(done)} by {', '.join(map(str, self.authors)) or 'an unknown process'}"


class Reader:
    """Gathers notifications into a drift."""

    def __init__(self) -> None:
        self._drift = Drift()
        # Of the transaction whose end has not been seen.
        self._touched = False
        #: Transactions of others, whatever they changed.
        self.transactions = 0

    def feed(self, datagram: bytes) -> None:
        """Take what the kernel sent; what cannot be understood counts as lost. Raises nothing."""
        try:
            for kind, family, body in of_nftables(datagram):
                if kind == _NEW_GENERATION:
                    self._end(body)
                elif family == _INET and _name(body) == ruleset.TABLE:
                    self._touched = True
                    self._touch(kind, body)
        except (ValueError, LookupError):
            self._drift.lost = True

    def lose(self) -> None:
        """Notifications were lost."""
        self._drift.lost, self._touched = True, False

    @property
    def ready(self) -> bool:
        """Whether somebody has touched our table, and everything of that transaction has been told."""
        return bool(self._drift) and not self._touched

    @property
    def pending(self) -> bool:
        """Whether somebody has touched our table, or is just being told to have done so."""
        return bool(self._drift) or self._touched

    def take(self) -> Drift:
        """What has gathered since the last time."""
        if not self.ready:
            return Drift()
        drift, self._drift = self._drift, Drift()
        return drift

    def _end(self, body: memoryview) -> None:
        self.transactions += 1
        if not self._touched:
            return
        self._touched = False
        said = dict(attributes(body))
        name = text(said.get(_PROCESS_NAME, b""))
        pid = int.from_bytes(said.get(_PROCESS_ID, b""), "big")
        self._drift.authors[Author(name or "unknown", pid)] = None

    def _touch(self, kind: int, body: memoryview) -> None:
        drift = self._drift
        if kind == _ELEMENT:
            drift.elements.update(elements.read(body))
        elif kind in _ELEMENT_GONE:
            drift.elements.update((slot, ABSENT) for slot, _ in elements.read(body))
        else:
            drift.skeleton = True
        if kind in _TABLE_GONE:
            drift.emptied |= ruleset.ELEMENT_SETS
            drift.elements.clear()
        elif kind in _SET_GONE:
            name = text(dict(attributes(body))[_SET])
            drift.emptied |= {name} & ruleset.ELEMENT_SETS
            drift.elements = {slot: value for slot, value in drift.elements.items() if slot.set != name}


def _name(body: memoryview) -> str:
    kind, value = next(attributes(body), (0, body))
    return text(value) if kind == _TABLE else ""

"""Connections by key: from readings of the kernel's counters to counts, rates and the minutes of the last hour.

Must not know the kernel, owners or a clock. The one idea: only what a counter has grown by is counted, so that an
element that was made anew, and begins at 0, takes nothing back; a minute keeps its sum and its busiest keys, so that
an hour stays small at any number of mappings.
"""

from __future__ import annotations

import heapq
import ipaddress
import struct
from collections import Counter, deque
from collections.abc import Mapping as AbstractMapping
from typing import NamedTuple

from nfportd.model import Key, Protocol

#: How many minutes are kept, and of each how many keys.
MINUTES, BUSIEST = 60, 100
#: Seconds: rates over less would jump; where somebody asks more often, they are over up to twice that.
_LEAST = 1.0
_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_PROTOCOLS = {number: protocol for protocol, number in _NUMBERS.items()}
#: Protocol and port in a concatenated key, each padded to four bytes.
_WAY = struct.Struct("!B3xH2x")

#: A key as the kernel has it in our maps, after its family. A tenth of the memory of a Key.
Packed = bytes


def packed(key: Key) -> Packed:
    """A key in the form in which counters are read."""
    address = ipaddress.ip_address(key.address).packed if key.address else b""
    return b"%d%b%b" % (key.family, address, _WAY.pack(_NUMBERS[key.protocol], key.port))


def unpacked(found: Packed) -> Key | None:
    """The key; None where somebody else has put a protocol into our map that has no ports."""
    number, port = _WAY.unpack(found[-_WAY.size :])
    if number not in _PROTOCOLS:
        return None
    address = found[1 : -_WAY.size]
    written = str(ipaddress.ip_address(address)) if address else None
    return Key(4 if found[:1] == b"4" else 6, written, _PROTOCOLS[number], port)


class Minute(NamedTuple):
    """The connections of about a minute: when it began (seconds since the epoch), how long it was, how many there
    were, and how many of them each of the busiest keys had."""

    began: float
    seconds: float
    connections: int
    busiest: AbstractMapping[Packed, int]


class _Reading(NamedTuple):
    connections: dict[Packed, int]
    at: float


class Traffic:
    """What is known of the connections. Changed by readings alone."""

    def __init__(self) -> None:
        self.minutes: deque[Minute] = deque(maxlen=MINUTES)
        self._last: _Reading | None = None
        # Against which rates are measured: the one before, and the one that will be it, when that is old enough.
        self._before: _Reading | None = None
        self._next: _Reading | None = None
        self._minute: Counter[Packed] = Counter()
        self._minute_began: tuple[float, float] = (0.0, 0.0)

    def note(self, connections: dict[Packed, int], *, complete: bool, now: float, date: float) -> None:
        """Take a reading: connections by key since each element was made. `complete`: no key is missing by mistake.

        `now`: seconds that pass evenly; `date`: seconds since the epoch.
        """
        last = self._last
        if last is None or self._next is None:
            self._last = self._next = _Reading(connections, now)
            self._minute_began = (now, date)
            return
        if not complete:
            connections = last.connections | connections
        self._minute.update(_growth(last.connections, connections))
        self._last = _Reading(connections, now)
        if now - self._next.at >= _LEAST:
            self._before, self._next = self._next, self._last

    def end_minute(self, now: float, date: float) -> None:
        """Close the running minute and begin the next."""
        if self._last is None:
            return
        began, began_date = self._minute_began
        busiest = dict(heapq.nlargest(BUSIEST, self._minute.items(), key=lambda item: item[1]))
        self.minutes.append(Minute(began_date, now - began, self._minute.total(), busiest))
        self._minute, self._minute_began = Counter(), (now, date)

    @property
    def lately(self) -> int:
        """The connections of the minutes that are kept, and of the one that runs."""
        return sum(minute.connections for minute in self.minutes) + self._minute.total()

    def connections(self, key: Packed) -> int:
        """How many a key's element has accepted since it was made, by the last reading."""
        return self._last.connections.get(key, 0) if self._last else 0

    def accepted(self) -> AbstractMapping[Packed, int]:
        """The same of every key that has accepted any."""
        return self._last.connections if self._last else {}

    @property
    def seconds(self) -> float | None:
        """Over how long rates are measured; None in the first second."""
        return self._last.at - self._before.at if self._last and self._before else None

    @property
    def rate(self) -> float | None:
        """Connections a second of all keys."""
        return round(sum(self.grown().values()) / self.seconds, 3) if self.seconds else None

    def growth(self, key: Packed) -> int:
        """How many connections a key has accepted in those seconds."""
        if self._last is None or self._before is None:
            return 0
        count, before = self._last.connections.get(key, 0), self._before.connections.get(key, 0)
        return count - before if count >= before else count

    def grown(self) -> dict[Packed, int]:
        """The keys that have accepted connections in those seconds, and how many."""
        if self._last is None or self._before is None:
            return {}
        return _growth(self._before.connections, self._last.connections)


def _growth(before: AbstractMapping[Packed, int], after: AbstractMapping[Packed, int]) -> dict[Packed, int]:
    """By how much counters have grown. One that says less than before belongs to an element that was made anew."""
    grown = {}
    for key, count in after.items():
        was = before.get(key, 0)
        if count != was:
            grown[key] = count - was if count > was else count
    return grown

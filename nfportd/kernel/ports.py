"""Ports of this host that its own processes have, and those that nfportd holds against them.

Must not know owners. The one idea: whoever listens is looked up when a key is to be taken; our own reservations
and the relay are listeners too, and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping as AbstractMapping

from nfportd.kernel.listeners import Listeners, processes
from nfportd.kernel.reservations import Reservations
from nfportd.model import Blocker, Key


class LocalPorts:
    """The ports of the network namespace in which this is made."""

    def __init__(self, relay: Callable[[], frozenset[int]] = frozenset) -> None:
        """`relay` tells the inodes of the relay's sockets, which are not another's."""
        self._relay = relay
        self._listeners = Listeners()
        self._reservations = Reservations()

    def close(self) -> None:
        """Let go of every reservation."""
        self._listeners.close()
        self._reservations.close()

    def listening(self, keys: Iterable[Key]) -> AbstractMapping[Key, Blocker]:
        """Of these keys, those on which a process of this host listens: the address, and its pid and name if known."""
        listeners = self._listeners.on(keys)
        if not listeners:
            return {}
        ours = self._reservations.inodes | self._relay()
        theirs = {each.key: each for each in listeners if each.inode not in ours}
        known = processes(each.inode for each in theirs.values()) if theirs else {}
        return {key: (each.address, known.get(each.inode)) for key, each in theirs.items()}

    def reserve(self, keys: Iterable[Key]) -> dict[Key, OSError]:
        """Hold keys against other processes; return those that could not be held."""
        return self._reservations.hold(keys)

    def release(self, keys: Iterable[Key]) -> None:
        """Let keys go."""
        self._reservations.release(keys)

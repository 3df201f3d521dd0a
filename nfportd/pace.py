"""How soon a repair may follow another, so that a fight with another program never becomes a busy loop.

Must not know what is repaired, nor the clock. The one idea: repairs are immediate while a budget of seconds lasts; who
uses it up is in a fight, and repairs take a fifth of the time until there has been peace for a while.
"""

from __future__ import annotations

#: Seconds of repairs that may be used up at once, what comes back in a second, and the most that one is charged.
_BUDGET, _REFILL, _CHARGE = 3.0, 0.1, 0.25
#: In a fight: the least seconds from one repair to the next, and how many times as long as it took.
_LEAST, _SHARE = 1.0, 5.0
#: Seconds without a repair that end a fight.
_PEACE = 10.0


class Pace:
    """The budget; times are seconds of one steady clock."""

    def __init__(self) -> None:
        self._left = _BUDGET
        self._last = float("-inf")
        self._took = 0.0
        #: Whether another program undoes our repairs again and again.
        self.fight = False

    def delay(self, now: float) -> float:
        """How long the next repair must wait."""
        if self.fight and now - self._last >= _PEACE:
            self.fight, self._left = False, _BUDGET
        if not self.fight:
            return 0.0
        return max(0.0, self._last + max(_LEAST, _SHARE * self._took) - now)

    def spend(self, now: float, took: float) -> None:
        """A repair that took so many seconds has ended now."""
        if self._last > float("-inf"):
            self._left = min(_BUDGET, self._left + _REFILL * (now - self._last))
        self._left -= min(took, _CHARGE)
        self._last, self._took = now, took
        if self._left <= 0:
            self.fight = True

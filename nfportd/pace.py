"""How soon a repair may follow another, so that a fight with another program never becomes a busy loop.

Must not know what is repaired, nor the clock. The one idea: repairs are immediate while a budget of seconds lasts; who
uses it up, or goes on for long, is in a fight, and repairs take a fifth of the time until there has been peace.
"""

from __future__ import annotations

#: Seconds of repairs that may be used up at once, what comes back in a second, and the most that one is charged.
_BUDGET, _REFILL, _CHARGE = 3.0, 0.1, 0.25
#: So many repairs over so many seconds, without a peace between them, are a fight however cheap they are.
_MANY, _LONG = 40, 20.0
#: In a fight: the least seconds from one repair to the next, and how many times as long as it took.
_LEAST, _SHARE = 0.1, 5.0
#: Seconds without a repair that are peace.
_PEACE = 10.0


class Pace:
    """The budget; times are seconds of one steady clock."""

    def __init__(self) -> None:
        self._left = _BUDGET
        self._last = self._took = float("-inf")
        # Repairs since the last peace, and when the first of them was.
        self._count, self._since = 0, 0.0
        #: Whether another program undoes our repairs again and again.
        self.fight = False

    def delay(self, now: float) -> float:
        """How long the next repair must wait."""
        self._rest(now)
        return max(0.0, self._last + max(_LEAST, _SHARE * self._took) - now) if self.fight else 0.0

    def spend(self, now: float, took: float) -> None:
        """A repair that took so many seconds has ended now."""
        self._rest(now)
        if not self._count:
            self._since = now
        else:
            self._left = min(_BUDGET, self._left + _REFILL * (now - self._last))
        self._count += 1
        self._left -= min(took, _CHARGE)
        self._last, self._took = now, took
        self.fight |= self._left <= 0 or (self._count >= _MANY and now - self._since >= _LONG)

    def _rest(self, now: float) -> None:
        if now - self._last >= _PEACE:
            self.fight, self._count, self._left = False, 0, _BUDGET

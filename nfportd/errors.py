"""What can go wrong, as types: one small hierarchy whose messages are sentences an admin can act on.

Knows nothing of files, sockets or the kernel. The one idea: an error says where, what was found, and what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: The exit statuses of the programs beside 0; wrong usage is 2, by click. A daemon that fails in a way that nobody
#: foresaw ends with 70 (EX_SOFTWARE of sysexits.h): it is started again, which does not help where it is 1 or 2.
EXIT_WRONG = 1
EXIT_UNREACHABLE = 3
EXIT_REFUSED = 4
EXIT_CRASHED = 70


class NfportdError(Exception):
    """Root of all errors that nfportd raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one place. `line` and `column` count from 1; 0 means the whole file."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.message}"


#: A file with a mistake in every line needs no more lines of errors than a screen has.
MAX_PROBLEMS = 50


class InvalidInput(NfportdError):
    """A file that cannot be taken; carries the problems that were found in it, the first 50."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems[:MAX_PROBLEMS])
        if len(problems) > MAX_PROBLEMS:
            self.problems += (Problem(problems[0].file, 0, 0, "has more problems than these"),)
        super().__init__("\n".join(map(str, self.problems)))


class Malformed(NfportdError):
    """A body that is no JSON, or one that two readers of JSON would take in two ways."""


class KernelRefused(NfportdError):
    """nft or the kernel said no to a transaction; nothing of it is in force. `reason` is what nft printed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class NotPossible(NfportdError):
    """The host cannot do what nfportd needs (no nf_tables, no privilege, another nfportd runs here)."""

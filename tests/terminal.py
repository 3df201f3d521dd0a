"""A terminal of a size, and a program in it: keys in, the screen out.

It must not know what runs there. The one idea: the other end of a pty, as a person at a terminal has it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence

_WAIT = 15.0


class Terminal:
    """One program in a terminal of its own."""

    def __init__(self, command: Sequence[str], env: dict[str, str], columns: int = 80, lines: int = 24) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self._theirs)
        # The terminal controls a session of its own, so ctrl-C is a signal; setsid becomes the command.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=self._theirs, stdout=self._theirs, stderr=self._theirs, env=env
        )
        self.output = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def until(self, text: str, seen: int = 0) -> str:
        """What was written from place `seen` on, as soon as it has a text. Raises AssertionError."""
        end = time.monotonic() + _WAIT
        while text.encode() not in self.output[seen:]:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.output[seen:].decode(errors='replace')}"
            if select.select([self._ours], [], [], left)[0]:
                self.output += os.read(self._ours, 65536)
        return self.output[seen:].decode(errors="replace")

    def ended(self) -> int:
        """The exit status, when it ends; the rest of what was written is in `output`."""
        status = self.process.wait(_WAIT)
        while select.select([self._ours], [], [], 0.1)[0]:
            self.output += os.read(self._ours, 65536)
        return status

    def unchanged(self) -> bool:
        """Whether the terminal is as the program found it."""
        return termios.tcgetattr(self._theirs) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

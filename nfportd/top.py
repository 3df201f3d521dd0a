"""`nfportctl top`: the busiest mappings, refreshed as long as somebody looks.

Must not be loaded by other commands. The one idea: a frame is lines made of one answer; around it the terminal is
borrowed (another screen, no echo, no cursor) and given back whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import textwrap
import time
import tty
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime

import click

from nfportd import printing
from nfportd.client import Client, Json, NotReachable, Problem
from nfportd.columns import chart, coloured, count, rate

#: Lines of a frame beside those of mappings: title, rate, an empty line, the table's header, an empty line, the help.
_AROUND = 6
#: What the daemon gives at most.
_MOST = 1_000
#: Seconds between looks at whether the terminal has another size now.
_GLANCE = 0.5
_OTHER_SCREEN, _OWN_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_QUIT = b"qQ\x03\x04"


class Frames:
    """What is shown, one frame after the other."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rates: deque[float] = deque(maxlen=40)

    def frame(self, width: int | None, most: int) -> list[str]:
        """Ask, and lay out the answer. `width`: of the terminal, if it is one; `most`: so many mappings."""
        try:
            return list(self._lines(self._client.get("/v1/mappings", busiest=most), width))
        except (NotReachable, Problem) as error:
            told = textwrap.wrap(f"nfportctl: {error}; it is asked again", width or 120)
            return [coloured(line, "red") for line in told]

    def _lines(self, found: Json, width: int | None) -> Iterator[str]:
        now = datetime.now(UTC)
        if found["rate"] is not None:
            self._rates.append(found["rate"])
        shown, total = len(found["mappings"]), found["total"]
        which = f"the {shown:,} busiest of {total:,} mappings" if shown < total else f"{count(total)} mappings"
        yield coloured(f"nfportd {now.astimezone():%H:%M:%S}", "bold") + f"  {which}"
        seconds = f" over {found['rate_seconds']:.0f} s" if found["rate_seconds"] else ""
        yield f"{rate(found['rate'])} connections a second{seconds}  {chart(list(self._rates))}".rstrip()
        yield ""
        yield from printing.busiest(found["mappings"], now, width)


def _watch(frames: Frames, interval: float, *, plain: bool) -> None:
    """Show frame after frame until somebody quits."""
    keys, screen = sys.stdin.fileno(), sys.stdout
    with _borrowed(keys):
        while True:
            began, size = time.monotonic(), shutil.get_terminal_size()
            lines = frames.frame(size.columns - 1, min(max(size.lines - _AROUND, 1), _MOST))
            lines = [*lines[: size.lines - 2], "", coloured("q quits", "dim")]
            shown = "\n".join(f"{click.unstyle(line) if plain else line}{_CLEAR}" for line in lines)
            screen.write(f"{_HOME}{shown}{_BELOW}")
            screen.flush()
            if _quit_within(keys, began + interval, size):
                return


def _quit_within(keys: int, until: float, size: os.terminal_size) -> bool:
    """Wait for the next frame, which a terminal of another size gets at once; whether a key says to quit."""
    while (left := until - time.monotonic()) > 0 and shutil.get_terminal_size() == size:
        ready, _, _ = select.select([keys], [], [], min(left, _GLANCE))
        if ready and ((pressed := os.read(keys, 64)) == b"" or any(key in _QUIT for key in pressed)):
            return True
    return False


@contextlib.contextmanager
def _borrowed(keys: int) -> Iterator[None]:
    """The terminal shows nothing but frames and gives keys at once; afterwards it is as it was."""
    before = termios.tcgetattr(keys)
    # An end by signal gives it back as well; a stop in the middle would leave a shell on the other screen.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(keys)
        sys.stdout.write(_OTHER_SCREEN)
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.write(_OWN_SCREEN)
            sys.stdout.flush()
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


@click.command("top")
@click.option("--interval", type=click.FloatRange(0.5, 3600), default=2.0, show_default=True, metavar="SECONDS",
              help="How long a frame stays.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 1000), metavar="NUMBER",
              help="Print so many frames one below the other, to a file or a pipe as well, and end.")  # fmt: skip
@click.pass_obj
def command(client: Client, interval: float, rounds: int | None) -> None:
    """Watch the busiest mappings: connections a second, and those so far.

    A connection is counted when it begins; a second is an average over the time between two frames. q or ctrl-C quits.

    \b
    Examples:
      nfportctl top
      nfportctl top --rounds 3 --interval 10 >> busy.txt

    Exit status: 0 after q, ctrl-C or the last round, 3 the daemon does not answer (later frames ask again).
    """
    frames = Frames(client)
    try:
        if rounds is None and not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise click.UsageError("this is no terminal; --rounds 3 prints three frames")
        # Whoever cannot be asked now is not waited for.
        client.get("/v1/mappings", busiest=1)
        if rounds is None:
            _watch(frames, interval, plain=click.get_current_context().color is False)
        else:
            _print(frames, interval, rounds)
    except KeyboardInterrupt:
        return


def _print(frames: Frames, interval: float, rounds: int) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number in range(rounds):
        if number:
            time.sleep(interval)
            click.echo()
        for line in frames.frame(width, 20):
            click.echo(line)

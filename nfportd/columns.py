"""Columns, numbers and little charts for a terminal of any width.

Must not know what it shows. The one idea: a table is as wide as its cells, and where that is too wide, columns are
shortened and then left out in an order that they state themselves.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping as AbstractMapping, Sequence
from typing import NamedTuple

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_BARS = "▁▂▃▄▅▆▇█"
_GAP = 2


class Column(NamedTuple):
    """A column: its title, whether it holds numbers, to which width it may be shortened (0: not at all), and when it
    is left out (the lowest first; 0: never)."""

    title: str
    number: bool = False
    least: int = 0
    leaves: int = 0


def coloured(text: str, colour: str | None) -> str:
    """Text between escapes for a terminal."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour else text


def printable(value: object) -> str:
    """What others wrote, without anything that a terminal would obey (a process may call itself what it likes)."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def width_of(text: str) -> int:
    """How many cells of a terminal a text takes (Unicode TR 11; marks that combine take none)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def shortened(text: str, width: int) -> str:
    """The text, or its beginning and an ellipsis, in at most so many cells."""
    if width_of(text) <= width:
        return text
    kept = ""
    for letter in text:
        if width_of(kept + letter) > width - 1:
            break
        kept += letter
    return f"{kept}…"


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    colours: AbstractMapping[str, str],
    width: int | None = None,
) -> Iterator[str]:
    """Rows under a header; cells that are named in `colours` are coloured. `width`: of the terminal, if it is one."""
    cells = [[column.title for column in columns], *([printable(cell) for cell in row] for row in rows)]
    natural = [max(width_of(row[number]) for row in cells) for number in range(len(columns))]
    widths = _fitting(columns, natural, width)
    last = max(widths)
    for line, row in enumerate(cells):
        padded = {number: _padded(row[number], wide, columns[number]) for number, wide in widths.items()}
        padded[last] = padded[last].rstrip()
        shown = (coloured(text, colours.get(row[number]) if line else "bold") for number, text in padded.items())
        yield (" " * _GAP).join(shown)


def _fitting(columns: Sequence[Column], natural: Sequence[int], width: int | None) -> dict[int, int]:
    """The columns that are shown, by number, and how wide each is."""
    shown = dict(enumerate(natural))
    if width is None:
        return shown
    leaving = sorted((number for number in shown if columns[number].leaves), key=lambda number: columns[number].leaves)
    while (excess := _excess(shown, width)) > sum(_slack(columns[number], wide) for number, wide in shown.items()):
        if not leaving:
            break
        del shown[leaving.pop(0)]
    for number in sorted(shown, key=lambda number: -_slack(columns[number], shown[number])):
        cut = min(max(excess, 0), _slack(columns[number], shown[number]))
        shown[number] -= cut
        excess -= cut
    return shown


def _excess(shown: AbstractMapping[int, int], width: int) -> int:
    return sum(shown.values()) + _GAP * (len(shown) - 1) - width


def _slack(column: Column, wide: int) -> int:
    return max(wide - max(column.least, width_of(column.title)), 0) if column.least else 0


def _padded(text: str, width: int, column: Column) -> str:
    text = shortened(text, width)
    padding = " " * (width - width_of(text))
    return padding + text if column.number else text + padding


def count(number: int | None) -> str:
    """A number as people read it: `1,204`, `12.3M`."""
    if number is None:
        return "-"
    return f"{number:,}" if number < 10_000_000 else f"{number / 1_000_000:,.1f}M"


def rate(a_second: float | None) -> str:
    """A number of times a second."""
    if a_second is None:
        return "-"
    if a_second == 0:
        return "0"
    if a_second < 0.1:
        return "<0.1"
    return f"{a_second:.1f}" if a_second < 1000 else f"{a_second:,.0f}"


def chart(values: Sequence[float]) -> str:
    """A letter for each value, as high as it is; the lowest bar is for what is more than nothing."""
    most = max(values, default=0)
    return "".join(" " if value <= 0 else _BARS[math.ceil(value / most * len(_BARS)) - 1] for value in values)

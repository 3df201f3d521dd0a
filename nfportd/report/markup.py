"""HTML and SVG in small pieces, in which nothing that others wrote can become markup.

Must not know what is shown. The one idea: text becomes `Markup` by being escaped, and only `Markup` goes into an
element; so a text that nobody has escaped is a type error, and at run time it is escaped all the same.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from nfportd.columns import printable


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


#: What an element can hold: markup, or text that is escaped.
Part = str | Markup | None


def text(value: object) -> Markup:
    """What others wrote, as text: no markup, nothing that changes the direction of what stands beside it."""
    return Markup(html.escape(printable(value), quote=True))


def tag(name: str, *parts: Part | Iterable[Part], **attributes: str | None) -> Markup:
    """An element. `class_` is the attribute class, `data_label` is data-label; None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{joined(*parts)}</{name}>")


def joined(*parts: Part | Iterable[Part]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(map(_one, parts)))


def _one(part: Part | Iterable[Part]) -> str:
    if part is None:
        return ""
    if isinstance(part, Markup):
        return part
    return text(part) if isinstance(part, str) else joined(*part)


def bars(values: Sequence[float], most: float, slots: int, *, lines: int = 0, **attributes: str | None) -> Markup:
    """Bars for the last values, the latest at the right, in as many slots; `most` is as high as the picture."""
    width, height = 10 * slots, 100
    grid = [tag("line", x1="0", x2=f"{width}", y1=f"{y}", y2=f"{y}") for y in _between(lines, height)]
    drawn: list[Part] = []
    for place, value in enumerate(values[-slots:], start=slots - min(len(values), slots)):
        if value > 0:
            # What is more than nothing can be seen.
            high = max(value / most * height, 2) if most else 0
            drawn.append(
                tag("rect", x=f"{10 * place + 1}", y=f"{height - high:.1f}", width="8", height=f"{high:.1f}", rx="1")
            )
    view = f"0 0 {width} {height}"
    return tag("svg", grid, drawn, viewBox=view, preserveAspectRatio="none", focusable="false", **attributes)


def _between(lines: int, height: int) -> list[int]:
    return [height * number // lines for number in range(lines)]

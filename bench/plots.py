"""The pictures of docs/performance.md, as SVG and PNG: one for each group of rows that compares, or that makes a whole.

Must not choose what is shown: bench/page.py does. The one idea: a program has one colour, marker and dash in all
pictures, told apart without colour too, and nfportd's line is the thick one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.page import drawn, heading, sizes_of, slug, stacked
from bench.results import OURS, TOGETHER, Row, groups, number


class Style(NamedTuple):
    """How a program's line looks."""

    colour: str
    marker: str
    dash: Any
    width: float


_THIN, _THICK = 1.3, 2.8
_NAVY, _BLUE, _PALE = "#08306b", "#2171b5", "#6baed6"
#: Of different lightness, marker or dash where they meet in one picture: ours, limits rather than peers, peers.
_LOOKS = {
    OURS: Style(_NAVY, "o", "-", _THICK),
    f"{OURS}, API": Style(_NAVY, "o", "-", _THICK),
    f"{OURS}, CNI": Style(_NAVY, "o", "-", _THICK),
    f"{OURS}, drop-in": Style(_BLUE, "D", "-", _THICK),
    f"{OURS}, nfportctl": Style(_PALE, "s", "-", _THICK),
    "no conntrack": Style("#000000", "", (0, (1, 1.5)), 1.6),
    "conntrack, no NAT": Style("#555555", "", (0, (1, 1.5)), 1.6),
    "one DNAT rule": Style("#999999", "", (0, (1, 1.5)), 1.6),
    "portmap nftables": Style("#d95f02", "s", (0, (5, 1.5)), _THIN),
    "portmap iptables": Style("#8c510a", "v", (0, (4, 1, 1, 1)), _THIN),
    "netavark": Style("#1b9e77", "^", (0, (8, 2)), _THIN),
    "Docker nftables": Style("#e7298a", "D", (0, (1, 1)), _THIN),
    "kube-proxy nftables": Style("#7a0177", "P", (0, (5, 1.5)), _THIN),
    "kube-proxy iptables": Style("#c994c7", "X", (0, (4, 1, 1, 1)), _THIN),
    "systemd nftables": Style("#66a61e", ">", (0, (8, 2)), _THIN),
    "systemd-socket-proxyd": Style("#b15928", "<", (0, (1, 1)), _THIN),
}
_MORE = ("#35978f", "#fb6a4a", "#e6ab02", "#4a1486", "#525252")
_MARKERS = "hp*d8"
#: A logarithmic axis where the largest figure is so many times the smallest.
_DECADES = 15.0
#: Where sizes are closer than this part of a decade, the second one is written a line lower.
_NEAR = 0.45
#: Parts of a whole that are less than this are not drawn.
_SEEN = 0.005
_SETTINGS = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    # The same figures give the same file.
    "svg.hashsalt": OURS,
}


def draw(found: Mapping[str, dict[str, Any]], place: Path) -> None:
    """Draw all groups into a directory, and take away what is not drawn any more."""
    place.mkdir(parents=True, exist_ok=True)
    kept = set()
    rows = [row for content in found.values() for row in content["rows"]]
    looks = styles([row["who"] for members in groups(rows).values() if not stacked(members) for row in members])
    with mpl.rc_context(_SETTINGS):
        for name, content in found.items():
            for group, rows in groups(content["rows"]).items():
                if drawn(rows):
                    kept |= set(_save(place / slug(name, group), group, rows, looks))
    for file in place.iterdir():
        if file.suffix in (".svg", ".png") and file not in kept:
            file.unlink()


def styles(names: Sequence[str]) -> dict[str, Style]:
    """How each program looks; who has no looks of its own gets what is left, in the order of the names."""
    left = cycle(zip(_MORE, _MARKERS, strict=True))
    looks = {}
    for name in sorted(set(names)):
        width = _THICK if name.startswith(OURS) else _THIN
        looks[name] = _LOOKS[name] if name in _LOOKS else Style(*next(left), (0, (3, 1, 1, 1, 1, 1)), width)
    return looks


def _save(path: Path, group: str, rows: Sequence[Row], looks: Mapping[str, Style]) -> Iterator[Path]:
    figure, axes = pyplot.subplots(figsize=(8.4, 4.2), constrained_layout=True)
    if stacked(rows):
        _bars(axes, rows)
    else:
        _lines(axes, rows, looks)
    axes.set_title(heading(group), loc="left", fontsize=11, fontweight="bold")
    for kind, more in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 110})):
        file = path.with_suffix(f".{kind}")
        figure.savefig(file, **more)
        yield file
    pyplot.close(figure)


def _lines(axes: Axes, rows: Sequence[Row], looks: Mapping[str, Style]) -> None:
    """The figures of each program over the sizes."""
    sizes = sizes_of(rows)
    place = dict(zip(sizes, positions(sizes), strict=True))
    last = {row["who"]: row["median"] for row in sorted(rows, key=lambda row: row["size"])}
    # As the lines end, from the top down.
    for who in sorted(last, key=lambda name: -last[name]):
        own = sorted((row for row in rows if row["who"] == who), key=lambda row: row["size"])
        look, middle = looks[who], [row["median"] for row in own]
        spread = [[row["median"] - row["low"] for row in own], [row["high"] - row["median"] for row in own]]
        axes.errorbar(
            [place[row["size"]] for row in own],
            middle,
            yerr=[[max(0.0, each) for each in side] for side in spread],
            label=who,
            color=look.colour,
            marker=look.marker,
            linestyle=look.dash,
            linewidth=look.width,
            markersize=6 if look.width == _THICK else 5,
            elinewidth=0.8,
            capsize=2,
            zorder=4 if who.startswith(OURS) else 3,
        )
    near = [later - earlier < _NEAR for earlier, later in pairwise(place.values())]
    axes.set_xticks(
        list(place.values()), ["\n" * low + f"{size:,}" for size, low in zip(sizes, [False, *near], strict=True)]
    )
    axes.set_xlabel("mappings present (logarithmic)")
    _upright(axes, rows)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.6)
    for label in legend.get_texts():
        if label.get_text().startswith(OURS):
            label.set_fontweight("bold")


def positions(sizes: Sequence[int]) -> list[float]:
    """Where sizes stand on a logarithmic axis; none stands a decade left of the smallest."""
    least = min((size for size in sizes if size), default=1)
    return [math.log10(size) if size else math.log10(least) - 1 for size in sizes]


def _upright(axes: Axes, rows: Sequence[Row]) -> None:
    """The axis of the figures: logarithmic where they span decades, else from nothing on."""
    values = [row["median"] for row in rows]
    better = {"less": "less is better", "more": "more is better"}[rows[0]["better"]]
    if min(values) > 0 and max(values) / min(values) > _DECADES:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        better = f"logarithmic, {better}"
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.set_ylabel(f"{rows[0]['unit']} ({better})")


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    """The parts of a whole, from the first to the last; what is hardly seen is left to the table."""
    whole = {row["size"]: row["median"] for row in rows if row["who"] == TOGETHER}
    sizes = sorted(whole)
    told = [row for row in rows if row["who"] != TOGETHER and row["median"] > _SEEN * whole[row["size"]]]
    parts = list(dict.fromkeys(row["who"] for row in told))
    high = 0.8 / len(sizes)
    for number_, (size, shade) in enumerate(zip(sizes, (_NAVY, _PALE), strict=False)):
        found = {row["who"]: row["median"] for row in told if row["size"] == size}
        places = [parts.index(who) + high * (number_ - (len(sizes) - 1) / 2) for who in found]
        label = f"{size:,} mappings: {number(whole[size])} {rows[0]['unit']} {TOGETHER}"
        bars = axes.barh(places, list(found.values()), high, label=label, color=shade)
        axes.bar_label(bars, [number(value) for value in found.values()], padding=3, fontsize=8)
    axes.set_yticks(range(len(parts)), parts)
    axes.invert_yaxis()
    axes.set_xlabel(rows[0]["unit"])
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="best")

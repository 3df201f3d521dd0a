"""docs/performance.md and its pictures, from bench/results/*.json: `python -m bench.page` measures nothing.

Must not hold a figure: what is written here only explains. The one idea: tables, ratios, verdicts and the texts beside
the pictures are made from rows in the same way, whichever bench they are from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

from bench import results
from bench.results import OURS, PLACE, TOGETHER, Row, base, groups, number, verdict
from tests.lab import ROOT

PAGE = ROOT / "docs/performance.md"
PICTURES = "performance"
WIDTH = 120

_HEAD = """# Performance

What nfportd costs, beside its peers and beside what the machine can do at all. `sudo make bench` measures it on your
machine and writes this page anew from what it has found (`bench/results/*.json`); no figure here is typed in by hand.

How to read it:

- Everything runs in network namespaces of one machine. Programs and sizes that are compared are measured in turn
  (A B C A B C), so that the machine's moods fall on all of them alike.
- A figure is the median of its rounds. In brackets stands what a tenth of the rounds is below and above; where a row is
  of the slowest rounds, from the median to the slowest.
- A factor behind a figure of another program is that figure divided by nfportd's at the same size.
- Sizes are the mappings (published ports) that are present.
"""


_WHY = """\
Why some are missed, and what the limit is:

- Against conntrack without NAT: an empty translation by one rule costs what is missing (its row stands beside). What
  nfportd asks beyond systemd's one map is what postrouting needs for hairpin and loopback: the status of the flow, and
  whether its source is on the target's link. Among few mappings the other layouts are as short.
- A change over the API: half is HTTP, validation and the event loop of an interpreter, the rest the reconciler, SQLite
  and the kernel (see the last chapter; elements pass libnftables by). It does not grow with the number of mappings. One
  processor runs all of it, so many clients share what one gets.
- A cold start: reading and checking that many mappings in YAML takes longest, then the interpreter and its imports; the
  kernel takes a tenth. The same ports written as ranges are a few mappings. A start that finds unchanged files takes
  what they were validated to, as an adoption does; what remains are imports, entering mappings, and reading elements.
- Memory: the interpreter with the libraries for HTTP and validation is nearly all of an idle daemon. Rss also counts
  what it shares with other programs.
- CNI, flat: there are three rounds at 10,000 mappings, where portmap takes seconds for each, and they differ by more
  than what is missed.
- A repair of everything: nft takes nine tenths of that to load the same table (its row stands beside).
"""


class Section(NamedTuple):
    """The heading of what one bench has found, and what explains it."""

    title: str
    text: str


SECTIONS = {
    "data": Section(
        "Data path",
        "What a connection and a packet cost on their way through the host. nfportd looks a packet's port up in one "
        "map; layouts of one rule for each port are walked until one matches. Conntrack without NAT is the limit that "
        "no forwarder passes.",
    ),
    "control": Section(
        "Control path",
        "What it costs to publish one port more. nfportd writes the elements of one key, whatever else is there. "
        "netavark makes the container's link in the same call, so its row without ports stands beside it. A drop-in "
        "that vanishes is waited for a moment before it counts as gone, for many editors replace a file by removing "
        "it first; that wait is most of what a removal takes there.",
    ),
    "scale": Section(
        "Many mappings",
        "Starts, adoption of the table that a crashed daemon left, memory, and how long what another program has "
        "undone stays undone.",
    ),
    "profile": Section(
        "Where the time goes",
        "The same daemon with clocks around its phases, in a process of its own; the clocks take part of the time too, "
        "so the sums are larger than the figures above. Each moment counts for the innermost phase that is under way.",
    ),
}


def text(found: Mapping[str, dict[str, Any]]) -> str:
    """The page, from what the files hold by their names."""
    parts = [_HEAD, *_goals(found)]
    for name, section in SECTIONS.items():
        parts.append(f"## {section.title}\n\n{fill(section.text, WIDTH)}\n")
        if name in found:
            parts += _section(name, found[name])
        else:
            parts.append(f"Not measured yet: `make bench-{name}`.\n")
    return "\n".join(parts)


def _goals(found: Mapping[str, dict[str, Any]]) -> list[str]:
    rows = [row for name in SECTIONS if name in found for row in found[name]["rows"] if "goal" in row]
    if not rows:
        return []
    lines = ["| figure | mappings | measured | goal | |", "| --- | ---: | ---: | ---: | --- |"]
    held: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        figure = row["group"] if row["who"] == OURS else f"{row['group']} ({row['who']})"
        held.setdefault((figure, _goal(row)), []).append(row)
    for (figure, goal), members in held.items():
        sizes = [f"{size:,}" for size in sizes_of(members)]
        medians = sorted(row["median"] for row in members)
        span = _span(number(medians[0]), number(medians[-1]))
        lines.append(
            f"| {figure} | {_span(sizes[0], sizes[-1])} | {span} {members[0]['unit']} | {goal} | {_how(members)} |"
        )
    judged = [_how(members) for members in held.values() if _how(members)]
    met = sum(how == "met" for how in judged)
    return ["## Goals\n", f"{met} of {len(judged)} are met.\n", "\n".join(lines) + "\n", _WHY]


def _goal(row: Row) -> str:
    goal = row["goal"]
    if isinstance(goal, str):
        return goal
    return f"{'at most' if row['better'] == 'less' else 'at least'} {number(goal)} {row['unit']}"


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _how(rows: Sequence[Row]) -> str:
    """What is to be said of rows that have the same goal: the worst of them."""
    least = min if rows[0]["better"] == "more" else max
    worst = least(rows, key=lambda row: row["median"])
    how = verdict(worst)
    if not how.startswith("missed"):
        return how
    return f"**{how}**" if len(rows) == 1 else f"**{how}** at {worst['size']:,}"


def _section(name: str, content: dict[str, Any]) -> list[str]:
    machine = content["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, nft {machine['nft']}"
    where += f", load average {machine['load']}" if "load" in machine else ""
    parts = [fill(content["what"], WIDTH) + "\n", f"*{machine['date']}: {where}, Python {machine['python']}.*\n"]
    for group, rows in groups(content["rows"]).items():
        parts.append(f"### {heading(group)}\n")
        if drawn(rows):
            picture = f"{PICTURES}/{slug(name, group)}"
            parts.append(f"[![{alternative(group, rows)}]({picture}.svg)]({picture}.png)\n")
        parts.append(table(rows) + "\n")
    return parts


def table(rows: Sequence[Row]) -> str:
    """One line for each program, one column for each size; ours in bold."""
    sizes, units = sizes_of(rows), list(dict.fromkeys(row["unit"] for row in rows))
    lines = [f"| {', '.join(units)} | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
    lines.append("| --- |" + " ---: |" * len(sizes))
    for who in dict.fromkeys(row["who"] for row in rows):
        cells = {row["size"]: _cell(rows, row) for row in rows if row["who"] == who}
        name = f"**{who}**" if who.startswith(OURS) else who
        lines.append(f"| {name} | " + " | ".join(cells.get(size, "") for size in sizes) + " |")
    return "\n".join(lines)


def _cell(rows: Sequence[Row], row: Row) -> str:
    figure = number(row["median"])
    figure = f"**{figure}**" if row["who"].startswith(OURS) else figure
    low, high = number(row["low"]), number(row["high"])
    spread = f" ({low} to {high})" if row["rounds"] > 1 and low != high else ""
    ours = base(rows, row)
    times = f" {number(row['median'] / ours['median'])} x" if ours and ours["median"] else ""
    return f"{figure}{spread}{times}"


def drawn(rows: Sequence[Row]) -> bool:
    """Whether a picture says more than the table: several programs over several sizes, or the parts of a whole."""
    return stacked(rows) or (len({row["who"] for row in rows}) > 1 and len(sizes_of(rows)) > 2)


def stacked(rows: Sequence[Row]) -> bool:
    """Whether the rows are parts of one whole."""
    return any(row["who"] == TOGETHER for row in rows)


def sizes_of(rows: Iterable[Row]) -> list[int]:
    """The sizes that occur."""
    return sorted({row["size"] for row in rows})


def heading(group: str) -> str:
    """A group's name as a heading or title."""
    return group[:1].upper() + group[1:]


def slug(name: str, group: str) -> str:
    """The name of a group's picture, without the kind of file."""
    return f"{name}-" + re.sub(r"[^a-z0-9]+", "-", group.lower()).strip("-")


def alternative(group: str, rows: Sequence[Row]) -> str:
    """What somebody needs to know who does not see the picture."""
    parts = []
    for who in dict.fromkeys(row["who"] for row in rows):
        own = sorted((row for row in rows if row["who"] == who), key=lambda row: row["size"])
        first, last = own[0], own[-1]
        unit = first["unit"]
        told = f"{who} {number(first['median'])} {unit} with {first['size']:,} mappings"
        if last is not first:
            told += f" and {number(last['median'])} {unit} with {last['size']:,}"
        parts.append(told)
    return f"{heading(group)}: {'; '.join(parts)}".replace("[", "").replace("]", "")


def read() -> dict[str, dict[str, Any]]:
    """What the files in bench/results hold, by their names."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(PLACE.glob("*.json"))}


def main() -> None:
    """Write the page and its pictures."""
    from bench import plots  # noqa: PLC0415 -- only pictures take matplotlib

    found = {name: content for name, content in read().items() if name in SECTIONS}
    plots.draw(found, PAGE.parent / PICTURES)
    PAGE.write_text(text(found))
    for name in found:
        print(f"{results.PLACE / name}.json -> {PAGE}")


if __name__ == "__main__":
    main()

"""What a bench has found, as one file a bench: bench/results/NAME.json, from which docs/performance.md is written.

Must not measure. The one idea: a row is one figure of one program at one size, with its spread, its unit, which way is
better and the goal it is held to, so that whoever prints or draws it needs to know nothing of the bench.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

#: Where the files are kept.
PLACE = Path(__file__).resolve().parent / "results"
#: Who is measured against everybody else.
OURS = "nfportd"
#: Of rows that are parts of a whole, who that is.
TOGETHER = "all of it"


class Row(TypedDict):
    """One figure: of `who`, with `size` mappings present; `group` names rows that are compared.

    `low` and `high` are what a tenth of the rounds is below and above. A `goal` that is a number is in the row's unit.
    """

    group: str
    size: int
    who: str
    unit: str
    better: Literal["more", "less"]
    median: float
    low: float
    high: float
    rounds: int
    goal: NotRequired[float | str]


def row(
    group: str,
    size: int,
    who: str,
    values: Sequence[float],
    unit: str,
    better: Literal["more", "less"] = "less",
    goal: float | str | None = None,
) -> Row:
    """The row of what some rounds have found, in the row's unit."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    made = Row(
        group=group,
        size=size,
        who=who,
        unit=unit,
        better=better,
        median=statistics.median(values),
        low=tenths[0],
        high=tenths[-1],
        rounds=len(values),
    )
    if goal is not None:
        made["goal"] = goal
    return made


def high(group: str, size: int, who: str, values: Sequence[float], unit: str, goal: float | None = None) -> Row:
    """The row of what 99 of 100 rounds stay below (where there are fewer: the most); from the median to the most."""
    ordered = sorted(values)
    made = row(group, size, who, values, unit, "less", goal)
    made["low"], made["high"] = made["median"], ordered[-1]
    made["median"] = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return made


def machine() -> dict[str, Any]:
    """Where and when it was measured."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    nft = subprocess.run(["nft", "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    return {
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "nft": nft.removeprefix("v"),
        "python": platform.python_version(),
        # Of the last five minutes, the bench itself among it: others make figures worse.
        "load": round(os.getloadavg()[1], 1),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def save(name: str, what: str, rows: Sequence[Row]) -> Path:
    """Write bench/results/NAME.json; `what` says in a sentence what was measured, and how."""
    PLACE.mkdir(exist_ok=True)
    file = PLACE / f"{name}.json"
    file.write_text(json.dumps({"what": what, "machine": machine(), "rows": list(rows)}, indent=1) + "\n")
    return file


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by what is compared, in their order."""
    found: dict[str, list[Row]] = {}
    for each in rows:
        found.setdefault(each["group"], []).append(each)
    return found


def base(rows: Sequence[Row], found: Row) -> Row | None:
    """What another program's row is held against: the first of ours of the same group, size and unit."""
    if found["who"].startswith(OURS):
        return None
    ours = (each for each in rows if each["who"].startswith(OURS))
    same = (found["group"], found["size"], found["unit"])
    return next((each for each in ours if (each["group"], each["size"], each["unit"]) == same), None)


def show(rows: Sequence[Row]) -> None:
    """Print the rows, group by group."""
    for group, members in groups(rows).items():
        print(f"\n{group}")
        for each in members:
            spread = f"({number(each['low'])} to {number(each['high'])})"
            goal = f"  goal {each['goal']}: {verdict(each)}" if "goal" in each else ""
            ours = base(members, each)
            times = f"  {each['median'] / ours['median']:.2f} x" if ours and ours["median"] else ""
            figure = f"{number(each['median']):>9} {each['unit']:<11} {spread:<20} {each['rounds']:>4} rounds"
            print(f"{each['size']:>8,}  {each['who']:<24} {figure}{times}{goal}")


def number(value: float) -> str:
    """A figure with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"


def verdict(found: Row) -> str:
    """Whether the goal is met, and by how much it is missed; empty where there is none that is a number."""
    goal, value = found.get("goal"), found["median"]
    if not isinstance(goal, int | float):
        return ""
    if value <= goal if found["better"] == "less" else value >= goal:
        return "met"
    return f"missed by {abs(value - goal) / goal:.0%}" if goal else f"missed by {number(value)} {found['unit']}"

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
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def save(name: str, what: str, rows: Sequence[Row]) -> Path:
    """Write bench/results/NAME.json; `what` says in a sentence what was measured, and how."""
    PLACE.mkdir(exist_ok=True)
    file = PLACE / f"{name}.json"
    file.write_text(json.dumps({"what": what, "machine": machine(), "rows": list(rows)}, indent=1) + "\n")
    return file


def verdict(found: Row) -> str:
    """Whether the goal is met, and by how much it is missed; empty where there is none that is a number."""
    goal, value = found.get("goal"), found["median"]
    if not isinstance(goal, int | float):
        return ""
    if value <= goal if found["better"] == "less" else value >= goal:
        return "met"
    return f"missed by {abs(value - goal) / goal:.0%}"

"""Every cell of the matrix of who reaches which target: a trace says what the client and the target then see.

It must not know the ruleset. The one idea: the trace comes first, then the wire is asked the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest

from tests.kernel import test_matrix as matrix
from tests.kernel.test_matrix import PORTS, WEB, Cell
from tests.lab import Daemon, Lab, address, endpoint
from tests.trace.asking import Tracer, tracer

#: Target and source; None: it does not arrive.
Seen = tuple[str | None, str | None] | None
#: Seconds that the daemon may take to serve [::1] in another way; the kernel tells nobody of the parameter.
SWITCH = 5.0


@pytest.fixture(scope="module")
def explain(lab: Lab) -> Iterator[Tracer]:
    daemon = Daemon(lab)
    (daemon.dropins / "web.yaml").write_text(WEB)
    daemon.start()
    with tracer(lab, daemon) as made:
        yield made
    assert daemon.stop() == 0


def groups() -> list[object]:
    """The cells by protocol, family and whether bridged packets pass the IP hooks."""
    found: Any = [parameters.values for parameters in matrix.cells()]  # type: ignore[attr-defined]

    def kind(values: Any) -> tuple[str, int, str]:
        return values[1], values[0].family, values[2]

    by_kind = groupby(sorted(found, key=kind), kind)
    return [pytest.param(*each, [cell for cell, *_ in cells], id="-".join(map(str, each))) for each, cells in by_kind]


@pytest.mark.parametrize(("proto", "family", "bridged", "cells"), groups())
def test_what_is_told_is_what_happens(
    lab: Lab, explain: Tracer, proto: str, family: int, bridged: str, cells: list[Cell]
) -> None:
    lab.bridge_netfilter(bridged == "bridge-nf")
    wrong = []
    for cell in cells:
        told, seen = compared(lab, explain, cell, proto)
        until = time.monotonic() + SWITCH
        while told != seen and cell.to == "::1" and time.monotonic() < until:
            told, seen = compared(lab, explain, cell, proto)
        if told != seen:
            wrong.append(f"{cell}: told {told}, seen {seen}")

    assert not wrong, "\n".join(wrong)


def compared(lab: Lab, explain: Tracer, cell: Cell, proto: str) -> tuple[Seen, Seen]:
    """What a trace tells of a cell, and what is seen on the wire: the target, and the source that it sees."""
    family = cell.family
    source = cell.source or (address(cell.client, family) if cell.client != "host" else cell.to)
    told = explain(source, f"{endpoint(cell.to, PORTS[cell.target])}/{proto}")
    timeout = 3 if told.arrives else 0.3
    seen = lab.spaces[cell.client].ask(cell.to, PORTS[cell.target], proto, source=source, timeout=timeout)
    found = (told.target, told.seen_as) if told.arrives else None
    return found, (endpoint(address(seen.target, family), seen.port), seen.source) if seen else None

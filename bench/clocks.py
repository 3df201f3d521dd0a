"""The daemon with clocks around its phases: `python -m bench.clocks DIRECTORY nfportd ARGUMENT...`.

Must not change what the daemon does, and nfportd must not know of it. The one idea: functions are wrapped from outside
before the daemon runs; what was noted is written down when it ends, by a clock that all processes share
(time.perf_counter is CLOCK_MONOTONIC on Linux).
"""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()

import functools  # noqa: E402 -- imports are a phase, too
import importlib  # noqa: E402
import inspect  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

START = "interpreter and imports"
NFT, KERNEL = "libnftables", "kernel"
#: What is called how, in the order of a change's way. Some are the daemon's own affair, so a test looks for them.
PHASES = {
    "nfportd.sources.dropins:DropIns.changes": "files read and validated",
    "nfportd.api.routes:Routes.put": "API's handler",
    "nfportd.api.routes:read": "request read and validated",
    "nfportd.reconciler:Reconciler.fulfil": "queue, reconciler",
    "nfportd.register:Register.take": "wish entered, conflicts",
    "nfportd.sources.store:Store.keep": "store (SQLite)",
    "nfportd.enforcer:Enforcer._follow_network": "routes and sysctls",
    "nfportd.enforcer:Enforcer._delta": "difference to the kernel",
    "nfportd.ruleset:text": "difference as nft text",
    "nfportd.elements:transaction": "difference as netlink messages",
    "nfportd.kernel.nft_batch:send": KERNEL,
    "nfportd.kernel.nft:Nft._ask": "to libnftables' process and back",
    "nfportd.kernel.nft:_read": "listing parsed",
    "nfportd.table:Table._take_over": "listing held against ours",
    "nfportd.enforcer:Enforcer._flush": "running flows",
    "nfportd.api.routes:json": "answer written",
}
#: By which the child is told where to write.
PLACE = "NFPORTD_BENCH_CLOCKS"


class Interval(NamedTuple):
    """When a phase was under way, in seconds; which part of it the process itself computed, where that is known."""

    begin: float
    end: float
    phase: str
    computed: float = 1.0


_noted: list[Interval] = []


def target(path: str) -> tuple[Any, str, Callable[..., Any]]:
    """Where a function hangs, its name there, and itself. Raises AttributeError where nfportd has none of that name."""
    module, _, name = path.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    return holder, last, getattr(holder, last)


def clocked(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    """The same function, noting when it ran."""

    @functools.wraps(function)
    async def waited(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return await function(*arguments, **named)
        finally:
            _noted.append(Interval(begin, time.perf_counter(), phase))

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            _noted.append(Interval(begin, time.perf_counter(), phase))

    return waited if inspect.iscoroutinefunction(function) else called


def clocked_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """libnftables' own function: what is not computed in it is spent in the kernel, or waiting for it."""

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        user, begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter()
        try:
            return function(*arguments)
        finally:
            end = time.perf_counter()
            computed = resource.getrusage(resource.RUSAGE_SELF).ru_utime - user
            _noted.append(Interval(begin, end, NFT, min(1.0, computed / (end - begin))))

    return called


def write() -> None:
    """Write down what was noted in this process."""
    Path(os.environ[PLACE], f"{os.getpid()}.json").write_text(json.dumps(_noted))


def read(place: Path) -> list[Interval]:
    """What all processes have noted, by their begin."""
    found = (Interval(*each) for file in place.glob("*.json") for each in json.loads(file.read_text()))
    return sorted(found)


def main() -> None:
    """Run the daemon."""
    os.environ[PLACE] = sys.argv[1]
    from nfportd.__main__ import main as daemon  # noqa: PLC0415 -- the import is measured
    from nfportd.kernel import nft_worker  # noqa: PLC0415

    for path, phase in PHASES.items():
        holder, name, function = target(path)
        setattr(holder, name, clocked(function, phase))
    nft_worker.__file__ = str(Path(__file__).with_name("clocked_worker.py"))
    _noted.append(Interval(_BEGAN, time.perf_counter(), START))
    try:
        daemon(sys.argv[3:], prog_name="nfportd")
    finally:
        write()


if __name__ == "__main__":
    main()

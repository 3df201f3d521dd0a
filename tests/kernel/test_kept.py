"""A start after kill -9 takes from the run directory what files were validated to; nobody sees a difference.

It must not know how entries are written. The one idea: an entry that stays the same file was taken, for a file that is
validated is written anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfportd.model import Mapping
from nfportd.sources.kept import FEW
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]
OWN, FIRST = "192.0.2.1", 8000


def web(*, last: str = "t1", more: str = "") -> str:
    """As many mappings as are kept; the last one leads to another target, in a line of its own."""
    to = {"t1": "10.88.0.11", "t2": "10.88.0.12"}
    lines = [mapping(f"web{number}", FIRST + number, "10.88.0.11:80") for number in range(FEW)]
    return (
        dropin(*lines) + more + mapping("last", FIRST + FEW, f"{to[last]}:80", comment="für alle", masquerade="always")
    )


def entry(daemon: Daemon) -> Path:
    """The one entry, as soon as it is there."""
    until = time.monotonic() + 10
    while True:
        found = list((daemon.dir / "run" / "validated").glob("*"))
        if len(found) == 1 and not found[0].name.endswith(".new"):
            return found[0]
        assert time.monotonic() < until, f"there are {found}"
        time.sleep(0.01)


def crash(daemon: Daemon, meanwhile: Callable[[], object] = lambda: None) -> str:
    """Kill it, do something, start it; what it logged since."""
    daemon.kill9()
    seen = len(daemon.log)
    meanwhile()
    daemon.start()
    return daemon.log[seen:]


def listed(daemon: Daemon) -> list[dict[str, object]]:
    """What `nfportctl list` shows, but for when and how often."""
    command = [*Daemon.command("nfportctl"), "--socket", str(daemon.socket), "list", "--json"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    shown = ("owner", "state", "reason", "conflicts", *Mapping.__dataclass_fields__)
    return [{name: each[name] for name in shown} for each in json.loads(told)["mappings"]]


def again(daemon: Daemon, kept: Path, old: os.stat_result) -> None:
    """Wait until the entry is another file than before."""
    until = time.monotonic() + 10
    while not kept.exists() or kept.stat().st_ino == old.st_ino:
        assert time.monotonic() < until, daemon.log
        time.sleep(0.01)


def reached(lab: Lab) -> str | None:
    return lab.outside.ask(OWN, FIRST + FEW).target


def test_a_start_after_a_crash_takes_what_was_validated(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web()})
    before, kept = listed(daemon), entry(daemon)
    number, elements = kept.stat().st_ino, daemon.elements("any4")
    log = crash(daemon)

    assert listed(daemon) == before
    assert f"ready: {FEW + 1} mappings" in log
    assert ("applied: all files: +0 -0 elements" in log, daemon.elements("any4") == elements) == (True, True)
    assert (entry(daemon), kept.stat().st_ino, reached(lab)) == (kept, number, "t1")


def test_an_edit_during_the_crash_is_seen(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web()})
    kept = entry(daemon)
    crash(daemon, lambda: (daemon.dropins / "web.yaml").write_text(web(last="t2")))

    assert reached(lab) == "t2"
    until = time.monotonic() + 10
    while kept.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert entry(daemon) != kept


def test_an_edit_after_a_start_from_an_entry_is_seen(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web()})
    entry(daemon)
    crash(daemon)
    daemon.write("web.yaml", web(last="t2"))

    assert reached(lab) == "t2"


def test_a_mistake_made_during_the_crash_is_named(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web()})
    entry(daemon)
    log = crash(daemon, lambda: (daemon.dropins / "web.yaml").write_text(web(more="  - listen: 0\n")))

    assert ("web.yaml" in log, "the good content of an earlier run stays in force" in log) == (True, True)
    assert reached(lab) == "t1"


def damage(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes().replace(b"10.88.0.11", b"10.88.0.12"))


def cut(kept: Path) -> None:
    os.truncate(kept, 500)


def give_away(kept: Path) -> None:
    os.chown(kept, 65534, 65534)


@pytest.mark.parametrize("spoil", [damage, cut, give_away])
def test_an_entry_that_is_not_ours_or_not_whole_is_written_anew(
    lab: Lab, start: Start, spoil: Callable[[Path], None]
) -> None:
    daemon = start({"web.yaml": web()})
    before, kept = listed(daemon), entry(daemon)
    content, old = kept.read_bytes(), kept.stat()
    crash(daemon, lambda: spoil(kept))

    assert (listed(daemon), reached(lab)) == (before, "t1")
    again(daemon, kept, old)
    assert kept.read_bytes() == content

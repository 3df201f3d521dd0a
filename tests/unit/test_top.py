"""nfportctl top in a terminal: frames, sizes, keys, ends, and daemons that go.

It must not need a daemon. The one idea: a stub answers, a pty shows, and afterwards the terminal is as it was.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfportd.columns import width_of
from tests.terminal import Terminal
from tests.unit.nfportctl import WEB, run
from tests.unit.stub import SINCE, Json, Stub, speaking

Open = Callable[..., Terminal]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with speaking(tmp_path / "sock") as made:
        yield made


@pytest.fixture
def top(stub: Stub) -> Iterator[Open]:
    made: list[Terminal] = []

    def begin(*arguments: str, **size: int) -> Terminal:
        program = "from nfportd.cli import main; main(prog_name='nfportctl')"
        command = [sys.executable, "-c", program, "--socket", str(stub.path), "top", *arguments]
        env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            env.pop(name, None)
        made.append(Terminal(command, env, **size))
        return made[-1]

    yield begin
    for terminal in made:
        terminal.close()


def answer(*rates: float, total: int | None = None) -> Json:
    usual = {"protocol": ["tcp"], "owner": "api:me", "state": "active", "since": SINCE}
    mappings = [
        {**WEB, **usual, "name": f"m{number}", "listen": str(8000 + number), "rate": rate, "connections": number}
        for number, rate in enumerate(rates)
    ]
    return {"mappings": mappings, "total": total or len(rates), "rate": sum(rates), "rate_seconds": 2.0}


def serve(stub: Stub, *answers: Json) -> None:
    for each in (*answers, *[answers[-1]] * 50):
        stub.say("GET", "/v1/mappings", 200, each)


def screen(text: str) -> list[str]:
    """The lines of the last whole frame."""
    frame = text.rpartition("\x1b[H")[2].partition("\x1b[J")[0]
    return [re.sub(r"\x1b\[[0-9;]*[mK]", "", line).rstrip("\r") for line in frame.split("\n")]


def test_a_frame_has_the_busiest_first(stub: Stub, top: Open) -> None:
    serve(stub, answer(0.0, 12.5, 3.0))
    shown = screen(top().until("q quits"))

    assert shown[0].startswith("nfportd ")
    assert "3 mappings" in shown[0]
    assert shown[1].startswith("15.5 connections a second over 2 s")
    assert shown[3].split()[:2] == ["LISTEN", "TARGET"]
    assert [line.split()[0] for line in shown[4:7]] == ["8001/tcp", "8002/tcp", "8000/tcp"]
    assert max(map(width_of, shown)) < 80


def test_it_refreshes_and_draws_the_rates(stub: Stub, top: Open) -> None:
    serve(stub, answer(1.0), answer(1.0), answer(8.0))
    terminal = top("--interval", "0.5")

    assert "8.0 connections a second over 2 s  ▁█" in terminal.until("8.0 connections a second over 2 s  ▁█")


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_it_ends_by_a_key_and_gives_the_terminal_back(stub: Stub, top: Open, key: bytes) -> None:
    serve(stub, answer(1.0))
    terminal = top()
    terminal.until("q quits")
    assert not terminal.unchanged()
    terminal.press(key)

    assert terminal.ended() == 0
    assert terminal.unchanged()
    assert terminal.output.endswith(b"\x1b[?25h\x1b[?1049l")


def test_a_signal_gives_the_terminal_back(stub: Stub, top: Open) -> None:
    serve(stub, answer(1.0))
    terminal = top()
    terminal.until("q quits")
    terminal.process.send_signal(signal.SIGTERM)

    assert terminal.ended() == 128 + signal.SIGTERM
    assert terminal.unchanged()
    assert terminal.output.endswith(b"\x1b[?25h\x1b[?1049l")


def test_as_many_as_fit_are_asked_for_also_when_the_terminal_grows(stub: Stub, top: Open) -> None:
    serve(stub, answer(*range(100), total=60_000))
    terminal = top("--interval", "30", lines=12, columns=60)
    small = screen(terminal.until("q quits"))
    seen = len(terminal.output)
    terminal.resize(120, 40)
    large = screen(terminal.until("q quits", seen))

    assert [each.query for each in stub.asked[1:3]] == [{"busiest": "6"}, {"busiest": "34"}]
    assert (len(small), len(large)) == (12, 40)
    assert "the 100 busiest of 60,000 mappings" in small[0]
    assert max(map(width_of, small)) < 60


def test_a_daemon_that_goes_is_asked_again(stub: Stub, top: Open) -> None:
    serve(stub, answer(1.0))
    terminal = top("--interval", "0.5")
    terminal.until("q quits")
    stub.raw = b""
    seen = len(terminal.output)
    terminal.until(" again", seen)
    stub.raw = None
    seen = len(terminal.output)

    terminal.until("8000/tcp", seen)


def test_no_daemon_at_all_is_said_on_the_terminal_as_it_is(stub: Stub, top: Open) -> None:
    stub.raw = b""
    terminal = top()

    assert terminal.ended() == 3
    assert b"\x1b[?1049h" not in terminal.output


def test_without_a_terminal_it_says_what_to_do(stub: Stub) -> None:
    done = run(stub, "top")

    assert (done.exit_code, stub.asked) == (2, [])
    assert "this is no terminal; --rounds 3 prints three frames" in done.stderr


def test_rounds_are_printed_below_each_other(stub: Stub) -> None:
    serve(stub, answer(0.0), answer(1.0), answer(2.0))
    done = run(stub, "top", "--rounds", "2", "--interval", "0.5")

    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert [line for line in done.stdout.splitlines() if "a second" in line] == [
        "1.0 connections a second over 2 s  █",
        "2.0 connections a second over 2 s  ▄█",
    ]

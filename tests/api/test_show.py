"""list, show, status, top and report against the real daemon, with real connections.

Must not know the API. The one idea: connections are made on the wire, and the number that a person reads is theirs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nfportd.client import Client
from tests import browser
from tests.api.calling import OWN, T1, T2, body, mapping
from tests.api.test_nfportctl import ENVIRONMENT, nfportctl
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab
from tests.terminal import Terminal

HOSTILE = "<script>document.title='taken'</script>"


def connect(lab: Lab, port: int, times: int) -> None:
    for _ in range(times):
        assert lab.client.ask(OWN, port)


def row(said: str, listen: str) -> list[str]:
    """The cells of the line of what listens there."""
    return next(re.split(" {2,}", line.strip()) for line in said.splitlines() if line.startswith(f"{listen} "))


def test_a_person_reads_the_connections_that_were_made(lab: Lab, daemon: Daemon, api: Client) -> None:
    daemon.write("web.yaml", dropin(written("web", 8080, T1), written("far", 9000, "203.0.113.9:80")))
    daemon.write("x.yaml", dropin(written("late", 8080, T2)))
    api.put("api:me", body(mapping(8081, T2, name="shop")))
    connect(lab, 8080, 7)
    connect(lab, 8081, 2)

    said = nfportctl(daemon, "list")[1]
    lines = [re.split(" {2,}", line.strip()) for line in said.splitlines() if line.startswith("8080/tcp")]
    assert {line[2]: line[4:7:2] for line in lines} == {"web": ["in force", "7"], "late": ["waiting: conflict", "0"]}
    assert row(said, "8081/tcp")[4:7:2] == ["in force", "2"]
    assert '"late" 8080/tcp to 10.88.0.12:80 (file:x.yaml): 0.0.0.0:8080/tcp is held by file:web.yaml' in said

    said = nfportctl(daemon, "show", "web")[1]
    assert "in force" in said
    assert re.search(r"connections +7 to this target", said), said
    assert re.search(r"state +waiting: conflict", nfportctl(daemon, "show", "late")[1])
    status, said = nfportctl(daemon, "status")
    assert (status, "1 waiting: conflict" in said) == (1, True), said
    assert json.loads(nfportctl(daemon, "show", "8081", "--json")[1])["mappings"][0]["connections"] == 2


def test_top_shows_what_happens(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("api:me", body(mapping(8080, name="web"), mapping(8081, T2, name="shop")))
    command = [*Daemon.command("nfportctl"), "--socket", str(daemon.socket), "top", "--interval", "1"]
    env = {name: value for name, value in ENVIRONMENT.items() if name not in ("COLUMNS", "LINES")}
    terminal = Terminal(command, env)
    try:
        terminal.until("q quits")
        connect(lab, 8081, 25)
        seen = len(terminal.output)
        frame = terminal.until(" 25 ", seen).rpartition("\x1b[H")[2]
        assert frame.index("shop") < frame.index("web")
        terminal.press(b"q")
        assert terminal.ended() == 0
        assert terminal.unchanged()
    finally:
        terminal.close()


@pytest.fixture
def reported(daemon: Daemon, tmp_path: Path) -> Callable[[], Path]:
    def report() -> Path:
        status, said = nfportctl(daemon, "report", "--html", str(tmp_path / "report.html"))
        assert status == 0, said
        return tmp_path / "report.html"

    return report


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here (package chromium-headless-shell)")
def test_a_report_of_a_real_host(lab: Lab, daemon: Daemon, api: Client, reported: Callable[[], Path]) -> None:
    daemon.write("far.yaml", dropin(written("far", 9000, "203.0.113.9:80")))
    daemon.write("broken.yaml", "mappings: [{listen: 1}]\n")
    api.put("api:me", body(mapping(8080, name=HOSTILE, comment=HOSTILE), mapping("9100-9110", "10.88.0.12:9100-9110")))
    connect(lab, 8080, 6)

    found = browser.seen(reported(), 390)

    assert (found["wide"], found["scripts"]) == (390, 0)
    assert found["title"].startswith("nfportd on ")
    for said in (HOSTILE, "8080/tcp", "9100-9110/tcp", "10.88.0.12:9100-9110", "broken.yaml", "added", "api:me"):
        assert said in found["text"]
    assert re.search(r"Connections, last hour\s+\d+\n", found["text"]), found["text"]
    assert re.search(r"in force\s+6\n", found["text"]), found["text"]


def test_a_report_is_written_whole_or_not_at_all(daemon: Daemon, tmp_path: Path) -> None:
    status, said = nfportctl(daemon, "report", "--html", str(tmp_path / "no" / "report.html"))
    assert (status, "cannot be written: No such file or directory" in said) == (1, True), said
    status, said = nfportctl(daemon, "report", "--html", "-")
    assert (status, said.startswith("<!DOCTYPE html>")) == (0, True)
    (tmp_path / "report.html").write_text("the last one")
    daemon.kill9()

    status, said = nfportctl(daemon, "report", "--html", str(tmp_path / "report.html"))

    assert (status, (tmp_path / "report.html").read_text()) == (3, "the last one")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_other_commands_do_not_load_what_they_do_not_need(daemon: Daemon) -> None:
    program = "import sys; from nfportd.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", program, "--socket", str(daemon.socket), "list"]

    loaded = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stderr.split()

    assert {"nfportd.top", "nfportd.report", "pydantic", "asyncio"} & set(loaded) == set()

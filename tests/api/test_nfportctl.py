"""nfportctl against the real daemon: what a person at a terminal does, and the exit statuses of a script.

Must not know the API. The one idea: a command, and then what a client on the wire meets.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from nfportd.client import Client
from tests.api.calling import T1, T2, body, eventually, mapping, refusal, states
from tests.conftest import dropin, mapping as written
from tests.lab import ROOT, Daemon, Lab

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def nfportctl(daemon: Daemon, *arguments: str, text: str = "") -> tuple[int, str]:
    """The exit status, and what it says on both channels."""
    command = [*Daemon.command("nfportctl"), "--socket", str(daemon.socket), *arguments]
    done = subprocess.run(command, check=False, env=ENVIRONMENT, input=text, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


def test_nfportctl_publishes_shows_and_withdraws(lab: Lab, daemon: Daemon, api: Client, tmp_path: Path) -> None:
    assert nfportctl(daemon, "status")[0] == 0
    file = tmp_path / "web.yaml"
    file.write_text(dropin(written("web", 8080, T1), written("dns", 5353, T2, protocol="udp")))
    status, said = nfportctl(daemon, "apply", "-f", str(file), "--owner", "ctl")
    assert status == 0, said
    assert lab.client.ask("192.0.2.1", 8080).target == "t1"
    assert lab.client.ask("192.0.2.1", 5353, "udp").target == "t2"

    status, said = nfportctl(daemon, "list")
    assert status == 0
    assert re.search(r"8080.*10\.88\.0\.11:80.*ctl|ctl.*8080.*10\.88\.0\.11:80", said), said
    shown = json.loads(nfportctl(daemon, "show", "ctl", "--json")[1])
    assert [each["name"] for each in shown["mappings"]] == ["web", "dns"]
    assert "ctl" in nfportctl(daemon, "owners")[1]

    api.put("other", body(mapping(9000)))
    file.write_text(dropin(written("web", 9000, T1)))
    status, said = nfportctl(daemon, "apply", "-f", str(file), "--owner", "ctl")
    assert (status, "other" in said) == (4, True), said
    assert states(api) == {"ctl 8080": "active", "ctl 5353": "active", "other 9000": "active"}
    assert refusal(api.put, "third", body(mapping(9000))).name == "conflict"


def test_nfportctl_when_nobody_answers(daemon: Daemon) -> None:
    daemon.kill9()
    status, said = nfportctl(daemon, "status")

    assert status == 3
    assert str(daemon.socket) in said


def test_nfportctl_reload_and_events(daemon: Daemon, api: Client) -> None:
    assert nfportctl(daemon, "reload")[0] == 0
    daemon.write("broken.yaml", "mappings: [{listen: 1}]\n")
    status, said = nfportctl(daemon, "reload")
    assert (status, "broken.yaml:1:" in said) == (1, True), said

    command = [*Daemon.command("nfportctl"), "--socket", str(daemon.socket), "events", "--since", "0", "--json"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        api.put("web", body(mapping(8080)))
        eventually(lambda: json.loads(process.stdout.readline())["kind"] if process.stdout else "", "added")
    finally:
        process.terminate()
        process.communicate()

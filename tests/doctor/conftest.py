"""A host in good health, and the real nfportctl doctor in it.

Must not know what a test asserts. The one idea: each test begins with a host on which everything works, breaks one
thing, and reads what doctor says.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from nfportd.client import Json
from tests.coexistence import others
from tests.conftest import dropin, mapping
from tests.lab import HOST, ROOT, Daemon, Lab

V4, V6 = 4, 6
OWN = {V4: "192.0.2.1", V6: "2001:db8::1"}
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
WEB = mapping("web", 8080, "10.88.0.11:80", "[fd88::11]:80", protocol="[tcp, udp]")
#: So that a parameter that a test has changed stays as it is.
UNMANAGED = "manage_sysctls: false\n"


@dataclass(frozen=True)
class Told:
    """What doctor said, and its exit status."""

    status: int
    report: Json

    @property
    def causes(self) -> list[str]:
        return [found["cause"] for found in self.report["findings"]]

    def only(self, *beside: str) -> Json:
        """The one finding, those apart that a test expects beside it."""
        found = [each for each in self.report["findings"] if each["cause"] not in beside]
        assert len(found) == 1, self.report["findings"]
        assert (self.status, self.report["healthy"]) == (1, False)
        return dict(found[0])


class Patient:
    """A host with a daemon, as the tests see it."""

    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self.lab, self.daemon = lab, daemon

    def call(
        self, *arguments: str, uid: int | None = None, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run nfportctl doctor in the host as a shell would."""
        daemon = self.daemon
        places = ["--config", str(daemon.config), "--dropins", str(daemon.dropins)]
        places += ["--state-dir", str(daemon.dir / "state")]
        command = [*Daemon.command("nfportctl"), "--socket", str(daemon.socket), "doctor", *places, *arguments]
        if uid is not None:
            command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]
        with self.lab.host.entered():
            return subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            )

    def examined(self, *arguments: str, **more: Any) -> Told:
        """What doctor finds."""
        done = self.call("--json", *arguments, **more)
        assert (done.returncode in (0, 1), done.stderr) == (True, ""), done
        return Told(done.returncode, json.loads(done.stdout))

    def take(self, command: str, space: str = "host") -> None:
        """Run a command that doctor names."""
        self.lab.spaces[space].run(shlex.split(command))

    def reached(self, family: int = V4, port: int = 8080, client: str = "outside", **more: Any) -> str:
        """The name of the target that answers, or what became of the question."""
        to = LOOPBACK[family] if client == "host" else OWN[family]
        answer = self.lab.spaces[client].ask(to, port, timeout=more.pop("timeout", 0.4), **more)
        return answer.target or answer.outcome


Begin = Callable[..., Patient]


@pytest.fixture(autouse=True)
def healthy(lab: Lab) -> Iterator[None]:
    """The host allows all that mappings need; afterwards others' rules are gone."""
    lab.bridge_netfilter(on=False)
    lab.host.sysctl("net.ipv4.ip_forward", 1)
    lab.host.sysctl("net.ipv6.conf.all.forwarding", 1)
    for link in HOST:
        lab.host.sysctl(f"net/ipv4/conf/{link}/route_localnet", 1)
    yield
    others.clear(lab.host)


@pytest.fixture
def uplink(lab: Lab) -> Iterator[None]:
    """Clients come by out0."""
    lab.host.ip("route", "add", "default", "via", "198.51.100.10")
    lab.host.ip("-6", "route", "add", "default", "via", "2001:db8:1::10")
    yield
    lab.host.ip("route", "flush", "default")
    lab.host.ip("-6", "route", "flush", "default")


@pytest.fixture
def begin(lab: Lab, start: Callable[..., Daemon]) -> Begin:
    """Start a daemon with these mappings."""

    def started(*mappings: str, **options: Any) -> Patient:
        return Patient(lab, start({"web.yaml": dropin(*mappings or (WEB,))}, **options))

    return started

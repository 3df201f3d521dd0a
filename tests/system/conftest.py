"""A machine a systemd version, booted once, and nfportd's service in it as after a boot for each test.

It must not know what a test asserts. The one idea: what a test may have changed is taken back before the next one, by
the means of an admin; a version that cannot be had here is skipped with its reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hammer import serve
from tests.lab import ROOT, TARGETS, Lab
from tests.system.machine import Machine

#: What a load connects to in the targets; a process of its own answers.
LOADED = 81


def _root_of(version: str) -> Path:
    """The root with this systemd; skips where there is none."""
    if os.geteuid() != 0:
        pytest.skip("a container needs root")
    for program in ("systemd-nspawn", "nsenter", "setpriv"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (apt install systemd-container util-linux)")
    if version == "257":
        made = subprocess.run([ROOT / "tests/trixie.sh", "--root"], check=False, capture_output=True, text=True)
        if made.returncode == 75:
            pytest.skip("no Debian 13 can be had here: " + made.stderr.strip().rpartition("\n")[2])
        assert made.returncode == 0, made.stderr
        return Path(made.stdout.strip())
    found = subprocess.run(["systemctl", "--version"], check=False, capture_output=True, text=True).stdout
    if not found.startswith(f"systemd {version} "):
        pytest.skip(f"this host has another systemd than {version}: {found.partition(chr(10))[0] or 'none'}")
    return Path("/")


@pytest.fixture(scope="package", params=["252", "257"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A booted machine in the network of a laboratory of its own."""
    root = _root_of(request.param)
    with Lab() as lab:
        for name in TARGETS:
            lab.spaces[name].serve([80])
        serve(lab.t1, LOADED, "t1")
        made = Machine(lab, root, request.param)
        try:
            made.boot()
            yield made
        finally:
            made.close()


@pytest.fixture
def lab(machine: Machine) -> Lab:
    """The laboratory around the machine."""
    return machine.lab


@pytest.fixture
def stopped(machine: Machine) -> Iterator[Machine]:
    """The machine as installed: units as shipped, no settings, no mappings, nothing running."""
    _reset(machine)
    yield machine
    if machine.main:
        os.kill(machine.main, 18)  # SIGCONT: one that a test has stopped could not end


@pytest.fixture
def service(machine: Machine) -> Machine:
    """The same with the service running; one that an earlier test left as it was goes on."""
    if not _is_fresh(machine):
        _reset(machine)
        machine.systemctl("start", "nfportd.service")
    return machine


def _is_fresh(machine: Machine) -> bool:
    """Whether the service runs as it does after a start, once the drop-ins are gone."""
    units = machine.root / "run/systemd/system"
    if list(units.iterdir()) or (machine.root / "etc/nfportd/nfportd.yaml").exists():
        return False
    if (machine.show("SubState"), machine.show("NRestarts")) != ("running", "0"):
        return False
    for file in (machine.root / "etc/nfportd.d").iterdir():
        file.unlink()
    machine.lab.host.run(["conntrack", "-F"])
    machine.systemctl("reset-failed")
    machine.run("nfportctl", "reload")
    return not json.loads(machine.run("nfportctl", "owners", "--json").stdout)["owners"]


def _reset(machine: Machine) -> None:
    for left in (machine.root / "run/systemd/system").iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    machine.systemctl("daemon-reload")
    machine.systemctl("stop", "nfportd.service", "nfportd.socket", check=False)
    for place in ("etc/nfportd", "etc/nfportd.d", "var/lib/nfportd", "run/nfportd"):
        shutil.rmtree(machine.root / place, ignore_errors=True)
    machine.run("systemd-tmpfiles", "--create", "nfportd.conf")
    machine.lab.reset()
    machine.systemctl("reset-failed")
    machine.systemctl("start", "nfportd.socket")

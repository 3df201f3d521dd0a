"""Whole systems: systemd-nspawn and LXC, by the lines of docs/recipes.md.

It must not have lines of its own where the recipe has them. The one idea: a recipe is two commands, one for the start
and one for the end, and both are run as they are written.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfportd import oci_hook
from tests.api.calling import body, client, eventually, mapping
from tests.lab import Daemon, Lab, address
from tests.recipes.conftest import is_dead, owners, page, recipe
from tests.runtimes.images import SERVE
from tests.runtimes.room import Room, needs, wait_for

ADDRESS, GATEWAY = "10.88.0.77", "10.88.0.1"
IN_RECIPES = "10.88.0.11"  # where the laboratory has a server already
CLIENT = address("client", 4)


def by_name(line: str, name: str) -> str:
    """A line of the recipe for this container."""
    return line.replace("%i", name).replace(IN_RECIPES, ADDRESS)


class Nspawn:
    """A container of systemd-nspawn on the laboratory's bridge, which gives itself its address."""

    START = (
        f"ip addr add {ADDRESS}/24 dev host0 && ip link set host0 up && ip route add default via {GATEWAY}"
        f" && exec {shlex.join(SERVE)}"
    )

    def __init__(self, room: Room, daemon: Daemon, root: Path) -> None:
        self._room, self._socket = room, daemon.socket
        line = ["systemd-nspawn", "--quiet", f"--directory={root}", "--machine=web", "--register=no", "--keep-unit"]
        line += ["--console=pipe", "--network-bridge=br0", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        line += ["--as-pid2", "/bin/sh", "-c", self.START.replace("ip ", "/bin/busybox ip ")]
        self._log = room.dir / "nspawn.log"
        self._process = room.start(self._log, *line)
        wait_for(lambda: page(room.lab, 80, "host", ADDRESS).startswith("web "), f"nspawn: {self._log.read_text()}")

    def unit(self, key: str) -> subprocess.CompletedProcess[str]:
        """Do what the unit does at this point."""
        (line,) = recipe("systemd-nspawn", rf"^ +{key}=-?(.*)$")
        return self._room.run(
            *shlex.split(by_name(line, "web")), env={"NFPORTD_SOCKET": str(self._socket)}, check=False
        )

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture
def nspawn(room: Room, daemon: Daemon, root: Path) -> Iterator[Nspawn]:
    needs("systemd-nspawn")
    made = Nspawn(room, daemon, root)
    yield made
    made.end()


def test_nspawn_from_start_to_end(nspawn: Nspawn, daemon: Daemon, lab: Lab) -> None:
    assert nspawn.unit("ExecStartPost").returncode == 0

    assert owners(daemon) == ["nspawn:web"]
    assert page(lab, 8080) == f"web {CLIENT}"
    assert page(lab, 8080, "host", "127.0.0.1").startswith("web ")
    assert page(lab, 8080, "t2").startswith("web ")

    nspawn.end()
    assert nspawn.unit("ExecStopPost").returncode == 0

    assert owners(daemon) == []
    assert is_dead(lab, 8080)


def test_nspawn_unit_fails_where_the_port_is_taken(nspawn: Nspawn, daemon: Daemon) -> None:
    with client(daemon) as api:
        api.put("api:holder", body(mapping(8080)))

    done = nspawn.unit("ExecStartPost")

    assert done.returncode == 4
    assert "api:holder" in done.stderr


# LXC looks for bridges in /sys, which shows the network namespace of who mounted it.
LXC = 'mount -t sysfs none /sys; mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'
CONFIG = """
lxc.uts.name = web
lxc.rootfs.path = dir:{root}
lxc.init.cmd = {init}
lxc.net.0.type = veth
lxc.net.0.link = br0
lxc.net.0.flags = up
lxc.net.0.ipv4.gateway = {gateway}
"""


class Lxc:
    """A container of LXC on the laboratory's bridge, with the lines of the recipe in its configuration."""

    def __init__(self, room: Room, daemon: Daemon, root: Path) -> None:
        self._room, self._socket = room, daemon.socket
        self._dir = room.dir / "lxc"
        self._dir.mkdir(exist_ok=True)
        lines = [by_name(line, "web") for line in recipe("LXC", r"^    (lxc\..*)$")]
        self._config = self._dir / "config"
        init = shlex.join(SERVE)
        self._config.write_text(CONFIG.format(root=root, init=init, gateway=GATEWAY) + "\n".join(lines) + "\n")

    def start(self) -> subprocess.CompletedProcess[str]:
        return self._run("lxc-start", "--daemon", f"--rcfile={self._config}", f"--logfile={self._dir / 'log'}")

    def stop(self) -> None:
        self._run("lxc-stop", "--kill")

    def _run(self, program: str, *options: str) -> subprocess.CompletedProcess[str]:
        line = [program, f"--lxcpath={self._dir}", "--name=web", *options]
        mounted = ["unshare", "--mount", "sh", "-euc", LXC, "lxc", *line]
        return self._room.run(*mounted, env={"NFPORTD_SOCKET": str(self._socket)}, check=False)


@pytest.fixture
def lxc(room: Room, daemon: Daemon, root: Path) -> Iterator[Lxc]:
    needs("lxc-start", "lxc-stop")
    made = Lxc(room, daemon, root)
    yield made
    made.stop()


def test_lxc_from_start_to_end(lxc: Lxc, daemon: Daemon, lab: Lab) -> None:
    started = lxc.start()
    assert started.returncode == 0, started.stderr

    assert owners(daemon) == ["lxc:web"]
    eventually(lambda: page(lab, 8080), f"web {CLIENT}")
    assert page(lab, 8080, "host", "127.0.0.1").startswith("web ")
    assert page(lab, 8080, "t2").startswith("web ")

    lxc.stop()

    eventually(lambda: is_dead(lab, 8080), True)
    assert owners(daemon) == []


def test_lxc_does_not_start_where_the_port_is_taken(lxc: Lxc, daemon: Daemon) -> None:
    with client(daemon) as api:
        api.put("api:holder", body(mapping(8080)))

    assert lxc.start().returncode != 0

    assert owners(daemon) == ["api:holder"]


def test_a_process_is_found_in_the_namespace_that_is_mounted_for_it(lab: Lab) -> None:
    process = lab.t1.popen(["sleep", "60"])
    try:
        assert oci_hook.namespace(process.pid) == f"/run/netns/{lab.t1.full}"
        assert oci_hook.namespace(os.getpid()) is None
    finally:
        process.kill()
        process.wait()

"""podman with netavark and the hook that the project ships, in a room.

Must not know what a test asserts. The one idea: the shipped hook's file, with the places of this machine in it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.lab import ROOT, Daemon
from tests.recipes.conftest import PORTCTL
from tests.runtimes import images
from tests.runtimes.room import Inside, Room, wait_for

HOOK = ROOT / "etc" / "containers" / "oci" / "hooks.d" / "nfportd.json"
PROGRAMS = ("podman", "conmon", "/usr/lib/podman/netavark")
#: What lets each run without the controllers and the limits of a machine of one's own.
CGROUPS = {"crun": 'cgroups = "disabled"', "runc": "pids_limit = 0"}
#: Addresses that no link of the laboratory has.
SUBNETS = ("10.90.0.0/24", "fd90::/64")
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
{cgroups}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "{runtime}"
hooks_dir = ["{hooks}"]
[network]
network_backend = "netavark"
network_config_dir = "{networks}"
"""


class Podman:
    """One podman with an OCI runtime and a storage of its own."""

    def __init__(self, room: Room, runtime: str) -> None:
        self.room, self.runtime = room, runtime
        self._dir = room.dir / runtime
        self._hooks = self._dir / "hooks.d"
        self._hooks.mkdir(parents=True)
        (self._dir / "networks").mkdir()
        config = self._dir / "containers.conf"
        networks = self._dir / "networks"
        config.write_text(
            CONFIG.format(runtime=runtime, cgroups=CGROUPS[runtime], hooks=self._hooks, networks=networks)
        )
        self.env = {"CONTAINERS_CONF": str(config), "STORAGE_DRIVER": "vfs", "XDG_CONFIG_HOME": str(self._dir)}
        self("load", "-i", str(images.archive(self._dir / "image.tar")))
        subnets = [option for subnet in SUBNETS for option in ("--subnet", subnet)]
        self("network", "create", "--ipv6", *subnets, "both")

    def hook(self, daemon: Daemon) -> None:
        """Lay out the hook of the project for this daemon."""
        shipped = json.loads(HOOK.read_text())
        assert shipped["hook"]["path"] == "/usr/bin/nfportctl"
        shipped["hook"] |= {"path": PORTCTL, "env": [f"NFPORTD_SOCKET={daemon.socket}"]}
        (self._hooks / HOOK.name).write_text(json.dumps(shipped))

    def __call__(self, *arguments: str) -> str:
        """Run podman; what it prints."""
        return self.room.run("podman", *arguments, env=self.env).stdout.strip()

    def run(self, name: str, *options: str) -> str:
        """Start a container that serves; its id."""
        return self(*self._line(name, *options))

    def refused(self, name: str, *options: str, network: str = "both") -> subprocess.CompletedProcess[str]:
        """Start a container, as `run` does, that cannot start."""
        done = self.room.run("podman", *self._line(name, *options, network=network), env=self.env, check=False)
        assert done.returncode != 0, done.stdout
        return done

    def inside(self, name: str) -> Inside:
        """The network namespace of a container."""
        place = self("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name)
        return Inside(self.room.lab, name, Path(self.room.path(place)))

    def clear(self) -> None:
        """End and remove all containers; once more where conmon's clean-up still holds the mounts of one."""
        command = ("podman", "rm", "--all", "--force", "--time", "0")
        wait_for(lambda: not self.room.run(*command, env=self.env, check=False).returncode, "containers to be removed")

    def _line(self, name: str, *options: str, network: str = "both") -> list[str]:
        return ["run", "-d", "--name", name, "--hostname", name, "--network", network, *options, images.NAME]

"""podman with its CNI backend in a room.

It must not know what a test asserts. The one idea: the commands are those that an administrator types.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.runtimes import images
from tests.runtimes.room import Inside, Room, wait_for

PROGRAMS = ("podman", "conmon", "runc", "curl", str(images.BUSYBOX), "/usr/lib/cni/bridge")
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{networks}"
default_network = "{network}"
"""


@dataclass(frozen=True)
class Container:
    """A running container."""

    id: str
    inside: Inside


class Podman:
    """One podman with its storage, its networks and its containers."""

    def __init__(self, room: Room, plugins: Path, networks: Path, network: str) -> None:
        self.room = room
        config = room.dir / "containers.conf"
        config.write_text(CONFIG.format(plugins=plugins, networks=networks, network=network))
        self._env = {"CONTAINERS_CONF": str(config), "STORAGE_DRIVER": "vfs", "TMPDIR": str(room.dir)}
        self("load", "-i", str(images.archive(room.dir / "image.tar")))

    def trial(self) -> str:
        """Why this podman cannot run containers here, or has no CNI backend; empty if it can."""
        backend = self.room.run("podman", "info", "-f", "{{.Host.NetworkBackend}}", env=self._env, check=False)
        if backend.stdout.strip() != "cni":
            return f"no CNI backend: {backend.stderr or backend.stdout}"
        command = ("podman", "run", "--rm", "--network", "none", images.NAME, "/bin/busybox", "true")
        done = self.room.run(*command, env=self._env, check=False)
        return done.stderr if done.returncode else ""

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run podman; what it prints. A failure is an AssertionError with what it complains of."""
        return self.room.run("podman", *arguments, env=self._env, check=check).stdout.strip()

    def start(self, name: str, *options: str) -> str:
        """Start a container; its id."""
        return self("run", "-d", "--name", name, "--hostname", name, *options, images.NAME)

    def run(self, name: str, *options: str) -> Container:
        """Start a container, and wait until it serves."""
        return Container(self.start(name, *options), self.settled(name))

    def refused(self, name: str, *options: str) -> str:
        """Start a container that podman must refuse; what it complains of."""
        command = ("podman", "run", "-d", "--name", name, *options, images.NAME)
        done = self.room.run(*command, env=self._env, check=False)
        assert done.returncode, f"podman has started {name}"
        return done.stderr

    def settled(self, name: str) -> Inside:
        """Wait until a container serves on its addresses; its network namespace."""
        found = dict(json.loads(self("inspect", name))[0]["NetworkSettings"])
        inside = Inside(self.room.lab, name, self.room.path(found["SandboxKey"]))
        for network in found["Networks"].values():
            images.wait(inside, filter(None, (network["IPAddress"], network["GlobalIPv6Address"])))
        return inside

    def containers(self) -> list[str]:
        """The names of all containers, whatever their state."""
        return self("ps", "--all", "--format", "{{.Names}}").split()

    def remove(self, *names: str) -> None:
        """Remove containers. conmon's clean-up of one that just ended holds its mounts: then once more."""
        command = ("podman", "rm", "--force", "--ignore", "--time", "0", *names)
        wait_for(lambda: not self.room.run(*command, env=self._env, check=False).returncode, f"{names} to be removed")

    def clear(self) -> None:
        if names := self.containers():
            self.remove(*names)

"""containerd in a room, and pods in it, made and removed as the kubelet does.

It must not know what a test asserts. The one idea: a pod is its sandbox; the image of the sandbox itself serves.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.runtimes import cri, images
from tests.runtimes.room import Inside, Room, child

SOCKET = "/run/containerd/containerd.sock"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "curl", str(images.BUSYBOX), "/usr/lib/cni/bridge")
CONFIG = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_cgroup = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""


@dataclass(frozen=True)
class Pod:
    """A running sandbox."""

    name: str
    id: str
    inside: Inside
    addresses: tuple[str, ...]


class Containerd:
    """One containerd; close() ends it with its pods."""

    def __init__(self, room: Room, plugins: Path, networks: Path) -> None:
        self.room = room
        self.runtime = cri.Runtime(room.path(SOCKET))
        self._config = room.dir / "containerd.toml"
        self._config.write_text(CONFIG.format(socket=SOCKET, image=images.NAME, plugins=plugins, networks=networks))
        self._log = room.dir / "containerd.log"
        self._process: subprocess.Popen[str] | None = None
        self.start()
        archive = str(images.archive(room.dir / "image.tar"))
        room.run("ctr", "--address", SOCKET, "-n", "k8s.io", "images", "import", "--snapshotter", "native", archive)

    def trial(self) -> str:
        """Why containers cannot run here, whatever the network; empty if they can."""
        try:
            made = self.runtime.call("RunPodSandbox", config=cri.on_the_host("trial"))["pod_sandbox_id"]
        except cri.Refused as reason:
            return str(reason)
        self.remove(made)
        return ""

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start it, and wait until it serves and has found its network."""
        self._process = self.room.start(self._log, "containerd", "--config", str(self._config))
        said = self.runtime.call("Status")
        waiting = [each for each in said["status"]["conditions"] if not each.get("status")]
        assert not waiting, waiting

    def kill(self) -> None:
        """End it at once; its pods go on."""
        assert self._process is not None
        os.kill(child(self._process.pid), signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def run(self, name: str, *ports: dict[str, Any]) -> Pod:
        """A pod that runs; raises Refused with the runtime's reason."""
        made = self.runtime.call("RunPodSandbox", config=cri.pod(name, ports))["pod_sandbox_id"]
        found = self.runtime.call("PodSandboxStatus", pod_sandbox_id=made, verbose=True)
        details = json.loads(next(each["value"] for each in found["info"] if each["key"] == "info"))
        spaces = details["runtimeSpec"]["linux"]["namespaces"]
        path = next(each["path"] for each in spaces if each["type"] == "network")
        network = found["status"]["network"]
        more = [each["ip"] for each in network.get("additional_ips", [])]
        inside = Inside(self.room.lab, name, self.room.path(path))
        images.wait(inside, addresses := (network["ip"], *more))
        return Pod(name, made, inside, addresses)

    def remove(self, pod: str) -> None:
        """Stop and remove a sandbox by its id."""
        self.runtime.call("StopPodSandbox", pod_sandbox_id=pod)
        self.runtime.call("RemovePodSandbox", pod_sandbox_id=pod)

    def pods(self) -> list[str]:
        """The ids of all sandboxes, whatever their state."""
        return [each["id"] for each in self.runtime.call("ListPodSandbox").get("items", [])]

    def clear(self) -> None:
        for pod in self.pods():
            self.remove(pod)

    def close(self) -> None:
        self.runtime.close()
        if self._process is not None:
            self.kill()

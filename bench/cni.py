"""One container's port by CNI's ADD and DEL: nfportd-cni, `portmap` with both its backends, and netavark's setup.

Must not look into a plugin: each is a process that is started as a runtime starts it. The one idea: each plugin at
each size has a host of its own, and processor time counts whoever spent it.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import peers, portmap
from bench.hosts import Connection, children, daemon_of, host
from bench.portmap import NETWORK, NETWORK_ID, Pod
from bench.ways import ADDED, REMOVED, Cost, Way, shared, spawn
from tests.lab import ROOT, Lab

#: How often each is measured, by the number of published ports.
ROUNDS = {0: 20, 100: 20, 1_000: 12, 5_000: 6, 10_000: 3}
#: Where the others would take minutes.
ALONE = {60_000: 15}
PLUGIN = ROOT / "nfportd/cni.py"
OURS, THEIRS = "nfportd, CNI", "portmap nftables"
#: Owners in one request.
_PART = 5_000
_CLONE_NEWNS = 0x20000  # linux/sched.h


class Plugin(Way):
    """A host of its own with one plugin, and a number of containers that have their ports published."""

    verbs = (ADDED, REMOVED)

    def __init__(self, lab: Lab, who: str, size: int, rounds: int) -> None:
        super().__init__(who, size, rounds)
        self.lab = lab
        self.name = f"{who.replace(',', '').replace(' ', '-')}-{size}"

    def populate(self) -> None:
        """One real ADD, which leaves what all share too, and the other containers in one go."""
        self.call(ADDED, Pod(0))
        if self.size == 0:
            self.call(REMOVED, Pod(0))
        else:
            self.fill([Pod(number) for number in range(1, self.size)])

    def step(self, verb: str, number: int) -> Cost:
        """Add or delete one more container."""
        return self.call(verb, Pod(self.size + number))

    def call(self, verb: str, pod: Pod) -> Cost:
        """Call the plugin as a runtime would."""
        raise NotImplementedError

    def fill(self, pods: Sequence[Pod]) -> None:
        """Publish as so many calls would have done."""
        raise NotImplementedError


class Cni(Plugin):
    """A plugin of the Container Network Interface, called with the result of a `bridge` before it."""

    program: Path
    environment: dict[str, str]
    #: Keys of the plugin's own.
    config: dict[str, str]

    def call(self, verb: str, pod: Pod) -> Cost:
        """The call of the specification's version 1.0.0."""
        netns = f"/run/netns/{self.lab.pods.full}"
        config: dict[str, Any] = {"cniVersion": "1.0.0", "name": NETWORK, "type": self.program.name}
        config |= self.config | {"prevResult": result(pod, netns)}
        config["runtimeConfig"] = {"portMappings": [{"hostPort": pod.port, "containerPort": 80, "protocol": "tcp"}]}
        command = {ADDED: "ADD", REMOVED: "DEL"}[verb]
        names = {"COMMAND": command, "CONTAINERID": pod.id, "NETNS": netns, "IFNAME": "eth0", "PATH": "/opt/cni/bin"}
        environment = {f"CNI_{name}": value for name, value in names.items()} | self.environment
        with self.lab.spaces[self.name].entered():
            return spawn([str(self.program)], json.dumps(config).encode(), environment)


class Ours(Cni):
    """nfportd, and its plugin as a CNI directory has it: one copied file."""

    def __init__(self, lab: Lab, size: int, rounds: int) -> None:
        super().__init__(lab, OURS, size, rounds)
        self.program = lab.tmp / "nfportd-cni"
        if not self.program.exists():
            shutil.copy(PLUGIN, self.program)
        self.daemon = daemon_of(lab, self.name)
        self.daemon.start()
        self.environment, self.config = {"NFPORTD_SOCKET": str(self.daemon.socket)}, {}
        self.populate()

    def fill(self, pods: Sequence[Pod]) -> None:
        """The same owners that ADD makes, thousands in a request."""
        netns = f"/run/netns/{self.lab.pods.full}"
        connection = Connection(self.daemon.socket)
        for first in range(0, len(pods), _PART):
            owners = {}
            for pod in pods[first : first + _PART]:
                mapping = {"listen": str(pod.port), "protocol": ["tcp"], "targets": [f"{pod.address}:80"]}
                owners[f"cni:{NETWORK}/{pod.id}/eth0"] = {"mappings": [mapping], "netns": netns}
            connection.ask(connection.request("POST", "/v1/transactions", {"owners": owners}))
        connection.close()

    def call(self, verb: str, pod: Pod) -> Cost:
        """The plugin's call, and what the daemon computes for it."""
        before = self._computed()
        wall, cpu = super().call(verb, pod)
        return Cost(wall, cpu + self._computed() - before)

    def _computed(self) -> float:
        """Milliseconds of processors so far in all threads of the daemon and its children."""
        tasks = [
            task for pid in (self.daemon.pid, *children(self.daemon)) for task in Path(f"/proc/{pid}/task").iterdir()
        ]
        # Documentation/scheduler/sched-stats.rst: the first number is nanoseconds on a processor.
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


class Portmap(Cni):
    """`portmap` with one of its backends, which it would else choose itself."""

    def __init__(self, lab: Lab, program: Path, backend: str, size: int, rounds: int) -> None:
        super().__init__(lab, f"portmap {backend}", size, rounds)
        self.program, self.config = program, {"backend": backend}
        self.environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        host(lab, self.name)
        self.populate()

    def fill(self, pods: Sequence[Pod]) -> None:
        """Rules just as those that the real ADD left."""
        space, backend = self.lab.spaces[self.name], self.config["backend"]
        portmap.fill(space, backend, pods)
        portmap.check(space, backend, Pod(0), (pods[0], pods[-1]))


class Netavark(Plugin):
    """netavark, which makes the container's link in the same call; without ports too, so that their part can be told.

    A container without ports stays, for with the last one netavark takes the bridge away.
    """

    def __init__(self, lab: Lab, command: list[str], size: int, rounds: int, ports: bool = True) -> None:
        super().__init__(lab, "netavark" if ports else "netavark without ports", size, rounds)
        self._ports = ports
        self._state = lab.tmp / self.name
        self._state.mkdir()
        self._command = [*command, "--config", str(self._state), "--rootless", "false"]
        self._inside = ThreadPoolExecutor(1, initializer=self._hide_run)
        space = lab.space(self.name)
        # Through /proc, for in the thread's mounts there is no /run/netns.
        self._netns = {}
        for end in ("pod", "first"):
            lab.space(f"{self.name}-{end}")
            holder = lab.spaces[f"{self.name}-{end}"].popen(["sleep", "infinity"])
            self._netns[end] = f"/proc/{holder.pid}/ns/net"
        self._own = f"/proc/{space.popen(['sleep', 'infinity']).pid}/ns/net"
        self.populate()

    def populate(self) -> None:
        """The container that stays, and the rules of the others."""
        first = Pod(0)
        self._spawn("setup", first, "first", ports=self.size > 0)
        if self.size:
            pods = [Pod(number) for number in range(1, self.size)]
            space = self.lab.spaces[self.name]
            portmap.fill(space, "netavark", pods)
            portmap.check(space, "netavark", first, (pods[0], pods[-1]))

    def call(self, verb: str, pod: Pod) -> Cost:
        """What podman calls when a container starts and when it has ended."""
        return self._spawn({ADDED: "setup", REMOVED: "teardown"}[verb], pod, "pod", self._ports)

    def _spawn(self, verb: str, pod: Pod, netns: str, ports: bool) -> Cost:
        command = [*self._command, verb, self._netns[netns]]
        given = json.dumps(network_options(pod, ports)).encode()
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NETAVARK_FW": "nftables"}
        return self._inside.submit(spawn, command, given, environment).result()

    def _hide_run(self) -> None:
        """In this thread: the host's network namespace, and a /run of its own, for netavark writes to /run/sysctl.d."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(self._own).open("rb") as namespace:
            if libc.unshare(_CLONE_NEWNS) or libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), "unshare, setns")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)


def network_options(pod: Pod, ports: bool) -> dict[str, Any]:
    """What podman tells netavark of a container in one bridge network with a fixed address."""
    published = {"host_ip": "", "host_port": pod.port, "container_port": 80, "range": 1, "protocol": "tcp"}
    network = {
        "name": NETWORK,
        "id": NETWORK_ID,
        "driver": "bridge",
        "network_interface": "br0",
        "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}],
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
        "options": {},
        "created": "2026-01-01T00:00:00Z",
    }
    return {
        "container_id": f"{pod.number:064x}",
        "container_name": pod.id,
        "port_mappings": [published] if ports else [],
        "networks": {NETWORK: {"static_ips": [pod.address], "aliases": [], "interface_name": "eth0"}},
        "network_info": {NETWORK: network},
    }


def result(pod: Pod, netns: str) -> dict[str, Any]:
    """What the `bridge` plugin before it in the chain says of a container."""
    interfaces = [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": f"veth{pod.number}", "mac": "02:00:00:00:00:02"},
    ]
    interfaces.append({"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": netns})
    addresses = [{"address": f"{pod.address}/16", "gateway": "10.88.0.1", "interface": 2}]
    routes = [{"dst": "0.0.0.0/0"}]
    return {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": addresses, "routes": routes, "dns": {}}


def plugins(lab: Lab, share: int) -> tuple[list[Plugin], list[str]]:
    """A host for each plugin and size; and what is measured beside nfportd, or why it is not."""
    lab.space("pods")
    rounds = {size: shared(times, share) for size, times in ROUNDS.items()}
    alone = {size: shared(times, share) for size, times in ALONE.items()}
    made: list[Plugin] = [Ours(lab, size, times) for size, times in (rounds | alone).items()]
    told = []
    try:
        program, version = peers.portmap()
        told.append(f"portmap {version}")
        for backend in ("nftables", "iptables"):
            if shutil.which(portmap.BACKENDS[backend].load[0]):
                made += [Portmap(lab, program, backend, size, times) for size, times in rounds.items()]
            else:
                told.append(f"portmap's {backend} backend not: there is no {portmap.BACKENDS[backend].load[0]}")
    except peers.Unavailable as why:
        told.append(f"portmap not: {why}")
    try:
        command, version = peers.netavark()
        told.append(f"netavark {version}")
        made += [Netavark(lab, command, size, times) for size, times in rounds.items()]
        made.append(Netavark(lab, command, 0, rounds[0], ports=False))
    except peers.Unavailable as why:
        told.append(f"netavark not: {why}")
    return made, told

"""`make bench`: what ADD and DEL cost through nfportd-cni and through `portmap`, among few and many ports.

Must not look into a plugin: each is a process that is started as a runtime starts it. The one idea: all plugins and
all sizes are measured in turn, each in a host of its own, and processor time counts whoever spent it.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import peers, portmap
from bench.api import Connection, daemon_of
from bench.dropins import host
from bench.portmap import BACKENDS, NETWORK, Pod
from tests.lab import ROOT, Lab

SIZES = (0, 100, 1_000, 5_000)
#: Among how many published ports a hundred containers come and go.
CROWDS = (0, 1_000)
ROUNDS = 20
PODS = 100
PLUGIN = ROOT / "nfportd/cni.py"
OURS = "nfportd-cni"


class Cost(NamedTuple):
    """Milliseconds of one call: by the clock, and of processors in the plugin and its children."""

    wall: float
    cpu: float


class Host:
    """A host of its own with one plugin, and a number of containers that have their ports published."""

    def __init__(self, lab: Lab, name: str, program: Path, count: int) -> None:
        self.lab, self.name, self.program, self.count = lab, name, program, count
        self.label = f"{name.replace(' ', '-')}-{count}"
        self.environment: dict[str, str] = {}
        self.costs: dict[str, list[Cost]] = {"ADD": [], "DEL": []}

    def populate(self) -> None:
        """One real ADD, which leaves what all share too, and the other containers in one go."""
        self.call("ADD", Pod(0))
        if self.count == 0:
            self.call("DEL", Pod(0))
        else:
            self.fill([Pod(number) for number in range(1, self.count)])

    def once(self, number: int) -> None:
        """Add and delete one more container."""
        for verb, found in self.costs.items():
            found.append(self.call(verb, Pod(self.count + number)))

    def call(self, verb: str, pod: Pod) -> Cost:
        """Call the plugin as a runtime would."""
        netns = f"/run/netns/{self.lab.pods.full}"
        config: dict[str, Any] = {"cniVersion": "1.0.0", "name": NETWORK, "type": self.program.name}
        config |= self.config() | {"prevResult": result(pod, netns)}
        config["runtimeConfig"] = {"portMappings": [{"hostPort": pod.port, "containerPort": 80, "protocol": "tcp"}]}
        names = {"COMMAND": verb, "CONTAINERID": pod.id, "NETNS": netns, "IFNAME": "eth0", "PATH": "/opt/cni/bin"}
        environment = {f"CNI_{name}": value for name, value in names.items()} | self.environment
        with self.lab.spaces[self.label].entered():
            return spawn([str(self.program)], json.dumps(config).encode(), environment)

    def fill(self, pods: Sequence[Pod]) -> None:
        """Publish as so many ADDs would have done."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Keys of the plugin's own."""
        return {}

    def standing(self) -> float:
        """Milliseconds of processors so far in what runs beside the calls."""
        return 0


class Ours(Host):
    """nfportd, and its plugin as a CNI directory has it: one copied file."""

    def __init__(self, lab: Lab, count: int) -> None:
        super().__init__(lab, OURS, lab.tmp / OURS, count)
        if not self.program.exists():
            shutil.copy(PLUGIN, self.program)
        self.daemon = daemon_of(lab, self.label)
        widen(lab, self.label)
        self.daemon.start()
        self.environment = {"NFPORTD_SOCKET": str(self.daemon.socket)}
        self.populate()

    def fill(self, pods: Sequence[Pod]) -> None:
        """The same owners that ADD makes, in one request."""
        netns = f"/run/netns/{self.lab.pods.full}"
        owners = {}
        for pod in pods:
            mapping = {"listen": str(pod.port), "protocol": ["tcp"], "targets": [f"{pod.address}:80"]}
            owners[f"cni:{NETWORK}/{pod.id}/eth0"] = {"mappings": [mapping], "netns": netns}
        connection = Connection(self.daemon.socket)
        body = json.dumps({"owners": owners}).encode()
        connection.request("POST", "/v1/transactions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        connection.close()

    def standing(self) -> float:
        """The daemon's processor time, all threads."""
        fields = Path(f"/proc/{self.daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


class Portmap(Host):
    """`portmap` with one of its backends."""

    def __init__(self, lab: Lab, count: int, program: Path, backend: str) -> None:
        super().__init__(lab, f"portmap {backend}", program, count)
        self.backend = backend
        self.environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        host(lab, self.label)
        widen(lab, self.label)
        self.populate()

    def fill(self, pods: Sequence[Pod]) -> None:
        """Rules just as those that the real ADD left."""
        space = self.lab.spaces[self.label]
        portmap.fill(space, self.backend, pods)
        portmap.check(space, self.backend, Pod(0), (pods[0], pods[-1]))

    def config(self) -> dict[str, Any]:
        """The backend, which it would else choose itself."""
        return {"backend": self.backend}


def widen(lab: Lab, name: str) -> None:
    """Room for thousands of containers at the host's bridge."""
    lab.spaces[name].batch("address add 10.88.0.1/16 dev br0\n")


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


def spawn(command: list[str], given: bytes = b"", environment: dict[str, str] | None = None) -> Cost:
    """Run a program to its end; one that fails ends the measurement with what it printed."""
    with os.fdopen(os.memfd_create("given"), "w+b") as stdin, os.fdopen(os.memfd_create("told"), "w+b") as told:
        stdin.write(given)
        stdin.seek(0)
        places = [(os.POSIX_SPAWN_DUP2, file.fileno(), to) for file, to in ((stdin, 0), (told, 1), (told, 2))]
        started = time.perf_counter()
        pid = os.posix_spawn(command[0], command, environment or {}, file_actions=places)
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - started
        if status:
            told.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {told.read().decode()}")
    return Cost(wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000)


def in_turn(hosts: Sequence[Host], number: int) -> Sequence[Host]:
    """Another one first each time, for a call may leave work to the kernel that falls on the next."""
    first = number % len(hosts)
    return [*hosts[first:], *hosts[:first]]


def spread(costs: Sequence[Cost]) -> dict[str, float]:
    """Median, and what a tenth of the calls is below and above."""
    wall = [cost.wall for cost in costs]
    tenths = statistics.quantiles(wall, n=10, method="inclusive")
    cpu = statistics.median(cost.cpu for cost in costs)
    return {"median_ms": statistics.median(wall), "p10_ms": tenths[0], "p90_ms": tenths[-1], "cpu_ms": cpu}


def attach(hosts: Sequence[Host], rounds: int) -> dict[str, Any]:
    """Milliseconds of ADD and DEL for each plugin and size."""
    for number in range(rounds):
        for each in in_turn(hosts, number):
            each.once(number)
    names = list(dict.fromkeys(each.name for each in hosts))
    print(
        f"\nOne container more: milliseconds, median (tenth to nine tenths) of {rounds} times each, in turn; cpu: what"
    )
    print(f"the plugin and its children compute; x: times {OURS}; /0: times the same plugin with nothing published")
    print(f"{'':>3} {'published':>9}  " + "  ".join(f"{name:^44}" for name in names))
    results: dict[str, Any] = {}
    for verb in ("ADD", "DEL"):
        results[verb] = table = {}
        for count in sorted({each.count for each in hosts}):
            row = table[str(count)] = {each.name: spread(each.costs[verb]) for each in hosts if each.count == count}
            for name, found in row.items():
                found["ratio"] = found["median_ms"] / row[OURS]["median_ms"]
                found["growth"] = found["median_ms"] / table[str(SIZES[0])][name]["median_ms"]
            print(f"{verb:>3} {count:>9,}  " + "  ".join(map(_cell, row.values())))
    return results


def _cell(found: dict[str, float]) -> str:
    span = f"({found['p10_ms']:.0f} to {found['p90_ms']:.0f})"
    cost = f"{found['median_ms']:>6.1f} {span:<14} {found['cpu_ms']:>5.0f} cpu"
    return f"{cost} {found['ratio']:>4.1f} x {found['growth']:>4.1f} /0"


def crowd(hosts: Sequence[Host], count: int, pods: int) -> dict[str, Any]:
    """Seconds of processors for ADD and DEL of many containers, in all processes together."""
    present = [each for each in hosts if each.count == count]
    before = {each.name: each.standing() for each in present}
    calls: dict[str, list[Cost]] = {each.name: [] for each in present}
    for verb in ("ADD", "DEL"):
        for number in range(pods):
            for each in in_turn(present, number):
                calls[each.name].append(each.call(verb, Pod(count + number)))
    results = {}
    for each in present:
        spent = {"plugin_s": sum(cost.cpu for cost in calls[each.name]) / 1000}
        spent["daemon_s"] = (each.standing() - before[each.name]) / 1000
        results[each.name] = spent | {"cpu_s": sum(spent.values())}
        results[each.name]["wall_s"] = sum(cost.wall for cost in calls[each.name]) / 1000
    base = results[OURS]["cpu_s"]
    for name, spent in results.items():
        spent["ratio"] = spent["cpu_s"] / base
        print(f"{count:>10,}  {name:<18}" + "".join(f"{spent[key]:>10.2f}" for key in _SPENT))
    return results


_SPENT = ("cpu_s", "plugin_s", "daemon_s", "wall_s", "ratio")


def crowds(hosts: Sequence[Host], pods: int) -> dict[str, Any]:
    """One table of what many containers cost, among none and many."""
    print(f"\n{pods} containers come, and go: seconds of processors, the plugin's with its children's (nft, iptables)")
    heads = ("all", "plugin", "daemon", "by clock", "ratio")
    print(f"{'published':>10}  {'':<18}" + "".join(f"{head:>10}" for head in heads))
    return {str(count): crowd(hosts, count, pods) for count in CROWDS}


def inside(ours: Host, rounds: int) -> dict[str, Any]:
    """Where the plugin's time goes: each row does what the row before does, and more."""
    tree = ast.parse(PLUGIN.read_text())
    imports = "\n".join(ast.unparse(each) for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom))
    python = ["/usr/bin/python3", "-I", "-S", "-c"]
    end = "import posix; posix._exit(0)"  # as the plugin ends
    version = {"CNI_COMMAND": "VERSION"}
    steps: dict[str, Callable[[], Cost]] = {
        "a process (/bin/true)": lambda: spawn(["/bin/true"]),
        "the interpreter alone": lambda: spawn([*python, end]),
        "its imports": lambda: spawn([*python, f"{imports}\n{end}"]),
        "itself read and compiled (VERSION)": lambda: spawn([str(ours.program)], b"", version),
        "the configuration and the request (ADD)": lambda: ours.call("ADD", Pod(50_000)),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            costs[name].append(step())
        ours.call("DEL", Pod(50_000))
    print(f"\nWhere the time of an ADD goes: medians of {rounds} times each, in turn; each row does more than the last")
    print(f"{'':<40} {'ms':>6} {'more':>6}   {'processor ms':>12}")
    results, last = {}, 0.0
    for name, found in costs.items():
        wall, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{name:<40} {wall:>6.2f} {wall - last:>6.2f}   {cpu:>12.2f}")
        results[name], last = {"median_ms": wall, "cpu_ms": cpu}, wall
    return results


def hosts_of(lab: Lab) -> list[Host]:
    """A host for each plugin and size; without `portmap` where it cannot be had."""
    lab.space("pods")
    hosts: list[Host] = [Ours(lab, count) for count in SIZES]
    try:
        program, version = peers.portmap()
    except peers.Unavailable as why:
        print(f"\nno portmap to compare with: {why}")
        return hosts
    print(f"\nportmap of the CNI plugins {version}")
    for backend in BACKENDS:
        if shutil.which(BACKENDS[backend].load[0]):
            hosts += [Portmap(lab, count, program, backend) for count in SIZES]
        else:
            print(f"without its {backend} backend: there is no {BACKENDS[backend].load[0]} here")
    return hosts


def main(rounds: int = ROUNDS, pods: int = PODS) -> dict[str, Any]:
    """Print all tables."""
    with Lab(build=False) as lab:
        hosts = hosts_of(lab)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        return {"attach": attach(hosts, rounds), "crowds": crowds(hosts, pods), "inside": inside(hosts[0], rounds * 2)}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

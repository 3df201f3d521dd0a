"""The laboratory: a host made of namespaces, with targets, clients and a LAN, and the real daemon in it.

It must not know pytest or the daemon's code, and must never touch the root namespace. The one idea: every
namespace bears the pid of its maker in its name, and is removed at the end, at exit, or by the next lab.

         outside 198.51.100.10 ---- out0 +------+ br0 10.88.0.1 ---- t1 .11, t2 .12   (hairpin ports)
    LAN  client 192.0.2.10 --+           | host | br1 10.88.2.1 ---- t4 .11
         lan    192.0.2.50 --+-- sw0 --- up0    | veth3 10.88.1.1 -- t3 10.88.1.2     (routed, no bridge)
"""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.netns import Namespace, ip, remove, sweep
from tests.probes import Servers

ROOT = Path(__file__).resolve().parent.parent

# addresses of the namespaces around the host: (IPv4, IPv6)
ADDRESSES = {
    "t1": ("10.88.0.11", "fd88::11"),
    "t2": ("10.88.0.12", "fd88::12"),
    "t3": ("10.88.1.2", "fd88:0:0:1::2"),
    "t4": ("10.88.2.11", "fd88:0:0:2::11"),
    "lan": ("192.0.2.50", "2001:db8::50"),
    "client": ("192.0.2.10", "2001:db8::10"),
    "outside": ("198.51.100.10", "2001:db8:1::10"),
}
# the host's own addresses by interface: (IPv4 addresses, IPv6 addresses)
HOST = {
    "up0": (("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")),
    "out0": (("198.51.100.1",), ("2001:db8:1::1",)),
    "br0": (("10.88.0.1",), ("fd88::1",)),
    "br1": (("10.88.2.1",), ("fd88:0:0:2::1",)),
    "veth3": (("10.88.1.1",), ("fd88:0:0:1::1",)),
}
# the host's interface towards each of them
LINK_OF = {"t1": "br0", "t2": "br0", "t3": "veth3", "t4": "br1"}
LINK_OF |= {"lan": "up0", "client": "up0", "outside": "out0"}
TARGETS = ("t1", "t2", "t3", "t4", "lan")


def address(name: str, family: int) -> str:
    return ADDRESSES[name][0 if family == 4 else 1]


def host_addresses(interface: str, family: int) -> tuple[str, ...]:
    return HOST[interface][0 if family == 4 else 1]


def endpoint(host: str, port: int | str) -> str:
    """`address:port` as drop-ins write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Lab:
    """The host and what surrounds it. `Lab()` builds everything; close() removes everything."""

    alive: ClassVar[list[Lab]] = []

    def __init__(self, build: bool = True) -> None:
        sweep()
        self.prefix = f"nfp{os.getpid()}x{secrets.token_hex(2)}"
        self.tmp = Path(tempfile.mkdtemp(prefix=self.prefix + "-"))
        self.spaces: dict[str, Namespace] = {}
        self.processes: list[subprocess.Popen[str]] = []
        self.daemons: list[Daemon] = []
        self.servers = Servers()
        Lab.alive.append(self)
        atexit.register(self.close)
        if build:
            try:
                self._build()
            except BaseException:
                self.close()
                raise

    def __getattr__(self, name: str) -> Namespace:
        """lab.host, lab.t1, lab.outside: the namespaces by name."""
        try:
            return self.__dict__["spaces"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    def space(self, name: str) -> Namespace:
        """A new namespace with loopback up and no waiting for duplicate addresses."""
        made = self.spaces[name] = Namespace(name, self.prefix, self.servers, self.processes)
        for key in ("all", "default"):
            made.sysctl(f"net.ipv6.conf.{key}.accept_dad", 0)
            made.sysctl(f"net.ipv6.conf.{key}.accept_ra", 0)
        made.sysctl("net.ipv4.icmp_ratelimit", 0)  # `refused` on UDP must not depend on what ran before
        made.sysctl("net.ipv6.icmp.ratelimit", 0)
        made.ip("link", "set", "lo", "up")
        return made

    def link(self, one: Namespace, one_name: str, other: Namespace, other_name: str) -> None:
        """A veth pair between two namespaces, up on both sides."""
        ip("link", "add", one_name, "netns", one.full, "type", "veth", "peer", "name", other_name, "netns",
           other.full)  # fmt: skip
        one.ip("link", "set", one_name, "up")
        other.ip("link", "set", other_name, "up")

    def bridge(self, space: Namespace, name: str) -> None:
        space.ip("link", "add", name, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        space.ip("link", "set", name, "up")

    def attach(self, name: str, bridge: str, host: str = "host") -> Namespace:
        """A new namespace `name` whose eth0 is a hairpin port of a bridge of the host."""
        made = self.spaces.get(name) or self.space(name)
        port, space = f"v-{name}", self.spaces[host]
        self.link(made, "eth0", space, port)
        space.ip("link", "set", port, "master", bridge)
        space.run(["bridge", "link", "set", "dev", port, "hairpin", "on"])
        return made

    def discard(self, name: str) -> None:
        """Remove a namespace before the end, with its links and what runs in it."""
        remove(self.spaces.pop(name).full)

    def number(self, name: str, via: str) -> None:
        """Give `name` its addresses of the plan and default routes through the host's interface `via`."""
        (four, six), (host_four, host_six) = ADDRESSES[name], HOST[via]
        self.spaces[name].batch(
            f"addr add {four}/24 dev eth0\naddr add {six}/64 dev eth0 nodad\n"
            f"route add default via {host_four[0]}\nroute add default via {host_six[0]}\n"
        )

    def _build(self) -> None:
        host = self.space("host")
        host.sysctl("net.ipv4.ip_forward", 1)
        host.sysctl("net.ipv6.conf.all.forwarding", 1)
        switch = self.space("switch")
        for key in ("iptables", "ip6tables", "arptables"):  # a switch looks at no IP header
            switch.sysctl(f"net/bridge/bridge-nf-call-{key}", 0)
        self.bridge(switch, "sw0")
        self.link(host, "up0", switch, "uplink")
        switch.ip("link", "set", "uplink", "master", "sw0")
        for name in ("client", "lan"):
            self.attach(name, "sw0", host="switch")
        self.bridge(host, "br0")
        self.bridge(host, "br1")
        for name, bridge in (("t1", "br0"), ("t2", "br0"), ("t4", "br1")):
            self.attach(name, bridge)
        for name, interface in (("t3", "veth3"), ("outside", "out0")):
            self.link(self.space(name), "eth0", host, interface)
        lines = []
        for interface in ("up0", "out0", "br0", "br1"):
            lines += [f"addr add {a}/24 dev {interface}" for a in HOST[interface][0]]
            lines += [f"addr add {a}/64 dev {interface} nodad" for a in HOST[interface][1]]
        lines.append("addr add 10.88.1.1 peer 10.88.1.2/32 dev veth3")
        lines.append("addr add fd88:0:0:1::1/128 dev veth3 nodad")
        lines.append("route add fd88:0:0:1::2/128 dev veth3")
        host.batch("\n".join(lines))
        for name in ("client", "lan", "t1", "t2", "t4", "outside"):
            self.number(name, LINK_OF[name])
        self.spaces["t3"].batch(
            "addr add 10.88.1.2 peer 10.88.1.1/32 dev eth0\nroute add default via 10.88.1.1\n"
            "addr add fd88:0:0:1::2/128 dev eth0 nodad\nroute add fd88:0:0:1::1/128 dev eth0\n"
            "route add default via fd88:0:0:1::1\n"
        )

    def bridge_netfilter(self, on: bool) -> None:
        """Whether bridged packets of the host pass the IP hooks (br_netfilter), in both families."""
        for key in ("iptables", "ip6tables"):
            self.host.sysctl(f"net/bridge/bridge-nf-call-{key}", int(on))

    def reset(self) -> None:
        """The host as it was built, whatever a daemon that was killed has left in it."""
        self.host.run(["nft", "delete", "table", "inet", "nfportd"], check=False)  # there may be none
        for interface in HOST:
            self.host.sysctl(f"net/ipv4/conf/{interface}/route_localnet", 0)
        for route in self.host.ip("-6", "route", "show", "table", "local", "::1").splitlines():
            if "dev lo" not in route:
                self.host.ip("-6", "route", "del", *route.split(), "table", "local")
        self.host.run(["conntrack", "-F"])  # the next client may use the same source port

    def report(self) -> str:
        """What a failed test wants to see: the host's ruleset and the daemons' logs."""
        parts = []
        if "host" in self.spaces:
            parts.append("--- ruleset of the host\n" + self.host.nft("list ruleset", check=False)[:20000])
        parts += [f"--- log of {daemon.dir.name}\n{daemon.log[-8000:]}" for daemon in self.daemons]
        return "\n".join(parts)

    def close(self) -> None:
        if self not in Lab.alive:
            return
        Lab.alive.remove(self)
        atexit.unregister(self.close)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        self.servers.close()
        for space in self.spaces.values():
            remove(space.full)
        shutil.rmtree(self.tmp, ignore_errors=True)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Daemon:
    """The real daemon in a namespace, with directories of its own; its log spans all its lives."""

    def __init__(self, lab: Lab, settings: str = "", arguments: Sequence[str] = (), space: str = "host") -> None:
        self.space = lab.spaces[space]
        self.dir = Path(tempfile.mkdtemp(prefix="daemon-", dir=lab.tmp))
        self.dropins = self.dir / "dropins"
        self.config = self.dir / "nfportd.yaml"
        self._log = self.dir / "log"
        self.dropins.mkdir()
        self.config.write_text(settings)
        self._log.touch()
        self.socket = self.dir / "run" / "nfportd.sock"
        places = {"--config": self.config, "--dropins": self.dropins, "--run-dir": self.dir / "run"}
        places["--state-dir"] = self.dir / "state"
        self.arguments = [part for option, place in places.items() for part in (option, str(place))]
        self.arguments += arguments
        #: What runs the program, such as nsenter; it must become it.
        self.prefix: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        lab.daemons.append(self)

    @staticmethod
    def command(program: str = "nfportd") -> list[str]:
        """How a program of the project is started: from this Python, the tree's .venv, or as a module."""
        for place in (Path(sys.prefix, "bin"), ROOT / ".venv/bin"):
            if (place / program).exists():
                return [str(place / program)]
        return [sys.executable, "-m", program]

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, wait: bool = True, timeout: float = 20) -> str:
        """Start it (again); the `ready` line, unless told not to wait."""
        seen = len(self.log)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        environment.pop("NOTIFY_SOCKET", None)
        with self._log.open("a") as log:
            self.process = self.space.popen(
                [*self.prefix, *self.command(), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.dir,
            )
        return self.wait_for(r"\bready: ", seen, timeout) if wait else ""

    def wait_for(self, pattern: str, seen: int = 0, timeout: float = 10) -> str:
        """The first line of the log after offset `seen` that matches; else it fails with the log."""
        until = time.monotonic() + timeout
        while True:
            dead = self.process is not None and self.process.poll() is not None
            for line in self.log[seen:].splitlines(keepends=True):
                if line.endswith("\n") and re.search(pattern, line):
                    return line.strip()
            if dead or time.monotonic() > until:
                why = "the daemon ended" if dead else f"no such line in {timeout} s"
                raise AssertionError(f"waiting for /{pattern}/: {why}\n{self.log[-4000:]}")
            time.sleep(0.005)

    def write(self, name: str, text: str, wait: bool = True) -> str:
        """Put a drop-in in place by an atomic rename; the `applied` or error line that follows."""
        seen = len(self.log)
        draft = self.dir / f"{name}.new"
        draft.write_text(text, errors="surrogateescape")
        draft.rename(self.dropins / name)
        return self.answered(name, seen) if wait else ""

    def remove(self, name: str, wait: bool = True) -> str:
        seen = len(self.log)
        (self.dropins / name).unlink()
        return self.answered(name, seen) if wait else ""

    def answered(self, name: str, seen: int, timeout: float = 10) -> str:
        """The line by which the daemon answers a change of a file: the error's place in it, or applied."""
        applied = self.wait_for(rf"\bapplied: .*({re.escape(name)}|all files)", seen, timeout)
        wrong = re.search(rf".*{re.escape(name)}:\d+:\d+: .*", self.log[seen:])
        return wrong[0] if wrong else applied

    def hup(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, and the exit status."""
        return self._end(signal.SIGTERM, timeout)

    def _end(self, number: signal.Signals, timeout: float = 10) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        status = self.process.wait(timeout)
        self.process = None
        return status

    def table(self) -> dict[str, Any]:
        """`nft -j list table inet nfportd` as read; an empty dict when there is no such table."""
        done = self.space.run(["nft", "-j", "list", "table", "inet", "nfportd"], check=False)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        """The table's chains, maps or sets by name."""
        listed = [entry[kind] for entry in self.table().get("nftables", []) if kind in entry]
        return {entry["name"]: entry for entry in listed}

    def elements(self, name: str) -> dict[str, str]:
        """A map's elements, as `tcp . 8080` -> `10.88.0.11 . 80`."""
        return {joined(key): joined(value) for key, value in self.objects("map")[name].get("elem", [])}

    def counters(self, name: str) -> dict[str, int]:
        """Connections that each element of a map took, by key."""
        elements = self.objects("map")[name].get("elem", [])
        return {joined(key): int(key["elem"]["counter"]["packets"]) for key, _ in elements}


def joined(value: Any) -> str:
    """An element's key or value as nft writes it in text."""
    if isinstance(value, dict) and "elem" in value:
        return joined(value["elem"]["val"])
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(joined(part) for part in value["concat"])
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    return str(value)

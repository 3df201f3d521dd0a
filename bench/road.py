"""A client, a host and a target, each in a namespace of its own, and the load that is driven over the host.

Must not know what the host does with a packet. The one idea: every host has its own client and target with the same
addresses as all others have, so that two of them differ by nothing but their rules.

    client 192.0.2.10 --- up0 192.0.2.1 | host | pods0 10.88.0.1/16, fd88::1/64 --- target 10.88.x.y, fd88::2
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.layouts import HOST, PODS
from tests.lab import Lab
from tests.netns import NETNS, Namespace

SOURCE = Path(__file__).with_name("load.c")
#: The core that client, kernel and server share; what else runs has the others, if there are any.
CORE = max(os.sched_getaffinity(0))
TARGET6 = "fd88::2"
TARGET_PORT = 80


class Sample(NamedTuple):
    """What the load did: connections, packets or bytes; in seconds, of them in its own code; microseconds of one."""

    number: int
    seconds: float
    user: float
    system: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """So many a second."""
        return self.number / self.seconds


class Way(NamedTuple):
    """From which namespace to which address the load goes; `bridged`: the target hangs on a bridge of the host."""

    name: str
    origin: str
    address: str
    bridged: bool = False


def compiled(lab: Lab) -> Path:
    """The load program. Raises OSError or subprocess.CalledProcessError where there is no compiler."""
    program = lab.tmp / "load"
    if not program.exists():
        subprocess.run(["cc", "-O2", "-std=c17", "-o", program, SOURCE], check=True)
    return program


class Road:
    """Three namespaces in a row."""

    def __init__(self, lab: Lab, name: str, target: str, bridged: bool = False) -> None:
        self._program = compiled(lab)
        self.target_address = target
        self.client, self.host, self.target = (lab.space(f"{name}-{part}") for part in ("client", "host", "target"))
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.host.sysctl(f"net/{key}", 1)
        for key in ("all", "default"):
            # A hairpin leaves by the link by which it came.
            self.host.sysctl(f"net/ipv4/conf/{key}/send_redirects", 0)
        lab.link(self.client, "eth0", self.host, "up0")
        if bridged:
            lab.bridge(self.host, PODS)
        lab.link(self.target, "eth0", self.host, "port0" if bridged else PODS)
        if bridged:
            self.host.ip("link", "set", "port0", "master", PODS)
        self.host.batch(
            f"address add {HOST}/24 dev up0\naddress add 10.88.0.1/16 dev {PODS}\n"
            f"address add fd88::1/64 dev {PODS} nodad\n"
        )
        self.client.batch(f"address add 192.0.2.10/24 dev eth0\nroute add default via {HOST}\n")
        self.target.batch(
            f"address add {target}/16 dev eth0\naddress add {TARGET6}/64 dev eth0 nodad\n"
            "route add default via 10.88.0.1\nroute add default via fd88::1\n"
        )

    def load(self, command: Sequence[str], text: str, seconds: float) -> None:
        """Load rules into the host. Raises subprocess.TimeoutExpired where that takes longer."""
        self.host.run(command, text=text, timeout=seconds)

    def drive(self, mode: str, way: Way, port: int, milliseconds: float, window: int) -> Sample:
        """Run the load once. What it leaves in the connection tracking is taken away, so that each finds the same."""
        origin: Namespace = getattr(self, way.origin)
        spaces = [str(NETNS / space.full) for space in (origin, self.target)]
        numbers = map(str, (port, TARGET_PORT, milliseconds, window, CORE))
        command = [str(self._program), mode, *spaces, way.address, *numbers]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{mode} {way.name} in {self.host.name}: {done.stderr.strip()}")
        self.host.run(["conntrack", "-F"])
        number, *figures = done.stdout.split()
        return Sample(int(number), *map(float, figures))

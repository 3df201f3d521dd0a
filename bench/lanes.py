"""What is measured side by side: nfportd with its daemon, the rules of others, the limits and a relay, each on a road.

Must not measure. The one idea: all of them stand in the kernel at the same time, so that they can be taken in turn.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.layouts import CONNTRACK, HOST, LIMITS, NO_CONNTRACK, PARTS, PEERS, PODS, Layout, newest
from bench.results import OURS
from bench.road import CORE, TARGET6, TARGET_PORT, Road, Sample, Way
from tests.lab import Daemon, Lab

#: Seconds; rules that take longer to load are left out.
PATIENCE = 20
RELAY = Path("/usr/lib/systemd/systemd-socket-proxyd")
RELAYED = "systemd-socket-proxyd"

OUTSIDE = Way("from elsewhere", "client", HOST)
#: The same through parts of nfportd's rules, to see what each of them costs.
PARTLY = OUTSIDE._replace(name="parts of nfportd's rules")
#: Other ways to a published port; each is measured with the fewest and the most mappings.
WAYS = (
    Way("127.0.0.1", "host", "127.0.0.1"),
    Way("hairpin", "target", HOST),
    Way("[::1] in the kernel", "host", "::1"),
    Way("[::1] by the relay", "host", "::1", bridged=True),
)
#: Who serves them, beside nfportd: the others translate no connection from loopback, or have no rule for IPv6.
ALSO = {
    "127.0.0.1": ("portmap nftables", "portmap iptables"),
    "hairpin": ("portmap nftables", "portmap iptables", "kube-proxy nftables", "kube-proxy iptables"),
}


class Kind(NamedTuple):
    """What is measured: the load's mode, how much of it is on its way at once, and what one of the unit is."""

    group: str
    mode: str
    window: int
    unit: str = "1/s"
    scale: float = 1


class Lane(NamedTuple):
    """One measured program among a number of mappings, the way to it, and the samples of each turn."""

    who: str
    size: int
    road: Road
    way: Way
    port: int
    samples: dict[str, list[Sample]]

    def once(self, kind: Kind, milliseconds: float) -> None:
        """One more sample."""
        sample = self.road.drive(kind.mode, self.way, self.port, milliseconds, kind.window)
        self.samples[kind.group].append(sample)

    def rates(self, kind: Kind) -> list[float]:
        """What each turn found, in the kind's unit."""
        return [sample.rate / kind.scale for sample in self.samples[kind.group]]

    @property
    def group(self) -> str:
        """What is told apart from the way from elsewhere."""
        return "" if self.way in (OUTSIDE, _direct(self.road)) else f", {self.way.name}"


def _direct(road: Road, origin: str = "client") -> Way:
    """Past every mapping, to the target's own address."""
    return Way("direct", origin, road.target_address)


class Hosts:
    """All that is measured, as it stands in the kernel."""

    def __init__(self, lab: Lab, sizes: Sequence[int]) -> None:
        self._lab, self.sizes = lab, sizes
        self._number = 0
        self.lanes: list[Lane] = []
        self.daemons: list[Daemon] = []
        #: Why something is not measured.
        self.left_out: list[str] = []

    def build(self) -> None:
        """Everything; the limits are the same road at each size, and are measured beside each."""
        for who, layout in LIMITS.items():
            road = self._road(newest(1).address)
            self._rules(road, layout, 1)
            port = newest(1).port
            way, port = (_direct(road), TARGET_PORT) if who in (NO_CONNTRACK, CONNTRACK) else (OUTSIDE, port)
            for size in self.sizes:
                self._lane(who, size, road, way, port)
            if who == CONNTRACK:
                self._lane(who, self.sizes[0], road, _direct(road, "host")._replace(name="127.0.0.1"), port)
        for size in self.sizes:
            self._ours(size)
        for who, layout in PEERS.items():
            self._peer(who, layout)
        for who, layout in PARTS.items():
            road = self._road(newest(1).address)
            self._rules(road, layout, 1)
            self._ways(who, 1, road, [PARTLY])
        self._relay()

    def ready(self) -> Iterator[Lane]:
        """The lanes by which a connection comes through; of others it is told why not."""
        for lane in self.lanes:
            try:
                lane.road.drive("connect", lane.way, lane.port, 1, 1)
            except RuntimeError as why:
                self.left_out.append(f"{lane.who}, {lane.way.name}, {lane.size:,} mappings: {why}")
                if lane.way == OUTSIDE:
                    raise
            else:
                yield lane

    def _road(self, target: str, bridged: bool = False) -> Road:
        self._number += 1
        return Road(self._lab, f"r{self._number}", target, bridged)

    def _lane(self, who: str, size: int, road: Road, way: Way, port: int) -> None:
        self.lanes.append(Lane(who, size, road, way, port, defaultdict(list)))

    def _rules(self, road: Road, layout: Layout, size: int) -> float:
        started = time.monotonic()
        if text := layout.text(size):
            road.load(layout.load, text, PATIENCE)
        return time.monotonic() - started

    def _ways(self, who: str, size: int, road: Road, ways: Sequence[Way]) -> None:
        for way in ways:
            self._lane(who, size, road, way, newest(size).port)

    def _ours(self, size: int) -> None:
        """The daemon, with the other mappings as a range: that makes the same elements."""
        ends = size in (self.sizes[0], self.sizes[-1])
        for bridged in (False, True) if ends else (False,):
            road = self._road(newest(size).address, bridged)
            daemon = Daemon(self._lab, space=road.host.name)
            (daemon.dropins / "mappings.yaml").write_text(dropin(size))
            daemon.start(timeout=120)
            self.daemons.append(daemon)
            ways = [way for way in WAYS if ends and way.bridged == bridged]
            self._ways(OURS, size, road, ways if bridged else [OUTSIDE, *ways])

    def _peer(self, who: str, layout: Layout) -> None:
        took, last = 0.0, 1
        for size in self.sizes:
            # Below, what it takes is the start of a process.
            if last >= 1_000 and took * size / last > PATIENCE:
                self.left_out.append(f"{who}, {size:,} mappings: its rules take more than {PATIENCE} s to load")
                continue
            road = self._road(newest(size).address)
            # portmap sets it; without it the answers to 127.0.0.1 are dropped.
            road.host.sysctl(f"net/ipv4/conf/{PODS}/route_localnet", 1)
            try:
                took, last = self._rules(road, layout, size), size
            except subprocess.TimeoutExpired:
                took, last = PATIENCE + 1.0, size
                self.left_out.append(f"{who}, {size:,} mappings: its rules take more than {PATIENCE} s to load")
                continue
            ends = size in (self.sizes[0], self.sizes[-1])
            ways = [way for way in WAYS if ends and who in ALSO.get(way.name, ())]
            self._ways(who, size, road, [OUTSIDE, *ways])

    def _relay(self) -> None:
        """A process in user space, on the same core as the rest; it serves one port, so one size is all there is."""
        if not RELAY.exists():
            self.left_out.append(f"{RELAYED}: {RELAY} is not there")
            return
        road, port = self._road(newest(1).address), newest(1).port
        with road.host.entered():
            listener = socket.create_server((HOST, port), backlog=1024)
        command = f"LISTEN_PID=$$ LISTEN_FDS=1 exec taskset -c {CORE} {RELAY} {road.target_address}:{TARGET_PORT} 3<&0"
        road.host.popen(["sh", "-c", command], stdin=listener)
        listener.close()
        self._lane(RELAYED, 1, road, OUTSIDE, port)


def dropin(size: int) -> str:
    """The newest mapping, and all others as a range that leads elsewhere."""
    pod = newest(size)
    targets = f'["{pod.address}:80", "[{TARGET6}]:80"]'
    text = f"mappings:\n  - {{listen: {pod.port}, protocol: [tcp, udp], targets: {targets}}}\n"
    if size > 1:
        span = f"{pod.port - size + 1}-{pod.port - 1}"
        text += f"  - {{listen: {span}, targets: '10.88.255.1:{span}'}}\n"
    return text

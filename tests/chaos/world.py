"""The host under chaos: a daemon whose store has little room, stable mappings, and what must hold in the kernel.

Must not know which faults there are. The one idea: what the kernel holds is asked of libnftables in this process, so
that a look takes a millisecond, and compared with what it held before the first fault.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nftables

from tests.chaos.traffic import Way
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint, joined

#: The port of the targets' servers.
SERVER = 90
#: Ports of stable mappings by target; the one of t4 is promised over the API.
STABLE = {"t1": 8001, "t3": 8003, "t4": 8004}
#: Ports of mappings whose elements are changed; nobody connects to them.
VICTIMS = range(8100, 8150)
#: Bytes for everything that the daemon writes down.
ROOM = "1m"
OUTSIDE4, OUTSIDE6 = "198.51.100.1", "2001:db8:1::1"


def ways() -> tuple[list[Way], list[Way]]:
    """By which ways clients come: from outside, and on the host itself."""
    outside, inside = [], []
    for target, port in STABLE.items():
        for family, far, near in ((4, OUTSIDE4, "127.0.0.1"), (6, OUTSIDE6, "::1")):
            outside.append(Way(f"outside tcp{family} {target}", "tcp", far, port))
            outside.append(Way(f"outside stream{family} {target}", "tcp", far, port, stream=True))
            inside.append(Way(f"loopback tcp{family} {target}", "tcp", near, port))
            if target != "t4":
                outside.append(Way(f"outside udp{family} {target}", "udp", far, port))
        inside.append(Way(f"loopback udp4 {target}", "udp", "127.0.0.1", port))
    return outside, [way for way in inside if way.name != "loopback udp4 t4"]


def both(target: str) -> tuple[str, str]:
    """A target in both families."""
    return endpoint(address(target, 4), SERVER), endpoint(address(target, 6), SERVER)


class Confined(Daemon):
    """A daemon whose run and state directories are small file systems in a mount namespace of their own."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        for place in ("run", "state"):
            (self.dir / place).mkdir()
        small = "mount -t tmpfs -o mode=755,size=" + ROOM
        script = f"{small} run {self.dir}/run && {small} state {self.dir}/state && echo && exec sleep infinity"
        # It holds the namespace while the daemon is dead.
        holder = lab.host.popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE)
        assert holder.stdout
        holder.stdout.readline()
        self.prefix = ["nsenter", f"--target={holder.pid}", "--mount", "--root", "--"]
        self.inside = Path(f"/proc/{holder.pid}/root{self.dir}")
        self.socket = self.inside / "run/nfportd.sock"


class World:
    """The laboratory with the daemon in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.host = lab, lab.host
        lab.bridge_netfilter(False)  # else [::1] does not reach targets behind a bridge
        self.daemon = Confined(lab)
        self.files = {
            "stable.yaml": dropin(*(mapping(t, STABLE[t], *both(t), protocol="[tcp, udp]") for t in ("t1", "t3"))),
            "victims.yaml": dropin(*(mapping(f"v{port}", port, "10.88.0.12:9") for port in VICTIMS)),
        }
        for name, text in self.files.items():
            (self.daemon.dropins / name).write_text(text)
        with lab.host.entered():
            self._nft = nftables.Nftables()
        self._nft.set_json_output(True)
        self.skeleton: list[Any] = []
        self.elements: dict[tuple[str, str], str] = {}

    def nft(self, text: str) -> bool:
        """Run nft text in the host; whether it was taken."""
        return bool(self._nft.cmd(text)[0] == 0)

    def table(self) -> list[dict[str, Any]]:
        """Our table as nft lists it, nothing where there is none."""
        # Not `list table`, which of a table that is missing writes to stderr.
        status, output, _ = self._nft.cmd("list ruleset inet")
        listed = json.loads(output)["nftables"] if status == 0 else []
        kinds = ((kind, value) for item in listed for kind, value in item.items() if kind != "metainfo")
        return [{kind: v} for kind, v in kinds if v["name" if kind == "table" else "table"] == "nfportd"]

    def remember(self) -> None:
        """What is in the kernel now is right."""
        table = self.table()
        self.skeleton = skeleton(table)
        self.elements = {key: value for key, value in elements(table).items() if self._stands(key)}

    def kernel_is_right(self) -> bool:
        """Whether the table is as remembered, apart from what clients change over the API."""
        table = self.table()
        standing = {key: value for key, value in elements(table).items() if self._stands(key)}
        return skeleton(table) == self.skeleton and standing == self.elements

    def host_is_right(self) -> bool:
        """Whether the host allows what forwarding needs."""
        on = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
        on += [f"net/ipv4/conf/{link}/route_localnet" for link in ("br0", "br1", "veth3")]
        with contextlib.suppress(OSError):  # a link that is just being made
            if all(self.host.sysctl(name) == "1" for name in on):
                routes = self.host.ip("-6", "route", "show", "table", "local", "::1")
                return all(f"dev {link} " in routes for link in ("br0", "br1", "veth3"))
        return False

    def _stands(self, key: tuple[str, str]) -> bool:
        name, text = key
        return name.startswith("onlink") or not 20_000 <= int(text.rpartition(" . ")[2]) < 30_000


def skeleton(table: list[dict[str, Any]]) -> list[Any]:
    """Chains, rules and sets without elements, counts and handles."""
    found = []
    for item in table:
        [(kind, value)] = item.items()
        plain = {key: part for key, part in value.items() if key not in ("handle", "elem", "packets", "bytes")}
        if kind == "rule":
            plain["expr"] = [{"counter": 0} if "counter" in part else part for part in plain["expr"]]
        found.append(json.dumps({kind: plain}, sort_keys=True))
    # Rules in their order within a chain; nft lists chains in that of their making.
    return sorted(
        found, key=lambda text: text if '"rule"' not in text[:8] else '{"rule"' + json.loads(text)["rule"]["chain"]
    )


def elements(table: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Every element by set and key, with its value; the fingerprint is no mapping's."""
    found = {}
    for item in table:
        [(kind, value)] = item.items()
        if kind in ("map", "set") and value["name"] != "fingerprint":
            for each in value.get("elem", []):
                key, target = each if kind == "map" else (each, "")
                found[value["name"], joined(key)] = joined(target)
    return found


def until(holds: Callable[[], bool], patience: float, pause: float = 0.002) -> float:
    """Wait for something; the time at which it was seen. Fails when it does not come."""
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"{holds} is not so after {patience} s"
        time.sleep(pause)
    return time.monotonic()

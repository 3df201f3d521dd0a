"""`bench.data` in small, and the rules that it takes for portmap's beside those that the real plugin leaves.

Must not hold a figure against the clock: the machine is not quiet here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import data
from bench.layouts import CONNTRACK, LIMITS, PEERS, Published
from bench.peers import PLACE
from bench.portmap import NETWORK
from bench.results import OURS
from tests.lab import Lab
from tests.netns import Namespace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.mark.skipif(not shutil.which("cc"), reason="the load is compiled")
@pytest.mark.skipif(not shutil.which("iptables-restore"), reason="some rules are iptables'")
def test_every_figure_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MILLISECONDS", 3)
    rows = data.main(1, 1)
    found = {(row["group"], row["who"]) for row in rows}
    kinds = {"connections a second", "one connection, p50", "one connection, p99"}
    kinds |= {"new UDP flows a second", "UDP packets a second", "bulk", "time in the load generator"}
    assert {(kind, who) for kind in kinds for who in (OURS, *LIMITS, *PEERS)} <= found
    for way in ("127.0.0.1", "hairpin", "[::1] in the kernel"):
        assert (f"connections a second, {way}", OURS) in found
    assert ("connections a second, 127.0.0.1", CONNTRACK) in found
    assert {row["goal"] for row in rows if row["group"].endswith(f"against {CONNTRACK}")} == {0.97}
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows if row["unit"] != "%"), rows


@pytest.mark.parametrize(
    ("program", "backend"),
    [("/usr/lib/cni/portmap", "iptables"), (str(PLACE / "root/usr/lib/cni/portmap"), "nftables")],
    ids=["iptables", "nftables"],
)
def test_portmaps_rules_are_those_of_a_real_add(program: str, backend: str) -> None:
    if not Path(program).exists():
        pytest.skip(f"{program} is not here")
    pod = Published(0)
    with Lab(build=False) as lab:
        real, written = lab.space("real"), lab.space("written")
        lab.bridge(real, "br0")
        real.batch("address add 10.88.0.1/16 dev br0\n")
        _add(real, program, pod, backend)
        layout = PEERS[f"portmap {backend}"]
        written.run(layout.load, text=layout.text(1))
        command = {"iptables": ["iptables-save"], "nftables": ["nft", "-s", "list", "ruleset"]}[backend]
        assert _rules(written.run(command).stdout) == _rules(real.run(command).stdout)


def _add(host: Namespace, program: str, pod: Published, backend: str) -> None:
    before = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}]}
    before["ips"] = [{"address": f"{pod.address}/16", "interface": 0}]
    config = {"cniVersion": "1.0.0", "name": NETWORK, "type": "portmap", "backend": backend, "prevResult": before}
    config["runtimeConfig"] = {"portMappings": [{"hostPort": pod.port, "containerPort": 80, "protocol": "tcp"}]}
    names = {"COMMAND": "ADD", "CONTAINERID": pod.id, "NETNS": "/run/netns/pod", "IFNAME": "eth0", "PATH": "/opt/cni"}
    environment = os.environ | {f"CNI_{name}": value for name, value in names.items()}
    with host.entered():
        subprocess.run([program], input=json.dumps(config), env=environment, check=True, capture_output=True, text=True)


def _rules(listing: str) -> list[str]:
    """Lines without comments, and without the port for UDP, which only the bench has."""
    lines = (re.sub(r'(-m comment --)?comment "(\\.|[^"\\])*"', "", line).strip() for line in listing.splitlines())
    return sorted(line for line in lines if line and not line.startswith("#") and "udp" not in line)

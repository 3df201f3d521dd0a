"""From portmap to nfportd-cni on a live node, and back, with Debian's portmap: who serves a port at each step.

It must not know what is behind a container: t1 and t2 of the laboratory are the pods. The one idea: the sentences of
docs/migration-from-portmap.md, one by one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.calling import client, eventually
from tests.lab import ROOT, Daemon, Lab, address
from tests.recipes.conftest import HOST, owners
from tests.runtimes.plugins import DEBIAN, PLUGIN
from tests.runtimes.room import needs

GUIDE = ROOT / "docs" / "migration-from-portmap.md"
Start = Callable[..., Daemon]


class Node:
    """A node of two pods, and the plugin that its runtime would call."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.plugin = DEBIAN / "portmap"
        self.socket = Path("/nonexistent")

    def call(self, verb: str, pod: str, identity: str, port: int) -> None:
        ip = {"version": "4", "address": f"{address(pod, 4)}/24", "interface": 0}
        config: dict[str, Any] = {"cniVersion": "0.4.0", "name": "cbr0", "type": "portmap"}
        config["runtimeConfig"] = {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}
        config["prevResult"] = {"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": [ip]}
        environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": identity, "CNI_IFNAME": "eth0",
                       "CNI_NETNS": f"/run/netns/{self.lab.spaces[pod].full}", "CNI_PATH": str(DEBIAN),
                       "NFPORTD_SOCKET": str(self.socket)}  # fmt: skip
        self._run([str(self.plugin)], json.dumps(config), environment)

    def start_nfportd(self, start: Start) -> Daemon:
        daemon = start()
        self.socket = daemon.socket
        return daemon

    def switch(self) -> None:
        self.plugin = PLUGIN

    def delete_by_hand(self, identity: str) -> None:
        """Step 4 of the guide."""
        (step,) = re.findall(r"^ +(echo .*\n.*portmap\.orig)$", GUIDE.read_text(), re.MULTILINE)
        text = step.replace("/opt/cni/bin/portmap.orig", str(DEBIAN / "portmap"))
        self._run(["sh", "-euc", text], "", {"ID": identity})

    def remove_the_rest(self) -> None:
        """Step 5 of the guide, for the backend that Debian's portmap has."""
        (step,) = re.findall(r"^ +(for t in iptables .*done)", GUIDE.read_text(), re.MULTILINE)
        self._run(["sh", "-euc", step], "", {})

    def serving(self, port: int, space: str = "client", host: str = HOST) -> str:
        answer = self.lab.spaces[space].ask(host, port, timeout=1)
        return answer.target or answer.outcome

    def _run(self, command: list[str], typed: str, environment: dict[str, str]) -> None:
        with self.lab.host.entered():
            done = subprocess.run(
                command, check=False, input=typed, capture_output=True, text=True, env=os.environ | environment
            )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    needs(str(DEBIAN / "portmap"), "iptables")
    yield Node(lab)
    lab.host.nft("flush ruleset")


def test_forward(node: Node, start: Start) -> None:
    node.call("ADD", "t1", "old", 8080)
    assert node.serving(8080) == "t1"

    node.start_nfportd(start)
    node.switch()
    node.call("ADD", "t2", "new", 8081)
    assert [node.serving(8080), node.serving(8081)] == ["t1", "t2"]
    assert [node.serving(8080, "host", "127.0.0.1"), node.serving(8080, "t1")] == ["t1", "t1"]

    node.call("DEL", "t1", "old", 8080)
    assert node.serving(8080) == "t1"  # the rule stays behind

    node.call("ADD", "t2", "newer", 8080)
    assert node.serving(8080) == "t2"

    node.delete_by_hand("old")
    node.call("DEL", "t2", "newer", 8080)
    assert [node.serving(8080), node.serving(8081)] == ["refused", "t2"]


def test_the_rest_is_removed_at_once(node: Node, start: Start) -> None:
    node.call("ADD", "t1", "old", 8080)
    node.start_nfportd(start)
    node.switch()
    node.call("ADD", "t2", "new", 8081)

    node.remove_the_rest()

    assert [node.serving(8080), node.serving(8081)] == ["refused", "t2"]


def test_where_nfportd_was_first_a_rule_left_behind_shadows_it(node: Node, start: Start) -> None:
    daemon = node.start_nfportd(start)
    node.call("ADD", "t1", "old", 8080)
    node.switch()
    node.call("ADD", "t2", "new", 8080)
    assert node.serving(8080) == "t1"

    daemon.stop()
    daemon.start()
    assert node.serving(8080) == "t2"


def test_back(node: Node, start: Start, lab: Lab) -> None:
    lab.attach("pod", "br0")
    daemon = node.start_nfportd(start)
    node.switch()
    node.call("ADD", "t2", "ours", 8081)
    with client(daemon) as api:
        body = {"mappings": [{"listen": 8082, "targets": ["10.88.0.12:80"]}]}
        api.put("cni:cbr0/gone/eth0", body | {"netns": f"/run/netns/{lab.spaces['pod'].full}"})

    node.plugin = DEBIAN / "portmap"
    node.call("ADD", "t1", "theirs", 8080)
    assert [node.serving(8080), node.serving(8081), node.serving(8082)] == ["t1", "t2", "t2"]

    lab.discard("pod")
    eventually(lambda: node.serving(8082), "refused")
    assert owners(daemon) == ["cni:cbr0/ours/eth0"]
    assert [node.serving(8080), node.serving(8081)] == ["t1", "t2"]

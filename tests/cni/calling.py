"""How the tests call the plugin: as a runtime does, by an executable, the environment and standard input.

Must not know what a test asserts. The one idea: an attachment is a value that knows its network, container, namespace
and addresses; every verb is a question about it with an answer that is a value too.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.lab import ADDRESSES, ROOT, Daemon, Lab

EXECUTABLE = ROOT / "nfportd/cni.py"
#: Every version of the specification, and the verbs that came later.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = VERSIONS[-1]

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the plugin said."""

    status: int
    output: str
    remarks: str

    @property
    def json(self) -> Json:
        return dict(json.loads(self.output))

    @property
    def code(self) -> int:
        """The error's code, after a look at its form."""
        assert self.status == 1, self
        assert {"cniVersion", "code", "msg"} <= self.json.keys(), self
        return int(self.json["code"])

    @property
    def message(self) -> str:
        return str(self.json["msg"])


def port(host: int, container: int, protocol: str = "tcp", **more: Any) -> Json:
    """One entry of portMappings."""
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **more}


def result(version: str, addresses: tuple[str, ...], ifname: str = "eth0", sandbox: str = "/run/netns/x") -> Json:
    """What a bridge plugin of that version prints."""
    by_family = {":" in each: each for each in addresses}
    length = {False: 24, True: 64}
    if version in ("0.1.0", "0.2.0"):
        found: Json = {"cniVersion": version, "dns": {}}
        return found | {
            f"ip{6 if six else 4}": {"ip": f"{each}/{length[six]}", "routes": []} for six, each in by_family.items()
        }
    old = version.startswith("0.")
    ips = [
        {"address": f"{each}/{length[six]}", "interface": 1} | ({"version": "6" if six else "4"} if old else {})
        for six, each in by_family.items()
    ]
    interfaces = [{"name": "br0", "mac": "00:00:5e:00:53:01"}, {"name": ifname, "sandbox": sandbox}]
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": [], "dns": {}}


@dataclass(frozen=True)
class Attachment:
    """A container in a network, and how the plugin is called for it."""

    socket: Path
    netns: str
    addresses: tuple[str, ...] = ADDRESSES["t1"]
    container: str = "3f2a"
    network: str = "podnet"
    ifname: str = "eth0"
    version: str = LATEST
    executable: Path = EXECUTABLE
    more: AbstractMapping[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return f"cni:{self.network}/{self.container}/{self.ifname}"

    def but(self, **changed: Any) -> Attachment:
        """Another one, which differs in this."""
        return replace(self, **changed)

    def configuration(self, *ports: Json, **more: Any) -> Json:
        """What a runtime writes to standard input."""
        config: Json = {"cniVersion": self.version, "name": self.network, "type": "nfportd-cni", **self.more, **more}
        config.setdefault("prevResult", result(self.version, self.addresses, self.ifname, self.netns))
        if ports:
            config["runtimeConfig"] = {"portMappings": list(ports)}
        return config

    def environment(self, verb: str, **more: str | None) -> dict[str, str]:
        """What a runtime puts in the environment; None takes a variable away."""
        cni = {"CONTAINERID": self.container, "NETNS": self.netns, "IFNAME": self.ifname, "PATH": "/opt/cni/bin"}
        found = {"PATH": os.environ["PATH"], "NFPORTD_SOCKET": str(self.socket), "CNI_COMMAND": verb}
        found |= {f"CNI_{name}": value for name, value in cni.items()}
        return {name: value for name, value in {**found, **more}.items() if value is not None}

    def call(self, verb: str, *ports: Json, **more: Any) -> Reply:
        """Call the plugin with a configuration of these ports."""
        return self.say(verb, json.dumps(self.configuration(*ports, **more)).encode())

    def say(self, verb: str, content: bytes, **more: str | None) -> Reply:
        """Call the plugin with these bytes on standard input."""
        done = subprocess.run(
            [self.executable], input=content, env=self.environment(verb, **more), capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        return Reply(done.returncode, done.stdout.decode(), done.stderr.decode())

    def add(self, *ports: Json, **more: Any) -> Reply:
        """ADD that must succeed."""
        reply = self.call("ADD", *ports, **more)
        assert reply.status == 0, reply
        return reply

    def remove(self, *ports: Json) -> Reply:
        """DEL, which must always succeed and say nothing."""
        reply = self.call("DEL", *ports)
        assert (reply.status, reply.output) == (0, ""), reply
        return reply


def attachment(daemon: Daemon, lab: Lab, name: str, container: str = "") -> Attachment:
    """The namespace `name` of the laboratory as a container."""
    netns = f"/run/netns/{lab.spaces[name].full}"
    return Attachment(daemon.socket, netns, ADDRESSES[name], container or name)

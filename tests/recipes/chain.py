"""A chain of CNI plugins, called as a runtime calls it: each gets the result of the one before.

Must not know nfportd. The one idea: a conflist as it is in its file, for a network namespace of the room.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.runtimes.room import Room

Json = dict[str, Any]


class Failed(Exception):
    """A plugin said no; the message is all that it printed."""


class Attachment:
    """One container of a network: `add` makes its interface and all else that the chain makes, `delete` undoes it."""

    def __init__(self, room: Room, conflist: Path, plugins: Path, container: str, socket: Path) -> None:
        self._room, self._plugins, self._container, self._socket = room, plugins, container, socket
        self._network: Json = json.loads(conflist.read_text())
        self._result: Json | None = None
        self.netns = f"/run/netns/{container}"

    def add(self, *ports: Json) -> Json:
        self._ports = list(ports)
        for plugin in self._network["plugins"]:
            self._result = json.loads(self._call("ADD", plugin))
        assert self._result
        return self._result

    def check(self) -> None:
        for plugin in self._network["plugins"]:
            self._call("CHECK", plugin)

    def delete(self) -> None:
        for plugin in reversed(self._network["plugins"]):
            self._call("DEL", plugin)

    def _call(self, verb: str, plugin: Json) -> str:
        config = {name: value for name, value in plugin.items() if name != "capabilities"}
        config |= {"cniVersion": self._network["cniVersion"], "name": self._network["name"]}
        if plugin.get("capabilities", {}).get("portMappings"):
            config["runtimeConfig"] = {"portMappings": self._ports}
        if self._result:
            config["prevResult"] = self._result
        environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": self._container, "CNI_IFNAME": "eth0",
                       "CNI_NETNS": self.netns, "CNI_PATH": str(self._plugins),
                       "NFPORTD_SOCKET": str(self._socket)}  # fmt: skip
        done = subprocess.run(
            self._room.inside([str(self._plugins / plugin["type"])]),
            check=False,
            input=json.dumps(config),
            capture_output=True,
            text=True,
            env=os.environ | environment,
            timeout=30,
        )
        if done.returncode:
            raise Failed(f"{verb} {plugin['type']}: {done.stdout} {done.stderr}")
        return done.stdout

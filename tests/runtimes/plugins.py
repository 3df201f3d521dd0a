"""Directories of CNI plugins and network configurations, as an administrator lays them out.

It must not know runtimes. The one idea: nfportd's plugin is one file, placed under either of its two names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.lab import ROOT

DEBIAN = Path("/usr/lib/cni")
PLUGIN = ROOT / "nfportd" / "cni.py"
PODMAN = Path("/etc/cni/net.d/87-podman-bridge.conflist")
#: The addresses of containers: the laboratory has none of these networks.
SUBNETS = {"bridge": ("10.89.0.0/24", "fd89::/64"), "ptp": ("10.91.0.0/24", "fd91::/64")}


def directory(place: Path) -> Path:
    """Debian's plugins, and ours under both of its names: Debian's portmap is not there."""
    place.mkdir()
    for plugin in DEBIAN.iterdir():
        if plugin.name != "portmap":
            (place / plugin.name).symlink_to(plugin)
    copied = Path(shutil.copy(PLUGIN, place / "nfportd-cni"))
    copied.chmod(0o755)
    (place / "portmap").symlink_to(copied)
    return place


def network(place: Path, name: str, kind: str = "bridge") -> None:
    """A network in a directory of configurations: a bridge or point-to-point links, then what publishes ports."""
    place.mkdir(exist_ok=True)
    link: dict[str, Any] = {"type": kind, "ipMasq": True, "ipam": _addresses(kind)}
    if kind == "bridge":
        link |= {"bridge": "pods0", "isGateway": True, "hairpinMode": True}
    ports = {"type": "nfportd-cni", "capabilities": {"portMappings": True}}
    conflist = {"cniVersion": "0.4.0", "name": name, "plugins": [link, ports]}
    (place / f"10-{name}.conflist").write_text(json.dumps(conflist, indent=2))


def of_debian(place: Path) -> None:
    """The network that comes with podman, whose ports are portmap's; but its addresses are the laboratory's already."""
    text = PODMAN.read_text()
    assert '"type": "portmap"' in text
    (place / PODMAN.name).write_text(text.replace("10.88.0.", "10.90.0."))


def _addresses(kind: str) -> dict[str, Any]:
    return {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in SUBNETS[kind]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }

"""The example networks in etc/cni: each with Debian's plugins and ours, from ADD to DEL.

It must not know a runtime. The one idea: the files are taken as they are shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import ROOT, Daemon, Lab
from tests.recipes.chain import Attachment
from tests.recipes.conftest import HOST, is_dead, owners
from tests.runtimes.plugins import DEBIAN, directory
from tests.runtimes.room import Inside, Room, needs

EXAMPLES = sorted((ROOT / "etc" / "cni").glob("*.conflist"))
CLIENT, OUTSIDE = "192.0.2.10", "2001:db8:1::10"
HTTP = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


@pytest.fixture(scope="module")
def plugins(room: Room) -> Path:
    needs(str(DEBIAN / "bridge"), str(DEBIAN / "ptp"))
    return directory(room.dir / "bin")


@pytest.fixture
def pod(room: Room) -> Iterator[Inside]:
    """A container: a network namespace with a server in it."""
    room.run("ip", "netns", "add", "pod")
    yield Inside(room.lab, "pod", room.path("/run/netns/pod"))
    room.run("ip", "netns", "delete", "pod")


@pytest.mark.parametrize("example", EXAMPLES, ids=[each.stem for each in EXAMPLES])
def test_an_example_publishes_until_del(
    example: Path, room: Room, plugins: Path, pod: Inside, daemon: Daemon, lab: Lab
) -> None:
    attachment = Attachment(room, example, plugins, "pod", daemon.socket)
    attachment.add(HTTP)
    pod.serve([80])

    (owner,) = owners(daemon)
    assert owner.endswith("/pod/eth0")
    assert lab.client.ask(HOST, 8080).source == CLIENT
    assert lab.outside.ask("2001:db8::1", 8080, timeout=10).source == OUTSIDE
    assert lab.host.ask("127.0.0.1", 8080)
    assert pod.ask(HOST, 8080)
    attachment.check()

    attachment.delete()

    assert owners(daemon) == []
    assert is_dead(lab, 8080)

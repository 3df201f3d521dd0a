"""No connection is lost: while targets flip, files are rewritten, mappings come and go, and the daemon is killed.

It must not know how changes are written. The one idea: loads in processes of their own count what fails, and the
number that may fail is 0.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import dropin, mapping
from tests.hammer import Load, Tally, serve
from tests.lab import Daemon, Lab, address, endpoint

pytestmark = pytest.mark.alone

Start = Callable[..., Daemon]
PORT = 8080
OWN = "192.0.2.1"
PLAIN_SERVER = 81


@pytest.fixture(scope="module", autouse=True)
def servers(lab: Lab) -> None:
    for name in ("t1", "t3"):
        serve(lab.spaces[name], PLAIN_SERVER, name)


def web(target: str) -> str:
    both = (endpoint(address(target, 4), PLAIN_SERVER), endpoint(address(target, 6), PLAIN_SERVER))
    return dropin(mapping("web", PORT, *both))


def unrelated(first: int, count: int, target: str) -> str:
    """Mappings that have nothing to do with the load, one a port."""
    return dropin(
        *(mapping(f"m{port}", port, endpoint(address(target, 4), 80)) for port in range(first, first + count))
    )


class Changes:
    """The things that a busy host does to a daemon, one by one."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.targets = itertools.cycle(["t3", "t1"])
        self.thousands: Iterator[str] = itertools.cycle(
            [unrelated(20000, 1000, "t1"), unrelated(20500, 1000, "t2"), dropin()]
        )
        self.flips = 0

    def flip(self) -> None:
        self.daemon.write("web.yaml", web(next(self.targets)))
        self.flips += 1

    def rewrite(self) -> None:
        """The same content, another inode, another comment."""
        text = (self.daemon.dropins / "web.yaml").read_text()
        self.daemon.write("web.yaml", f"# written at {time.monotonic()}\n{text}")

    def move_a_thousand(self) -> None:
        self.daemon.write("thousand.yaml", next(self.thousands))

    def kill_and_start(self) -> None:
        self.daemon.kill9()
        self.daemon.start()


def nothing_failed(*tallies: Tally) -> None:
    assert [(tally.failed, tally.reasons) for tally in tallies] == [(0, {})] * len(tallies)
    assert max(tally.longest for tally in tallies) < 0.9, "a SYN was lost and sent again"


def test_a_busy_host_loses_no_connection(lab: Lab, start: Start) -> None:
    """Ten rounds, each with flips, rewrites, a thousand mappings that come or go, a kill -9 and a start."""
    daemon = start({"web.yaml": web("t1")})
    changes = Changes(daemon)
    loads = [Load(lab.outside, OWN, PORT), Load(lab.client, "2001:db8::1", PORT)]
    for _ in range(10):
        for _ in range(10):
            changes.flip()
        changes.rewrite()
        changes.move_a_thousand()
        changes.kill_and_start()
    until = time.monotonic() + 20
    while time.monotonic() < until and not enough(loads):
        changes.flip()
    tallies = [load.end() for load in loads]

    nothing_failed(*tallies)
    assert sum(tally.made for tally in tallies) >= 20_000
    assert all(set(tally.targets) == {"t1", "t3"} for tally in tallies), "the load has seen the flips"


def enough(loads: list[Load]) -> bool:
    """Whether the loads have had time for 20,000 connections, on a slow machine too."""
    return all(load.seconds > 12 for load in loads)


def test_a_start_loses_no_connection_of_the_host_itself(lab: Lab, start: Start) -> None:
    """Through the output hook, by the loopback address."""
    daemon = start({"web.yaml": web("t1")})
    load = Load(lab.host, "127.0.0.1", PORT)
    changes = Changes(daemon)
    for _ in range(3):
        changes.flip()
        changes.kill_and_start()
        changes.move_a_thousand()
    tally = load.end()
    nothing_failed(tally)
    assert tally.made > 1000


def test_while_another_file_is_broken_and_repaired(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1"), "other.yaml": unrelated(20000, 10, "t2")})
    load = Load(lab.outside, OWN, PORT)
    for _ in range(5):
        daemon.write("web.yaml", "mappings: [")
        daemon.write("other.yaml", "mappings:\n  - name: x\n")
        daemon.hup()
        daemon.write("other.yaml", unrelated(20000, 10, "t2"))
        daemon.write("web.yaml", web("t1"))
    tally = load.end()
    nothing_failed(tally)
    assert set(tally.targets) == {"t1"}

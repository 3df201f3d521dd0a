"""The room leaves nothing, also when the tests are killed.

Must not know a runtime. The one idea: a session of its own builds a room and is killed; the next one cleans up.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import netns
from tests.lab import ROOT, Lab
from tests.runtimes import room
from tests.runtimes.room import CGROUPS, Room, privately, wait_for

SESSION = """
from tests.lab import Lab
from tests.runtimes.room import Room
lab = Lab()
made = Room(lab)
made.run("ip", "netns", "add", "pod")
made.run("sh", "-c", "mkdir /var/lib/cni /sys/fs/cgroup/pod; setsid sleep infinity >/dev/null 2>&1 &")
print(lab.tmp, made.cgroup, made.init, flush=True)
input()
"""


@pytest.fixture(scope="module", autouse=True)
def possible(lab: Lab) -> None:
    """Skip where no room can be built."""
    with Room(lab):
        pass


def alive(pid: str) -> bool:
    """A process that has ended and was not yet waited for is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_a_killed_session_left_goes_with_the_next() -> None:
    mounts = Path("/proc/self/mounts").read_text
    before = [line for line in mounts().splitlines() if "/nfp" not in line]
    session = subprocess.Popen([sys.executable, "-c", SESSION], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert session.stdin is not None
    assert session.stdout is not None
    with session.stdin, session.stdout:
        tmp, cgroup, init = session.stdout.readline().split()
        assert alive(init)
        assert cgroup in privately(CGROUPS).stdout
        assert [line for line in mounts().splitlines() if "/nfp" not in line] == before
        session.kill()
        session.wait(10)
    wait_for(lambda: not alive(init), "the end of the room's processes")

    netns.sweep()
    room.sweep()

    assert not Path(tmp).exists()
    assert cgroup not in privately(CGROUPS).stdout
    assert not Path("/var/lib/cni").exists()


def test_a_room_ends_with_all_that_is_in_it(lab: Lab) -> None:
    with Room(lab) as made:
        made.run("sh", "-c", "mkdir /sys/fs/cgroup/pod; setsid sleep infinity >/dev/null 2>&1 &")
        pids = Path(f"/proc/{made.init}/task/{made.init}/children").read_text().split()
        assert len(pids) == 2
        made.run("ip", "netns", "add", "pod")
        assert made.namespaces() == ["pod"]

    assert not any(map(alive, (*pids, str(made.init))))
    assert made.cgroup not in privately(CGROUPS).stdout

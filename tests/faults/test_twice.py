"""A second nfportd in one network namespace, and who else has the name by which it knows of the first.

Must not know the lock of the run directory, which the unit tests have. The one idea: whoever comes second says so and
ends, and the first one's table has not been touched.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.api.calling import T1, answers
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]
FILES = {"web.yaml": dropin(mapping("web", 8080, T1))}


def second(lab: Lab, space: str = "host") -> Daemon:
    """Another daemon, not started, with directories of its own."""
    made = Daemon(lab, space=space)
    (made.dropins / "other.yaml").write_text(dropin(mapping("other", 8081, T1)))
    return made


def knock(lab: Lab) -> Iterator[socket.socket]:
    """Fill the queue of whoever has the name."""
    while True:
        sock = lab.host.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        yield sock
        if sock.connect_ex("\0nfportd"):
            return


def test_a_second_daemon_names_the_first_and_touches_nothing(lab: Lab, start: Start) -> None:
    first, other = start(FILES), second(lab)
    before = lab.host.nft("list ruleset")
    knocking: list[socket.socket] = []
    try:
        for _ in range(2):
            other.start(wait=False)
            assert other.process is not None
            assert other.process.wait(10) == 1
            # The next time a full queue of others does not hide the first.
            knocking.extend(knock(lab))
        said = f"nfportd runs already in this network namespace (pid {first.pid})"
        assert other.log.count(said) == 2, other.log
        assert "Traceback" not in other.log
        assert lab.host.nft("list ruleset") == before
        assert answers(lab, 8080) == "t1"
        first.kill9()
        other.start()
        assert answers(lab, 8081) == "t1"
    finally:
        for sock in knocking:
            sock.close()
        if other.process and other.process.poll() is None:
            other.stop()
        lab.daemons.remove(other)


def test_daemons_of_two_namespaces_do_not_mind_each_other(lab: Lab, start: Start) -> None:
    start(FILES)
    other = second(lab, space="lan")
    try:
        other.start()
        assert other.elements("any4") == {"tcp . 8081": "10.88.0.11 . 80"}
        assert answers(lab, 8080) == "t1"
    finally:
        other.stop()
        lab.daemons.remove(other)


SQUATTER = """
import os, socket, sys
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.bind("\\0nfportd")
if sys.argv[1] == "listens":
    sock.listen(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("how", "said"), [("listens", "of user 65534, which cannot be nfportd"), ("is deaf", "listen")]
)
def test_another_user_cannot_keep_it_from_starting(lab: Lab, start: Start, how: str, said: str) -> None:
    command = [sys.executable, "-c", SQUATTER, how]
    squatter = lab.host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert squatter.stdout is not None
    squatter.stdout.readline()
    try:
        daemon = start(FILES)
        line = next(line for line in daemon.log.splitlines() if "@nfportd" in line)
        assert said in line
        assert "is not heeded" in line
        assert answers(lab, 8080) == "t1"
    finally:
        squatter.communicate(timeout=5)

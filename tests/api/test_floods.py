"""Floods from a user who may look, against root's clients: they are served, and the daemon stays small.

Must not know how the bounds are kept. The one idea: a flood runs, and an honest client does what it always does.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.api.calling import answer_on, answers, body, client, connected, eventually, mapping
from tests.api.floods import KINDS
from tests.api.test_access import As
from tests.lab import ROOT, Daemon, Lab

pytestmark = pytest.mark.alone

FLOODER = 64010
SETTINGS = f"access:\n  - uid: {FLOODER}\n    write: true\n    owners: flood\n    ports: [9000-9099]\n"


def all_may_connect(daemon: Daemon) -> Daemon:
    for place in (daemon.dir.parent, daemon.dir, daemon.socket.parent):
        place.chmod(0o755)
    daemon.socket.chmod(0o666)
    return daemon


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """One for all floods: what the first leaves behind, the last would meet."""
    begun = Daemon(lab, settings=SETTINGS)
    begun.start()
    yield all_may_connect(begun)
    begun.stop()
    lab.daemons.remove(begun)
    lab.reset()
    assert "Traceback" not in begun.log


@pytest.fixture(scope="module")
def quiet(daemon: Daemon) -> Iterator[Sequence[socket.socket]]:
    """A connection that says nothing, and one that does not read; opened before all floods."""
    with connected(daemon, timeout=40) as silent, connected(daemon, timeout=40) as unread:
        unread.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        yield silent, unread


@contextlib.contextmanager
def flood(daemon: Daemon, kind: str) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.api.floods", str(daemon.socket), kind, str(FLOODER)]
    flooding = subprocess.Popen(command, cwd=ROOT)
    try:
        time.sleep(0.5)
        assert flooding.poll() is None
        yield
        assert flooding.poll() is None
    finally:
        flooding.kill()
        flooding.wait()


def descriptors(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def resident(daemon: Daemon) -> int:
    """MiB."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def put(daemon: Daemon, target: int) -> float:
    """Milliseconds of a PUT on a connection of its own."""
    began = time.monotonic()
    with client(daemon) as api:
        api.put("honest", body(mapping(8080, f"10.88.0.11:{target}")))
    return (time.monotonic() - began) * 1000


class Few(Daemon):
    """A daemon that may open few files."""

    @staticmethod
    def command(program: str = "nfportd") -> list[str]:
        return ["prlimit", "--nofile=128:128", *Daemon.command(program)]


def test_a_flood_does_not_take_the_files_that_store_and_kernel_need(lab: Lab) -> None:
    """The first of this file: the daemon of all the others is not in the host yet."""
    lab.reset()
    daemon = Few(lab, settings=SETTINGS)
    daemon.start()
    all_may_connect(daemon)
    try:
        with flood(daemon, "silent"), contextlib.ExitStack() as crowd:
            for number in range(3):
                put(daemon, 80 + number % 2)
            # Root, too, gets no more connections than leave room for the rest.
            for _ in range(100):
                sock = crowd.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(daemon.socket))
            turned_away = answer_on(sock)
            assert (turned_away.status, turned_away.name) == (503, "overloaded")
            daemon.write("web.yaml", "mappings: [{listen: 8081, targets: '10.88.0.11:80'}]\n")
            assert answers(lab, 8081) == "t1"
        eventually(lambda: _serves(daemon), True)
        put(daemon, 80)
        assert answers(lab, 8080) == "t1"
        assert "Too many open files" not in daemon.log
    finally:
        daemon.stop()
        lab.daemons.remove(daemon)
        lab.reset()


def _serves(daemon: Daemon) -> bool:
    with contextlib.suppress(Exception), client(daemon) as api:
        return "owners" in api.get("/v1/status")
    return False


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_client_is_served_during_a_flood(lab: Lab, daemon: Daemon, kind: str) -> None:
    before, lines = resident(daemon), daemon.log.count("WARNING")
    with flood(daemon, kind):
        took = [put(daemon, number % 2 + 80) for number in range(11)]
        assert answers(lab, 8080) == "t1"
        open_now, large = descriptors(daemon), resident(daemon)
    print(f"{kind}: PUT {statistics.median(took):.0f} ms, {max(took):.0f} at most; {open_now} files, {large} MiB")
    assert open_now < 200
    assert large - before < 100
    assert daemon.log.count("WARNING") - lines < 20


def test_a_follower_that_hangs_up_leaves_nothing(daemon: Daemon) -> None:
    """On a quiet host no event would tell that it has gone."""
    _, before = put(daemon, 80), resident(daemon)
    for _ in range(200):
        with connected(daemon) as sock:
            sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
    assert resident(daemon) - before < 5


def test_at_the_end_who_did_nothing_is_shown_out_and_the_user_is_let_in(
    daemon: Daemon, quiet: Sequence[socket.socket]
) -> None:
    silent, unread = quiet
    assert silent.recv(1) == b""
    # What the kernel holds for it comes first.
    while unread.recv(1 << 20):
        pass
    assert As(daemon, FLOODER).call("GET", "/v1/status")[0] == 200

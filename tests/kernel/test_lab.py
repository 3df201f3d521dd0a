"""The laboratory itself: it leaves nothing behind, however it ends, and sees what it claims to see.

It must not know the daemon. The one idea: a process that makes a laboratory and dies is a child of this test.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.lab import ROOT, TARGETS, Lab, address
from tests.netns import NETNS, sweep

ENDS = {
    "returns": "pass",
    "raises": "raise RuntimeError",
    "is interrupted": "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
    "exits without closing": "keep = lab.__enter__; sys.exit()",
}


def left_by(pid: int) -> list[Path]:
    found = list(NETNS.glob(f"nfp{pid}x*")) + list(Path(tempfile.gettempdir()).glob(f"nfp{pid}x*"))
    return found + [path for path in Path("/proc").glob("[0-9]*") if belongs_to(path, pid)]


def belongs_to(process: Path, pid: int) -> bool:
    try:
        return f"of-{pid}".encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def run(body: str, *, closing: bool = True) -> subprocess.Popen[str]:
    """A process that makes a laboratory with a process in it, says so, and does what `body` says."""
    make = "with Lab() as lab:" if closing else "lab = Lab()\nif True:"
    code = (
        "import os, signal, sys, time\nfrom tests.lab import Lab\n"
        f"{make}\n"
        "    lab.t1.popen(['sh', '-c', 'sleep 60; : of-' + str(os.getpid())])\n"
        "    print('made', flush=True)\n"
        f"    {body}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    return process


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left(end: str) -> None:
    process = run(ENDS[end], closing=end != "exits without closing")
    process.wait(20)
    assert left_by(process.pid) == []


def test_what_a_killed_one_left_is_swept_by_the_next() -> None:
    process = run("time.sleep(60)")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left_by(process.pid) != []
    sweep()
    until = time.monotonic() + 5
    while left_by(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert left_by(process.pid) == []


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_everybody_reaches_every_target_by_route(lab: Lab, family: int, proto: str) -> None:
    for client in ("outside", "client", "host", *TARGETS):
        for target in TARGETS:
            answer = lab.spaces[client].ask(address(target, family), 80, proto)
            assert (answer.target, answer.port) == (target, 80), f"{client} to {target}"
            if client != "host":
                assert answer.source == address(client, family)


def test_outcomes_other_than_an_answer(lab: Lab) -> None:
    for proto in ("tcp", "udp"):
        assert lab.outside.ask("192.0.2.1", 9, proto).outcome == "refused"
    lab.host.nft(
        "table inet wall {\nchain in {\ntype filter hook input priority 0;\ntcp dport 9 drop\nudp dport 9 drop\n}\n}\n"
    )
    for proto in ("tcp", "udp"):
        assert lab.outside.ask("192.0.2.1", 9, proto, timeout=0.2).outcome == "timeout"
    lab.host.nft("delete table inet wall")
    assert lab.t3.ask("198.51.100.99", 9, timeout=0.2).outcome in ("unreachable", "timeout")

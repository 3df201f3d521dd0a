"""What the machine may run short of: room on its disks, descriptors, a disk that answers, events that it remembers.

Must not know how the daemon copes. The one idea: what was in force serves clients all the time, what is refused is
refused with its reason, and what can be again is right again without a restart.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api.calling import T1, T2, answers, body, client, eventually, mapping, refusal, states
from tests.api.test_durable import small_disk
from tests.conftest import dropin, mapping as written
from tests.hammer import Load, serve
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]
LARGE = [mapping(port, T2, comment="x" * 60) for port in range(20000, 20400)]
QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


def web(port: int, target: str = T1) -> str:
    return dropin(written("web", port, target))


def test_full_disks_under_everything(lab: Lab) -> None:  # noqa: PLR0915
    daemon = Daemon(lab)
    with small_disk(daemon.dir / "run") as fill_run, small_disk(daemon.dir / "state") as fill_state:
        try:
            daemon.start()
            daemon.write("web.yaml", web(8080))
            with client(daemon) as api:
                for kept in (False, True):
                    api.put(f"kept-{kept}", body(mapping(8081 + kept, T1), persistent=kept))
                fill_run(True)
                fill_state(True)
                for kept in (False, True):
                    problem = refusal(api.put, f"kept-{kept}", body(mapping(8090, T1), *LARGE, persistent=kept))
                    assert (problem.status, problem.name) == (507, "storage")
                assert [answers(lab, port) for port in (8081, 8082, 8090)] == ["t1", "t1", "refused"]
                # What asks nothing of the disks comes into force: a file's change, and a parameter of the host.
                seen = len(daemon.log)
                assert "applied" in daemon.write("web.yaml", web(8080, T2))
                assert answers(lab, 8080) == "t2"
                daemon.write("lo.yaml", dropin(written("lo", "127.0.0.1:8099", T1)))
                lab.host.sysctl("net/ipv4/ip_forward", 0)
                eventually(lambda: lab.host.sysctl("net/ipv4/ip_forward"), "1")
                assert daemon.log[seen:].count("no copy of web.yaml is kept (No space left on device)") == 1
                assert daemon.log.count("sysctls.json cannot be written (No space left on device)") == 1
                assert "Traceback" not in daemon.log
                record = daemon.dir / "run" / "sysctls.json"
                assert "ip_forward" not in record.read_text()

                daemon.kill9()
                daemon.start()
                assert [answers(lab, port) for port in (8080, 8081, 8082)] == ["t2", "t1", "t1"]
                lab.host.nft("flush ruleset")
                eventually(lambda: answers(lab, 8082), "t1")

                lab.host.sysctl("net/ipv4/ip_forward", 0)
                eventually(lambda: lab.host.sysctl("net/ipv4/ip_forward"), "1")
                fill_run(False)
                fill_state(False)
                eventually(lambda: "ip_forward" in record.read_text(), True)
                for kept in (False, True):
                    api.put(f"kept-{kept}", body(mapping(8081 + kept, T2), *LARGE[kept::2], persistent=kept))
                assert [answers(lab, port) for port in (8081, 8082)] == ["t2", "t2"]
        finally:
            if daemon.process:
                daemon.stop()
            lab.daemons.remove(daemon)
            lab.reset()
            lab.host.sysctl("net/ipv4/ip_forward", 1)


@contextlib.contextmanager
def no_more_files(pid: int) -> Iterator[None]:
    """A process that can open nothing more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # The limit is that of the highest number: those that are free below it count as well.
    used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def child_of(pid: int) -> int:
    """The process that runs libnftables."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(each) for each in children if "nft_worker" in Path(f"/proc/{each}/cmdline").read_text())


def test_no_descriptor_left(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web(8080)})
    with client(daemon) as api:
        api.put("app", body(mapping(8081, T1)))
        with no_more_files(daemon.pid):
            problem = refusal(api.put, "app", body(mapping(8081, T2)))
            assert (problem.status, problem.name) == (507, "storage")
            daemon.write("web.yaml", web(8080, T2), wait=False)
            daemon.write("new.yaml", dropin(written("new", 8082, T1)), wait=False)
            lab.host.nft("flush ruleset")
            time.sleep(1)
            assert daemon.process is not None
            assert daemon.process.poll() is None
            os.kill(child_of(daemon.pid), signal.SIGKILL)
            lab.host.nft("flush ruleset")
            time.sleep(1)
            assert daemon.process.poll() is None
        eventually(lambda: [answers(lab, port) for port in (8080, 8082)], ["t2", "t1"], 12)
        api.put("app", body(mapping(8081, T2)))
        assert answers(lab, 8081) == "t2"
        assert states(api)["file:new.yaml 8082"] == "active"
    assert "Traceback" not in daemon.log


def test_more_changes_than_the_kernel_remembers(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web(8080), "gone.yaml": dropin(written("gone", 8081, T1))})
    noise = [daemon.dropins / ".one", daemon.dropins / ".two"]
    noise[0].touch()
    limit = int(QUEUE.read_text())
    if limit > 100_000:
        pytest.skip("this host remembers too many events")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        for _ in range(limit // 4):
            noise[0].rename(noise[1])
            noise[1].rename(noise[0])
        # Of these the kernel tells nothing.
        noise[0].unlink()
        daemon.write("web.yaml", web(8080, T2), wait=False)
        daemon.write("new.yaml", dropin(written("new", 8082, T1)), wait=False)
        (daemon.dropins / "gone.yaml").unlink()
        assert answers(lab, 8081) == "t1"
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    eventually(lambda: [answers(lab, port) for port in (8080, 8081, 8082)], ["t2", "refused", "t1"])
    daemon.write("web.yaml", web(8080, T1))
    assert answers(lab, 8080) == "t1"


#: Seconds that each fsync takes; a PUT of a store with two files does six.
SLOW = 0.8


@contextlib.contextmanager
def slow_disk(pid: int) -> Iterator[None]:
    """Every fsync of a process takes long."""
    inject = f"inject=fsync,fdatasync:delay_enter={SLOW * 1_000_000:.0f}"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject, "-p", str(pid)]
    with subprocess.Popen(command) as tracer:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                eventually(lambda task=task: "TracerPid:\t0" in (task / "status").read_text(), False)  # type: ignore[misc]
            yield
        finally:
            tracer.terminate()


@pytest.mark.alone
def test_a_disk_that_takes_its_time_stops_nobody_else(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web(8080)})
    serve(lab.t1, 90, "t1")
    with client(daemon) as api:
        api.put("app", body(mapping(8081, T1), mapping(8083, "10.88.0.11:90")))
    load = Load(lab.client, "192.0.2.1", 8083)
    wish = body(mapping(8081, T2), mapping(8082, T1), mapping(8083, "10.88.0.11:90"))
    done: list[float] = []

    def put() -> None:
        with client(daemon) as own:
            own.put("app", wish)
        done.append(time.monotonic())

    putting = threading.Thread(target=put)
    with slow_disk(daemon.pid), client(daemon) as api:
        began = time.monotonic()
        putting.start()
        time.sleep(0.5)
        for path in ("/v1/mappings", "/v1/status"):
            asked = time.monotonic()
            api.get(path)
            assert time.monotonic() - asked < 1, path
        assert [answers(lab, port) for port in (8081, 8082)] == ["t1", "refused"]
        tally = load.end()
        assert tally.failed == 0, tally
        assert tally.made > 100

        lab.host.nft("flush ruleset")
        eventually(lambda: [answers(lab, port) for port in (8080, 8081)], ["t1", "t1"], 1)
        lab.host.nft("delete element inet nfportd any4 { tcp . 8081 }")
        eventually(lambda: answers(lab, 8081), "t1", 1)
        # What is not written down is not in force.
        assert answers(lab, 8082) == "refused"
        assert not done
        asked = time.monotonic()
        api.get("/v1/status")
        assert time.monotonic() - asked < 1
        daemon.write("web.yaml", web(8080, T2), wait=False)
        putting.join(20)
        assert done[0] - began > 2 * SLOW
        assert [answers(lab, port) for port in (8081, 8082)] == ["t2", "t1"]
        eventually(lambda: answers(lab, 8080), "t2")
    assert "Traceback" not in daemon.log

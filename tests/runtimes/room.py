"""A room for one container runtime: mounts, processes and cgroups of its own, in the laboratory's host.

It must not know which runtime lives in it. The one idea: everything hangs on one process; when that ends, containers,
shims, mounts and the namespaces that they held end with it. nfportd runs in the room as well, as on a real host: it
sees the same processes and the same /run.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import Daemon, Lab
from tests.netns import Namespace

# $1 is the room's cgroup.
BUILD = """
! mountpoint -q /sys/fs/cgroup || umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo 0 > "/sys/fs/cgroup/$1/cgroup.procs"
exec unshare --cgroup --mount --pid --fork --kill-child --mount-proc sh -euc '
    umount /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    for place in /run /var/lib /dev/shm; do mount -t tmpfs none $place; done
    mkdir /run/netns
    echo ready
    sleep infinity & wait'
"""
# $1 is a cgroup with nothing in it that anybody wants: end it, and remove it from the leaves up.
RAZE = """
mount -t cgroup2 none /sys/fs/cgroup
cd "/sys/fs/cgroup/$1"
echo 1 > cgroup.kill
for try in 1 2 3 4 5 6 7 8 9 10; do
    find . -depth -mindepth 1 -type d -exec rmdir {} + 2>/dev/null || true
    cd /sys/fs/cgroup && rmdir "$1" 2>/dev/null && exit
    sleep 0.1
    cd "/sys/fs/cgroup/$1"
done
exit 1
"""
CGROUPS = "mount -t cgroup2 none /sys/fs/cgroup && ls /sys/fs/cgroup"
ENTER = 'echo 0 > /sys/fs/cgroup/cgroup.procs; exec "$@"'
#: Where the plugin looks for the daemon.
SOCKET = "/run/nfportd/nfportd.sock"
PATIENCE = 10.0


def needs(*programs: str) -> None:
    """Skip unless every program is there."""
    missing = [program for program in programs if shutil.which(program) is None and not Path(program).exists()]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


class Room:
    """Where one runtime lives. `Room(lab)` builds it; close() ends all that is in it."""

    def __init__(self, lab: Lab) -> None:
        sweep()
        self.lab = lab
        self.cgroup = f"{lab.prefix}-room"
        self.dir = lab.tmp / "room"
        self.dir.mkdir()
        build = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-euc", BUILD, "room", self.cgroup]
        self._holder = lab.host.popen(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        assert self._holder.stdout is not None
        with self._holder.stdout as out:
            said = out.readline().strip()
        if said != "ready":
            self.close()
            pytest.skip(f"no mount, process and cgroup namespaces for a runtime here: {said}")
        self.init = child(self._holder.pid)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in the room."""
        return ["nsenter", f"--target={self.init}", "--mount", "--pid", "--cgroup", "--net", "--",
                "sh", "-euc", ENTER, "enter", *command]  # fmt: skip

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.inside(command),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | (env or {}),
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done

    def start(self, log: Path, *command: str) -> subprocess.Popen[str]:
        with log.open("a") as out:
            return subprocess.Popen(self.inside(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True)

    def path(self, inside: str) -> Path:
        """A path of the room, as the tests can open it; a symbolic link there, as /var/run, would lead out."""
        return Path(f"/proc/{self.init}/root{inside.replace('/var/run/', '/run/')}")

    def listening(self) -> dict[int, str]:
        """Which process of the host's namespace listens on which TCP port, the relay of [::1] apart."""
        lines = self.lab.host.run(["ss", "-Hltnp"]).stdout.splitlines()
        found = {}
        for line in lines:
            name = re.search(r'users:\(\("([^"]+)"', line)
            if not (name and name[1] == "nfportd"):
                found[int(line.split()[3].rsplit(":", 1)[1])] = name[1] if name else ""
        return found

    @contextmanager
    def listener(self, port: int) -> Iterator[int]:
        """A web server of the host's own on a port, which answers as `process`; its pid in the room."""
        page = self.dir / "www" / "cgi-bin" / "who"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\nprocess %s\\n' $REMOTE_ADDR\n")
        page.chmod(0o755)
        server = self.start(
            self.dir / "www.log", "/bin/busybox", "httpd", "-f", "-p", str(port), "-h", str(page.parents[1])
        )
        try:
            wait_for(lambda: port in self.listening(), "the web server")
            pid = child(server.pid)
            numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            assert numbers
            yield int(numbers[1].split()[-1])
        finally:
            os.kill(child(server.pid), signal.SIGKILL)
            server.wait(PATIENCE)

    def namespaces(self) -> list[str]:
        """The network namespaces that the runtime has made."""
        return sorted(path.name for path in self.path("/run/netns").iterdir())

    def leases(self) -> list[str]:
        """The addresses that the runtime's plugins have reserved."""
        return sorted(path.name for path in self.path("/var/lib/cni/networks").glob("*/[0-9]*"))

    def close(self) -> None:
        if self._holder.poll() is None:
            self._holder.kill()  # with it the first process of the room goes, and with that all others
            self._holder.wait(PATIENCE)
        raze(self.cgroup)
        shutil.rmtree(self.dir)

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Neighbour(Daemon):
    """nfportd among the processes of the room, so that a pid means the same to it and to the runtime."""

    def __init__(self, room: Room, arguments: Sequence[str] = ()) -> None:
        self._room = room
        super().__init__(room.lab, arguments=arguments)

    def command(self, program: str = "nfportd") -> list[str]:  # type: ignore[override]
        return self._room.inside(Daemon.command(program))

    def _end(self, number: signal.Signals, timeout: float = 10) -> int:
        """The signal is for nfportd, not for the program that brought it into the room."""
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(child(self.process.pid), number)
        status = self.process.wait(timeout)
        self.process = None
        return status


class Resident(Neighbour):
    """The one on its usual socket."""

    def __init__(self, room: Room) -> None:
        super().__init__(room, arguments=["--socket", SOCKET])
        self.socket = room.path(SOCKET)
        self.socket.parent.mkdir(exist_ok=True)


class Inside(Namespace):
    """The network namespace of a container, for servers and questions; made by the runtime, not by the laboratory."""

    def __init__(self, lab: Lab, name: str, path: Path) -> None:
        self.name = name
        self.full = str(path)
        self._servers = lab.servers
        self._processes = lab.processes


def child(pid: int) -> int:
    (only,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(only)


def wait_for(what: Callable[[], object], name: str, patience: float = PATIENCE) -> None:
    """Ask until the answer is yes."""
    until = time.monotonic() + patience
    while not what():
        assert time.monotonic() < until, f"waited {patience} s for {name}"
        time.sleep(0.02)


def privately(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script with mounts of its own."""
    command = ["unshare", "--mount", "sh", "-euc", script, "sh", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def raze(cgroup: str) -> None:
    """End what is in a room's cgroup, and remove it."""
    assert cgroup.startswith("nfp")
    privately(RAZE, cgroup)


def sweep() -> None:
    """Remove the cgroups of rooms whose makers were killed."""
    for name in privately(CGROUPS).stdout.split():
        made = re.fullmatch(r"nfp(\d+)x[0-9a-f]{4}-room", name)
        if made and not Path("/proc", made[1]).exists():
            raze(name)

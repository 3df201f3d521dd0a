"""A machine whose first process is a real systemd, with nfportd installed, in the network of the laboratory's host.

Must not know what a test asserts. The one idea: a container's processes are seen from outside, so a test acts in it by
nsenter and reads its files under /proc; one process holds it, and takes everything along when it ends.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.lab import ROOT, Lab

T = TypeVar("T")

HERE = Path(__file__).parent
_PATH = "/opt/nfportd/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SOCKET = "/run/nfportd/nfportd.sock"


class Machine:
    """One systemd. `lower`: the root that it starts from."""

    def __init__(self, lab: Lab, lower: Path, name: str) -> None:
        self.lab = lab
        self.name = name
        self.cgroup = f"{lab.prefix}-{name}"
        self._scratch = lab.tmp / name
        self._scratch.mkdir()
        self._log = lab.tmp / f"{name}.console"
        venv = lower / "opt/venv" if lower != Path("/") else Path(sys.prefix)
        binds = [f"{ROOT}:/src", f"{venv}:/opt/nfportd/venv"]
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child",
                   "--mount-proc", str(HERE / "boot.sh"), str(lower), str(self._scratch),
                   f"/run/netns/{lab.host.full}", self.cgroup, *binds]  # fmt: skip
        self._holder = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=self._log.open("w"), stderr=subprocess.STDOUT
        )
        lab.processes.append(self._holder)
        self.leader = 0

    # --- its life

    def boot(self) -> None:
        """Start it and wait until everything that starts by itself has started."""
        assert self._holder.stdin
        seen = len(self.console)
        self._holder.stdin.write("\n")
        self._holder.stdin.flush()
        self.leader = wait_for(lambda: self._find_leader(seen), "no systemd")
        wait_for((self.root / "run/systemd/private").exists, "systemd does not listen")
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def off(self) -> None:
        """Shut it down, with every service stopped in order."""
        seen = self.console.count("off\n")
        self.run("systemctl", "poweroff")
        wait_for(lambda: self.console.count("off\n") > seen, "it does not go off")

    def reboot(self) -> None:
        """Off and on again; the kernel's own state is new then, as after a boot."""
        self.off()
        self.lab.reset()
        self.boot()

    def close(self) -> None:
        """End it, whatever runs in it."""
        if self._holder.poll() is None:
            self._holder.kill()
        self._holder.wait(10)
        sweep_cgroups(lambda name: name == self.cgroup)
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def console(self) -> str:
        return self._log.read_text(errors="replace")

    def _find_leader(self, seen: int) -> int | None:
        if self._holder.poll() is not None or "off\n" in self.console[seen:]:
            raise AssertionError(f"{self.name} does not boot:\n{self.console[-3000:]}")
        for pid in _below(self._holder.pid):
            numbers = re.search(r"^NSpid:\s+(.*)", _read(f"/proc/{pid}/status"), re.MULTILINE)
            inner = numbers[1].split() if numbers else []
            if len(inner) >= 3 and inner[-1] == "1" and _read(f"/proc/{pid}/comm").strip() == "systemd":
                return pid
        return None

    # --- what one does in it

    @property
    def root(self) -> Path:
        """Its root directory, as seen from outside."""
        return Path(f"/proc/{self.leader}/root")

    def run(
        self, *command: str, check: bool = True, timeout: float = 60, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root would in a shell."""
        inside = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wdns=/", "--",
                  "env", "-i", f"PATH={_PATH}", "LANG=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"]  # fmt: skip
        done = subprocess.run(
            [*inside, *command], check=False, capture_output=True, text=True, timeout=timeout, input=text
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)}: status {done.returncode}\n{done.stderr}{done.stdout}\n{self.log()}"
            )
        return done

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in it."""
        inside = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wdns=/", "--"]
        process = subprocess.Popen([*inside, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lab.processes.append(process)
        return process

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *arguments, check=check, timeout=timeout)

    def show(self, name: str, unit: str = "nfportd.service") -> str:
        """A property of a unit."""
        return self.systemctl("show", "-P", name, unit).stdout.strip()

    @property
    def main(self) -> int:
        """The service's main process, by its number outside; 0 where there is none."""
        inner = self.show("MainPID")
        for pid in _below(self.leader):
            numbers = re.search(r"^NSpid:\s+(.*)", _read(f"/proc/{pid}/status"), re.MULTILINE)
            if numbers and numbers[1].split()[-1] == inner:
                return pid
        return 0

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file in place, by a rename as an editor does."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = place.parent.with_name(f".{place.name}.draft")
        draft.write_text(text)
        draft.chmod(mode)
        draft.rename(place)

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink(missing_ok=True)

    def change_unit(self, text: str, name: str = "test", unit: str = "nfportd.service") -> None:
        """A drop-in of the unit until the next reboot; an empty text takes it away."""
        path = f"/run/systemd/system/{unit}.d/{name}.conf"
        if text:
            self.write(path, text)
        else:
            self.remove(path)
        self.systemctl("daemon-reload")

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries of the journal since the boot, as it has them."""
        self.run("journalctl", "--sync")
        found = self.run("journalctl", "-b", "-o", "json", *matches, check=False).stdout
        return [json.loads(line) for line in found.splitlines() if line.startswith("{")]

    def log(self) -> str:
        """What a failed test wants to see."""
        if not self.leader or not _read(f"/proc/{self.leader}/comm"):
            return self.console[-3000:]
        inside = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wdns=/", "--"]
        asked = ["journalctl", "-b", "--no-pager", "-n", "60", "-u", "nfportd.service", "-u", "nfportd.socket"]
        return subprocess.run([*inside, *asked], check=False, capture_output=True, text=True, timeout=20).stdout


def wait_for(look: Callable[[], T | None], why: str, timeout: float = 20) -> T:
    """What `look` finds, as soon as it is something."""
    until = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"{why} within {timeout:.0f} s")
        time.sleep(0.01)


def _below(pid: int) -> Iterator[int]:
    """The processes that descend from one."""
    for child in map(int, _read(f"/proc/{pid}/task/{pid}/children").split()):
        yield child
        yield from _below(child)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def sweep_cgroups(ours: Callable[[str], bool]) -> None:
    """Remove cgroups in which nothing runs any more."""
    names = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -t cgroup2 cgroup2 /sys/fs/cgroup && ls /sys/fs/cgroup"],
        check=False, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    for name in filter(ours, names):
        remove = f"find '/sys/fs/cgroup/{name}' -depth -type d -exec rmdir {{}} +"
        again = f"for i in 1 2 3 4 5 6 7 8 9; do {remove} && break; sleep 0.1; done"
        script = f"mount -t cgroup2 cgroup2 /sys/fs/cgroup; {again}"
        subprocess.run(["unshare", "--mount", "sh", "-c", script], check=False, capture_output=True)

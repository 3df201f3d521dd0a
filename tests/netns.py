"""One network namespace: commands, sockets, servers and questions inside it; and the removal of dead ones.

It must not know the plan of the laboratory, and must never touch the root namespace. The one idea: a thread
enters, opens what it needs and leaves; sockets and child processes stay behind in the namespace.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import probes
from tests.probes import Answer, Servers, Service, Talk

NETNS = Path("/run/netns")
#: Where benches have what /run holds elsewhere.
MEMORY = Path("/dev/shm")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace: commands, sockets, servers and questions inside it."""

    def __init__(self, name: str, prefix: str, servers: Servers, processes: list[subprocess.Popen[str]]) -> None:
        self.name = name
        self.full = f"{prefix}-{name}"
        self._servers = servers
        self._processes = processes
        ip("netns", "add", self.full)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside for the body: what it opens or starts there stays there."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            other = os.open(NETNS / self.full, os.O_RDONLY)
            try:
                setns(other)
            finally:
                os.close(other)
            try:
                yield
            finally:
                setns(own)
        finally:
            os.close(own)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        with self.entered():
            process = subprocess.Popen(command, text=True, **options)
        self._processes.append(process)
        return process

    def run(
        self, command: Sequence[str], *, text: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        with self.entered():
            done = subprocess.run(command, check=False, input=text, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stderr or done.stdout}")
        return done

    def nft(self, text: str, check: bool = True) -> str:
        """Load a ruleset text, or run one nft command such as `list ruleset`."""
        return self.run(["nft", "-a", "-f", "-"], text=text, check=check).stdout

    def ip(self, *arguments: str) -> str:
        return self.run(["ip", *arguments]).stdout

    def batch(self, text: str) -> None:
        self.run(["ip", "-batch", "-"], text=text)

    def sysctl(self, key: str, value: int | str | None = None) -> str:
        """Read, or set and read back: `net/ipv4/ip_forward` or with dots."""
        path = Path("/proc/sys", key if "/" in key else key.replace(".", "/"))
        with self.entered():  # /proc/sys/net shows the namespace of the thread that opens it
            if value is not None:
                path.write_text(f"{value}\n")
            return path.read_text().strip()

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        with self.entered():
            return socket.socket(family, kind, proto)

    def mac(self, interface: str) -> str:
        return str(json.loads(self.ip("-j", "link", "show", "dev", interface))[0]["address"])

    def ask(self, address: str, port: int, proto: str = "tcp", source: str = "", source_port: int = 0,
            timeout: float = 3.0) -> Answer:  # fmt: skip
        """One question to address:port on a new flow; the answer, or timeout, refused, reset, unreachable."""
        return probes.ask(self.socket, address, port, proto, source, source_port, timeout)

    def talk(self, address: str, port: int, proto: str = "tcp", source: str = "", source_port: int = 0,
             timeout: float = 3.0) -> Talk:  # fmt: skip
        """A flow that stays open: .ask() as often as wanted, .close()."""
        return Talk(self.socket, address, port, proto, source, source_port, timeout)

    def serve(self, ports: Iterable[int] = (80,), protos: Iterable[str] = ("tcp", "udp"), address: str = "::",
              name: str = "") -> Service:  # fmt: skip
        """Listen here (`::` is both families); answers carry `name`, the namespace's unless given."""
        return self._servers.serve(name or self.name, self.socket, list(ports), list(protos), address)


def ip(*arguments: str) -> None:
    """Run `ip` to make and remove namespaces and the links between them, never for the root namespace."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def remove(full: str) -> None:
    """Delete a namespace of a laboratory, and end what still runs in it."""
    pids = subprocess.run(["ip", "netns", "pids", full], check=False, capture_output=True, text=True).stdout
    for pid in map(int, pids.split()):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    subprocess.run(["ip", "netns", "delete", full], check=False, capture_output=True)


def sweep() -> None:
    """Remove what laboratories of dead processes left: namespaces, their processes, their directories."""
    for place in (NETNS, Path(tempfile.gettempdir()), MEMORY):
        for path in place.glob("nfp*x*-*"):
            made = re.match(r"nfp(\d+)x[0-9a-f]{4}-", path.name)
            if not made or Path("/proc", made[1]).exists():
                continue
            if place == NETNS:
                remove(path.name)
            else:
                shutil.rmtree(path, ignore_errors=True)

"""What a process may do: tries, and tells as JSON by the name of each attempt. Run inside the unit's sandbox.

Must not import anything of the project. The one idea: an attempt that came through is `done`, else it is the error's
name.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def _write(path: str) -> None:
    Path(path).write_text("0")


def _capabilities(name: str) -> str:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in status if line.startswith(name))


ATTEMPTS: dict[str, Callable[[], object]] = {
    "write /etc": lambda: _write("/etc/nfportd.d/probe.yaml"),
    "write /usr": lambda: _write("/usr/probe"),
    "write /usr/lib": lambda: _write("/usr/lib/probe"),
    "write /opt/nfportd": lambda: _write("/opt/nfportd/probe"),
    "write /home": lambda: _write("/home/probe"),
    "write /var/lib/nfportd": lambda: _write("/var/lib/nfportd/probe"),
    "write /run/nfportd": lambda: _write("/run/nfportd/probe"),
    "write /proc/sys/kernel": lambda: _write("/proc/sys/kernel/printk_ratelimit"),
    "write /proc/sys/net": lambda: _write("/proc/sys/net/ipv4/conf/br0/route_localnet"),
    "write /sys": lambda: _write("/sys/kernel/mm/ksm/run"),
    "read /root": lambda: list(Path("/root").iterdir()),
    "read /etc/shadow": lambda: Path("/etc/shadow").read_text(),
    "see the first process": lambda: Path("/proc/1/stat").read_text(),
    "kill another's process": lambda: os.kill(1, signal.SIGCONT),
    "run a shell": lambda: subprocess.run(["/bin/sh", "-c", "true"], check=True),
    "run nft": lambda: subprocess.run(["/usr/sbin/nft", "list", "tables"], check=True),
    "run what it has written in /run": lambda: subprocess.run([_script("/run/nfportd/probe.sh")], check=True),
    "run what it has written in /tmp": lambda: subprocess.run([_script("/tmp/probe.sh")], check=True),
    "run what it has written in /var": lambda: subprocess.run([_script("/var/lib/nfportd/probe.sh")], check=True),
    "become root": lambda: os.setuid(0),
    "change an owner": lambda: os.chown("/run/nfportd", 0, 0),
    "make a user namespace": lambda: _call("unshare", 0x10000000),
    "make a network namespace": lambda: _call("unshare", 0x40000000),
    "mount": lambda: _call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "trace": lambda: _call("ptrace", 0, 0, None, None),
    "set the clock": lambda: _call("settimeofday", (ctypes.c_long * 2)(1, 0), None),
    "set the host's name": lambda: _call("sethostname", b"probe", 5),
    "load a module": lambda: _call("syscall", 175, None, 0, b""),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open an IP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "map memory to write and run": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
    "open a device": lambda: Path("/dev/mem").read_bytes(),
    "read the kernel's log": lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY)),
}


def _script(path: str) -> str:
    Path(path).write_text("#!/opt/nfportd/bin/python\n")
    Path(path).chmod(0o755)
    return path


def _try(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


if __name__ == "__main__":
    found = {name: _try(attempt) for name, attempt in ATTEMPTS.items()}
    found |= {name: _capabilities(name) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")}
    found["user"] = f"{os.getuid()}:{os.getgid()}:{sorted(os.getgroups())}"
    json.dump(found, sys.stdout)

"""The hosts on which the control path is measured: a namespace, a daemon with many mappings, a client of its API.

Must not measure. The one idea: what costs time and is not nfportd's (a library for HTTP, a disk under /run) is kept out
of the way, and who has written to the kernel, and when, is asked of the kernel.
"""

from __future__ import annotations

import atexit
import compileall
import ctypes
import json
import os
import select
import shutil
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import nftables

from tests.lab import ROOT, Daemon, Lab
from tests.netns import MEMORY

#: Beside what is present, the ports that are published and withdrawn again.
FREE = range(60_001, 65_536)
# linux/netlink.h NETLINK_NETFILTER, NETLINK_ADD_MEMBERSHIP; linux/netfilter/nfnetlink.h NFNLGRP_NFTABLES
NETLINK_NETFILTER, GROUP, SOL_NETLINK, ADD_MEMBERSHIP = 12, 7, 270, 1
# linux/netfilter/nfnetlink.h and nf_tables.h: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN, NFTA_GEN_PROC_PID
NEW_GENERATION, PROCESS_ID = 10 << 8 | 15, 2
SO_ATTACH_FILTER = 26


def host(lab: Lab, name: str) -> None:
    """A namespace with the link by which the targets are reached."""
    space = lab.space(name)
    lab.bridge(space, "br0")
    space.batch("address add 10.88.0.1/16 dev br0\n")


def served(lab: Lab, name: str, port: int) -> None:
    """On the host's bridge a target that serves a port, `NAME-t`, and a client, `NAME-c`."""
    for end, address in (("t", "10.88.0.12"), ("c", "10.88.0.50")):
        lab.attach(f"{name}-{end}", "br0", host=name).batch(f"address add {address}/16 dev eth0\n")
    lab.spaces[f"{name}-t"].serve([port], ["tcp"])


#: What no service manager hands over: it keeps Python from its byte-code, and has OpenSSL read every certificate.
_FOREIGN = ("PYTHONDONTWRITEBYTECODE", "SSL_CERT_FILE", "SSL_CERT_DIR")


def daemon_of(lab: Lab, name: str) -> Daemon:
    """A daemon on a new host, whose run directory is in memory, as /run is; compiled, as an installed one is."""
    for variable in _FOREIGN:
        os.environ.pop(variable, None)
    compileall.compile_dir(ROOT / "nfportd", quiet=1)
    host(lab, name)
    run = tempfile.mkdtemp(prefix=f"{lab.prefix}-", dir=MEMORY)
    atexit.register(shutil.rmtree, run, ignore_errors=True)
    daemon = Daemon(lab, space=name, arguments=["--run-dir", run])
    daemon.socket = Path(run) / "nfportd.sock"
    return daemon


def forget(daemon: Daemon) -> None:
    """Remove what a reboot would of what a daemon that has been stopped knows of its files."""
    shutil.rmtree(daemon.socket.parent / "validated", ignore_errors=True)


def others(count: int) -> str:
    """A drop-in of so many separate mappings, from port 1 on."""
    lines = (f"  - {{listen: {port}, targets: '10.88.0.12:{port}'}}\n" for port in range(1, count + 1))
    return "mappings:\n" + "".join(lines) if count else "mappings: []\n"


def children(daemon: Daemon) -> list[int]:
    """The pids of the processes that run libnftables for a daemon: one that writes, at times one that looks around."""
    return list(map(int, Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()))


class Connection:
    """One connection to the API, kept alive; a library for HTTP would take as long as the daemon itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connect()

    def _connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))

    def renew(self) -> None:
        """Connect again where the daemon has hung up on a client that said nothing for long."""
        if select.select([self.sock], [], [], 0)[0]:
            self.sock.close()
            self._connect()

    @staticmethod
    def request(method: str, resource: str, value: object = None) -> bytes:
        """The bytes of a request."""
        body = b"" if value is None else json.dumps(value).encode()
        head = f"{method} {resource} HTTP/1.1\r\nHost: nfportd\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def ask(self, request: bytes) -> None:
        """Send a request and wait for its whole answer; anything but 200 ends the measurement."""
        self.sock.sendall(request)
        answer = b""
        while not answered(answer):
            answer += received(self.sock)

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def received(sock: socket.socket) -> bytes:
    """What has come. Raises ConnectionError where the daemon has hung up."""
    part = sock.recv(1 << 20)
    if not part:
        raise ConnectionError("nfportd has hung up")
    return part


def answered(answer: bytes) -> bool:
    """Whether an answer is complete; one other than 200 ends the measurement with what it says."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = int(head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0])
    if len(body) < length:
        return False
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(body.decode())
    return True


def mapping(port: int, target: int) -> dict[str, Any]:
    """One mapping as the API takes it."""
    return {"listen": str(port), "targets": [f"10.88.0.11:{target}"]}


class Generations:
    """Who has committed to the tables of a namespace, and when it was told; nothing of what was committed."""

    def __init__(self, lab: Lab, space: str) -> None:
        self._socket = lab.spaces[space].socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        # nlmsg_type stands at byte 4, in the host's order; a filter reads it in the network's.
        kind = int.from_bytes(struct.pack("=H", NEW_GENERATION), "big")
        code = ((0x28, 0, 0, 4), (0x15, 0, 1, kind), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(program))
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP)
        self._socket.settimeout(60)

    def of_others(self) -> None:
        """Return when another process than this has committed."""
        while self._author(self._socket.recv(65536)) == os.getpid():
            pass

    def forget(self) -> int:
        """Leave out what has been told so far; how many commits it were."""
        count = 0
        self._socket.setblocking(False)
        try:
            while self._socket.recv(65536):
                count += 1
        except BlockingIOError:
            self._socket.settimeout(60)
        return count

    @staticmethod
    def _author(message: bytes) -> int:
        place = 20  # struct nlmsghdr, struct nfgenmsg
        while place < len(message):
            length, kind = struct.unpack_from("=HH", message, place)
            if kind == PROCESS_ID:
                return int.from_bytes(message[place + 4 : place + length], "big")
            place += (length + 3) & ~3
        return 0


def handle(lab: Lab, space: str) -> Any:
    """libnftables in a namespace."""
    with lab.spaces[space].entered():
        return nftables.Nftables()


def run(nft: Any, text: str) -> str:
    """Run nft text; an error ends the measurement."""
    status, output, error = nft.cmd(text)
    if status:
        raise RuntimeError(error[:500])
    return str(output)

"""Which local sockets take connections to a key, and which process has them.

Must not know mappings, owners or nft. The one idea: sock_diag (linux/inet_diag.h) lists the listening sockets of one
port in the kernel, in microseconds, so that it can be asked before each change and nothing has to be remembered.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nfportd.model import Key, Protocol
from nfportd.notation import Family

_log = logging.getLogger(__name__)

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3
_V6ONLY = 11  # INET_DIAG_SKV6ONLY

#: The transport's number, and the state in which its sockets wait: TCP_LISTEN; TCP_CLOSE is UDP bound, not connected.
_WAITING = {Protocol.TCP: (socket.IPPROTO_TCP, 1 << 10), Protocol.UDP: (socket.IPPROTO_UDP, 1 << 7)}

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBBI HH")  # inet_diag_req_v2 up to the ports of its inet_diag_sockid
_ANY_SOCKET = bytes(36) + b"\xff" * 8  # the rest of it: any address and interface, INET_DIAG_NOCOOKIE
_MESSAGE = struct.Struct("=BBBB 2s2s 16s16s I8s IIIII")  # inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")


class Listener(NamedTuple):
    """A socket that waits on what a key would take."""

    key: Key
    address: str
    inode: int
    uid: int


class _Socket(NamedTuple):
    family: int
    source: bytes
    port: int
    uid: int
    inode: int
    v6only: bool


class Listeners:
    """The sockets of the network namespace in which this is made."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
        # The kernel answers inside the calls; should it ever not, the daemon must not hang.
        self._netlink.settimeout(1)
        self._sequence = 0
        self._complained = False

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def on(self, keys: Iterable[Key]) -> list[Listener]:
        """Every listening socket that clashes with any of these keys. SCTP sockets are not looked for.

        Where the kernel does not tell (no inet_diag), that is logged once, and nothing clashes.
        """
        wanted: dict[Protocol, list[Key]] = {}
        for key in keys:
            wanted.setdefault(key.protocol, []).append(key)
        return [
            each for protocol in _WAITING if protocol in wanted for each in self._clashes(protocol, wanted[protocol])
        ]

    def _clashes(self, protocol: Protocol, keys: list[Key]) -> list[Listener]:
        waiting = self._waiting(protocol, keys)
        return [
            Listener(key, address, each.inode, each.uid)
            for key in keys
            for each in waiting.get(key.port, ())
            for version, address, is_any in _takes(each)
            if version == key.family and (is_any or key.address in (None, address))
        ]

    def _waiting(self, protocol: Protocol, keys: list[Key]) -> dict[int, list[_Socket]]:
        """The sockets on the ports of these keys, by port: few, however many keys there are."""
        ports = {key.port for key in keys}
        # IPv6 sockets can take IPv4 too.
        families = (socket.AF_INET, socket.AF_INET6) if any(k.family == 4 for k in keys) else (socket.AF_INET6,)
        found: dict[int, list[_Socket]] = {}
        for family in families:
            try:
                for each in self._dump(family, *_WAITING[protocol], ports):
                    found.setdefault(each.port, []).append(each)
            except OSError as error:
                self._complain(error)
        return found

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            _log.warning("local listeners are not seen: sock_diag: %s; published ports may shadow them", error.strerror)
        self._complained = True

    def _dump(self, family: int, protocol: int, states: int, ports: set[int]) -> list[_Socket]:
        # The kernel can pick one port; of several it is asked for all, and they are picked here.
        port = next(iter(ports)) if len(ports) == 1 else 0
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        request = _REQUEST.pack(family, protocol, 0, 0, states, socket.htons(port), 0) + _ANY_SOCKET
        header = _HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, self._sequence, 0)
        self._netlink.send(header + request)
        found: list[_Socket] = []
        while True:
            for kind, sequence, body in _messages(self._netlink.recv(65536)):
                if sequence != self._sequence:
                    continue
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    raise OSError(number, os.strerror(number))
                if int.from_bytes(body[4:6], "big") in ports:
                    found.append(_parse(body))


def _messages(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, sequence number and body of each netlink message."""
    at = 0
    while at < len(received):
        length, kind, _, sequence, _ = _HEADER.unpack_from(received, at)
        yield kind, sequence, received[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _parse(body: bytes) -> _Socket:
    family, _, _, _, port, _, source, _, _, _, _, _, _, uid, inode = _MESSAGE.unpack_from(body)
    v6only, at = False, _MESSAGE.size
    while at < len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if kind == _V6ONLY:
            v6only = bool(body[at + _ATTRIBUTE.size])
        at += length + 3 & ~3
    return _Socket(family, source, int.from_bytes(port, "big"), uid, inode, v6only)


def _takes(each: _Socket) -> list[tuple[Family, str, bool]]:
    """The families that a socket serves, with its address as mappings write it, and whether that is any."""
    if each.family == socket.AF_INET:
        four = ipaddress.IPv4Address(each.source[:4])
        return [(4, str(four), four.is_unspecified)]
    six = ipaddress.IPv6Address(each.source)
    if six.ipv4_mapped:
        return [(4, str(six.ipv4_mapped), six.ipv4_mapped.is_unspecified)]
    if six.is_unspecified and not each.v6only:
        return [(6, "::", True), (4, "::", True)]
    return [(6, str(six), six.is_unspecified)]


def process(inode: int) -> tuple[int, str] | None:
    """Pid and name of a process that has this socket open; None where it cannot be seen."""
    return processes([inode]).get(inode)


def processes(inodes: Iterable[int]) -> dict[int, tuple[int, str]]:
    """Pid and name of a process that has the socket open, of each that can be seen.

    Reads every process's open files once: takes milliseconds, and sees only what the daemon's user may see.
    """
    links = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, tuple[int, str]] = {}
    pids = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    # A socket-activated service shares its socket with init, which is not the one to name.
    for pid in sorted(pids, key=lambda pid: pid == 1):
        try:
            held = {links.pop(link) for link in _links(pid) if link in links}
            if held:
                name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
                found |= dict.fromkeys(held, (pid, name))
        except OSError:
            continue
        if not links:
            break
    return found


def _links(pid: int) -> Iterator[str]:
    """What the open files of a process lead to."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            yield str(file.readlink())

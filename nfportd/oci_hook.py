"""`nfportctl oci-hook`: publishes the ports that a container asks for in an annotation, as its runtime makes it.

Must not know an engine: what it reads is the state that the OCI runtime specification gives to hooks. The one idea:
the mappings last as long as the container's process (or namespace), so nobody has to take them back.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import socket
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address
from pathlib import Path

from nfportd.client import Client, Json, Problem
from nfportd.errors import NfportdError
from nfportd.notation import Family, Listen, Target, brief, parse_listen, parse_ports

ANNOTATION = "nfportd.ports"
_FORM = re.compile(
    r"(?:(?P<address>\[[^\]]*\]|[0-9]+\.[0-9.]*):)?(?P<listen>[0-9-]+)(?::(?P<target>[0-9-]+))?(?:/(?P<protocol>tcp|udp|sctp))?"
)

_CLONE_NEWNET = 0x40000000
_SIOCGIFADDR = 0x8915  # linux/sockios.h
_GLOBAL = "00"  # the scope, as /proc/net/if_inet6 writes it
_libc = ctypes.CDLL(None, use_errno=True)

#: One address of each family at most.
_Addresses = dict[Family, str]


class NotPublished(NfportdError):
    """A container whose ports cannot be published as it asks."""


def publish(client: Client, state: str | bytes) -> None:
    """Publish what the container of this state asks for, in place of what it had."""
    container, pid, ports = _read(state)
    entries = [entry for entry in re.split(r"[,\s]+", ports) if entry]
    if not entries:
        return
    found = addresses(pid)
    mappings = [_mapping(entry, found) for entry in entries]
    try:
        _put(client, f"oci:{container}", mappings, pid)
    except Problem as problem:
        # Who wrote the annotation knows its entries, not their places in the body.
        for error in problem.errors:
            if place := re.match(r"/mappings/([0-9]+)", str(error.get("pointer", ""))):
                error |= {"pointer": "", "detail": f"{ANNOTATION}: {entries[int(place[1])]}: {error['detail']}"}
        raise


def _put(client: Client, owner: str, mappings: list[Json], pid: int) -> None:
    """Bind the mappings to the process; where the daemon cannot follow one, to its network namespace.

    The daemon's sandbox hides processes, and before Linux 6.9 it cannot tell one from the next of its number then.
    """
    try:
        client.put(owner, {"mappings": mappings, "pid": pid})
    except Problem as problem:
        path = namespace(pid)
        if problem.name != "invalid" or problem.errors or not path:
            raise
        client.put(owner, {"mappings": mappings, "netns": path})


def namespace(pid: int, places: Path = Path("/run/netns")) -> str | None:
    """The path at which a process's network namespace is mounted, as engines do it that make it before the process."""
    with contextlib.suppress(OSError):
        own = Path(f"/proc/{pid}/ns/net").stat()
        for path in sorted(places.iterdir()):
            if os.path.samestat(path.stat(), own):
                return str(path)
    return None


def _read(state: str | bytes) -> tuple[str, int, str]:
    """The container's id, its process, and its annotation."""
    try:
        found = json.loads(state)
        container, pid = found["id"], found.get("pid", 0)
        ports = (found.get("annotations") or {}).get(ANNOTATION, "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        container = pid = ports = None
    if not (isinstance(container, str) and type(pid) is int and isinstance(ports, str)):
        what = "a container's state (JSON with id, pid and annotations) is expected on standard input"
        raise NotPublished(f"{what}; runtimes give it to a hook of the stage createRuntime")
    return container, pid, ports


def _mapping(entry: str, found: _Addresses) -> Json:
    """One entry of the annotation as a mapping to the container."""
    form = _FORM.fullmatch(entry)
    try:
        if not form:
            raise ValueError("is not of the form [address:]port[:port of the container][/protocol]")
        listen = parse_listen(f"{form['address']}:{form['listen']}" if form["address"] else form["listen"])
        ports = parse_ports(form["target"] or form["listen"])
    except ValueError as error:
        raise NotPublished(
            f"{ANNOTATION}: {brief(entry)}: {error}; write it like 8080:80 or 127.0.0.1:5353:53/udp"
        ) from None
    targets = [
        str(Target(address, family, ports)) for family, address in found.items() if listen.family in (None, family)
    ]
    if not targets:
        raise NotPublished(f"{ANNOTATION}: {brief(entry)}: the container has no {_kind(listen)} that could be reached")
    return {"listen": str(listen), "targets": targets, "protocol": [form["protocol"] or "tcp"]}


def _kind(listen: Listen) -> str:
    return f"IPv{listen.family} address" if listen.family else "address"


def addresses(pid: int) -> _Addresses:
    """The container's addresses: of each family the first, by the order of its links."""
    with ThreadPoolExecutor(1) as thread:  # it enters the container's network namespace and does not come back
        try:
            return thread.submit(_addresses_inside, pid).result()
        except OSError as error:
            raise NotPublished(f"the network namespace of process {pid} cannot be read: {error}") from None


def _addresses_inside(pid: int) -> _Addresses:
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        if os.path.samestat(os.fstat(namespace.fileno()), Path("/proc/thread-self/ns/net").stat()):
            raise NotPublished("the container is in the network of this host, where its ports need no publishing")
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    links = [name for _, name in sorted(socket.if_nameindex()) if name != "lo"]
    families: tuple[tuple[Family, dict[str, str]], ...] = ((4, _ipv4(links)), (6, _ipv6()))
    firsts = ((family, next((of[link] for link in links if link in of), None)) for family, of in families)
    return {family: address for family, address in firsts if address}


def _ipv4(links: Iterable[str]) -> dict[str, str]:
    """The first IPv4 address of each link."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for link in links:
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", link.encode()))
                found[link] = socket.inet_ntoa(answer[20:24])
    return found


def _ipv6() -> dict[str, str]:
    """A global IPv6 address of each link that has one."""
    try:
        lines = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return {}
    fields = [line.split() for line in lines]
    return {link: str(IPv6Address(int(address, 16))) for address, _, _, scope, _, link in fields if scope == _GLOBAL}

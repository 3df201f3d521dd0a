"""Ports held with sockets of our own: nobody else can bind them, `ss -ltnu` shows them, and they never answer.

Must not know mappings or who asked. The one idea: each socket has a filter that takes no packet, so that what reaches
it is dropped as if no host were there; one socket on any address holds the port for keys with an address too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import resource
import socket
import struct
from collections.abc import Iterable

from nfportd.model import Key, Protocol
from nfportd.notation import Family

_log = logging.getLogger(__name__)

#: Sockets at most, and at most this part of the files that the process may open: clients need some too.
MOST = 1024
_PART = 2

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER
_FREEBIND, _FREEBIND6 = 15, 78  # IP_FREEBIND, IPV6_FREEBIND
# One classic BPF instruction, BPF_RET | BPF_K with 0: no byte of any packet is taken.
_TAKE_NOTHING = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
_FILTER = struct.pack("@HP", 1, ctypes.addressof(_TAKE_NOTHING))

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_ANY = {4: "0.0.0.0", 6: "::"}
_KIND = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}

#: Where sockets clash with each other: the family, the protocol and the port.
_Place = tuple[Family, Protocol, int]


class Reservations:
    """The reserved ports of the network namespace in which they are taken."""

    def __init__(self) -> None:
        self._wanted: dict[_Place, set[Key]] = {}
        self._sockets: dict[Key, socket.socket] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._wanted.get(_place(key), ())

    @property
    def inodes(self) -> frozenset[int]:
        """The inodes of our own sockets, which a look for listeners finds as well."""
        return frozenset(os.fstat(each.fileno()).st_ino for each in self._sockets.values())

    def hold(self, keys: Iterable[Key]) -> dict[Key, OSError]:
        """Reserve these keys, also those reserved already. Returns those that could not be taken, and why."""
        refused: dict[Key, OSError] = {}
        # Any address first: it holds the port for the rest.
        for key in sorted(set(keys), key=lambda key: key.address is not None):
            try:
                self._take(key)
            except OSError as error:
                refused[key] = error
        return refused

    def release(self, keys: Iterable[Key]) -> None:
        """Let these keys go; those that were not reserved are skipped."""
        if not self._wanted:
            return
        gone = [key for key in set(keys) if key in self]
        for key in gone:
            self._wanted[_place(key)].discard(key)
            if key in self._sockets:
                self._sockets.pop(key).close()
        for place in {_place(key) for key in gone}:
            # Keys with an address, held until now by the socket on any.
            self._open_again(place)

    def close(self) -> None:
        """Let everything go."""
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()
        self._wanted.clear()

    def _take(self, key: Key) -> None:
        if key in self:
            return
        place = _place(key)
        wanted = self._wanted.get(place, set())
        if not _has_any(wanted):
            if key.address is None:
                # Our own sockets would be in the way of the one on any.
                for other in wanted:
                    self._sockets.pop(other).close()
            try:
                if len(self._sockets) >= _room():
                    raise OSError(errno.EMFILE, f"{key}: {_room():,} ports are reserved, as many as nfportd can hold")
                self._sockets[key] = _open(key)
            except OSError:
                self._open_again(place)
                raise
        self._wanted.setdefault(place, set()).add(key)

    def _open_again(self, place: _Place) -> None:
        """Open the sockets that are missing at a place whose keys stay reserved."""
        wanted = self._wanted.get(place, set())
        for key in sorted(wanted - self._sockets.keys(), key=str) if not _has_any(wanted) else ():
            try:
                self._sockets[key] = _open(key)
            except OSError as error:
                _log.warning("no longer reserved: %s", error.strerror)
                wanted.discard(key)
        if not wanted:
            self._wanted.pop(place, None)


def _has_any(keys: set[Key]) -> bool:
    return any(key.address is None for key in keys)


def _place(key: Key) -> _Place:
    return key.family, key.protocol, key.port


def _room() -> int:
    """How many sockets there may be, whatever the limit of open files is now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if soft == resource.RLIM_INFINITY else min(MOST, soft // _PART)


def _open(key: Key) -> socket.socket:
    """A socket that holds a key. Raises OSError with a sentence."""
    if key.protocol not in _KIND:
        raise OSError(errno.EPROTONOSUPPORT, f"{key}: {key.protocol} ports cannot be reserved; tcp and udp can")
    with contextlib.ExitStack() as undo:
        try:
            made = undo.enter_context(socket.socket(_FAMILY[key.family], _KIND[key.protocol]))
            # Before it has a port: not one packet may be answered.
            made.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, _FILTER)
            if key.family == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_IPV6, _FREEBIND6, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
            if key.protocol is Protocol.TCP:
                # Connections that are about to end keep no port; two listeners clash all the same.
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((key.address or _ANY[key.family], key.port))
            if key.protocol is Protocol.TCP:
                made.listen(0)
        except OSError as error:
            raise OSError(error.errno, f"{key}: {_MEANINGS.get(error.errno or 0, error.strerror)}") from None
        undo.pop_all()
        return made


_MEANINGS = {
    errno.EADDRINUSE: "another process has the port",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE to be reserved",
    errno.EAFNOSUPPORT: "nfportd may open no IP sockets here; its unit's RestrictAddressFamilies= must allow AF_INET "
    "and AF_INET6 for reserved ports",
    errno.EPERM: "sockets that take nothing need CAP_NET_ADMIN",
}

"""Listens to what others do to nftables.

Must not judge it: drift reads it, the reconciler mends. The one idea: a filter in the kernel keeps our own transactions
away, so what arrives is somebody else's, and our own changes cost nothing here.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable

from nfportd.drift import Drift, Reader
from nfportd.errors import NotPossible

_log = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12  # linux/netlink.h
_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33  # asm-generic/socket.h
#: Bytes of notifications that may wait for us; the kernel counts about 1 KiB for a small one.
_BUFFER = 8 << 20
#: Datagrams that are read before others get their turn.
_AT_ONCE = 64
_DATAGRAM = 1 << 18


class NftMonitor:
    """The nftables notifications of the network namespace in which this is made; `wake` is called with news of our
    table, `stirred` when somebody else has changed anything at all. Raises NotPossible where nobody may listen."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._reader = Reader()
        #: Set with each transaction of somebody else, also one that leaves our table alone.
        self.stirred = asyncio.Event()
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        except OSError as error:
            raise NotPossible(f"the kernel gives no netlink socket for nftables: {error.strerror}") from None
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            _log.debug("the kernel keeps fewer notifications for us")
        try:
            self._socket.bind((0, _GROUP))
        except OSError as error:
            self._socket.close()
            raise NotPossible(
                f"nftables cannot be used: {error.strerror}; it takes CAP_NET_ADMIN and nf_tables"
            ) from None
        asyncio.get_running_loop().add_reader(self._socket, self._drain)

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def leave_out(self, port: int) -> None:
        """From now on leave out what comes of the netlink socket with this port: it is ours."""
        # The filter reads a word as a number in network order; nlmsg_pid stands at byte 12 in the host's.
        ours = int.from_bytes(struct.pack("=I", port), "big")
        load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
        code = ((load, 0, 0, 12), (equal, 0, 1, ours), (give, 0, 0, 0), (give, 0, 0, 0xFFFFFFFF))
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
        sock_fprog = struct.pack("HP", len(code), ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, sock_fprog)

    @property
    def ready(self) -> bool:
        """Whether there is news of our table."""
        return self._reader.ready

    def take(self) -> Drift:
        """What others have done to our table since this was asked last."""
        return self._reader.take()

    def quiet(self) -> bool:
        """Whether there is no news now: then what comes from here on is younger than what has been written."""
        return self._drain() and not self._reader.pending

    def _drain(self) -> bool:
        """Read what has come; whether that was all."""
        before, all_read = self._reader.transactions, False
        try:
            for _ in range(_AT_ONCE):
                datagram, (sender, _) = self._socket.recvfrom(_DATAGRAM)
                if sender == 0:  # the kernel; any process with privileges could write to us as well
                    self._reader.feed(datagram)
        except BlockingIOError:
            all_read = True
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            _log.warning("nftables notifications were lost; the whole table is read")
            self._reader.lose()
        if self._reader.transactions != before:
            self.stirred.set()
        if self._reader.ready:
            self._wake()
        return all_read

"""Hears what nftables tells of marked packets, and keeps the table that marks them for as long as that takes.

Must not judge it. The one idea: the table goes with whoever made it, by its owner flag where nft and the kernel have
it, else at the end of the watch or at the next one's beginning; what it matches expires by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from nfportd.errors import KernelRefused, NfportdError
from nfportd.kernel.nft import Nft
from nfportd.trace.facts import Flow
from nfportd.trace.watch import NAME, Event, read, removal, table

_NETLINK_NETFILTER = 12  # linux/netlink.h
_GROUP = 1 << (9 - 1)  # NFNLGRP_NFTRACE of linux/netfilter/nfnetlink.h
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER, _DATAGRAM = 4 << 20, 1 << 16
#: Seconds for which an address outlives the watch.
_GRACE = 2


class Watch:
    """Events of the network namespace in which this is made. Raises NfportdError where another one is at work."""

    def __init__(self) -> None:
        # The name belongs to the network namespace, as the table does.
        self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._lock.bind(f"\0{NAME}")
        except OSError:
            self._lock.close()
            raise NfportdError(
                "another `nfportctl trace --live` watches in this network namespace; wait for its end"
            ) from None
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((0, _GROUP))

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        self._lock.close()

    @contextlib.asynccontextmanager
    async def marking(self, nft: Nft, flow: Flow, seconds: int, *, owned: bool) -> AsyncIterator[None]:
        """Mark the packets of a connection for the body; the table goes at its end, however that comes."""
        with contextlib.suppress(KernelRefused):  # one with an owner goes with it
            await nft.run(removal(owned=False))
        try:
            await nft.run(table(flow, seconds + _GRACE, owned=owned))
            yield
        finally:
            await asyncio.shield(nft.run(removal(owned=owned)))

    async def events(self, until: float) -> AsyncIterator[Event | None]:
        """What the kernel tells, until a time of the loop's clock; None again and again while it tells nothing."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            try:
                async with asyncio.timeout(min(0.05, max(0.0, until - loop.time()))):
                    datagram, (sender, _) = await loop.sock_recvfrom(self._socket, _DATAGRAM)
                events = [] if sender else list(read(datagram))  # 0: the kernel
            except TimeoutError:
                yield None
                continue
            except (OSError, ValueError):  # ENOBUFS: some were lost
                continue
            for event in events:
                yield event

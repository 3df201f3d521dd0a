"""libnftables, in a child process: run text as one transaction, list our table. And elements, past it.

Must not know mappings. The one idea: what happens in the C library happens to a child. Where it dies or hangs, the
transaction counts as refused, whoever asked reads the table again, and the next request finds a new child.

A table with an owner belongs to the child's netlink socket (linux/netfilter/nf_tables.h, NFT_TABLE_F_OWNER), so the
child hands it over: elements are written to it from here, while the child does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nfportd import elements, listing, ruleset
from nfportd.errors import KernelRefused, NotPossible
from nfportd.kernel import nft_batch, nft_worker
from nfportd.kernel.nft_elements import ElementsDump
from nfportd.kernel.nft_flags import Flags
from nfportd.kernel.nft_worker import DRY_RUN, HANDLES, HEADER, JSON, TERSE
from nfportd.ruleset import Listed

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Seconds to wait for an answer; 65,000 elements take one or two.
_PATIENCE = 20.0
#: Each so many bytes of text give another second.
_BYTES_A_SECOND = 200_000
#: Bytes of a transaction, some hundred elements, from which on the kernel takes so long that others get their turn.
_LONG = 1 << 15
#: Bytes of what a child says first.
_GREETING = 1 << 12
#: The daemon's signals are for the daemon: a service manager or a terminal sends them to its children as well.
_NOT_FOR_CHILDREN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


class NftDied(KernelRefused):
    """libnftables crashed, hung or could not be started. Whether the transaction is in force is not known."""


class Nft:
    """The only door to nftables, for one event loop; it works in the network namespace in which it is first asked.

    `started` is called with the netlink port of each child, before that child is asked anything; `lost` when one died.
    """

    def __init__(
        self, started: Callable[[int], None] = lambda _: None, lost: Callable[[], None] = lambda: None
    ) -> None:
        self._started = started
        self._lost = lost
        self._child: _Child | None = None
        self._turn = asyncio.Lock()
        self._flags = Flags()
        #: Whether a child has died, and so what it owned has lost its owner; for whoever mends it to unset.
        self.died = False

    def close(self) -> None:
        """End the child when it has answered what it was asked, and give up the table's ownership with its socket.

        Who asks later gets another child.
        """
        self._flags.close()
        if self._child:
            self._child.end()
            self._child = None

    async def run(self, text: str) -> None:
        """Run nft text as one transaction.

        Raises KernelRefused with nft's words, and then nothing of it is in force; NftDied where nobody can know.
        """
        await self._ask(0, text)

    async def write(self, batch: bytes) -> None:
        """Run a transaction that stands in the kernel's words (`elements.transaction`). Raises as `run` does."""
        async with self._turn:
            child = await self._ready()
            if child.busy:
                # Answers come in order: after this one it uses its socket no more.
                await child.ask(0, b"")
            try:
                if len(batch) < _LONG:
                    child.write(batch)
                else:
                    await _to_the_end(asyncio.to_thread(child.write, batch))
            except OSError as error:
                raise KernelRefused(_meant(error.strerror or str(error))) from None

    async def list_table(self, *, whole: bool = True) -> Listed | None:
        """Our table, or None. Without its elements (not `whole`) the cost does not depend on the number of mappings."""
        tables = self._tables()
        if ruleset.TABLE not in tables:
            return None
        # nft 1.0.6 fetches every element for `list table`, be it terse or not: 0.8 s for 60,000. But it must not be
        # asked for a table that has one flag, also another program's: it spoils its memory (nft_flags).
        risky = any(len(flags) == 1 for name, flags in tables.items() if name != ruleset.TABLE)
        bare = f"table inet {ruleset.TABLE}" if risky else "ruleset inet"
        try:
            if whole:
                found = await self._list_whole(bare) or await self._list(f"table inet {ruleset.TABLE}", terse=False)
            else:
                found = await self._list(bare, terse=True)
        except NftDied:
            raise
        except KernelRefused:
            if self.flags() is None:
                return None  # somebody has deleted it between
            raise
        return found and found._replace(flags=tables[ruleset.TABLE])

    async def _list(self, what: str, *, terse: bool) -> Listed | None:
        return _read(await self._ask(JSON | TERSE if terse else JSON, f"list {what}"))

    async def _list_whole(self, bare: str) -> Listed | None:
        """The table with the elements by the kernel's own word; None where libnftables must read them.

        That is so where somebody has put something there that we would not write, or does it at this moment.
        """
        try:
            with contextlib.closing(ElementsDump()) as dump:
                before = dump.generation()
                found = await self._list(bare, terse=True)
                if found is None:
                    return None
                ours = [name for name in sorted(ruleset.ELEMENT_SETS) if found.sets.get(name) == ruleset.shape(name)]
                sealed = "fingerprint" in found.sets
                fingerprint = elements.comment(dump.of("fingerprint")) if sealed else None
                read = await asyncio.to_thread(lambda: {name: elements.gathered(dump.of(name)) for name in ours})
                if dump.generation() == before:
                    return found._replace(elements=found.elements | read, fingerprint=fingerprint)
                return None
        except (OSError, ValueError, LookupError) as error:
            _log.debug("elements are read by libnftables: %s", error)
            return None

    def flags(self) -> ruleset.Flags | None:
        """The flags of our table by the kernel's own word; None where there is no table. Raises KernelRefused."""
        return self._tables().get(ruleset.TABLE)

    def _tables(self) -> dict[str, ruleset.Flags]:
        try:
            return self._flags.of_tables()
        except OSError as error:
            raise KernelRefused(f"tables cannot be read: {error.strerror or error}") from None

    async def listed(self, command: str) -> Any:
        """What nft lists, of any table, without the elements of sets. Raises KernelRefused, also where there is no
        such thing."""
        return json.loads(await self._ask(JSON | TERSE, command))

    async def shown(self, command: str) -> str:
        """What nft lists as text, each rule with its handle, without the elements of sets. Raises KernelRefused."""
        return (await self._ask(TERSE | HANDLES, command)).decode(errors="replace")

    async def allows(self, text: str) -> str | None:
        """Let nft and the kernel check text without applying it; None, or why they refuse it. Raises NftDied."""
        try:
            await self._ask(DRY_RUN, text)
        except NftDied:
            raise
        except KernelRefused as refusal:
            return refusal.reason
        return None

    async def _ask(self, flags: int, text: str) -> bytes:
        async with self._turn:
            child = await self._ready()
            return _checked(*await child.ask(flags, text.encode()))

    async def _ready(self) -> _Child:
        """The child, or a new one in the place of one that died."""
        if self._child is None or self._child.dead:
            self._child = await self._start()
        return self._child

    async def _start(self) -> _Child:
        first = self._child is None
        if self._child:
            # What it owned must be free for the next one.
            self._child.disown()
        try:
            child = _Child(self._died)
        except OSError as error:
            raise NftDied(f"the process for libnftables cannot be started: {error.strerror}") from None
        status, answer = await child.begin()
        if status:
            child.end()
            if first:
                raise NotPossible(f"{answer.decode()}; it takes the packages python3-nftables and nftables")
            raise NftDied(f"libnftables cannot be started again: {answer.decode()}")
        self._started(int(answer))
        if not first:
            _log.warning("libnftables runs again, as process %d", child.pid)
        return child

    def _died(self, how: str) -> None:
        _log.error("the process that runs libnftables %s; forwarding goes on, another is started", how)
        self.died = True
        self._lost()


class _Child(asyncio.Protocol):
    """One process that runs libnftables, and the conversation with it: one question at a time."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        """Start the process; `lost` is called with how it ended, unless `end` ended it. Raises NftDied."""
        self._lost = lost
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        # Answers still to come for which nobody waits any more.
        self._left = 0
        self._transport: asyncio.WriteTransport | None = None
        self._netlink: socket.socket | None = None
        self._ending = False
        self.dead = False
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-P", nft_worker.__file__, str(theirs.fileno()), str(os.getpid())]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_CHILDREN)
            try:
                self._process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
            except OSError as error:
                self._ours.close()
                raise NftDied(f"the process for libnftables cannot be started: {error.strerror}") from None
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def busy(self) -> bool:
        """Whether it may be at something still for which nobody waits."""
        return self._left > 0

    async def begin(self) -> tuple[int, bytes]:
        """Return what the process says first: whether it works, and its netlink port. Raises NftDied.

        Its netlink socket comes along, which a transport would drop.
        """
        await self._in_time(_readable(self._ours), _PATIENCE)
        said, descriptors, _, _ = socket.recv_fds(self._ours, _GREETING, 1, socket.MSG_CMSG_CLOEXEC)
        if descriptors:
            self._netlink = socket.socket(fileno=descriptors[0])
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._buffer += said
        await loop.create_connection(lambda: self, sock=self._ours)
        return await self._wait(_PATIENCE)

    def write(self, batch: bytes) -> None:
        """Run a batch of messages as one transaction; nobody else may ask meanwhile. Raises OSError."""
        assert self._netlink
        nft_batch.send(self._netlink, batch, elements.SEQUENCE)

    def disown(self) -> None:
        """Close its netlink socket here: with its last holder the kernel takes the ownership away."""
        if self._netlink:
            self._netlink.close()
            self._netlink = None

    async def ask(self, flags: int, text: bytes) -> tuple[int, bytes]:
        """Return what nft makes of text. Raises NftDied."""
        assert self._transport
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(HEADER.pack(flags, len(text)) + text)
        return await self._wait(_PATIENCE + len(text) / _BYTES_A_SECOND)

    async def _wait(self, patience: float) -> tuple[int, bytes]:
        assert self._answer
        try:
            return await self._in_time(self._answer, patience)
        except asyncio.CancelledError:
            self._left += not self._answer.done() or self._answer.cancelled()
            raise

    async def _in_time(self, what: Awaitable[_T], patience: float) -> _T:
        try:
            async with asyncio.timeout(patience):
                return await what
        except TimeoutError:
            self._process.kill()
            raise NftDied(f"libnftables did not answer in {patience:.0f} s") from None

    def end(self) -> None:
        """Let the process finish what it was asked, and wait for its end."""
        self._ending = True
        if self._transport:
            self._transport.abort()
        self._ours.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.disown()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        # With what the process has said first.
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            status, length = HEADER.unpack_from(self._buffer)
            if len(self._buffer) < HEADER.size + length:
                return
            answer = bytes(memoryview(self._buffer)[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            if self._left:
                self._left -= 1
            elif self._answer and not self._answer.done():
                self._answer.set_result((status, answer))

    def connection_lost(self, exc: Exception | None) -> None:
        self.dead = True
        if self._ending:
            return
        self._process.kill()
        how = _how(self._process.wait())
        self._lost(how)
        if self._answer and not self._answer.done():
            self._answer.set_exception(NftDied(f"libnftables {how}"))


async def _readable(sock: socket.socket) -> None:
    """Return when there is something to read."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(sock, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(sock)


async def _to_the_end(work: Awaitable[None]) -> None:
    """Wait for what cannot be stopped, also where whoever waits is."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.shield(doing)
    finally:
        await asyncio.wait([doing])


def _checked(status: int, answer: bytes) -> bytes:
    if status:
        raise KernelRefused(_reason(answer.decode(errors="replace")))
    return answer


def _read(answer: bytes) -> Listed | None:
    """A listing. Raises NftDied where it cannot be read: what nft is for has failed as much as by a crash."""
    try:
        # Names and comments of others may be of any bytes.
        return listing.parse(json.loads(answer.decode(errors="replace")))
    except ValueError as error:
        raise NftDied(f"libnftables lists what cannot be read: {error}") from None


def _how(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


#: What the kernel's words mean here (net/netfilter/nf_tables_api.c).
_MEANINGS = {
    "Too many open files in system": "the map or set is full",
    "File exists": "the key is there already with another value",
    "Operation not permitted": "no CAP_NET_ADMIN, or another process owns the table",
}


def _reason(error: str) -> str:
    """The sentence in nft's answer, without the input that it repeats (a transaction may have megabytes)."""
    for line in error.splitlines():
        _, found, reason = line.partition("Error: ")
        if found:
            return _meant(reason.strip().removeprefix("Could not process rule: ")[:300])
    return error.strip()[:300] or "nft gave no reason"


def _meant(reason: str) -> str:
    return f"{reason} ({_MEANINGS[reason]})" if reason in _MEANINGS else reason

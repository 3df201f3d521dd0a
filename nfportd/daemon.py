"""The daemon: wires sources, reconciler, API and kernel together, and answers signals.

Must not decide anything about mappings. The one idea: every task that ends unexpectedly ends the process; a new one
adopts the table, and forwarding goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import grp
import logging
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from nfportd import loopback, trust, unit
from nfportd.access import Access
from nfportd.api import openapi
from nfportd.api.routes import Routes, Services
from nfportd.api.server import Server, application
from nfportd.api.views import Views
from nfportd.counts import Counts
from nfportd.desired import Claim
from nfportd.enforcer import Kernel
from nfportd.errors import NotPossible
from nfportd.kernel import only_one
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.counters import Counters
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.nft import Nft
from nfportd.kernel.nft_monitor import NftMonitor
from nfportd.kernel.ports import LocalPorts
from nfportd.kernel.sysctl import Sysctls
from nfportd.messages import Message, about
from nfportd.model import Key, listens
from nfportd.obstacles import Obstacles
from nfportd.open_forward import OpenForward
from nfportd.reconciler import Reconciler
from nfportd.register import Register
from nfportd.relay import Relay
from nfportd.service import Service
from nfportd.settings import Settings
from nfportd.sources import recovery, watch
from nfportd.sources.dropins import DropIns
from nfportd.sources.kept import Kept
from nfportd.sources.store import Store
from nfportd.table import Table
from nfportd.wishes import Outcome

_log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None)

#: Seconds until files are read again that could not be read.
_AGAIN = 3.0


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the daemon reads and writes."""

    dropins: Path
    run_dir: Path
    state_dir: Path
    socket: Path


async def serve(paths: Paths, settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, or until SIGUSR1, which leaves everything in force for the next run.

    Raises NotPossible where the host cannot do it.
    """
    # Reading 60,000 mappings makes millions of values and no cycle: by default looking for some takes a third.
    gc.set_threshold(100_000, 50, 50)
    # Clients that connect and say nothing must not use up what the store and nft need.
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What we write must be what we would trust.
    os.umask(0o022)
    with _only_one(paths.run_dir), only_one.held():
        trust.require((paths.run_dir, paths.state_dir))
        # From here on a stop takes back what has been set.
        signals = _Signals()
        async with _kernel(paths, settings) as (kernel, nft):
            store = Store(paths.run_dir / "mappings.db", paths.state_dir / "mappings.db")
            try:
                await kernel.table.adopt()
                ended_by = await _work(kernel, nft, store, paths, settings, signals)
                unit.stopping()
                await _stop(kernel, settings, ended_by)
            finally:
                store.close()


@contextlib.asynccontextmanager
async def _kernel(paths: Paths, settings: Settings) -> AsyncIterator[tuple[Kernel, Nft]]:
    wake = asyncio.Event()
    monitor, network, conntrack = NftMonitor(wake.set), NetworkWatch(wake.set), Conntrack()
    relay = Relay(1 << settings.mark_bit)
    ports = LocalPorts(lambda: relay.inodes)
    nft = Nft(monitor.leave_out, wake.set)
    sysctls = Sysctls(paths.run_dir / "sysctls.json", manage=settings.manage_sysctls)
    table, host = Table(nft, settings.mark_bit), Host(network, sysctls)
    try:
        yield Kernel(wake, table, monitor, network, conntrack, host, ports, relay), nft
    finally:
        relay.close()
        monitor.close()
        ports.close()
        conntrack.close()
        network.close()
        nft.close()


async def _stop(kernel: Kernel, settings: Settings, ended_by: signal.Signals) -> None:
    told = about(Message.STOPPED)
    if ended_by == signal.SIGUSR1 or settings.on_stop == "keep":
        why = "for the next run" if ended_by == signal.SIGUSR1 else "on_stop: keep"
        _log.info("stays in force (%s): table inet nfportd, %s", why, kernel.host.report(), extra=told)
        return
    # The loopback guard goes last.
    kernel.host.release()
    await kernel.table.delete()
    if settings.open_forward == "firewalld":
        await OpenForward().close()
    _log.info("stopped", extra=told)


class _Signals:
    """What has been asked for by signal: the end, and to read everything anew."""

    def __init__(self) -> None:
        self.ended, self.reread = asyncio.Queue[signal.Signals](), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            loop.add_signal_handler(number, self.ended.put_nowait, number)
        loop.add_signal_handler(signal.SIGHUP, self.reread.set)


async def _work(
    kernel: Kernel, nft: Nft, store: Store, paths: Paths, settings: Settings, signals: _Signals
) -> signal.Signals:
    """Serve until a signal ends it; the signal."""
    register = Register()
    dropins = DropIns(paths.dropins, paths.run_dir / "last-good", Kept(paths.run_dir / "validated"))
    counters = Counters()
    service = Service(
        register, kernel, nft, dropins, Counts(counters.read, lambda found: loopback.folded(found, register.desired))
    )
    reconciler = service.reconciler = Reconciler(register, kernel, store, service.notices)
    opener = OpenForward() if settings.open_forward == "firewalld" else None
    obstacles = service.obstacles = Obstacles(Nft(), reconciler, kernel.monitor.stirred, opener)
    promised = await recovery.promised(store, kernel.table.elements)
    source = _Source(reconciler, dropins, service, promised)
    app = _application(reconciler, service, source, settings)
    server = Server(app, paths.socket, settings.group, unit.inherited())
    end = asyncio.create_task(signals.ended.get(), name="end")
    tasks = [
        end,
        asyncio.create_task(reconciler.run(), name="reconciler"),
        asyncio.create_task(kernel.host.watch(), name="parameters"),
        asyncio.create_task(source.follow_files(server), name="drop-ins"),
        asyncio.create_task(source.follow_signal(signals.reread), name="SIGHUP"),
        asyncio.create_task(source.read_again(), name="unread files"),
        asyncio.create_task(source.keep(), name="validated files"),
        asyncio.create_task(unit.tell_status(service.notices.changed, service.summary), name="status"),
        asyncio.create_task(obstacles.run(), name="obstacles"),
        asyncio.create_task(_count(source, service.counts), name="connections"),
        asyncio.create_task(_live(source, reconciler), name="watchdog"),
    ]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    service.close()
    await server.stop()
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    obstacles.close()
    counters.close()
    for task in done:
        # Only the wait for a signal ends without an error.
        task.result()
    return end.result()


async def _count(source: _Source, counts: Counts) -> None:
    # A start has better things to do.
    await source.ready.wait()
    await counts.run()


async def _live(source: _Source, reconciler: Reconciler) -> None:
    # A beat before the first wish would bring nothing into force, and so empty an adopted table.
    await source.ready.wait()
    await unit.feed_watchdog(reconciler.beat)


def _application(reconciler: Reconciler, service: Service, source: _Source, settings: Settings) -> web.Application:
    gids = frozenset[int]()
    with contextlib.suppress(KeyError):
        gids = frozenset({grp.getgrnam(settings.group).gr_gid})
    trusted = frozenset({0, os.geteuid()})
    access = Access(settings.access, trusted, gids)
    services = Services(
        reconciler=reconciler,
        views=Views(reconciler),
        access=access,
        events=service.events,
        traffic=service.counts,
        status=service.status,
        drift=service.drift,
        reload=source.reload,
        follow=service.follow,
        incarnation=service.incarnation,
        metrics=service.render,
        openapi=openapi.document,
    )
    return application(Routes(services).table(), access, trusted)


class _Source:
    """Carries what the store and the drop-ins wish to the reconciler."""

    def __init__(self, reconciler: Reconciler, dropins: DropIns, service: Service, promised: recovery.Promised) -> None:
        self._reconciler = reconciler
        self._dropins = dropins
        self._service = service
        self._promised = promised
        self._turn = asyncio.Lock()
        self._taken = asyncio.Event()
        self.ready = asyncio.Event()

    async def follow_files(self, server: Server) -> None:
        """Bring everything into force, say that we are ready, then follow the files' changes."""
        if not self._dropins.directory.is_dir():
            _log.warning("%s does not exist; mappings are read as soon as it does", self._dropins.directory)
        async for names in watch.changed(self._dropins.directory):
            await self._take(names, ", ".join(sorted(names)) if names else "all files")
            if not self.ready.is_set():
                await server.start()
                count, told = self._reconciler.register.desired.count(), about(Message.READY)
                _log.info("ready: %d mappings, drop-ins from %s", count, self._dropins.directory, extra=told)
                # What has been made by now stays, so nobody looks through it for cycles; among the rest that is cheap.
                gc.freeze()
                gc.set_threshold(10_000, 10, 10)
                _libc.malloc_trim(0)
                unit.ready()
                self.ready.set()

    async def follow_signal(self, reread: asyncio.Event) -> None:
        """Read everything anew at each SIGHUP."""
        await self.ready.wait()
        while await reread.wait():
            reread.clear()
            with unit.reloading():
                await self._take(None, "all files (SIGHUP)")

    async def read_again(self) -> None:
        """Read what could not be read for want of descriptors or memory, as soon as it can be."""
        await self.ready.wait()
        while True:
            await asyncio.sleep(_AGAIN)
            if self._dropins.unread:
                await self._take(None, "all files (again)")

    async def keep(self) -> None:
        """Let the next start know what was validated, once nobody waits for it."""
        await self.ready.wait()
        while await self._taken.wait():
            self._taken.clear()
            async with self._turn:
                await asyncio.to_thread(self._dropins.keep)

    async def reload(self) -> list[str]:
        """Read everything anew; return what is wrong in the files."""
        with unit.reloading():
            await self._take(None, "all files (API)")
        return [str(problem) for problems in self._dropins.problems.values() for problem in problems]

    async def _take(self, names: watch.Names, what: str) -> None:
        async with self._turn:
            started = time.monotonic()
            wished = await asyncio.to_thread(self._dropins.changes, names)
            promised, self._promised = self._promised, recovery.NONE
            outcome = await self._reconciler.fulfil(promised.wish(recovery.contents(wished)))
            for owner, held in promised.held.items():
                self._service.follow(owner, held.content)
        self._taken.set()
        self._service.notices.reload(what)
        # Where one owner changed, the line is its own.
        self._say(what, next(iter(wished)) if len(wished) == 1 else "", outcome, time.monotonic() - started)

    def _say(self, what: str, owner: str, outcome: Outcome, seconds: float) -> None:
        for each in outcome.waiting:
            more = f" and {len(each.keys) - 1} more" if len(each.keys) > 1 else ""
            told = about(Message.WAITING, each.claim.owner, each.keys[0])
            _log.warning("%s waits for %s%s, held by %s", each.claim, each.keys[0], more, each.holder, extra=told)
        for key, (address, process) in outcome.blocked.items():
            holder, told = self._holder(key)
            text = "%s of %s is not in force: %s on %s; stop it, or set shadow_listener: true"
            _log.error(text, key, holder, listens(process), address, extra=told)
        for key, (address, process) in outcome.shadowed.items():
            holder, told = self._holder(key)
            _log.warning("%s of %s holds, though %s on %s", key, holder, listens(process), address, extra=told)
        added, removed = self._reconciler.enforcer.elements_added, self._reconciler.enforcer.elements_removed
        text, told = "applied: %s: +%d -%d elements in %.1f ms", about(Message.APPLIED, owner)
        _log.info(text, what, added, removed, seconds * 1000, extra=told)

    def _holder(self, key: Key) -> tuple[Claim | None, dict[str, str]]:
        """Whose key it is, and what a line about it is about."""
        holder = self._reconciler.register.desired.holder(key)
        return holder, about(Message.PORT_IN_USE, holder.owner if holder else "", key)


@contextlib.contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's lock. Raises NotPossible where another nfportd holds it, naming its pid."""
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = (run_dir / "lock").open("a+")
    except OSError as error:
        raise NotPossible(f"{run_dir}: {error.strerror}; name another with --run-dir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise NotPossible(f"nfportd runs already with {run_dir} (pid {lock.read().strip() or 'unknown'})") from None
        # On a full disk the lock holds all the same.
        with contextlib.suppress(OSError):
            os.truncate(lock.fileno(), 0)
            os.write(lock.fileno(), str(os.getpid()).encode())
        yield

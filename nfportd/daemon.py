"""The daemon: wires sources, reconciler and kernel together, and answers signals.

Must not decide anything about mappings. The one idea: every task that ends unexpectedly ends the process; a new one
adopts the table, and forwarding goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from systemd import daemon as systemd

from nfportd.errors import NotPossible
from nfportd.kernel.conntrack import Conntrack
from nfportd.kernel.host import Host
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.nft import Nft
from nfportd.kernel.sysctl import Sysctls
from nfportd.model import Key
from nfportd.reconciler import Outcome, Reconciler
from nfportd.settings import Settings
from nfportd.sources import watch
from nfportd.sources.dropins import DropIns
from nfportd.table import Table

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the daemon reads and writes."""

    dropins: Path
    run_dir: Path


async def serve(paths: Paths, settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises NotPossible where the host cannot do it."""
    with _only_one(paths.run_dir):
        network, nft, conntrack = NetworkWatch(), Nft(), Conntrack()
        sysctls = Sysctls(paths.run_dir / "sysctls.json", manage=settings.manage_sysctls)
        table, host = Table(nft, settings.mark_bit), Host(network, sysctls)
        reconciler = Reconciler(table, network, conntrack, host)
        dropins = DropIns(paths.dropins, paths.run_dir / "last-good")
        try:
            await table.adopt()
            await _work(reconciler, dropins)
            systemd.notify("STOPPING=1")
            if settings.on_stop == "remove":
                # The loopback guard goes last.
                await host.release()
                await table.delete()
            else:
                _log.info("stays in force (on_stop: keep): table inet nfportd, %s", await host.report())
        finally:
            conntrack.close()
            network.close()
            nft.close()


async def _work(reconciler: Reconciler, dropins: DropIns) -> None:
    stop, reread = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    source = _Source(reconciler, dropins)
    tasks = [
        asyncio.create_task(reconciler.run(), name="reconciler"),
        asyncio.create_task(source.follow_files(), name="drop-ins"),
        asyncio.create_task(source.follow_signal(reread), name="SIGHUP"),
        asyncio.create_task(stop.wait(), name="stop"),
    ]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        # Only the wait for a signal ends without an error.
        task.result()


class _Source:
    """Carries what the drop-ins wish to the reconciler."""

    def __init__(self, reconciler: Reconciler, dropins: DropIns) -> None:
        self._reconciler = reconciler
        self._dropins = dropins
        self._turn = asyncio.Lock()

    async def follow_files(self) -> None:
        """Bring the files into force, say that we are ready, then follow their changes."""
        if not self._dropins.directory.is_dir():
            _log.warning("%s does not exist; mappings are read as soon as it does", self._dropins.directory)
        ready = False
        async for names in watch.changed(self._dropins.directory):
            await self._take(names, ", ".join(sorted(names)) if names else "all files")
            if not ready:
                ready = True
                _log.info("ready: %d mappings from %s", self._reconciler.mappings, self._dropins.directory)
                systemd.notify("READY=1")

    async def follow_signal(self, reread: asyncio.Event) -> None:
        """Read everything anew at each SIGHUP."""
        while await reread.wait():
            reread.clear()
            await self._take(None, "all files (SIGHUP)")

    async def _take(self, names: watch.Names, what: str) -> None:
        async with self._turn:
            started = time.monotonic()
            wishes = await asyncio.to_thread(self._dropins.changes, names)
            outcome = await self._reconciler.replace(wishes)
        _say(what, outcome, time.monotonic() - started)


def _say(what: str, outcome: Outcome, seconds: float) -> None:
    for claim, holder, keys in outcome.waiting:
        _log.warning("%s waits for %s, held by %s", claim, _some(keys), holder)
    _log.info("applied: %s: +%d -%d elements in %.1f ms", what, outcome.added, outcome.removed, seconds * 1000)


def _some(keys: list[Key]) -> str:
    return f"{keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


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
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield

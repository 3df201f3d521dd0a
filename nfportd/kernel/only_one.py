"""One nfportd in a network namespace: whoever comes second learns of the first before it touches anything.

Must not know the run directory; two daemons there have a lock of their own. The one idea: a name of the abstract
namespace of unix sockets belongs to a network namespace as the table does, and goes with the process that has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator

from nfportd.errors import NotPossible

_log = logging.getLogger(__name__)

_NAME = "\0nfportd"
#: Those who ask and are not seen off yet.
_BACKLOG = 64
#: Seconds between two times at which they are seen off: anybody on the host may knock as often as they like.
_PAUSE = 0.5
#: Seconds for which whoever comes second asks who the first is.
_PATIENCE = 2.0


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Be the only nfportd of this network namespace, in the running event loop.

    Raises NotPossible where root or our own user has another, naming its pid. A name that somebody else keeps from us
    is done without, with a warning: else any user could keep nfportd from starting.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.bind(_NAME)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise NotPossible(f"the unix socket @{_NAME[1:]} cannot be made: {error.strerror}") from None
            _ask()
            yield
            return
        sock.listen(_BACKLOG)
        door = _Door(sock)
        try:
            yield
        finally:
            door.close()


class _Door:
    """Lets in whoever knocks, and out again: a queue that is full would tell nobody who we are."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._see_off)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._pause:
            self._pause.cancel()

    def _see_off(self) -> None:
        self._loop.remove_reader(self._sock)
        # Nobody is left, or too many files are open.
        with contextlib.suppress(OSError):
            for _ in range(_BACKLOG):
                self._sock.accept()[0].close()
        self._pause = self._loop.call_later(_PAUSE, self._loop.add_reader, self._sock, self._see_off)


def _ask() -> None:
    """Raise NotPossible where the name is root's or ours; warn where it is another user's."""
    found = _holder()
    if found is None:
        _log.warning("the unix socket @%s is taken by a process that does not listen; it is not heeded", _NAME[1:])
        return
    pid, uid = found
    if uid in (0, os.geteuid()):
        raise NotPossible(f"nfportd runs already in this network namespace (pid {pid or 'unknown'})")
    text = "the unix socket @%s is taken by process %s of user %d, which cannot be nfportd; it is not heeded"
    _log.warning(text, _NAME[1:], pid or "unknown", uid)


def _holder() -> tuple[int, int] | None:
    """The pid (0 from another pid namespace) and user of who listens, as the kernel knows them; None: nobody."""
    until = time.monotonic() + _PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(_NAME)
            except OSError:
                # It has ended, does not listen yet, or too many ask.
                if time.monotonic() > until:
                    return None
                time.sleep(0.05)
            else:
                # struct ucred of unix(7), SO_PEERCRED: those of the process that called listen(2)
                pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                return pid, uid

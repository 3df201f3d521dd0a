"""A TCP port of a namespace that leads to the API's socket, for programs that speak no unix sockets.

Must not read what it carries. The one idea: two threads a connection, each copies one way.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.netns import Namespace


@contextlib.contextmanager
def bridged(space: Namespace, path: Path) -> Iterator[str]:
    """The address of the port, `http://127.0.0.1:PORT`."""
    listener = space.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    threading.Thread(target=_serve, args=(listener, path), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        listener.close()


def _serve(listener: socket.socket, path: Path) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            far.connect(str(path))
        except OSError:
            near.close()
            far.close()
            continue
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Until the source ends; then the sink learns that it has, and whoever ends last closes both."""
    with contextlib.suppress(OSError):
        while some := source.recv(65536):
            sink.sendall(some)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

"""One daemon for a module of faults, with a mapping that no test touches.

Must not know what is injected. The one idea: a start takes a second, so a test starts it only where it finds none.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.truth import STILL_FILE
from tests.lab import Daemon, Lab


@pytest.fixture(scope="module")
def standing(lab: Lab) -> Iterator[Daemon]:
    daemon = Daemon(lab)
    for name, text in STILL_FILE.items():
        (daemon.dropins / name).write_text(text)
    yield daemon
    if daemon.process is not None:
        daemon.kill9()
    lab.reset()


@pytest.fixture
def daemon(standing: Daemon) -> Daemon:
    """The daemon, which runs."""
    if standing.process is None:
        standing.start()
    return standing

"""A daemon and a client for the tests of the API.

Must not know what a test asserts. The one idea: one daemon stands for a module, and each test leaves it empty; a test
that starts daemons of its own has the host for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from nfportd.client import Client
from tests.api import calling
from tests.lab import Daemon, Lab


class Standing:
    """The daemon that outlives a test."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._daemon: Daemon | None = None

    def ready(self) -> Daemon:
        """The daemon, started if it does not run."""
        if self._daemon is None:
            self._daemon = Daemon(self._lab)
        if self._daemon.process is None or self._daemon.process.poll() is not None:
            self._daemon.start()
        return self._daemon

    def clear(self) -> None:
        """Take away every mapping."""
        daemon = self.ready()
        for file in daemon.dropins.iterdir():
            daemon.remove(file.name)
        with calling.client(daemon) as api:
            for each in api.get("/v1/owners")["owners"]:
                api.delete(each["owner"])
        if daemon.elements("any4"):
            self.end()

    def end(self) -> None:
        """Stop it; the next test gets a new one."""
        if self._daemon is None:
            return
        if self._daemon.process is not None:
            self._daemon.stop()
        self._lab.daemons.remove(self._daemon)
        self._daemon = None
        self._lab.reset()


@pytest.fixture(scope="module")
def standing(lab: Lab) -> Iterator[Standing]:
    made = Standing(lab)
    yield made
    made.end()


@pytest.fixture
def start(standing: Standing, start: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Daemons of the test's own; no other is in the host meanwhile."""
    standing.end()
    return start


@pytest.fixture
def daemon(standing: Standing, lab: Lab) -> Iterator[Daemon]:
    yield standing.ready()
    standing.clear()
    lab.host.run(["conntrack", "-F"])


@pytest.fixture
def api(daemon: Daemon) -> Iterator[Client]:
    with calling.client(daemon) as made:
        yield made

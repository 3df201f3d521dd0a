"""A room for the runtime of a module, and nfportd in it.

Must not know which runtime. The one idea: whatever a test published is gone at its end, or the test fails.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nfportd.client import Client
from tests.lab import Lab
from tests.runtimes.room import Resident, Room


@pytest.fixture(scope="module")
def room(lab: Lab) -> Iterator[Room]:
    with Room(lab) as built:
        yield built


@pytest.fixture(scope="module")
def resident(room: Room) -> Iterator[Resident]:
    daemon = Resident(room)
    daemon.start()
    yield daemon
    if daemon.process is not None:
        daemon.stop()
    room.lab.daemons.remove(daemon)


@pytest.fixture
def daemon(resident: Resident) -> Iterator[Resident]:
    """The daemon of the module, running."""
    if resident.process is None:
        resident.start()
    yield resident
    if resident.process is None:
        resident.start()


@pytest.fixture
def api(daemon: Resident) -> Iterator[Client]:
    with Client(str(daemon.socket), timeout=20) as made:
        yield made

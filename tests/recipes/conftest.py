"""What the tests of the recipes share: a room for the runtime, nfportd beside it, and the recipes as they are written.

Must not know a runtime. The one idea: what is run is what docs/recipes.md says, but for names and places.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api.calling import client
from tests.conftest import furnished
from tests.lab import ROOT, Daemon, Lab
from tests.runtimes import images
from tests.runtimes.room import Neighbour, Room, needs

RECIPES = ROOT / "docs" / "recipes.md"
HOST = "192.0.2.1"
PORTCTL = Daemon.command("nfportctl")[0]


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """One laboratory for all recipes: each leaves the host as it was."""
    yield from furnished()


@pytest.fixture(scope="package")
def room(lab: Lab) -> Iterator[Room]:
    needs(str(images.BUSYBOX), "curl")
    with Room(lab) as made:
        yield made


@pytest.fixture(scope="package")
def standing(room: Room) -> Iterator[Neighbour]:
    """One daemon; each test leaves it empty."""
    made = Neighbour(room)
    yield made
    if made.process is not None:
        made.stop()
    room.lab.daemons.remove(made)
    room.lab.reset()


@pytest.fixture
def daemon(standing: Neighbour) -> Iterator[Daemon]:
    if standing.process is None:
        standing.start()
    yield standing
    if standing.process is not None:
        with client(standing) as api:
            for owner in owners(standing):
                api.delete(owner)


@pytest.fixture
def start(standing: Neighbour, start: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Daemons of the test's own; no other is in the host meanwhile."""
    if standing.process is not None:
        standing.stop()
    return start


@pytest.fixture(scope="package")
def root(room: Room) -> Path:
    """The root of a system: what the image holds, and what systemd-nspawn looks for in a root."""
    place = room.dir / "root"
    with tarfile.open(fileobj=io.BytesIO(images.layer())) as layer:
        layer.extractall(place)
    (place / "usr").mkdir()
    (place / "etc" / "os-release").write_text("ID=busybox\n")
    return place


def recipe(title: str, pattern: str) -> list[str]:
    """What the lines of a recipe say that match; the pattern's group, without the path of an installed nfportctl."""
    text = RECIPES.read_text()
    section = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{RECIPES.name} has no section {title}"
    found = re.findall(pattern, section[1], re.MULTILINE)
    assert found, f"{RECIPES.name}, {title}: no line matches {pattern}"
    return [str(each).replace("/usr/bin/nfportctl", PORTCTL) for each in found]


def page(lab: Lab, port: int, space: str = "client", host: str = HOST) -> str:
    """What the web server behind a port of the host says: its host's name and the client's address; else why not."""
    address = f"[{host}]" if ":" in host else host
    asked = ["curl", "-sS", "-g", "--max-time", "2", f"http://{address}:{port}/cgi-bin/who"]
    done = lab.spaces[space].run(asked, check=False)
    said = re.sub(r"\[(?:::ffff:)?(.*)\]", r"\1", done.stdout)  # the server listens on ::
    return said.strip() or done.stderr.strip()


def is_dead(lab: Lab, port: int, host: str = HOST) -> bool:
    """Whether the host refuses connections to a port."""
    return lab.client.ask(host, port).outcome == "refused"


def owners(daemon: Daemon) -> list[str]:
    with client(daemon) as api:
        return [each["owner"] for each in api.get("/v1/owners")["owners"]]

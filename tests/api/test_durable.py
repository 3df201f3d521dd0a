"""What 2xx means: written down; and what becomes of promises when the disk is full or the store is lost.

Must not know SQL. The one idea: the daemon dies without warning, and clients and callers see what they were promised.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfportd.client import Client, Json
from tests.api.calling import T1, T2, answers, body, client, mapping, refusal, states, transact
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]


@pytest.fixture
def daemon(start: Start) -> Daemon:
    return start()


def store_of(daemon: Daemon, place: str) -> Path:
    return daemon.dir / place / "mappings.db"


def shown(api: Client) -> list[Json]:
    """All owners with their mappings."""
    return [api.get(f"/v1/owners/{each['owner']}") for each in api.get("/v1/owners")["owners"]]


def test_everything_of_an_owner_comes_back(lab: Lab, daemon: Daemon, api: Client) -> None:
    many = body(
        mapping(8080, T1, "[fd88::11]:80", name="web", protocol=["tcp", "udp"], comment="ä", masquerade="always"),
        mapping("192.0.2.1:9000-9009", "10.88.0.12:9000-9009", on_change="cut", sources=["192.0.2.0/24"]),
        mapping(8081, T2, shadow_listener=True, reserve=True),
        expires_in=600,
        pid=os.getpid(),
        netns=f"/run/netns/{lab.host.full}",
    )
    api.put("full", many)
    api.put("persistent", body(mapping(8082, T1), persistent=True))
    api.put("empty", body())
    before, elements = shown(api), daemon.elements("any4")
    for end in (daemon.kill9, daemon.stop, daemon.kill9):
        end()
        daemon.start()
        assert shown(api) == before
        assert daemon.elements("any4") == elements
    assert answers(lab, 8081) == "t2"


def test_nobody_else_can_lock_a_store(daemon: Daemon) -> None:
    """SQLite locks a file that may be read, and who writes then waits for five seconds."""
    daemon.stop()
    for place in ("run", "state"):
        store_of(daemon, place).chmod(0o644)  # as earlier versions made it
    daemon.start()

    assert [store_of(daemon, place).stat().st_mode & 0o777 for place in ("run", "state")] == [0o600, 0o600]


def test_what_is_written_to_memory_comes_back_as_well(lab: Lab, daemon: Daemon, api: Client) -> None:
    daemon.stop()
    run = daemon.dir / "run"
    shutil.rmtree(run)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="nfportd-test-") as memory:
        run.symlink_to(memory)
        daemon.start()
        api.put("here", body(mapping(8080, T1)))
        api.put("moves", body(mapping(8081, T1), persistent=True))
        api.put("moves", body(mapping(8081, T2)))
        transact(api, here=body(mapping(8080, T2)), there=body(mapping(8082, T1), persistent=True))
        before = {each["owner"]: each["etag"] for each in shown(api)}
        daemon.kill9()
        daemon.start()
        assert {each["owner"]: each["etag"] for each in shown(api)} == before
        assert (answers(lab, 8080), answers(lab, 8081)) == ("t2", "t2")
        daemon.stop()


def test_a_restart_after_a_crash_loses_no_connection_and_writes_nothing(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080, T1)))
    with lab.client.talk("192.0.2.1", 8080) as flow:
        assert flow.ask()
        daemon.kill9()
        assert flow.ask()
        assert answers(lab, 8080) == "t1"
        daemon.start()
        assert flow.ask().target == "t1"
    assert daemon.counters("any4") == {"tcp . 8080": 2}, "the element was made anew"


def test_what_was_withdrawn_does_not_come_back(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080, T1), persistent=True))
    api.put("other", body(mapping(8081, T1)))
    api.delete("web")
    transact(api, other=None)
    daemon.kill9()
    daemon.start()

    assert shown(api) == []
    assert (answers(lab, 8080), answers(lab, 8081)) == ("refused", "refused")


def test_persistent_outlives_the_run_directory(lab: Lab, daemon: Daemon, api: Client) -> None:
    """As after a reboot: /run is empty, and so is the table."""
    api.put("kept", body(mapping(8080, T1), persistent=True))
    api.put("moved", body(mapping(8081, T1)))
    api.put("moved", body(mapping(8081, T2), persistent=True))
    api.put("lost", body(mapping(8082, T1), persistent=True))
    api.put("lost", body(mapping(8082, T1)))
    daemon.kill9()
    shutil.rmtree(daemon.dir / "run")
    lab.reset()
    daemon.start()

    assert states(api) == {"kept 8080": "active", "moved 8081": "active"}
    assert (answers(lab, 8080), answers(lab, 8081), answers(lab, 8082)) == ("t1", "t2", "refused")


# a lost store


def noise(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.write_bytes(os.urandom(each.stat().st_size))


def half(path: Path) -> None:
    """The file is shorter than it says; what was beside it is in it."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(path, path.stat().st_size // 2 + 100)


def strange_rows(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute('UPDATE owners SET content = \'{"mappings": [{"listen": "no"}]}\'')
        file.commit()


@pytest.mark.parametrize("spoil", [noise, half, strange_rows])
@pytest.mark.parametrize("place", ["run", "state"])
def test_a_corrupt_store_is_set_aside_and_forwarding_goes_on(
    lab: Lab, start: Start, place: str, spoil: Callable[[Path], None]
) -> None:
    daemon = start({"file.yaml": dropin(written("file", 7000, T1))})
    with client(daemon) as api:
        api.put("web", body(mapping(8080, T1, protocol=["tcp", "udp"]), persistent=place == "state"))
        api.put("other", body(mapping(8081, T2), persistent=place != "state"))
    daemon.kill9()
    spoil(store_of(daemon, place))
    before = len(daemon.log)
    daemon.start()

    log = daemon.log[before:]
    assert "CRITICAL" in log
    assert str(store_of(daemon, place)) in log
    assert list(store_of(daemon, place).parent.glob("mappings.db.corrupt-*"))
    assert (answers(lab, 8081), answers(lab, 7000)) == ("t2", "t1")
    with client(daemon) as api:
        assert api.owner("other"), "the other store is whole"
        api.put("other", body(mapping(8082, T2), persistent=place != "state"))
        claim_again(lab, daemon, api)


def claim_again(lab: Lab, daemon: Daemon, api: Client) -> None:
    """The elements serve on, over another restart too, until their owner comes again."""
    assert answers(lab, 8080) == "t1"
    daemon.kill9()
    daemon.start()
    assert answers(lab, 8080) == "t1"
    assert lab.client.ask("192.0.2.1", 8080, "udp").target == "t1"

    api.put("web", body(mapping(8080, T2, protocol=["tcp", "udp"])))
    assert answers(lab, 8080) == "t2"
    assert states(api)["web 8080"] == "active"
    daemon.kill9()
    daemon.start()
    assert answers(lab, 8080) == "t2"
    with contextlib.suppress(Exception):
        api.delete("recovered:store")
    assert answers(lab, 8080) == "t2"


# a full disk


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[bool], None]]:
    """A directory on a disk of its own of 256 kB, which can be filled and emptied."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "small", str(place)], check=True)
    filler = place / "filler"

    def fill(full: bool) -> None:
        filler.unlink(missing_ok=True)
        if full:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def cramped(lab: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, Callable[[bool], None]]]:
    """A daemon one of whose directories can be filled."""
    daemon = Daemon(lab)
    with small_disk(daemon.dir / request.param) as fill:
        daemon.start()
        try:
            yield daemon, fill
        finally:
            if daemon.process:
                daemon.stop()
            lab.daemons.remove(daemon)
            lab.reset()


LARGE = [mapping(port, T2, comment="x" * 60) for port in range(20000, 20400)]


@pytest.mark.parametrize(("cramped", "kept"), [("state", True), ("run", False)], indirect=["cramped"])
def test_a_full_disk_refuses_and_changes_nothing(
    lab: Lab, cramped: tuple[Daemon, Callable[[bool], None]], kept: bool
) -> None:
    daemon, fill = cramped
    with client(daemon) as api:
        api.put("web", body(mapping(8080, T1), persistent=kept))
        before = shown(api)
        fill(True)
        for wish in (body(mapping(8080, T2), *LARGE, persistent=kept), body(*LARGE, persistent=kept)):
            problem = refusal(api.put, "web", wish)
            assert (problem.status, problem.name) == (507, "storage")
        assert refusal(transact, api, web=None, b=body(*LARGE, persistent=kept)).name == "storage"
        reserved = mapping(8090, T1, reserve=True)
        assert refusal(api.put, "r", body(reserved, *LARGE, persistent=kept)).name == "storage"

        assert lab.host.run(["ss", "-Hltn", "sport = :8090"]).stdout == ""
        assert (answers(lab, 8080), shown(api)) == ("t1", before)
        if kept:
            api.put("other", body(mapping(8081, T2)))
            assert answers(lab, 8081) == "t2"
        daemon.kill9()
        fill(False)
        daemon.start()
        assert states(api) == {"web 8080": "active"} | ({"other 8081": "active"} if kept else {})
        api.put("web", body(mapping(8080, T2), *LARGE, persistent=kept))
        assert answers(lab, 8080) == "t2"


@pytest.mark.parametrize("cramped", ["state"], indirect=True)
def test_a_full_disk_under_one_of_two_stores_loses_nothing_of_the_other(
    lab: Lab, cramped: tuple[Daemon, Callable[[bool], None]]
) -> None:
    """An owner that wishes to become persistent stays what it was; so does another owner of the same transaction."""
    daemon, fill = cramped
    with client(daemon) as api:
        api.put("web", body(mapping(8080, T1)))
        api.put("beside", body(mapping(8081, T1)))
        before = shown(api)
        fill(True)
        assert refusal(api.put, "web", body(mapping(8080, T2), *LARGE, persistent=True)).name == "storage"
        wish = {"beside": body(mapping(8081, T2)), "new": body(*LARGE, persistent=True)}
        assert refusal(transact, api, **wish).name == "storage"
        assert shown(api) == before
        daemon.kill9()
        daemon.start()

        assert shown(api) == before
    assert (answers(lab, 8080), answers(lab, 8081)) == ("t1", "t1")

"""Drop-ins are live: however a file is written, its last good content is in force.

It must not know how files are watched. The one idea: what a client gets after each way in which people and programs
write files.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable

import pytest

from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint

Start = Callable[..., Daemon]
OWN = "192.0.2.1"
BROKEN = {
    "no YAML": "mappings: [",
    "an unknown key": dropin(mapping("web", 8080, "10.88.0.11:80", colour="red")),
    "no target": "mappings:\n  - name: web\n    listen: 8080\n",
    "a port out of range": dropin(mapping("web", 70000, "10.88.0.11:80")),
    "a range of another length": dropin(mapping("web", "8080-8082", "10.88.0.11:80-81")),
    "families that differ": dropin(mapping("web", "192.0.2.1:8080", "[fd88::11]:80")),
    "a key of YAML twice": dropin(mapping("web", 8080, "10.88.0.11:80")) + "    listen: 8081\n",
    "a list of another kind": "- web\n",
    "not text": "\udcff\udcfe",
}


def web(target: str, port: int = 8080) -> str:
    return dropin(mapping("web", port, endpoint(address(target, 4), 80), endpoint(address(target, 6), 80)))


def applied(daemon: Daemon, change: Callable[[], object]) -> str:
    """Do something to the files, and wait for the daemon to say that it took it."""
    seen = len(daemon.log)
    change()
    return daemon.wait_for(r"\bapplied: ", seen)


def reached(lab: Lab, port: int = 8080) -> str:
    """Who answers on a port: a target's name, or the outcome."""
    answer = lab.outside.ask(OWN, port)
    return answer.target or answer.outcome


def eventually(lab: Lab, expected: str, port: int = 8080, within: float = 3) -> bool:
    until = time.monotonic() + within
    while reached(lab, port) != expected:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_an_atomic_rename(lab: Lab, start: Start) -> None:
    daemon = start()
    for target in ("t1", "t2", "t3"):
        line = daemon.write("web.yaml", web(target))
        assert re.search(r"\bapplied: .*\b[\d.]+ ?ms\b", line)
        assert reached(lab) == target


def test_a_change_is_in_force_when_the_daemon_says_so_and_soon(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1")})
    slowest = 0.0
    for target in ("t2", "t3") * 5:
        began = time.monotonic()
        daemon.write("web.yaml", web(target))
        slowest = max(slowest, time.monotonic() - began)
        assert reached(lab) == target
    assert slowest < 1


def test_an_editor_that_renames_away_and_creates(lab: Lab, start: Start) -> None:
    """vim with backupcopy=no: the old file becomes web.yaml~, a new one is made under its name."""
    daemon = start({"web.yaml": web("t1")})
    path = daemon.dropins / "web.yaml"
    path.rename(path.with_name("web.yaml~"))
    path.write_text(web("t2"))
    path.with_name("web.yaml~").unlink()
    assert eventually(lab, "t2")


def test_a_file_written_in_place_slowly(lab: Lab, start: Start) -> None:
    """Half a file is no file: nothing of it may take the good content out of force."""
    daemon = start({"web.yaml": web("t1") + mapping("more", 8081, "10.88.0.11:80")})
    text = web("t2") + mapping("more", 8081, "10.88.0.12:80")
    with (daemon.dropins / "web.yaml").open("w") as file:
        for part in (text[:20], text[20:70], text[70:-12]):
            file.write(part)
            file.flush()
            time.sleep(0.1)
            assert (reached(lab), reached(lab, 8081)) == ("t1", "t1")
        file.write(text[-12:])
    assert eventually(lab, "t2")
    assert eventually(lab, "t2", 8081)


def test_a_file_that_vanishes(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1"), "other.yaml": web("t2", 8081)})
    daemon.remove("web.yaml")
    assert reached(lab) == "refused"
    assert reached(lab, 8081) == "t2"


def test_a_file_that_is_moved_out_and_in_under_another_name(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1")})
    applied(daemon, lambda: (daemon.dropins / "web.yaml").rename(daemon.dropins / "site.yaml"))
    assert eventually(lab, "t1")
    applied(daemon, lambda: (daemon.dropins / "site.yaml").rename(daemon.dir / "away.yaml"))
    assert eventually(lab, "refused")


def test_other_names_are_no_drop_ins(lab: Lab, start: Start) -> None:
    daemon = start()
    for name in ("web.yaml.bak", ".web.yaml.swp", "web.yaml~", "README"):
        (daemon.dropins / name).write_text(web("t1"))
    daemon.write("other.yaml", web("t2", 8081))
    assert (reached(lab), reached(lab, 8081)) == ("refused", "t2")


def test_a_directory_that_appears_later(lab: Lab, start: Start) -> None:
    daemon = start()
    daemon.stop()
    daemon.dropins.rmdir()
    daemon.start()
    assert reached(lab) == "refused"
    daemon.dropins.mkdir()
    (daemon.dropins / "web.yaml").write_text(web("t1"))
    assert eventually(lab, "t1")
    daemon.wait_for(r"applied: .*\+[1-9]")
    daemon.write("web.yaml", web("t2"))
    assert reached(lab) == "t2"


def test_a_directory_that_is_replaced(lab: Lab, start: Start) -> None:
    """A deployment swaps the whole directory: the new one is followed."""
    daemon = start({"web.yaml": web("t1")})
    new = daemon.dir / "new"
    new.mkdir()
    (new / "web.yaml").write_text(web("t2"))
    daemon.dropins.rename(daemon.dir / "old")
    new.rename(daemon.dropins)
    assert eventually(lab, "t2")
    shutil.rmtree(daemon.dir / "old")
    daemon.write("web.yaml", web("t3"))
    assert reached(lab) == "t3"


def test_a_link_that_is_switched(lab: Lab, start: Start) -> None:
    """Kubernetes' ConfigMap volumes: the files are links into a directory behind one more link, which is renamed."""
    daemon = start()
    for name, target in (("one", "t1"), ("two", "t2")):
        (daemon.dropins / f"..{name}").mkdir()
        (daemon.dropins / f"..{name}" / "web.yaml").write_text(web(target))
    (daemon.dropins / "..data").symlink_to("..one")
    (daemon.dropins / "web.yaml").symlink_to("..data/web.yaml")
    assert eventually(lab, "t1")
    (daemon.dropins / "..data_tmp").symlink_to("..two")
    (daemon.dropins / "..data_tmp").rename(daemon.dropins / "..data")
    assert eventually(lab, "t2")


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_keeps_its_last_good_content(lab: Lab, start: Start, how: str) -> None:
    daemon = start({"web.yaml": web("t1"), "other.yaml": web("t2", 8081)})
    line = daemon.write("web.yaml", BROKEN[how])
    assert re.search(r"web\.yaml:\d+:\d+: ", line)
    assert reached(lab) == "t1"
    daemon.write("other.yaml", web("t3", 8081))
    assert (reached(lab), reached(lab, 8081)) == ("t1", "t3")
    daemon.write("web.yaml", web("t2"))
    assert reached(lab) == "t2"


@pytest.mark.parametrize("end", ["kill9", "stop"])
def test_the_last_good_content_lives_through_a_restart(lab: Lab, start: Start, end: str) -> None:
    daemon = start({"web.yaml": web("t1"), "other.yaml": web("t2", 8081)})
    daemon.write("web.yaml", BROKEN["no target"])
    getattr(daemon, end)()
    seen = len(daemon.log)
    daemon.start()
    assert re.search(r"web\.yaml:\d+:\d+: ", daemon.log[seen:]), "the error is told again"
    assert (reached(lab), reached(lab, 8081)) == ("t1", "t2")


def test_a_file_that_is_broken_from_the_start_keeps_out_nobody_else(lab: Lab, start: Start) -> None:
    daemon = start({"bad.yaml": BROKEN["no YAML"], "web.yaml": web("t1")})
    assert reached(lab) == "t1"
    assert re.search(r"bad\.yaml:\d+:\d+: ", daemon.log)


def test_an_error_names_its_place_and_its_mapping(start: Start) -> None:
    daemon = start()
    text = dropin(mapping("good", 8080, "10.88.0.11:80"), mapping("bad", 8081, "10.88.0.11:80", masquerade="perhaps"))
    line = daemon.write("web.yaml", text)
    place = re.search(r'web\.yaml:(\d+):(\d+): mapping "bad": ', line)
    assert place, line
    row = text.splitlines()[int(place[1]) - 1]
    assert "masquerade" in row
    assert row[int(place[2]) - 1 :].startswith(("masquerade", "perhaps"))


def test_two_files_that_want_one_key(lab: Lab, start: Start) -> None:
    """The first holder keeps it, the log names it; when it lets go, the other gets it without being written again."""
    daemon = start({"a.yaml": web("t1")})
    seen = len(daemon.log)
    daemon.write("b.yaml", web("t2").replace("name: web", "name: rival") + mapping("free", 8081, "10.88.0.12:80"))
    assert (reached(lab), reached(lab, 8081)) == ("t1", "t2")
    assert "rival" in daemon.log[seen:]
    assert "a.yaml" in daemon.log[seen:] or "web" in daemon.log[seen:]
    daemon.remove("a.yaml")
    assert reached(lab) == "t2"


def test_sighup_reads_everything_again(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1")})
    line = applied(daemon, daemon.hup)
    assert reached(lab) == "t1", line
    daemon.write("web.yaml", BROKEN["no YAML"])
    seen = len(daemon.log)
    daemon.hup()
    daemon.wait_for(r"web\.yaml:\d+:\d+: ", seen)
    assert reached(lab) == "t1"


@pytest.mark.parametrize("signalled", [False, True], ids=["files alone", "with SIGHUP"])
def test_no_write_is_lost_however_close_to_another(lab: Lab, start: Start, signalled: bool) -> None:
    daemon = start()
    for number in range(100):
        target = ("t1", "t2")[number % 2]
        daemon.write("web.yaml", web(target), wait=False)
        if signalled:
            daemon.hup()
        time.sleep(0.004 + number % 20 * 0.0003)  # around the moment at which the first is read
        daemon.write("other.yaml", web(target, 8081), wait=False)
        assert eventually(lab, target, within=1), f"web.yaml of round {number}"
        assert eventually(lab, target, 8081, within=1), f"other.yaml of round {number}"


def test_a_storm_of_writes_ends_with_the_last(lab: Lab, start: Start) -> None:
    daemon = start()
    for number in range(200):
        daemon.write("web.yaml", web("t1" if number % 2 else "t2"), wait=False)
    daemon.write("web.yaml", web("t3"), wait=False)
    assert eventually(lab, "t3")
    time.sleep(0.3)
    assert reached(lab) == "t3"

"""The daemon, its files, its store and its mappings: each broken by itself.

It must not know how they are judged. The one idea: what an admin would find at 3 a.m., and what the command that doctor
names makes of it.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import time

import pytest

from tests.api.calling import body, client, eventually, mapping as wish
from tests.conftest import dropin, mapping
from tests.doctor.conftest import WEB, Begin, Patient
from tests.lab import Daemon, Lab


def test_no_daemon_runs(begin: Begin) -> None:
    """The drop-ins say what should be published."""
    patient = begin(WEB, mapping("wrong", 8081, "10.88.0.11:81"))
    patient.daemon.stop()

    told = patient.examined()
    assert (told.status, told.causes) == (1, ["daemon-not-running", "target-refuses"])
    found = told.report["findings"][0]
    assert found["what"].startswith("nfportd does not run (no socket at ")
    assert found["commands"][0] == "systemctl start nfportd.service"
    assert told.report["mappings"] == 2
    assert patient.examined("web").causes == ["daemon-not-running"]

    patient.daemon.start()
    assert patient.examined("web").causes == []


def test_a_daemon_that_was_killed_leaves_everything_in_force(begin: Begin) -> None:
    patient = begin()
    patient.daemon.kill9()

    found = patient.examined().only()
    assert found["what"].startswith("nfportd does not run (nobody listens at ")
    assert found["why"].startswith("What it has left in force still forwards; ")
    assert patient.reached() == "t1"


def test_a_daemon_that_does_not_answer(begin: Begin) -> None:
    patient = begin()
    os.kill(patient.daemon.pid, signal.SIGSTOP)
    try:
        found = patient.examined().only()
    finally:
        os.kill(patient.daemon.pid, signal.SIGCONT)

    assert (found["cause"], found["severity"]) == ("daemon-not-answering", "error")
    assert "no answer within 5 s" in found["what"]
    assert patient.examined().causes == []


def test_something_else_answers(begin: Begin) -> None:
    patient = begin()
    patient.daemon.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(patient.daemon.socket))
        other.listen()
        other.settimeout(10)
        assert patient.examined("web").only("table-missing")["cause"] == "daemon-not-answering"


def test_who_may_not_ask_is_told_so(lab: Lab, begin: Begin) -> None:
    patient = begin()
    for place in (lab.tmp, patient.daemon.dir):
        place.chmod(0o755)

    told = patient.examined(uid=65534)

    found = told.only()
    assert (found["cause"], found["commands"][0]) == ("socket-denied", "sudo nfportctl doctor")
    assert told.report["mappings"] == 1  # of the drop-ins, which everybody may read


def test_settings_that_are_wrong_keep_it_from_starting(begin: Begin) -> None:
    patient = begin()
    patient.daemon.stop()
    patient.daemon.config.write_text("mark_bit: 99\n")

    found = patient.examined().only("daemon-not-running")
    assert (found["cause"], found["severity"]) == ("settings-broken", "error")
    assert "nfportd.yaml:1:11: mark_bit: " in found["what"]
    patient.daemon.config.write_text("")
    assert patient.examined().causes == ["daemon-not-running"]


def test_state_that_others_can_write_to(begin: Begin) -> None:
    patient = begin()
    patient.daemon.stop()
    state = patient.daemon.dir / "state"
    state.chmod(0o777)

    found = patient.examined().only("daemon-not-running")
    assert (found["cause"], found["what"]) == ("state-not-trusted", f"{state} can be written to by others (mode 0777)")
    patient.take(found["commands"][0])
    patient.daemon.start()
    assert patient.examined().causes == []


@pytest.mark.parametrize("alive", [True, False])
def test_a_file_with_a_mistake(begin: Begin, alive: bool) -> None:
    patient = begin()
    patient.daemon.write("new.yaml", "mappings:\n  - listen: 8081\n    targets: [10.88.0.12]\n")
    if not alive:
        patient.daemon.stop()

    found = patient.examined().only("daemon-not-running")
    assert found["cause"] == "file-broken"
    assert "new.yaml:3:15: " in found["what"]
    patient.daemon.write("new.yaml", "mappings:\n  - listen: 8081\n    targets: [10.88.0.12:80]\n", wait=alive)
    assert patient.examined().causes == [] if alive else ["daemon-not-running"]


def test_a_file_with_another_ending(begin: Begin) -> None:
    patient = begin()
    (patient.daemon.dropins / "new.yml").write_text(dropin(mapping("new", 8081, "10.88.0.12:80")))

    found = patient.examined().only()
    assert (found["cause"], found["severity"]) == ("file-ignored", "warning")
    assert "new.yml is not read: " in patient.call("new").stderr
    assert patient.examined("web").causes == []
    patient.take(found["commands"][0])
    eventually(lambda: patient.reached(port=8081), "t2")
    assert patient.examined().causes == []


def publish(patient: Patient, *, persistent: bool = False) -> None:
    with client(patient.daemon) as api:
        api.put("api:ci", body(wish(8081, "10.88.0.12:80", name="ci"), persistent=persistent))


def test_a_store_that_cannot_be_read(begin: Begin) -> None:
    patient = begin()
    publish(patient, persistent=True)
    patient.daemon.stop()
    store = patient.daemon.dir / "state/mappings.db"
    assert patient.examined("ci").causes == ["daemon-not-running"]  # the store knows it
    store.write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)

    found = patient.examined().only("daemon-not-running")
    assert (found["cause"], str(store) in found["what"]) == ("store-unreadable", True)
    patient.daemon.start()
    assert patient.examined().causes == []


def test_mappings_of_a_store_that_was_lost(begin: Begin) -> None:
    patient = begin()
    publish(patient, persistent=True)
    patient.daemon.kill9()
    (patient.daemon.dir / "state/mappings.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)
    patient.daemon.start()
    assert patient.reached(port=8081) == "t2"
    with client(patient.daemon) as api:  # what a drop-in holds waits for it
        waiting = api.get("/v1/status")["conflicts"]
    assert {each["owner"] for each in waiting} == {"recovered:store"}

    found = patient.examined().only()
    assert (found["cause"], found["severity"], found["mappings"]) == ("store-recovered", "warning", ["0.0.0.0:8081"])
    for command in found["commands"]:
        program, *words = command.split()
        patient.take(" ".join([*Daemon.command(program), "--socket", str(patient.daemon.socket), *words]))
    assert patient.examined().causes == []


def test_a_clock_that_is_behind(begin: Begin) -> None:
    patient = begin()
    publish(patient, persistent=True)
    patient.daemon.stop()
    with sqlite3.connect(patient.daemon.dir / "state/mappings.db") as store:
        store.execute("UPDATE owners SET since = ?", [time.time() + 86400])
    store.close()
    patient.daemon.start()

    found = patient.examined().only()
    assert (found["cause"], found["severity"], found["mappings"]) == ("clock-behind", "warning", ["ci"])


def test_a_mapping_that_waits(begin: Begin) -> None:
    patient = begin()
    patient.daemon.write("zzz.yaml", dropin(mapping("late", 8080, "10.88.0.12:80")))

    found = patient.examined().only()
    assert (found["cause"], found["mappings"]) == ("mapping-waits", ["late"])
    assert found["what"].endswith("is not in force: 0.0.0.0:8080/tcp is held by file:web.yaml")
    assert patient.examined("web").causes == []
    patient.daemon.remove("web.yaml")
    assert patient.reached() == "t2"
    assert patient.examined().causes == []


LISTEN = "import socket, time; s = [socket.create_server(('', p)) for p in {}]; print(flush=True); time.sleep(99)"


def listening(lab: Lab, *ports: int) -> subprocess.Popen[str]:
    """A process of the host that listens on these ports."""
    process = lab.host.popen(["python3", "-c", LISTEN.format(ports)], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout as said:
        said.readline()
    return process


def test_a_process_that_was_there_first(lab: Lab, begin: Begin) -> None:
    patient = begin()
    process = listening(lab, 8081)
    patient.daemon.write("new.yaml", dropin(mapping("new", 8081, "10.88.0.12:80")))

    found = patient.examined().only()
    assert (found["cause"], found["mappings"], found["commands"]) == ("port-in-use", ["new"], [f"kill {process.pid}"])
    patient.take(found["commands"][0])
    process.wait(5)
    patient.daemon.hup()
    eventually(lambda: patient.reached(port=8081), "t2", 12)
    assert patient.examined().causes == []


def test_a_process_that_came_later(lab: Lab, begin: Begin) -> None:
    patient = begin(WEB, mapping("meant", 8082, "10.88.0.12:80", shadow_listener="true"))
    process = listening(lab, 8080, 8082)

    found = patient.examined().only()
    assert (found["cause"], found["severity"], found["mappings"]) == ("listener-shadowed", "warning", ["web"])
    assert f"though python3 (pid {process.pid}) listens on 0.0.0.0" in found["what"]
    patient.take(found["commands"][0])
    process.wait(5)
    assert patient.examined().causes == []


def test_a_listen_address_that_is_not_here(lab: Lab, begin: Begin) -> None:
    patient = begin(WEB, mapping("one", "198.51.100.77:8081", "10.88.0.12:80"))
    lab.host.ip("route", "add", "default", "via", "198.51.100.10")
    try:
        found = patient.examined().only()
        assert (found["cause"], found["mappings"]) == ("listen-address-absent", ["one"])
        assert found["commands"] == ["ip address add 198.51.100.77/32 dev out0"]
        patient.take(found["commands"][0])
        assert lab.outside.ask("198.51.100.77", 8081, timeout=1).target == "t2"
        assert patient.examined().causes == []
    finally:
        lab.host.ip("route", "flush", "default")
        lab.host.ip("address", "del", "198.51.100.77/32", "dev", "out0")

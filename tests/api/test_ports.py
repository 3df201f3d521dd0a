"""Ports that this host's own processes have, and ports that mappings hold against them.

Must not know sock_diag. The one idea: real listeners, and what `ss` and bind() say.
"""

from __future__ import annotations

import errno
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from nfportd.client import Client
from tests.api.calling import T1, T2, answers, body, client, eventually, mapping, refusal, states, transact
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]
_LISTEN = """
import socket, sys
kind = socket.SOCK_DGRAM if sys.argv[1] == "udp" else socket.SOCK_STREAM
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
sock.bind((sys.argv[2], int(sys.argv[3])))
if kind == socket.SOCK_STREAM:
    sock.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(lab: Lab, port: int, address: str = "0.0.0.0", protocol: str = "tcp") -> Iterator[int]:
    """A process of the host that listens; its pid."""
    command = [sys.executable, "-c", _LISTEN, protocol, address, str(port)]
    process = lab.host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "listening"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def bind(lab: Lab, port: int, address: str = "0.0.0.0") -> str:
    """What a process of the host that wants the port gets."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.host.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((address, port))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "free"


def test_a_port_in_use_is_refused_with_pid_and_name(lab: Lab, api: Client) -> None:
    with listening(lab, 8080) as pid:
        problem = refusal(api.put, "web", body(mapping(8081, T1), mapping(8080, T1)))

        assert (problem.status, problem.name) == (409, "port-in-use")
        assert problem.process
        assert problem.process["pid"] == pid
        assert problem.process["name"].startswith("python")
        assert str(pid) in problem.detail
        assert "8080" in problem.detail
        assert answers(lab, 8081) == "refused"
        assert api.owner("web") is None
    api.put("web", body(mapping(8081, T1), mapping(8080, T1)))
    assert answers(lab, 8080) == "t1"


@pytest.mark.parametrize(
    ("address", "protocol", "listen", "clashes"),
    [
        ("0.0.0.0", "tcp", "192.0.2.1:8080", True),
        ("192.0.2.1", "tcp", 8080, True),
        ("192.0.2.2", "tcp", "192.0.2.1:8080", False),
        ("::", "tcp", "0.0.0.0:8080", True),
        ("0.0.0.0", "udp", 8080, False),
        ("0.0.0.0", "tcp", "8000-8100", True),
    ],
)
def test_only_what_clashes_is_refused(
    lab: Lab, api: Client, address: str, protocol: str, listen: int | str, clashes: bool
) -> None:
    target = "10.88.0.11:8000-8100" if listen == "8000-8100" else T1
    with listening(lab, 8080, address, protocol):
        if clashes:
            assert refusal(api.put, "web", body(mapping(listen, target))).name == "port-in-use"
        else:
            api.put("web", body(mapping(listen, target)))


def test_a_transaction_and_a_dry_run_are_refused_as_well(lab: Lab, api: Client) -> None:
    with listening(lab, 8080):
        assert refusal(transact, api, a=body(mapping(8081)), b=body(mapping(8080))).name == "port-in-use"
        assert refusal(api.put, "web", body(mapping(8080)), dry_run=True).name == "port-in-use"
        assert states(api) == {}


def test_shadow_listener_takes_it_all_the_same(lab: Lab, api: Client) -> None:
    with listening(lab, 8080):
        api.put("web", body(mapping(8080, T1, shadow_listener=True)))
        assert answers(lab, 8080) == "t1"


def test_what_is_in_force_stays_when_somebody_listens_later(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080, T1)))
    with listening(lab, 8080):
        api.put("web", body(mapping(8080, T2)))
        assert answers(lab, 8080) == "t2"
        daemon.kill9()
        daemon.start()
        assert answers(lab, 8080) == "t2"
        daemon.stop()  # the table goes, the promise does not
        daemon.start()
        assert states(api)["web 8080"] in ("active", "port-in-use"), "and it is not forgotten"
    eventually(lambda: answers(lab, 8080), "t2", patience=13)


def test_a_drop_in_says_so_and_takes_the_port_when_the_listener_goes(lab: Lab, start: Start) -> None:
    with listening(lab, 8080) as pid:
        daemon = start({"web.yaml": dropin(written("web", 8080, T1), written("free", 8081, T1))})
        with client(daemon) as api:
            # The process takes connections, and says nothing.
            assert (answers(lab, 8080), answers(lab, 8081)) == ("timeout", "t1")
            assert states(api) == {"file:web.yaml 8080": "port-in-use", "file:web.yaml 8081": "active"}
            blocked = api.get("/v1/status")["port_in_use"]
            assert [each["process"]["pid"] for each in blocked] == [pid]
            assert re.search(rf"ERROR .*8080/tcp.*pid {pid}", daemon.log)
    eventually(lambda: answers(lab, 8080), "t1", patience=13)
    with client(daemon) as api:
        assert states(api) == {"file:web.yaml 8080": "active", "file:web.yaml 8081": "active"}
        assert api.get("/v1/status")["port_in_use"] == []


def test_a_reserved_port_is_shown_by_ss_and_nobody_else_can_have_it(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080, T1, "[fd88::11]:80", reserve=True)))

    assert f"pid={daemon.pid}" in lab.host.run(["ss", "-Hltnp", "sport = :8080"]).stdout
    assert (bind(lab, 8080), bind(lab, 8080, "192.0.2.1"), bind(lab, 8080, "::1")) == ("EADDRINUSE",) * 3
    assert (answers(lab, 8080), lab.host.ask("127.0.0.1", 8080).target) == ("t1", "t1")

    api.put("web", body(mapping(8081, T1, reserve=True)))
    assert (bind(lab, 8080), bind(lab, 8081)) == ("free", "EADDRINUSE")
    api.delete("web")
    assert bind(lab, 8081) == "free"
    assert lab.host.run(["ss", "-Hltn", "sport >= :8080", "sport <= :8081"]).stdout == ""


def test_a_reservation_can_be_asked_for_and_given_up_later(lab: Lab, api: Client) -> None:
    api.put("web", body(mapping(8080, T1)))
    assert bind(lab, 8080) == "free"
    api.put("web", body(mapping(8080, T1, reserve=True)))
    assert bind(lab, 8080) == "EADDRINUSE"
    api.put("web", body(mapping(8080, T1)))
    assert bind(lab, 8080) == "free"
    assert answers(lab, 8080) == "t1"


def test_a_reservation_moves_to_another_owner_and_comes_back_at_a_restart(
    lab: Lab, daemon: Daemon, api: Client
) -> None:
    api.put("one", body(mapping(8080, T1, reserve=True)))
    transact(api, one=None, two=body(mapping(8080, T2, reserve=True)))
    assert bind(lab, 8080) == "EADDRINUSE"

    daemon.kill9()
    assert bind(lab, 8080) == "free"
    daemon.start()
    assert bind(lab, 8080) == "EADDRINUSE"
    assert answers(lab, 8080) == "t2"


def test_what_cannot_be_reserved_is_refused_and_nothing_is_kept(lab: Lab, api: Client) -> None:
    api.put("web", body(mapping(8080, T1)))
    with listening(lab, 8080):
        problem = refusal(api.put, "web", body(mapping(8081, T1, reserve=True), mapping(8080, T1, reserve=True)))
        assert problem.name == "port-in-use"
    assert bind(lab, 8081) == "free"
    assert states(api) == {"web 8080": "active"}


def test_a_refused_wish_reserves_nothing(lab: Lab, api: Client) -> None:
    api.put("holder", body(mapping(8082, T2)))
    refusal(api.put, "web", body(mapping(8081, T1, reserve=True), mapping(8082, T1)))
    refusal(transact, api, a=body(mapping(8081, T1, reserve=True)), b=body(mapping(8082, T1)))
    api.put("web", body(mapping(8081, T1, reserve=True)), dry_run=True)

    assert bind(lab, 8081) == "free"


def test_a_stopped_daemon_reserves_nothing(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080, T1, reserve=True)))
    daemon.stop()
    assert bind(lab, 8080) == "free"


def test_what_was_promised_holds_at_a_start_against_a_process_that_came_to_listen(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": dropin(written("late", 8082, T1))})
    with client(daemon) as api:
        api.put("api:web", body(mapping(8080)))
    daemon.stop()
    with listening(lab, 8080) as pid, listening(lab, 8082):
        seen = len(daemon.log)
        daemon.start()

        assert (answers(lab, 8080), answers(lab, 8082)) == ("t1", "timeout")  # the process says nothing
        held = daemon.wait_for(r"8080/tcp of .*api:web.* holds, though", seen)
        assert f"(pid {pid}) listens on 0.0.0.0" in held
        with client(daemon) as api:
            assert states(api) == {"api:web 8080": "active", "file:web.yaml 8082": "port-in-use"}

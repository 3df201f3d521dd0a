"""From a request to a packet: publish, connect, change and withdraw, by the clients that people have.

Must not know how a request becomes an element. The one idea: what a TCP client in another namespace meets is the proof.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nfportd.client import Client, Json, wished
from tests.api.calling import OWN, T1, T2, answer_on, answers, body, client, connected, mapping, say, states
from tests.lab import Daemon, Lab

WEB = "/v1/owners/web"
#: What an answer says of a mapping beyond what was asked for.
SHOWN = {"owner", "state", "loopback6", "since", "changed", "reason", "conflicts", "process", "unreached"}
SHOWN |= {"connections", "rate"}


def test_publish_change_withdraw_by_the_client(lab: Lab, daemon: Daemon, api: Client) -> None:
    assert answers(lab, 8080) == "refused"

    api.put("web", body(mapping(8080, T1)))
    assert answers(lab, 8080) == "t1"
    api.put("web", body(mapping(8080, T2)))
    assert answers(lab, 8080) == "t2"
    api.put("web", body(mapping(8081, T2)))
    assert (answers(lab, 8080), answers(lab, 8081)) == ("refused", "t2")
    api.delete("web")

    assert answers(lab, 8081) == "refused"
    assert api.owner("web") is None
    assert daemon.elements("any4") == {}


def test_every_kind_of_mapping_reaches_its_target(lab: Lab, api: Client) -> None:
    api.put(
        "all",
        body(
            mapping(8080, T1, "[fd88::11]:80", protocol=["tcp", "udp"], name="both"),
            mapping("192.0.2.2:8090-8091", "10.88.0.12:79-80", masquerade="always"),
            mapping("[2001:db8::1]:8092", "[fd88::12]:80", on_change="cut", comment="only IPv6"),
        ),
    )

    assert lab.client.ask(OWN, 8080, "udp").target == "t1"
    assert lab.client.ask("2001:db8::2", 8080, "udp").target == "t1"
    always = lab.client.ask("192.0.2.2", 8091)
    assert (always.target, always.source) == ("t2", "10.88.0.1")
    assert lab.client.ask(OWN, 8091).outcome == "refused"
    assert lab.client.ask("2001:db8::1", 8092).target == "t2"


def curl(daemon: Daemon, *arguments: str, text: str | None = None) -> tuple[int, Json]:
    """What curl gets: the status and the JSON."""
    command = ["curl", "-sS", "--unix-socket", str(daemon.socket), "-w", "\n%{http_code}", *arguments]
    done = subprocess.run(command, check=True, input=text, capture_output=True, text=True, timeout=20)
    content, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(content)


def test_by_curl(lab: Lab, daemon: Daemon) -> None:
    kind = ("-H", "Content-Type: application/json")
    text = json.dumps(body(mapping(8080, T1)))

    status, changed = curl(daemon, "-X", "PUT", *kind, "-d", text, f"http://localhost{WEB}")
    assert (status, changed["added"]) == (200, 1)
    assert answers(lab, 8080) == "t1"

    # -T - sends what it reads as it comes: chunked.
    text = json.dumps(body(mapping(8080, T2)))
    assert curl(daemon, *kind, "-T", "-", f"http://localhost{WEB}", text=text)[0] == 200
    assert answers(lab, 8080) == "t2"

    assert curl(daemon, "--http1.0", f"http://localhost{WEB}")[1]["mappings"][0]["targets"] == [T2]
    assert curl(daemon, "-X", "DELETE", f"http://localhost{WEB}")[0] == 200
    assert answers(lab, 8080) == "refused"
    assert curl(daemon, f"http://localhost{WEB}")[0] == 404


def test_a_body_in_chunks_as_go_sends_it(lab: Lab, daemon: Daemon) -> None:
    """Go's net/http sends a body of unknown length in chunks, and asks for gzip, which nobody must give."""
    text = json.dumps(body(mapping(8080, T1))).encode()
    head = (
        b"PUT /v1/owners/web HTTP/1.1\r\nHost: unix\r\nUser-Agent: Go-http-client/1.1\r\n"
        b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n"
    )
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (text[:1], text[1:30], text[30:]))

    answer = say(daemon, head + chunks + b"0\r\n\r\n")

    assert answer.status == 200
    assert answers(lab, 8080) == "t1"


def test_expect_100_continue(lab: Lab, daemon: Daemon) -> None:
    """What Go and curl ask before a large body."""
    text = json.dumps(body(mapping(8080, T1))).encode()
    with connected(daemon) as sock:
        sock.sendall(
            b"PUT /v1/owners/web HTTP/1.1\r\nHost: unix\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(text)
        assert answer_on(sock).status == 200
    assert answers(lab, 8080) == "t1"


def test_http_1_0_gets_an_answer_and_the_connection_ends(daemon: Daemon) -> None:
    text = json.dumps(body(mapping(8080, T1))).encode()
    with connected(daemon) as sock:
        sock.sendall(
            b"PUT /v1/owners/web HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(text), text)
        )
        answer = answer_on(sock)
        assert answer.status == 200
        assert "chunked" not in answer.headers.get("Transfer-Encoding", "")
        assert sock.recv(1) == b""


def test_a_connection_serves_many_requests_also_after_refusals(daemon: Daemon) -> None:
    connection = http.client.HTTPConnection("localhost")
    with connected(daemon) as sock:
        connection.sock = sock
        seen = []
        for listen in (8080, "nonsense", 8081, "8090-8080", 8082):
            text = json.dumps(body(mapping(listen)))
            connection.request("PUT", WEB, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            seen.append(answer.status)
            assert connection.sock is sock, "it was closed"

    assert seen == [200, 400, 200, 400, 200]


def test_requests_in_one_write_are_answered_in_turn(daemon: Daemon, api: Client) -> None:
    """Pipelining: rare, and allowed."""
    parts = []
    for port in (8080, 8081, 8082):
        text = json.dumps(body(mapping(port))).encode()
        head = f"PUT /v1/owners/o{port} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        parts.append(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    with connected(daemon) as sock:
        sock.sendall(b"".join(parts))
        for port in (8080, 8081, 8082):
            assert list(answer_on(sock).json["owners"]) == [f"o{port}"]

    assert len(states(api)) == 3


def test_what_is_read_can_be_written_back(api: Client) -> None:
    """Every key, those that were left out as well, so that any program can read, modify and write."""
    full = mapping(8080, name="web", comment="text", sources=["192.0.2.0/24"], shadow_listener=True, reserve=False)
    api.put("web", body(full, mapping(8081)))
    found = api.owner("web")
    assert found is not None
    assert wished(found["mappings"][0]).items() >= {"name": "web", "sources": ["192.0.2.0/24"]}.items()

    bare = [{key: value for key, value in each.items() if key not in SHOWN} for each in found["mappings"]]
    again = api.put("web", body(*bare))

    assert (again["added"], again["removed"]) == (0, 0)


@pytest.mark.parametrize("owner", ["a", "cni:net/4f1c/eth0", "web@host+1.example_x-y", "A" * 255])
def test_names_of_owners_travel(daemon: Daemon, api: Client, owner: str) -> None:
    assert list(api.put(owner, body(mapping(8080)))["owners"]) == [owner]
    assert api.owner(owner) is not None
    assert [each["owner"] for each in api.get("/v1/owners", prefix=owner)["owners"]] == [owner]
    api.delete(owner)
    assert daemon.elements("any4") == {}


def test_the_socket_is_for_root_and_the_group_and_is_gone_after_a_stop(daemon: Daemon) -> None:
    mode = daemon.socket.stat().st_mode & 0o777
    assert mode == 0o660
    daemon.stop()
    assert not daemon.socket.exists()


def test_a_socket_that_a_crash_left_is_replaced(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.kill9()
    assert daemon.socket.exists()
    daemon.start()
    with client(daemon) as api:
        api.put("web", body(mapping(8080)))
    assert answers(lab, 8080) == "t1"


def test_the_description_is_the_one_in_docs(daemon: Daemon, api: Client) -> None:
    shown = api.get("/openapi.json")
    assert shown["openapi"].startswith("3.1")
    kept = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
    if not kept.exists():
        pytest.skip("docs/openapi.json is not written yet")
    assert json.loads(kept.read_text()) == shown


def test_a_daemon_leaves_no_descriptor_open(daemon: Daemon, api: Client) -> None:
    """After 300 connections, changes and refusals it has as many open files as before."""
    api.put("web", body(mapping(8080)))
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))  # noqa: PTH208
    for number in range(100):
        with client(daemon) as other:
            other.put(f"o{number}", body(mapping(9000 + number)))
            other.delete(f"o{number}")
            assert other.owner(f"o{number}") is None

    assert len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before + 2  # noqa: PTH208

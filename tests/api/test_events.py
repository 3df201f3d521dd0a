"""What is told while it happens: events in order and resumable, and metrics that move with what was done.

Must not know the ring. The one idea: what a follower reads adds up to what was done.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from nfportd.client import Client, Json
from tests.api.calling import (
    T1,
    T2,
    answer_on,
    ask,
    body,
    connected,
    mapping,
)
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

pytestmark = pytest.mark.alone


@pytest.fixture
def daemon(start: Callable[..., Daemon]) -> Daemon:
    """A new one for each test: its events begin with the test."""
    return start()


@contextlib.contextmanager
def following(daemon: Daemon, since: int | None = None) -> Iterator[Callable[[], Json]]:
    """The stream of events; each call is the next one."""
    with connected(daemon) as sock:
        query = "" if since is None else f"?since={since}"
        sock.sendall(f"GET /v1/events{query} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        stream = sock.makefile("rb")
        assert stream.readline().split()[1] == b"200"
        headers = [line.lower() for line in iter(stream.readline, b"\r\n")]
        assert b"content-type: application/x-ndjson\r\n" in headers
        yield lambda: dict(json.loads(stream.readline()))


def told(follow: Callable[[], Json], count: int) -> list[tuple[str, str, str]]:
    found = [follow() for _ in range(count)]
    return [(each["kind"], each["owner"], each.get("key", "")) for each in found]


def test_events_come_in_order(daemon: Daemon, api: Client) -> None:
    with following(daemon) as follow:
        api.put("web", body(mapping(8080, T1)))
        api.put("web", body(mapping(8080, T1)))  # nothing happens
        api.put("web", body(mapping(8080, T2), mapping(8081, T2)))
        daemon.write("file.yaml", dropin(written("file", 8080, T1)))
        api.delete("web")

        found = told(follow, 8)
        assert found[0] == ("added", "web", "8080/tcp")
        assert sorted(found[1:3]) == [("added", "web", "8081/tcp"), ("changed", "web", "8080/tcp")]
        assert sorted(kind for kind, *_ in found[3:6]) == ["added", "conflict", "reload"]
        assert sorted(found[6:8]) == [("removed", "web", "8080/tcp"), ("removed", "web", "8081/tcp")]


def test_a_follower_goes_on_where_it_was(daemon: Daemon, api: Client) -> None:
    for port in range(8080, 8090):
        api.put(f"o{port}", body(mapping(port)))
    with following(daemon, since=0) as follow:
        first = [follow() for _ in range(11)]
    assert [each["owner"] for each in first if each["owner"]] == [f"o{port}" for port in range(8080, 8090)]
    numbers = [each["seq"] for each in first]
    assert numbers == list(range(numbers[0], numbers[0] + 11))
    with following(daemon, since=numbers[4]) as follow:
        assert [follow() for _ in range(6)] == first[5:]
    with following(daemon, since=numbers[-1]) as follow:
        api.delete("o8080")
        assert follow()["kind"] == "removed"


def test_numbers_grow_across_a_restart_and_what_is_lost_is_said(daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080)))
    with following(daemon, since=0) as follow:
        last = [follow(), follow()][-1]["seq"]
    daemon.kill9()
    daemon.start()
    with following(daemon, since=last) as follow:
        first = follow()
        assert first["kind"] == "lost"
        assert follow()["seq"] > last


def test_a_reader_that_does_not_read_is_dropped_and_stops_nobody(daemon: Daemon, api: Client) -> None:
    with connected(daemon) as slow, following(daemon) as quick:
        slow.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        slow.recv(10)
        count = 0
        began = time.monotonic()
        for target in (T1, T2, T1):
            owners = {f"o{port}": body(mapping(port, target)) for port in range(10_000, 16_000)}
            api.request("POST", "/v1/transactions", {"owners": owners})
            for _ in range(6_000):
                assert quick()["kind"] in ("added", "changed")
                count += 1
        assert count == 18_000
        assert time.monotonic() - began < 20
        text = b""
        while more := slow.recv(1 << 20):
            text += more
            if text.endswith(b"0\r\n\r\n"):
                break
        assert b'"kind":"lost"' in text[-400:]
        assert text.count(b'"seq"') < 18_000


def test_followers_end_with_the_daemon(daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080)))
    with connected(daemon) as sock:
        sock.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.recv(10)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 3
        while sock.recv(65536):
            continue


def metrics(daemon: Daemon) -> dict[str, float]:
    answer = ask(daemon, "GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_move_with_what_was_done(lab: Lab, daemon: Daemon, api: Client) -> None:
    before = metrics(daemon)
    api.put("web", body(mapping(8080, T1, name="web")))
    daemon.write("file.yaml", dropin(written("file", 8080, T1), written("free", 8081, T1)))
    daemon.write("broken.yaml", "mappings: [{listen: 1}]\n")
    for _ in range(3):
        assert lab.client.ask("192.0.2.1", 8080)
    after = metrics(daemon)

    changed = {name: value for name, value in after.items() if value != before.get(name)}
    text = json.dumps(changed, indent=1)
    assert re.search(r'"nfportd_mappings\{source=\\"api\\"\}": 1.0', text), text
    assert re.search(r'"nfportd_mappings\{source=\\"file\\"\}": 2.0', text), text
    assert re.search(r'"nfportd_elements\{.*any4.*\}": 2.0', text), text
    assert re.search(r'"nfportd_conflicts.*": 1.0', text), text
    assert re.search(r'"nfportd_reload_errors.*broken.yaml.*": 1.0', text), text
    assert re.search(r'"nfportd_.*connections.*web.*": 3.0', text), text
    assert re.search(r'"nfportd_transaction.*_count', text), text


def test_connections_are_counted_by_mapping(lab: Lab, api: Client) -> None:
    api.put("web", body(mapping(8080, T1), mapping("8090-8091", "10.88.0.12:79-80")))
    for port in (8080, 8080, 8091):
        assert lab.client.ask("192.0.2.1", port)

    found = api.get("/v1/mappings", counters=True)["mappings"]

    assert {each["listen"]: each["connections"] for each in found} == {"8080": 2, "8090-8091": 1}


def test_the_status_is_what_an_admin_asks_first(daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080), mapping(8081, "203.0.113.9:80")))
    status = api.get("/v1/status")

    assert (status["pid"], status["mappings"], status["owners"]) == (daemon.pid, 2, 1)
    assert status["elements"]["any4"] == 2
    assert status["version"]


def test_a_client_of_an_old_kind_reads_events_too(daemon: Daemon, api: Client) -> None:
    """HTTP/1.0 has no chunks: the stream is what comes until the end."""
    with connected(daemon) as sock:
        sock.sendall(b"GET /v1/events?since=0 HTTP/1.0\r\n\r\n")
        api.put("web", body(mapping(8080)))
        daemon.stop()
        answer = answer_on(sock)
    assert [json.loads(line)["kind"] for line in answer.content.splitlines()] == ["reload", "added"]

"""The client: what it sends, what it makes of answers, and what it says where there is none.

It must not need a daemon. The one idea: a stub on a unix socket tells what it was asked.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfportd.client import ATTEMPTS, Client, Json, NotReachable, Problem, wished
from tests.unit.stub import Stub, problem, speaking

WEB = {"name": "web", "listen": "8080", "targets": ["10.88.0.11:80"]}
DNS = {"name": "dns", "listen": "53", "protocol": ["udp"], "targets": ["10.88.0.12:53"]}


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with speaking(tmp_path / "sock") as made:
        yield made


@pytest.fixture
def client(stub: Stub) -> Iterator[Client]:
    with Client(str(stub.path), timeout=5) as made:
        yield made


def test_an_owner_that_has_nothing(client: Client) -> None:
    assert client.owner("api:me") is None


def test_what_is_put_is_read_back(client: Client) -> None:
    client.put("api:me", {"mappings": [WEB]})

    found = client.owner("api:me")

    assert found is not None
    assert wished(found["mappings"][0]) == {**WEB, "protocol": ["tcp"], "masquerade": "auto", "on_change": "keep"}


@pytest.mark.parametrize("owner", ["api:me", "cni:net/4f1c/eth0", "api:a+b@c", "a/b"])
def test_the_name_of_an_owner_is_one_segment(stub: Stub, client: Client, owner: str) -> None:
    client.put(owner, {"mappings": [WEB]})

    assert list(stub.owners) == [owner]


@pytest.mark.parametrize(
    ("etag", "sent"),
    [("*", (None, None)), ("7", ('"7"', None)), ('"7"', ('"7"', None)), (None, (None, "*"))],
)
def test_the_condition_of_a_put(stub: Stub, client: Client, etag: str | None, sent: tuple[str | None, ...]) -> None:
    stub.say("PUT", "/v1/owners/api:me", 200, {})
    client.put("api:me", {"mappings": []}, etag=etag)

    headers = stub.asked[0].headers

    assert (headers.get("If-Match"), headers.get("If-None-Match")) == sent


def test_a_dry_run(stub: Stub, client: Client) -> None:
    client.put("api:me", {"mappings": [WEB]}, dry_run=True)

    assert (stub.asked[0].query, stub.owners) == ({"dry_run": "true"}, {})


def test_what_is_not_asked_for_is_not_in_the_query(stub: Stub, client: Client) -> None:
    client.get("/v1/mappings", owner=None, port=80, counters=True)

    assert stub.asked[0].query == {"port": "80", "counters": "true"}


def test_requests_share_a_connection(stub: Stub, client: Client) -> None:
    for _ in range(5):
        client.get("/v1/owners")

    assert stub.connections == 1


def test_a_connection_that_was_closed_while_idle_is_made_anew(stub: Stub, client: Client) -> None:
    client.get("/v1/owners")
    kept = client._connection
    assert kept is not None
    kept.sock.shutdown(socket.SHUT_RDWR)

    assert (client.get("/v1/owners"), stub.connections) == ({"owners": []}, 2)


def test_a_problem(stub: Stub, client: Client) -> None:
    holder = {"owner": "api:you", "source": "api", "since": "2026-01-02T03:04:05Z", "key": "0.0.0.0:8080/tcp"}
    stub.say("PUT", "/v1/owners/api:me", *problem("conflict", 409, "the key is held", holder=holder))

    with pytest.raises(Problem) as caught:
        client.put("api:me", {"mappings": [WEB]})

    said = caught.value
    assert (said.status, said.name, said.title, str(said), said.holder, said.process, said.errors) == (
        409,
        "conflict",
        "Conflict",
        "the key is held",
        holder,
        None,
        [],
    )


def test_editing_an_owner_that_has_nothing(stub: Stub, client: Client) -> None:
    client.edit("api:me", lambda now: {"mappings": [WEB] if now is None else []})

    assert (stub.asked[-1].headers.get("If-None-Match"), len(stub.owners["api:me"]["mappings"])) == ("*", 1)


def test_nobody_loses_what_another_has_added_meanwhile(stub: Stub, client: Client) -> None:
    stub.have("api:me", WEB)
    meanwhile = [DNS]

    def add(now: Json | None) -> Json:
        assert now is not None
        if meanwhile:
            stub.have("api:me", WEB, meanwhile.pop())
        return {"mappings": [*map(wished, now["mappings"]), {**WEB, "name": "new", "listen": "81"}]}

    client.edit("api:me", add)

    assert [each["name"] for each in stub.owners["api:me"]["mappings"]] == ["web", "dns", "new"]


def test_an_edit_gives_up_in_the_end(stub: Stub, client: Client) -> None:
    for _ in range(ATTEMPTS):
        stub.say("PUT", "/v1/owners/api:me", *problem("precondition-failed", 412, "changed"))

    with pytest.raises(Problem, match="changed"):
        client.edit("api:me", lambda _: {"mappings": []})
    assert sum(asked.method == "PUT" for asked in stub.asked) == ATTEMPTS


def test_an_edit_that_leaves_nothing_deletes(stub: Stub, client: Client) -> None:
    stub.have("api:me", WEB)
    client.edit("api:me", lambda _: None)

    assert (stub.asked[-1].method, stub.asked[-1].headers.get("If-Match"), stub.owners) == ("DELETE", '"1"', {})


def test_events_arrive_line_by_line_until_the_end(stub: Stub, client: Client) -> None:
    stub.stream = ['{"seq":8}', '{"seq":9,"detail":"é"}']

    assert (list(client.events(since=7)), stub.asked[0].query) == (stub.stream, {"since": "7"})


def test_events_that_are_refused(stub: Stub, client: Client) -> None:
    stub.say("GET", "/v1/events", *problem("denied", 403, "no rule"))

    with pytest.raises(Problem, match="no rule"):
        next(client.events())


def test_there_is_no_socket(tmp_path: Path) -> None:
    with pytest.raises(NotReachable, match=r"/sock: there is no such socket; is nfportd running"):
        Client(str(tmp_path / "sock")).get("/v1/status")


def test_nobody_listens_on_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "sock"))

    with pytest.raises(NotReachable, match="nobody listens on it"):
        Client(str(tmp_path / "sock")).get("/v1/status")


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "sock"))
        mute.listen()
        with (
            Client(str(tmp_path / "sock"), timeout=0.05) as client,
            pytest.raises(NotReachable, match="no answer within"),
        ):
            client.get("/v1/status")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "went away before it answered"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "went away before it answered"),
        (b"220 mail ESMTP\r\n", "what answers is not nfportd"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "what answers is not nfportd"),
        (b"HTTP/1.1 502 No\r\nContent-Length: 2\r\n\r\n[]", "what answers is not nfportd"),
    ],
)
def test_what_answers_is_no_answer(stub: Stub, client: Client, raw: bytes, says: str) -> None:
    stub.raw = raw

    with pytest.raises(NotReachable, match=says):
        client.get("/v1/status")


def test_a_client_goes_on_after_an_error(stub: Stub, client: Client) -> None:
    stub.raw = b""
    with pytest.raises(NotReachable):
        client.get("/v1/owners")
    stub.raw = None

    assert client.get("/v1/owners") == {"owners": []}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_socket_that_is_closed_to_us(stub: Stub, client: Client) -> None:
    stub.path.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(Problem, match="is closed to you; be root or a member of the socket's group") as caught:
            client.get("/v1/owners")
    finally:
        os.seteuid(0)

    assert (caught.value.status, caught.value.name) == (403, "denied")

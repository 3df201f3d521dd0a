"""What is refused, and how: one problem for each mistake, with the place of each bad field.

Must not know pydantic or aiohttp. The one idea: a program acts on type, status and pointer, a person on the detail.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import time

import pytest

from nfportd.client import Client, Json
from tests.api.calling import T1, Commits, answer_on, ask, body, connected, mapping, refusal, say, states
from tests.lab import Daemon, Lab

JSON = {"Content_Type": "application/json"}
WEB = "/v1/owners/web"
GOOD = json.dumps(body(mapping(8080))).encode()


@pytest.mark.parametrize(
    ("wish", "pointer", "says"),
    [
        ({}, "/mappings", "missing"),
        ({"mappings": {}}, "/mappings", ""),
        ({"mappings": None}, "/mappings", ""),
        (body({"targets": T1}), "/mappings/0/listen", "missing"),
        (body({"listen": 8080}), "/mappings/0/targets", "missing"),
        (body(mapping("nonsense")), "/mappings/0/listen", "nonsense"),
        (body(mapping(0)), "/mappings/0/listen", ""),
        (body(mapping(65536)), "/mappings/0/listen", ""),
        (body(mapping(True)), "/mappings/0/listen", ""),
        (body({"listen": 80.5, "targets": [T1]}), "/mappings/0/listen", ""),
        (body(mapping("90-80")), "/mappings/0/listen", ""),
        (body(mapping("192.0.2.300:80")), "/mappings/0/listen", ""),
        (body(mapping("example.org:80")), "/mappings/0/listen", ""),
        (body(mapping(8080), mapping(8081, "10.88.0.11")), "/mappings/1/targets/0", ""),
        (body(mapping(8080, T1, "10.88.0.12:80")), "/mappings/0/targets", "more than one"),
        (body(mapping("0.0.0.0:8080", "[fd88::11]:80")), "/mappings/0/targets", "IPv6"),
        (body(mapping("8080-8090", T1)), "/mappings/0/targets", "1:1"),
        (body(mapping(8080, protocol="icmp")), "/mappings/0/protocol/0", "sctp"),
        (body(mapping(8080, protocol=["tcp", "tcp"])), "/mappings/0/protocol", "twice"),
        (body(mapping(8080, masquerade="sometimes")), "/mappings/0/masquerade", "always"),
        (body(mapping(8080, on_change=1)), "/mappings/0/on_change", "cut"),
        (body(mapping(8080, sources=["nowhere"])), "/mappings/0/sources/0", "nowhere"),
        (body(mapping(8080, shadow_listener="yes")), "/mappings/0/shadow_listener", ""),
        (body(mapping(8080, reserve=1)), "/mappings/0/reserve", ""),
        (body(mapping(8080, name="two\nlines")), "/mappings/0/name", "printable"),
        (body(mapping(8080), mapping(8080, "10.88.0.12:80")), "/mappings/1", "claimed already by /mappings/0"),
        (body(mapping(8080, tragets=[T1])), "/mappings/0/tragets", "unknown key"),
        (body(mapping(8080), persistant=True), "/persistant", "unknown key"),
        (body(mapping(8080), persistent="yes"), "/persistent", ""),
        (body(mapping(8080), pid=-1), "/pid", ""),
        (body(mapping(8080), pid="1"), "/pid", ""),
        (body(mapping(8080), netns="relative"), "/netns", ""),
    ],
)
def test_a_bad_field_is_pointed_at(api: Client, wish: Json, pointer: str, says: str) -> None:
    problem = refusal(api.put, "web", wish)

    assert (problem.status, problem.name) == (400, "invalid")
    assert pointer in [error["pointer"] for error in problem.errors]
    assert says in str(problem.errors)
    assert states(api) == {}


def test_every_mistake_is_told_at_once(api: Client) -> None:
    problem = refusal(api.put, "web", body(mapping("x"), mapping(8080, "y"), mapping(8081, extra=1)))

    pointers = {error["pointer"] for error in problem.errors}
    assert pointers == {"/mappings/0/listen", "/mappings/1/targets/0", "/mappings/2/extra"}


def test_the_pointer_into_a_transaction_names_the_owner(api: Client) -> None:
    """JSON pointers write / as ~1 and ~ as ~0."""
    owners = {"a": body(), "cni:net/1": body(mapping("x"))}
    problem = refusal(api.request, "POST", "/v1/transactions", {"owners": owners})

    assert [error["pointer"] for error in problem.errors] == ["/owners/cni:net~11/mappings/0/listen"]


@pytest.mark.parametrize("owner", ["file:web.yaml", "-a", "a b", "ä", ".", "a" * 256, "recovered store", "a#b"])
def test_a_bad_owners_name(api: Client, owner: str) -> None:
    wishes = [
        lambda: api.put(owner, body(mapping(8080))),
        lambda: api.request("POST", "/v1/transactions", {"owners": {owner: body(mapping(8080))}}),
        lambda: api.request("POST", "/v1/check", {"owner": owner, **body(mapping(8080))}),
    ]
    for wish in wishes:
        problem = refusal(wish)
        assert (problem.status, problem.name) == (400, "invalid")
    assert states(api) == {}


def test_a_files_owner_cannot_be_deleted_but_read(daemon: Daemon, api: Client) -> None:
    daemon.write("web.yaml", "mappings: [{listen: 8080, targets: '10.88.0.11:80'}]\n")
    problem = refusal(api.delete, "file:web.yaml")

    assert problem.name == "invalid"
    assert "file" in problem.detail
    found = api.owner("file:web.yaml")
    assert found
    assert (found["source"], len(found["mappings"])) == ("file", 1)
    daemon.remove("web.yaml")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", WEB, {"DELETE", "GET", "PUT"}),
        ("PATCH", WEB, {"DELETE", "GET", "PUT"}),
        ("DELETE", "/v1/owners", {"GET"}),
        ("PUT", "/v1/transactions", {"POST"}),
        ("GET", "/v1/check", {"POST"}),
        ("GET", "/v1/reload", {"POST"}),
        ("POST", "/metrics", {"GET"}),
    ],
)
def test_a_wrong_method(daemon: Daemon, method: str, path: str, allowed: set[str]) -> None:
    answer = ask(daemon, method, path, GOOD, **JSON)

    assert (answer.status, answer.name) == (405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) - {"HEAD"} == allowed


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/owners", "/v1/owners/", "/v1/status/", "/v1/../etc/passwd", "//"])
def test_no_such_resource(daemon: Daemon, path: str) -> None:
    answer = ask(daemon, "GET", path)

    assert (answer.status, answer.name) == (404, "not-found")


def test_nothing_of_that_name(api: Client) -> None:
    assert refusal(api.get, "/v1/owners/nobody").name == "not-found"
    assert refusal(api.delete, "nobody").name == "not-found"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "application/jsonp"},
        {**JSON, "Content_Encoding": "gzip"},
        {**JSON, "Content_Encoding": "deflate"},
        {**JSON, "Content_Encoding": "br"},
    ],
)
def test_a_wrong_media_type_or_encoding(daemon: Daemon, api: Client, headers: dict[str, str]) -> None:
    content = gzip.compress(GOOD) if "Content_Encoding" in headers else GOOD
    answer = ask(daemon, "PUT", WEB, content, **headers)

    assert (answer.status, answer.name) == (415, "unsupported-media-type")
    assert states(api) == {}


@pytest.mark.usefixtures("api")
def test_a_media_type_with_its_charset(daemon: Daemon) -> None:
    assert ask(daemon, "PUT", WEB, GOOD, Content_Type="Application/JSON; Charset=UTF-8").status == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"mappings": []} trailing',
        b'{"mappings": "\xff"}',
        b'{"mappings": [' + b"[" * 100_000,
        b'{"mappings": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"mappings": [], "comment": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b'{"mappings": [], "pid": ' + b"9" * 100_000 + b"}",
        b"[]",
        b"null",
        b'"text"',
    ],
    ids=lambda content: repr(content[:24]),
)
def test_no_json_deep_json_and_other_json(daemon: Daemon, api: Client, content: bytes) -> None:
    answer = ask(daemon, "PUT", WEB, content or b" ", **JSON)

    assert answer.status == 400
    assert answer.name in ("malformed", "invalid")
    assert len(answer.content) < 5_000
    assert states(api) == {}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(daemon: Daemon, api: Client, chunked: bool) -> None:
    """17 MB of valid JSON; the answer comes before or after all of it was sent."""
    content = GOOD + b" " * (17 << 20)
    began = time.monotonic()
    head = f"PUT {WEB} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    if chunked:
        request = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
    else:
        request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    with connected(daemon) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request)
        answer = answer_on(sock)

    assert (answer.status, answer.name) == (413, "too-large")
    assert time.monotonic() - began < 5
    assert states(api) == {}


def test_more_keys_than_there_may_be(api: Client) -> None:
    everything = [mapping(f"198.51.100.{n}:1-65535", "10.88.0.11:1-65535") for n in range(1, 255)]
    problem = refusal(api.put, "web", body(*everything))

    assert problem.name == "invalid"
    assert "keys" in problem.detail
    assert states(api) == {}


@pytest.mark.parametrize("query", ["port=x", "port=-1", "port=" + "1" * 5000, "port=%D9%A3", "port=0", "port=65536"])
def test_a_bad_port_to_look_for(daemon: Daemon, query: str) -> None:
    answer = ask(daemon, "GET", f"/v1/mappings?{query}")

    assert (answer.status, answer.name) == (400, "invalid")


@pytest.mark.parametrize("since", ["x", "-1", "1" * 5000, "1.5"])
def test_a_bad_place_in_the_events(daemon: Daemon, since: str) -> None:
    answer = ask(daemon, "GET", f"/v1/events?since={since}")

    assert (answer.status, answer.name) == (400, "invalid")


def test_refusals_write_nothing(lab: Lab, daemon: Daemon, api: Client) -> None:
    with Commits(lab.host) as commits:
        for wish in (body(mapping("x")), {"mappings": 1}, body(mapping(8080), extra=1)):
            refusal(api.put, "web", wish)
        ask(daemon, "PUT", WEB, b"{", **JSON)
        assert commits.seen() == 0


def test_bytes_that_are_no_http_get_a_400_and_the_end(daemon: Daemon, api: Client) -> None:
    for request in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        assert say(daemon, request).status in (400, 505)
    assert api.get("/v1/status")["owners"] == 0

"""Bodies of the API: taken whole and as they are written, or refused for a place that is in them; never with a 500.

It must not know routes' code. The one idea: the types are asked for many bodies, the real daemon for some of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import example, given, strategies as st
from pydantic import TypeAdapter, ValidationError

from nfportd.api import problems
from nfportd.api.bodies import CheckBody, GcBody, OwnerBody, TransactionBody, read
from nfportd.errors import NfportdError
from nfportd.model import Mapping
from tests.api.calling import ask
from tests.fuzz import jsons, second_reader
from tests.fuzz.budget import tries, within
from tests.lab import Daemon

Json = dict[str, Any]

_FITTING = (
    {"listen": 8080, "targets": ["10.88.0.11:80"]},
    {"listen": "8081", "targets": "10.88.0.11:80", "protocol": "udp", "name": "dns"},
    {"listen": "20000-20009", "targets": ["10.88.0.11:30000-30009", "[fd88::11]:20000-20009"], "name": "rtp é"},
    {"listen": "192.0.2.1:8080", "targets": ["10.88.0.12:80"], "protocol": ["tcp", "sctp"], "sources": "192.0.2.0/24"},
    {"listen": "[2001:db8::1]:8080", "targets": ["[fd88::12]:80"], "masquerade": "always", "on_change": "cut"},
    {"listen": 8083, "targets": ["10.88.0.11:80"], "comment": "x", "shadow_listener": True, "reserve": False},
)  # fmt: skip


@st.composite
def owner_bodies(draw: st.DrawFn) -> Json:
    """What an owner may wish."""
    found: Json = {"mappings": draw(st.lists(st.sampled_from(_FITTING), max_size=3, unique_by=str))}
    more: st.SearchStrategy[Json] = st.sampled_from(
        [{}, {}, {"persistent": True}, {"expires_in": 60}, {"expires_in": 0.5}, {"pid": 1}]
    )
    found |= draw(more)
    return found


def transactions() -> st.SearchStrategy[Json]:
    owners = st.dictionaries(st.sampled_from(["api:a", "cni:x/y/z"]), owner_bodies() | st.none(), min_size=1)
    return owners.map(lambda found: {"owners": found})


def checks() -> st.SearchStrategy[Json]:
    return owner_bodies().map(lambda body: {"owner": "api:a", "mappings": body["mappings"]})


def collections() -> st.SearchStrategy[Json]:
    names = st.lists(st.sampled_from(["api:a", "cni:x/y/z"]), max_size=2)
    return st.builds(lambda valid: {"prefix": "cni:", "valid": valid}, names)


BODIES: dict[Any, Callable[[], st.SearchStrategy[Json]]] = {
    OwnerBody: owner_bodies,
    TransactionBody: transactions,
    CheckBody: checks,
    GcBody: collections,
}
_bodies = st.sampled_from(list(BODIES)).flatmap(lambda of: st.tuples(st.just(of), jsons.contents(BODIES[of]())))
_WRITTEN = TypeAdapter(list[Mapping])


def assert_told(content: bytes, error: Exception) -> None:
    """The error becomes a problem whose pointers lead into the body."""
    answer = problems.of(error)
    told = json.loads(answer.text or "")
    assert answer.status == told["status"] == 400
    assert told["detail"].isprintable(), told
    for each in told.get("errors", []):
        assert len(each["detail"]) < 1000, each
        assert each["detail"].isprintable(), each
        assert_leads(json.loads(content), each)


def assert_leads(value: Any, error: Json) -> None:
    steps = [step.replace("~1", "/").replace("~0", "~") for step in error["pointer"].split("/")[1:]]
    for number, step in enumerate(steps, start=1):
        if isinstance(value, list):
            assert int(step) < len(value), error
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            # What is missing has no place of its own; one value may stand for a list of one.
            assert number == len(steps) or step == "[key]" or steps[number:] == ["[key]"], (error, value)


def assert_same(content: bytes, mappings: tuple[Mapping, ...]) -> None:
    """What was taken is what stands in the text, and is taken again as it is written down."""
    items = json.loads(content)["mappings"]
    assert len(items) == len(mappings)
    for item, mapping in zip(items, mappings, strict=True):
        node = yaml.compose(json.dumps({"mappings": [item]}, ensure_ascii=False).replace("\x7f", "\\x7f"))
        (seen,) = second_reader.items(yaml.serialize(node)) or []
        second_reader.assert_seen(seen, mapping)
    again = json.loads(json.dumps([mapping.written() for mapping in mappings]))
    assert tuple(_WRITTEN.validate_python(again)) == mappings


@tries(150)
@given(_bodies)
@example((OwnerBody, b'{"mappings": [{"listen": 80, "listen": 81, "targets": "10.0.0.1:80"}]}'))
@example((OwnerBody, b'{"mappings": [{"listen": 80, "targets": "10.0.0.1:80", "name": NaN}]}'))
@example((OwnerBody, b'{"mappings": [{"listen": 80, "targets": "10.0.0.1:80", "name": 1e400}]}'))
@example((OwnerBody, b'{"mappings": [{"listen": %s, "targets": "10.0.0.1:80"}]}' % (b"9" * 4300)))
@example((OwnerBody, b"[" * 100_000))
@example((OwnerBody, b'{"mappings": [], "\\u001b[31m": 1}'))
def test_a_body_is_taken_as_it_is_written_or_refused_for_a_place(body: tuple[Any, bytes]) -> None:
    of, content = body
    try:
        with within(2):
            found = read(of, content)
    except (ValidationError, NfportdError) as error:
        assert_told(content, error)
        return
    plain = json.loads(content, parse_constant=pytest.fail, object_pairs_hook=unique)
    assert isinstance(plain, dict)
    if of in (OwnerBody, CheckBody):
        assert_same(content, found.mappings)
    elif of is TransactionBody:
        assert found.owners.keys() == plain["owners"].keys()
        for name, each in found.owners.items():
            if each:
                assert_same(json.dumps(plain["owners"][name]).encode(), each.mappings)


def unique(pairs: list[tuple[str, Any]]) -> Json:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


@tries(40)
@given(owner_bodies(), st.data())
def test_an_unknown_key_is_named_where_it_stands(body: Json, data: st.DataObject) -> None:
    objects = [path for path in jsons.places(body) if isinstance(jsons.at(body, path), dict)]
    path = data.draw(st.sampled_from(objects))
    holder = jsons.at(body, path)
    key = data.draw(st.sampled_from(sorted(holder)))
    changed = json.loads(json.dumps(body))
    jsons.at(changed, path)[f"zz{key}"] = jsons.at(changed, path).pop(key)

    try:
        raise AssertionError(read(OwnerBody, json.dumps(changed).encode()))
    except ValidationError as error:
        told = json.loads(problems.of(error).text or "")

    assert "/".join(map(str, ("", *path, f"zz{key}"))) in [each["pointer"] for each in told["errors"]]


@pytest.fixture(scope="module")
def daemon(lab: Any) -> Any:
    standing = Daemon(lab)
    standing.start()
    yield standing
    assert standing.stop() == 0


_WAYS = {
    OwnerBody: ("PUT", "/v1/owners/api:a"),
    TransactionBody: ("POST", "/v1/transactions"),
    CheckBody: ("POST", "/v1/check"),
    GcBody: ("POST", "/v1/gc"),
}


@tries(40)
@given(body=_bodies)
@example((OwnerBody, b'{"mappings": [], "pid": 99999999999999999999}'))
@example((OwnerBody, b'{"mappings": [], "netns": "/%s"}' % (b"x" * 4000)))
@example((OwnerBody, b'{"mappings": [], "netns": "/proc/self/\\u001b[31m\\n"}'))
def test_the_daemon_has_an_answer_to_every_body(daemon: Daemon, body: tuple[Any, bytes]) -> None:
    of, content = body
    method, path = _WAYS[of]
    seen = len(daemon.log)

    answer = ask(daemon, method, path, content, Content_Type="application/json")

    assert answer.status in (200, 400, 409), answer
    assert answer.status == 200 or answer.name in ("malformed", "invalid", "conflict"), answer
    assert "Traceback" not in daemon.log[seen:]
    if answer.status == 200 and of is OwnerBody:
        wished, held = json.loads(content), ask(daemon, "GET", f"{path}?verify=true")
        if held.status == 404:
            assert "expires_in" in wished
        else:
            assert [each["state"] for each in held.json["mappings"]] == ["active"] * len(wished["mappings"]), held

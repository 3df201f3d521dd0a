"""The CNI plugin under runtimes, plugins and daemons that lie: one JSON object or silence, and a status that agrees.

It must not know how the plugin reads. The one idea: many calls of its functions in this process, where the daemon is a
stub that says what it likes; and some of the executable, where a traceback would be seen.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, strategies as st

from nfportd import cni
from tests.cni.calling import EXECUTABLE, VERSIONS, Attachment, result
from tests.fuzz import jsons
from tests.fuzz.budget import tries, within

Json = dict[str, Any]
_VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
#: Codes of the specification for plugins, and ours.
_CODES = {1, 2, 4, 5, 6, 7, 11, 50, 51, 101, 102, 103, 104}


@st.composite
def configurations(draw: st.DrawFn) -> Json:
    """What a runtime writes to standard input, of every version."""
    version = draw(st.sampled_from(VERSIONS))
    found: Json = {"cniVersion": version, "name": "net", "type": "nfportd-cni"}
    if draw(st.integers(0, 9)):
        addresses = draw(st.sampled_from([("10.88.0.11",), ("10.88.0.11", "fd88::11"), ("fd88::11",), ()]))
        found["prevResult"] = result(version, addresses)
    port = st.fixed_dictionaries(
        {"hostPort": st.sampled_from([80, 8080, 8081, 65535]), "containerPort": st.sampled_from([80, 81])},
        optional={
            "protocol": st.sampled_from(["tcp", "UDP", "sctp", ""]),
            "hostIP": st.sampled_from(["", "192.0.2.1", "::", "0.0.0.0", "::ffff:192.0.2.1", "127.0.0.1"]),
            "HostPort": st.just(90),
        },
    )
    if draw(st.integers(0, 9)):
        found["runtimeConfig"] = {"portMappings": draw(st.lists(port, max_size=4))}
    more: dict[str, list[Any]] = {
        "snat": [True, False, None],
        "masqAll": [True, False],
        "backend": ["nftables"],
        "markMasqBit": [13],
        "conditionsV4": [[], ["-s", "x"]],
        "cni.dev/valid-attachments": [None, [], [{"containerID": "a", "ifname": "eth0"}]],
        "socket": ["/nowhere", "a" * 200, "\0x"],
    }
    for key in draw(st.lists(st.sampled_from(sorted(more)), max_size=2, unique=True)):
        found[key] = draw(st.sampled_from(more[key]))
    return found


_SPOILT = {
    "CNI_CONTAINERID": ["", "a/b", "..", "a" * 5000, "é", "a\n", "-a", "a?b", "\udcff"],
    "CNI_IFNAME": ["", "../x", "a/b", ".", "..", "eth0:1", "a" * 16, "a" * 100_000, "é", "eth 0", "\udcff", "a%62"],
    "CNI_NETNS": ["", "x", "/run/netns/" + "a" * 5000, "/a\n", "\udcff", "é"],
    "CNI_ARGS": ["K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", ";;==;=", "K8S_POD_NAME",
                 "K8S_POD_NAMESPACE=\x1b;K8S_POD_NAME=\udcff"],
    "CNI_COMMAND": ["add", "", "ADD ", "A" * 5000, "\udcff"],
}  # fmt: skip


@st.composite
def environments(draw: st.DrawFn) -> dict[str, str]:
    """What a runtime puts in the environment, seldom with something wrong in it."""
    names = {"CONTAINERID": "3f2a", "NETNS": "/run/netns/x", "IFNAME": "eth0", "PATH": "/opt/cni/bin", "ARGS": ""}
    found = {f"CNI_{name}": value for name, value in names.items()}
    found["CNI_COMMAND"] = draw(st.sampled_from(_VERBS))
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(_SPOILT)))
        found[name] = draw(st.sampled_from(_SPOILT[name]))
    return found


def assert_told(verb: str, status: int, output: str, remarks: str) -> Json:
    """The form of an answer, by the specification."""
    assert "Traceback" not in remarks, remarks
    assert status in (0, 1)
    if not output:
        assert (status, verb in ("DEL", "CHECK", "GC", "STATUS")) == (0, True), (verb, status, remarks)
        return {}
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)  # this stack is deeper than the plugin's own
    told: Json = json.loads(output, parse_constant=pytest.fail)
    sys.setrecursionlimit(before)
    assert isinstance(told, dict)
    if status:
        assert set(told) <= {"cniVersion", "code", "msg", "details"}, told
        assert told["code"] in _CODES, told
        assert told["cniVersion"] in VERSIONS
        assert told["msg"]
        assert len(output) < 20_000
    else:
        assert verb in ("ADD", "VERSION"), told
    return told


class Stub:
    """A daemon on a socket that gives the same answer to everybody, and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer = b""
        self.asked: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                asked = sock.recv(65536)
                head, _, content = asked.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                while len(content) < length and (more := sock.recv(65536)):
                    content += more
                self.asked.append(head + b"\r\n\r\n" + content)
                sock.sendall(self.answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    made = Stub(tmp_path_factory.mktemp("stub") / "sock")
    yield made
    made.close()


def inside(content: bytes, environment: dict[str, str], stub: Stub) -> Json:
    """Call the plugin's main function; what it told."""
    printed, remarked = io.StringIO(), io.StringIO()
    standard = mock.Mock(buffer=io.BytesIO(content))
    with (
        mock.patch.dict(os.environ, environment | {"NFPORTD_SOCKET": str(stub.path)}, clear=True),
        mock.patch.multiple(sys, stdin=standard, stdout=printed, stderr=remarked),
        mock.patch.multiple(cni, PATIENCE=0.0, _PAUSE=0.0),
        within(2),
    ):
        status = cni.main()
    return assert_told(environment["CNI_COMMAND"], status, printed.getvalue(), remarked.getvalue())


_HTTP = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n\r\n%s"
_PROBLEM: Json = {
    "type": "urn:nfportd:problem:conflict",
    "title": "x",
    "status": 409,
    "detail": "taken",
    "holder": {"owner": "cni:net/b/eth0"},
    "process": {"pid": 1, "name": "init"},
}
_ANSWERS: tuple[Json, ...] = (
    {"mappings": [{"listen": "80", "protocol": ["tcp"], "targets": ["10.88.0.11:80"], "state": "active", "reason": 0}]},
    {"table": "intact"},
    {"removed": []},
    _PROBLEM,
    _PROBLEM | {"type": "urn:nfportd:problem:port-in-use", "holder": None},
    {},
)  # fmt: skip
_answers = st.builds(
    lambda status, content: _HTTP % (status, content),
    st.sampled_from([200, 200, 200, 400, 404, 409, 500]),
    jsons.written(jsons.damaged(st.sampled_from(_ANSWERS), most=1)),
) | st.sampled_from(
    [b"", b"\r\n\r\n", b"HTTP/1.1\r\n\r\n{}", b"HTTP/1.1 200 OK\r\n\r\n", _HTTP % (200, b"[" * 100_000)]
)
_GOOD = _HTTP % (200, b"{}")
_ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0", "CNI_NETNS": "/x"}


def add(previous: str, ports: str = '[{"hostPort": 80, "containerPort": 80}]') -> bytes:
    """A configuration with this text for its prevResult."""
    start = '{"cniVersion": "1.1.0", "name": "net", "type": "x", "runtimeConfig": {"portMappings": '
    return f'{start}{ports}}}, "prevResult": {previous}}}'.encode()


def _deep(depth: int) -> bytes:
    return add('{"ips": [{"address": "10.88.0.11/24"}], "x": ' + "[" * depth + "]" * depth + "}")


@tries(200)
@given(jsons.contents(configurations()), environments(), st.sampled_from([_GOOD]) | _answers)
@example(add('{"ips": [{"address": "10.88.0.11/24"}], "x": NaN}'), _ADD, _GOOD)
@example(add('{"ips": [{"address": "10.88.0.11/24"}], "x": 1e999}'), _ADD, _GOOD)
@example(add('{"ips": [{"address": "10.88.0.11/24"}], "x": "\\ud800"}'), _ADD, _GOOD)
@example(b'{"cniVersion": "1.1.0", "name": "n"}', _ADD | {"CNI_COMMAND": "STATUS"}, _HTTP % (200, b"{}"))
def test_every_call_has_an_answer_of_the_right_form(
    stub: Stub, content: bytes, environment: dict[str, str], answer: bytes
) -> None:
    stub.answer = answer
    stub.asked.clear()

    told = inside(content, environment, stub)

    verb = environment["CNI_COMMAND"]
    if verb == "ADD" and "code" not in told:
        config = json.loads(content)
        assert told == {"cniVersion": config.get("cniVersion") or "0.1.0", **config["prevResult"]}
        assert_asked(stub, (config.get("runtimeConfig") or {}).get("portMappings") or [])


def assert_asked(stub: Stub, wished: list[Json]) -> None:
    """Every port that the runtime wished is in the last body that the daemon got, where the container can have it."""
    everywhere = [port for port in wished if not any(port[name] for name in port if name.lower() == "hostip")]
    assert stub.asked or not everywhere
    if not stub.asked:
        return
    head, _, content = stub.asked[-1].partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /v1/owners/cni:")
    listened = set[int]()
    for mapping in json.loads(content)["mappings"]:
        first, _, last = str(mapping["listen"]).rpartition(":")[2].partition("-")
        listened |= set(range(int(first), int(last or first) + 1))
    assert listened <= {_host_port(port) for port in wished}
    assert listened >= {_host_port(port) for port in everywhere}


def _host_port(port: Json) -> int:
    (found,) = [value for name, value in port.items() if name.lower() == "hostport"]
    return int(found)


@pytest.mark.parametrize(
    "answer", [b'{"portMappings": 1, "portMappings": []}', add('{"ips": [], "a": {"b": {"c": 1, "c": 1}}}')]
)
def test_a_key_that_stands_twice_is_an_error(stub: Stub, answer: bytes) -> None:
    stub.answer = _GOOD

    assert inside(answer, _ADD, stub)["code"] == 6


@pytest.mark.parametrize("valid", ["false", "0", '""', "{}", "[{}]", '[{"containerID": 1, "ifname": null}]', '["a"]'])
def test_a_broken_list_of_attachments_takes_nothing(stub: Stub, valid: str) -> None:
    stub.asked.clear()
    content = f'{{"cniVersion": "1.1.0", "name": "n", "cni.dev/valid-attachments": {valid}}}'

    assert inside(content.encode(), {"CNI_COMMAND": "GC"}, stub)["code"] == 7
    assert stub.asked == []


@pytest.mark.parametrize(
    "entry", ['"hostIP": false', '"hostIP": 0', '"protocol": false', '"protocol": []', '"hostip": {}']
)
def test_a_port_is_not_widened_by_what_is_no_text(stub: Stub, entry: str) -> None:
    ports = f'[{{"hostPort": 80, "containerPort": 80, {entry}}}]'

    assert inside(add('{"ips": [{"address": "10.88.0.11/24"}]}', ports), _ADD, stub)["code"] == 7


def executed(content: bytes, environment: dict[str, str], path: Path) -> Json:
    """Call the plugin as runtimes do."""
    done = subprocess.run(
        [EXECUTABLE], input=content, env=environment | {"NFPORTD_SOCKET": str(path)}, capture_output=True, timeout=30,
        check=False,
    )  # fmt: skip
    remarks = done.stderr.decode(errors="replace")
    return assert_told(environment["CNI_COMMAND"], done.returncode, done.stdout.decode("ascii"), remarks)


@tries(20)
@given(content=jsons.contents(configurations()), environment=environments())
def test_the_executable_answers_likewise(stub: Stub, content: bytes, environment: dict[str, str]) -> None:
    stub.answer = _GOOD

    executed(content, environment, stub.path)


def test_depth_at_which_reading_and_writing_could_differ(stub: Stub) -> None:
    stub.answer = _GOOD
    known = {
        depth: executed(_deep(depth), _ADD, stub.path).get("code") for depth in (*range(970, 1000, 2), 10_000, 100_000)
    }

    assert set(known.values()) <= {None, 6}, known


def test_environment_and_input_of_any_size(tmp_path: Path) -> None:
    attachment = Attachment(tmp_path / "none", "/run/netns/x")
    port = {"hostPort": 80, "containerPort": 80}
    config = attachment.configuration(*[port | {"hostPort": n} for n in range(1, 20_000)], x="y" * 5_000_000)

    reply = attachment.say("ADD", json.dumps(config).encode(), CNI_ARGS="K8S_POD_NAME=" + "a" * 100_000)

    assert (reply.code, reply.remarks) == (11, "")

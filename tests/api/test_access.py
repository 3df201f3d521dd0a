"""Who may do what: real users and groups against an access list.

Must not know the rules' code. The one idea: a caller is a process with that uid and those gids, as the kernel shows it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.calling import T1, T2, answers, body, client, mapping, states
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]
WEB, READER, RANGE, NOBODY = 64002, 64003, 64004, 64005

SETTINGS = f"""
group: "{{group}}"
access:
  - uid: {WEB}
    write: true
    owners: "web:"
    ports: [8000-8099, 443]
    protocols: [tcp]
    listen: [192.0.2.1/32]
    targets: [10.88.0.0/24]
  - uid: {READER}
  - gid: {RANGE}
    write: true
    ports: [9000-9099]
"""
_CALL = """
import json, os, socket, sys
path, uid, gid, groups, request = json.loads(sys.argv[1])
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
sock = socket.socket(socket.AF_UNIX); sock.settimeout(10)
try:
    sock.connect(path)
except PermissionError:
    print(json.dumps([0, "no way to the socket"])); sys.exit()
sock.sendall(request.encode())
text = b""
while more := sock.recv(65536):
    text += more
head, _, content = text.partition(b"\\r\\n\\r\\n")
print(json.dumps([int(head.split()[1]), content.decode()]))
"""


class As:
    """A caller of some uid and gids."""

    def __init__(self, daemon: Daemon, uid: int, *gids: int) -> None:
        self.daemon, self.uid, self.gids = daemon, uid, gids or (uid,)

    def call(self, method: str, path: str, wish: object = None) -> tuple[int, dict[str, Any]]:
        content = "" if wish is None else json.dumps(wish)
        request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        request += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}"
        first, *others = self.gids
        what = json.dumps([str(self.daemon.socket), self.uid, first, others, request])
        done = subprocess.run(
            [sys.executable, "-c", _CALL, what], check=True, capture_output=True, text=True, timeout=20
        )
        status, text = json.loads(done.stdout)
        return status, json.loads(text) if text.startswith("{") else {}

    def puts(self, owner: str, *mappings: Any) -> int:
        return self.call("PUT", f"/v1/owners/{owner}", body(*mappings))[0]


@pytest.fixture
def guarded(start: Start) -> Daemon:
    """A daemon with the access list, whose directories and socket all may reach: the list alone decides."""
    daemon = start(settings=SETTINGS.replace("{group}", "nogroup"))
    for place in (daemon.dir.parent, daemon.dir, daemon.socket.parent):
        place.chmod(0o755)
    daemon.socket.chmod(0o666)
    return daemon


IN = "192.0.2.1:8080"
#: caller x action -> status
TABLE: list[tuple[tuple[str, int, tuple[int, ...]], str, str, Any, int]] = [
    (("root", 0, ()), "GET", "/v1/owners", None, 200),
    (("root", 0, ()), "PUT", "/v1/owners/any", body(mapping(80, T1)), 200),
    (("nobody", NOBODY, ()), "GET", "/v1/owners", None, 403),
    (("nobody", NOBODY, ()), "GET", "/v1/status", None, 403),
    (("nobody", NOBODY, ()), "GET", "/v1/events", None, 403),
    (("nobody", NOBODY, ()), "GET", "/metrics", None, 403),
    (("nobody", NOBODY, ()), "GET", "/openapi.json", None, 403),
    (("nobody", NOBODY, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, T1)), 403),
    (("nobody", NOBODY, ()), "POST", "/v1/reload", None, 403),
    (("reader", READER, ()), "GET", "/v1/mappings", None, 200),
    (("reader", READER, ()), "GET", "/v1/status", None, 200),
    (("reader", READER, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, T1)), 403),
    (("reader", READER, ()), "PUT", "/v1/owners/web:a", body(), 403),
    (("reader", READER, ()), "DELETE", "/v1/owners/held", None, 403),
    (("reader", READER, ()), "POST", "/v1/gc", {"prefix": "held", "valid": []}, 403),
    (("reader", READER, ()), "POST", "/v1/reload", None, 403),
    (("web", WEB, ()), "GET", "/v1/owners/held", None, 200),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, T1)), 200),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a?dry_run=true", body(mapping(IN, T1)), 200),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping("192.0.2.1:443", T1)), 200),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, T1, isolate=True)), 200),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, "10.88.1.2:80", isolate=True)), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/other", body(mapping(IN, T1)), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web", body(mapping(IN, T1)), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping("192.0.2.1:8100", T1)), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping("192.0.2.1:8090-8110", "10.88.0.11:90-110")), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, T1, protocol=["tcp", "udp"])), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping("192.0.2.2:8080", T1)), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping(8080, T1)), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, "10.88.1.2:80")), 403),
    (("web", WEB, ()), "PUT", "/v1/owners/web:a", body(mapping(IN, T1), mapping("192.0.2.1:22", T1)), 403),
    (("web", WEB, ()), "POST", "/v1/transactions", {"owners": {"web:a": body(mapping(IN, T1)), "held": None}}, 403),
    (("web", WEB, ()), "POST", "/v1/check", {"owner": "other", **body(mapping(IN, T1))}, 403),
    (("web", WEB, ()), "DELETE", "/v1/owners/held", None, 403),
    (("web", WEB, ()), "POST", "/v1/gc", {"prefix": "held", "valid": []}, 403),
    (("web", WEB, ()), "POST", "/v1/reload", None, 403),
    (("range", NOBODY, (RANGE,)), "PUT", "/v1/owners/any", body(mapping(9000, T1)), 200),
    (("range", NOBODY, (NOBODY, RANGE)), "PUT", "/v1/owners/any", body(mapping(9000, T1)), 200),
    (("range", NOBODY, (RANGE,)), "PUT", "/v1/owners/any", body(mapping(9100, T1)), 403),
    (("range", NOBODY, (RANGE,)), "PUT", "/v1/owners/any", body(mapping(9000, T1, isolate=True)), 403),
    (("range", NOBODY, (RANGE,)), "DELETE", "/v1/owners/held", None, 403),
    (("range", NOBODY, (RANGE,)), "PUT", "/v1/owners/held", body(), 403),
    (("range", NOBODY, (RANGE,)), "POST", "/v1/transactions", {"owners": {"held": body(mapping(9001, T1))}}, 403),
]


def test_callers_and_actions(lab: Lab, guarded: Daemon) -> None:
    with client(guarded) as root:
        found = []
        for (_, uid, gids), method, path, wish, _ in TABLE:
            root.put("held", body(mapping(80, T2)))
            if not path.startswith("/v1/owners/any") or uid:
                status, answer = As(guarded, uid, *gids).call(method, path, wish)
            else:
                root.delete("held")
                status, answer = As(guarded, uid, *gids).call(method, path, wish)
                root.delete("any")
                root.put("held", body(mapping(80, T2)))
            found.append(status)
            if status == 403:
                assert answer["type"] == "urn:nfportd:problem:denied"
                assert answer["rule"]
            assert answers(lab, 80) == "t2", (uid, method, path)

    told = [(each[0][0], *each[1:4], status) for each, status in zip(TABLE, found, strict=True)]
    assert told == [(each[0][0], *each[1:]) for each in TABLE]


def test_a_refusal_names_the_rule_and_is_logged(guarded: Daemon) -> None:
    status, answer = As(guarded, WEB).call("PUT", "/v1/owners/web:a", body(mapping("192.0.2.1:22", T1)))

    assert status == 403
    assert "ports" in answer["rule"]
    assert "8000-8099" in answer["rule"]
    assert "22" in answer["rule"]
    assert f"uid {WEB}" in guarded.wait_for("denied PUT /v1/owners/web:a")


def test_a_gc_that_may_not_take_all_takes_nothing(guarded: Daemon) -> None:
    with client(guarded) as root:
        root.put("web:a", body(mapping(IN, T1)))
        root.put("web:b", body(mapping("192.0.2.2:22", T1)))

        status, _ = As(guarded, WEB).call("POST", "/v1/gc", {"prefix": "web:", "valid": []})

        assert status == 403
        assert len(states(root)) == 2


def test_members_of_the_group_may_do_everything(start: Start) -> None:
    """Any group that this machine has serves: the group's name is a setting."""
    daemon = start(settings='group: "daemon"\n')
    for place in (daemon.dir.parent, daemon.dir, daemon.socket.parent):
        place.chmod(0o755)
    gid = daemon.socket.stat().st_gid
    assert gid != 0
    member, stranger = As(daemon, NOBODY, NOBODY, gid), As(daemon, NOBODY)

    assert member.puts("web", mapping(80, T1)) == 200
    assert member.call("POST", "/v1/reload")[0] == 200
    assert stranger.puts("web", mapping(80, T1)) == 0, "the socket's mode is in the way"

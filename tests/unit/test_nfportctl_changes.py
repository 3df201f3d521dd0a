"""nfportctl as people publish and withdraw by it: what is sent, and what becomes of what was there.

It must not need a daemon. The one idea: the stub's owners after a command are what the command has done.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nfportd.changes import OWN
from tests.unit.nfportctl import DNS, WEB, run
from tests.unit.stub import Stub, problem, speaking


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with speaking(tmp_path / "sock") as made:
        yield made


def sent(stub: Stub) -> Any:
    """The body of the last request that writes."""
    return [asked.body for asked in stub.asked if asked.method != "GET"][-1]


def test_add(stub: Stub) -> None:
    done = run(stub, "add", "8080", "10.88.0.11:80", "--name", "web")

    assert (done.exit_code, done.stdout) == (0, f'{OWN}: "web" 8080/tcp to 10.88.0.11:80: added 1, removed 0\n')
    assert sent(stub) == {
        "mappings": [
            {
                "listen": "8080",
                "targets": ["10.88.0.11:80"],
                "protocol": ["tcp"],
                "name": "web",
                "masquerade": "auto",
                "on_change": "keep",
            }
        ],
        "persistent": False,
    }


def test_add_with_everything(stub: Stub) -> None:
    choices = [
        "--protocol",
        "udp",
        "--protocol",
        "tcp",
        "--masquerade",
        "always",
        "--on-change",
        "cut",
        "--comment",
        "c",
    ]
    more = ["--source", "192.0.2.0/24", "--source", "2001:db8::/32", "--shadow-listener", "--reserve", "--isolate"]
    lifetime = ["--persistent", "--expires-in", "60"]
    run(stub, "add", "--owner", "api:me", "[::]:80", "[FD88::0:11]:80", *choices, *more, *lifetime)

    assert sent(stub) == {
        "mappings": [
            {
                "listen": "[::]:80",
                "targets": ["[fd88::11]:80"],
                "protocol": ["tcp", "udp"],
                "comment": "c",
                "masquerade": "always",
                "on_change": "cut",
                "sources": ["192.0.2.0/24", "2001:db8::/32"],
                "shadow_listener": True,
                "reserve": True,
                "isolate": True,
            }
        ],
        "persistent": True,
        "expires_in": 60,
    }


def test_add_leaves_what_the_owner_has(stub: Stub) -> None:
    until = (datetime.now(UTC) + timedelta(seconds=100)).isoformat()
    stub.have("api:me", DNS, persistent=True, expires_at=until, netns="/run/netns/x")
    run(stub, "add", "--owner", "api:me", "8080", "10.88.0.11:80")

    body = sent(stub)

    assert [each["listen"] for each in body["mappings"]] == ["53", "8080"]
    assert not {"state", "since", "owner"} & set(body["mappings"][0])
    assert (body["persistent"], body["netns"], 95 < body["expires_in"] <= 100) == (True, "/run/netns/x", True)


def test_add_once_more_changes_nothing(stub: Stub) -> None:
    for _ in range(2):
        done = run(stub, "add", "8080", "10.88.0.11:80", "[fd88::11]:80", "--name", "web")

    assert (done.exit_code, len(stub.owners[OWN]["mappings"])) == (0, 1)


def test_add_with_a_name_that_is_there_already(stub: Stub) -> None:
    stub.have(OWN, WEB)

    done = run(stub, "add", "81", "10.88.0.11:80", "--name", "web")

    found = f'{OWN} has "web" 8080/tcp to 10.88.0.11:80,[fd88::11]:80 already'
    assert (done.exit_code, done.stderr) == (1, f"nfportctl: {found}; remove it first, or choose another name\n")


def test_add_does_not_let_others_expire(stub: Stub) -> None:
    stub.have(OWN, WEB)

    done = run(stub, "add", "81", "10.88.0.11:80", "--expires-in", "60")

    assert (done.exit_code, "choose another --owner" in done.stderr, len(stub.asked)) == (1, True, 1)


def test_a_dry_run_changes_nothing(stub: Stub) -> None:
    done = run(stub, "add", "8080", "10.88.0.11:80", "--dry-run")

    assert (done.stdout, stub.owners) == (f"{OWN}: 8080/tcp to 10.88.0.11:80: would add 1, remove 0\n", {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["70000", "10.88.0.11:80"], "port 70000 is out of range"),
        (["8080", "10.88.0.11"], "has no port"),
        (["8080", "web:80"], "host names are not looked up"),
        (["8080", "10.88.0.11:80", "--source", "192.0.2.1/24"], "write 192.0.2.0/24"),
        (["8080"], "Missing argument 'TARGET...'"),
        (["8080", "10.88.0.11:80", "--protocol", "icmp"], "icmp"),
        (["8080", "10.88.0.11:80", "--expires-in", "0"], "expires-in"),
    ],
)
def test_wrong_arguments_are_not_sent(stub: Stub, arguments: list[str], says: str) -> None:
    done = run(stub, "add", *arguments)

    assert (done.exit_code, says in done.stderr, stub.asked) == (2, True, [])


def test_an_error_of_the_daemon_is_said_of_the_arguments(stub: Stub) -> None:
    stub.have(OWN, DNS)
    errors = [
        {"pointer": "/mappings/1/sources", "detail": "bits"},
        {"pointer": "/mappings/1", "detail": "is /mappings/0"},
    ]
    stub.say("PUT", f"/v1/owners/{OWN}", *problem("invalid", 400, "bad", errors=errors))

    done = run(stub, "add", "8080", "10.88.0.11:80")

    assert (done.exit_code, done.stderr.splitlines()) == (
        1,
        ["nfportctl: invalid: Invalid", "  sources: bits", '  is "dns" 53/udp to 10.88.0.12:53'],
    )


# --- withdrawing


@pytest.mark.parametrize("which", ["web", "8080"])
def test_remove(stub: Stub, which: str) -> None:
    stub.have(OWN, WEB, DNS)

    done = run(stub, "remove", which)

    assert (done.exit_code, done.stdout) == (0, f"{OWN}: {which}: added 0, removed 1\n")
    assert [each["name"] for each in stub.owners[OWN]["mappings"]] == ["dns"]


@pytest.mark.parametrize("arguments", [["web"], ["--all"]])
def test_an_owner_of_whom_nothing_is_left_is_gone(stub: Stub, arguments: list[str]) -> None:
    stub.have("api:me", WEB)

    done = run(stub, "remove", "--owner", "api:me", *arguments)

    assert (done.exit_code, stub.owners, stub.asked[-1].method) == (0, {}, "DELETE")


def test_remove_in_a_dry_run(stub: Stub) -> None:
    stub.have(OWN, WEB)

    done = run(stub, "remove", "--all", "--dry-run")

    assert (done.stdout, len(stub.owners)) == (f"{OWN}: all mappings: would add 0, remove 1\n", 1)


def test_remove_does_not_guess(stub: Stub) -> None:
    stub.have(OWN, {**WEB, "name": "a"}, {**WEB, "name": "b", "protocol": ["udp"]})

    assert (run(stub, "remove", "8080").exit_code, len(stub.asked)) == (1, 1)
    assert run(stub, "remove", "8080", "--protocol", "udp").exit_code == 0
    assert [each["name"] for each in stub.owners[OWN]["mappings"]] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["mail"], f"{OWN} has no mapping 'mail'"), (["web", "--owner", "api:x"], "api:x has no mappings")],
)
def test_what_is_not_there_cannot_be_removed(stub: Stub, arguments: list[str], says: str) -> None:
    stub.have(OWN, WEB)

    done = run(stub, "remove", *arguments)

    assert (done.exit_code, says in done.stderr) == (1, True)


@pytest.mark.parametrize("arguments", [[], ["web", "--all"]])
def test_remove_wants_one_or_all(stub: Stub, arguments: list[str]) -> None:
    assert run(stub, "remove", *arguments).exit_code == 2


# --- whole contents

DROPIN = "mappings:\n  - name: web\n    listen: 8080\n    targets: 10.88.0.11:80\n"


def test_apply_replaces_all_that_an_owner_has(stub: Stub) -> None:
    stub.have("api:me", DNS)

    done = run(stub, "apply", "-f", "-", "--owner", "api:me", "--persistent", typed=DROPIN)

    assert done.exit_code == 0
    assert sent(stub) == {
        "mappings": [{"name": "web", "listen": 8080, "targets": "10.88.0.11:80"}],
        "persistent": True,
    }


def test_apply_a_file(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(DROPIN)

    done = run(stub, "apply", "-f", str(tmp_path / "web.yaml"), "--owner", "api:me", "--dry-run")

    assert (done.stdout, stub.owners) == (f"api:me: {tmp_path}/web.yaml: would add 1, remove 0\n", {})


@pytest.mark.parametrize("text", ["", "# nothing\n", "mappings:\n"])
def test_apply_nothing(stub: Stub, text: str) -> None:
    run(stub, "apply", "-f", "-", "--owner", "api:me", typed=text)

    assert sent(stub) == {"mappings": []}


def test_the_daemons_errors_are_said_for_the_place_in_the_file(stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(DROPIN)
    errors = [{"pointer": "/mappings/0/listen", "detail": "port 0 is out of range"}, {"pointer": "", "detail": "odd"}]
    stub.say("PUT", "/v1/owners/api:me", *problem("invalid", 400, "bad", errors=errors))

    done = run(stub, "apply", "-f", str(file), "--owner", "api:me")

    assert (done.exit_code, done.stderr.splitlines()) == (
        1,
        [
            "nfportctl: invalid: Invalid",
            f'  {file}:3:13: mapping "web": listen: port 0 is out of range',
            f"  {file}:1:1: odd",
        ],
    )


@pytest.mark.parametrize("text", ["mappings: [\n", "- 1\n", "just text\n"])
def test_what_is_no_drop_in_is_not_sent(stub: Stub, text: str) -> None:
    done = run(stub, "apply", "-f", "-", "--owner", "api:me", typed=text)

    assert (done.exit_code, done.stderr.startswith("nfportctl: <stdin>:"), stub.asked) == (1, True, [])


def test_apply_a_file_that_is_not_there(stub: Stub, tmp_path: Path) -> None:
    done = run(stub, "apply", "-f", str(tmp_path / "gone.yaml"), "--owner", "api:me")

    said = f"nfportctl: {tmp_path}/gone.yaml: cannot be read: No such file or directory\n"
    assert (done.exit_code, done.stderr, stub.asked) == (1, said, [])

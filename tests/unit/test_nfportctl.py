"""nfportctl as people ask by it: tables, sentences, exit statuses, colours.

It must not need a daemon. The one idea: click runs it as a shell would, against a stub that tells what it was asked.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from nfportd import cli
from nfportd.changes import OWN
from tests.unit.nfportctl import DNS, HOLDER, WEB, run
from tests.unit.stub import SINCE, Json, Stub, problem, speaking

STATUS = {
    "version": "0.1.0",
    "nft": "1.0.6",
    "features": {"owner_persist": False},
    "table": "intact",
    "repairs": {"count": 0, "last": None, "fight": False},
    "pid": 812,
    "since": SINCE,
    "mappings": 3,
    "owners": 2,
    "elements": {"any4": 3, "any6": 1, "addr4": 0},
    "connections": {"rate": 1.5, "last_hour": 5400},
    "conflicts": [],
    "refused": [],
    "files": {},
    "unreached": [],
    "forwarding": [],
    "sysctls": [],
}


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with speaking(tmp_path / "sock") as made:
        yield made


def test_list(stub: Stub) -> None:
    stub.have("api:me", {**WEB, "connections": 12_345, "rate": 0.25}, {**DNS, "connections": 3})

    done = run(stub, "list")

    assert [re.split(" {2,}", line) for line in done.stdout.splitlines()] == [
        ["LISTEN", "TARGET", "NAME", "OWNER", "STATE", "[::1]", "CONNS", "/S", "AGE"],
        ["53/udp", "10.88.0.12:53", "dns", "api:me", "in force", "relay", "3", "-", _age()],
        ["8080/tcp", "10.88.0.11:80 [fd88::11]:80", "web", "api:me", "in force", "relay", "12,345", "0.2", _age()],
    ]
    assert (done.exit_code, done.stderr) == (0, "")


def _local() -> str:
    return datetime.fromisoformat(SINCE).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _age() -> str:
    return f"{(datetime.now(UTC) - datetime.fromisoformat(SINCE)).days}d"


def test_columns_stand_under_each_other(stub: Stub) -> None:
    stub.have("api:me", WEB, DNS)

    lines = run(stub, "list").stdout.splitlines()

    assert len({line.index("api:me") for line in lines[1:]} | {lines[0].index("OWNER")}) == 1


def test_list_asks_for_what_is_wanted(stub: Stub) -> None:
    run(stub, "list", "--owner", "api:me", "--port", "80", "--protocol", "udp")

    assert stub.asked[0].query == {"owner": "api:me", "port": "80", "protocol": "udp", "counters": "true"}


def test_list_says_why_a_mapping_is_not_in_force(stub: Stub) -> None:
    stub.have("file:a.yaml", WEB, DNS)
    waits, refused = stub.owners["file:a.yaml"]["mappings"]
    waits |= {"state": "conflict", "reason": "x", "conflicts": [HOLDER]}
    refused |= {"state": "refused", "reason": "No space left"}

    lines = run(stub, "list").stdout.splitlines()

    assert lines[3:] == [
        "",
        'refused: "dns" 53/udp to 10.88.0.12:53 (file:a.yaml): No space left',
        'waiting: conflict: "web" 8080/tcp to 10.88.0.11:80,[fd88::11]:80 (file:a.yaml): 0.0.0.0:8080/tcp is held by '
        f"cni:net/4f/eth0 since {_local()}",
    ]
    assert ("refused" in lines[1], "waiting: conflict" in lines[2]) == (True, True)


def test_list_says_which_target_has_no_route(stub: Stub) -> None:
    stub.have("file:a.yaml", {**WEB, "unreached": ["fd88::11"]})

    lines = run(stub, "list").stdout.splitlines()

    assert "waiting: no route" in lines[1]
    assert lines[3].endswith("(file:a.yaml): no route leads to fd88::11")


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["list"], "/v1/mappings"),
        (["owners"], "/v1/owners"),
        (["show", "api:me"], "/v1/owners/api:me"),
        (["status"], "/v1/status"),
    ],
)
def test_json_is_the_answer_as_it_is(stub: Stub, arguments: list[str], path: str) -> None:
    answer = {**STATUS, "extra": "é"}
    stub.say("GET", path, 200, answer)

    done = run(stub, *arguments, "--json")

    assert (json.loads(done.stdout), done.exit_code) == (answer, 0)


def test_show(stub: Stub) -> None:
    stub.have("api:me", WEB, persistent=True, pid=7)

    lines = run(stub, "show", "api:me").stdout.splitlines()

    assert lines[:4] == [f"api:me (api), for {_age()}", "  kept across reboots", "  kept as long as process 7", ""]
    assert "web" in lines[5]


def test_show_of_an_owner_counts_its_connections(stub: Stub) -> None:
    stub.have("api:me", {**WEB, "connections": 7})

    assert " 7 " in run(stub, "show", "api:me").stdout.splitlines()[-1]
    assert stub.asked[-1].query == {"owner": "api:me", "counters": "true"}


@pytest.mark.parametrize(
    ("which", "query"),
    [
        ("web", {"name": "web"}),
        ("8080", {"port": "8080"}),
        ("8080/tcp", {"port": "8080", "protocol": "tcp"}),
        ("192.0.2.1:8080", {"port": "8080"}),
    ],
)
def test_show_of_a_mapping_by_its_name_or_what_it_listens_on(stub: Stub, which: str, query: dict[str, str]) -> None:
    web = {**WEB, "protocol": ["tcp"], "owner": "file:a.yaml", "state": "active", "since": SINCE, "changed": None}
    web |= {"connections": 1204, "rate": 3.5, "isolate": True, "masquerade": "auto", "comment": "the\x1b[2Jshop"}
    if "name" not in query:
        stub.say("GET", "/v1/mappings", 200, {"mappings": []})
    if which.startswith("192"):
        web |= {"listen": "192.0.2.1:8080"}
        stub.say("GET", "/v1/mappings", 200, {"mappings": [{**web, "listen": "8080", "name": "any"}, web]})
    else:
        stub.say("GET", "/v1/mappings", 200, {"mappings": [web]})
    share = {"owner": "file:a.yaml", "listen": web["listen"], "protocol": ["tcp"]}
    minutes = [{"busiest": [{**share, "connections": each}] if each else []} for each in (10, 0, 40)]
    stub.say("GET", "/v1/traffic", 200, {"minutes": minutes})

    done = run(stub, "show", which)

    assert done.exit_code == 0
    lines = [line.strip().split("  ", 1) for line in done.stdout.splitlines()[1:]]
    told = {name: text.strip() for name, text in lines}
    assert done.stdout.splitlines()[0] == "web"
    assert told == {
        "state": "in force",
        "listens on": "8080/tcp, on every address of this host" if len(which) < 9 else "192.0.2.1:8080/tcp",
        "leads to": "10.88.0.11:80 [fd88::11]:80",
        "owner": f"file:a.yaml, for {_age()}",
        "as it is": f"for {_age()} ({_local()})",
        "connections": "1,204 to this target, 3.5 a second",
        "last hour": "▂ █  50, at most 40 a minute",
        "isolate": "yes",
        "comment": "the?[2Jshop",
    }
    asked = [each.query for each in stub.asked if each.path == "/v1/mappings"]
    assert query | {"counters": "true"} in asked


def test_show_of_what_there_is_not(stub: Stub) -> None:
    done = run(stub, "show", "nix")

    assert (done.exit_code, done.stdout) == (1, "")
    assert "'nix' is no mapping's name" in done.stderr


def test_owners(stub: Stub) -> None:
    stub.have("api:me", WEB, DNS)

    done = run(stub, "owners", "api:")

    assert done.stdout.splitlines()[1].split() == ["api:me", "api", "2", "no", "-", _age()]
    assert stub.asked[0].query == {"prefix": "api:"}


def test_status_of_a_daemon_at_which_all_is_well(stub: Stub) -> None:
    stub.say("GET", "/v1/status", 200, STATUS)

    done = run(stub, "status")

    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        [
            f"nfportd 0.1.0, pid 812, for {_age()}",
            "  table        intact; changes by others are undone",
            "  mappings     3 of 2 owners; all in force",
            "  elements     any4 3, any6 1",
            "  connections  1.5 a second, 5,400 in the last hour",
            "  repairs      none",
        ],
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {
                "conflicts": [
                    {**WEB, "protocol": ["tcp"], "owner": "file:a", "state": "conflict", "conflicts": [HOLDER]}
                ]
            },
            "cni:net/4f/eth0",
        ),
        (
            {"port_in_use": [{**DNS, "owner": "api:me", "state": "port-in-use", "reason": "nginx (pid 7) listens"}]},
            "waiting: port in use",
        ),
        ({"refused": [{**DNS, "owner": "api:me", "state": "refused", "reason": "No space left"}]}, "No space left"),
        ({"files": {"a.yaml": ["a.yaml:3:1: unknown key 'x'"]}}, "a.yaml:3:1: unknown key 'x'"),
        ({"repairs": {"count": 9, "last": "the table was deleted", "fight": True}}, "the table was deleted"),
        ({"table": "changed"}, "table inet nfportd is changed"),
        ({"table": "missing"}, "table inet nfportd is missing"),
    ],
)
def test_status_of_a_daemon_at_which_something_is_wrong(stub: Stub, wrong: Json, says: str) -> None:
    stub.say("GET", "/v1/status", 200, {**STATUS, **wrong})

    done = run(stub, "status")

    assert (done.exit_code, says in done.stdout) == (1, True)


def test_events(stub: Stub) -> None:
    told = {"owner": "api:me", "key": "0.0.0.0:80/tcp", "target": "10.88.0.11:80"}
    stub.stream = [json.dumps({"seq": 5, "time": SINCE, "kind": "added", **told})]

    done = run(stub, "events", "--since", "4")

    when = datetime.fromisoformat(SINCE).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert done.stdout == f"{when}  added     api:me  0.0.0.0:80/tcp to 10.88.0.11:80\n"
    assert (done.exit_code, done.stderr) == (
        3,
        f"nfportctl: {stub.path}: the daemon ended the stream; go on with --since 5\n",
    )


def test_the_last_events_end_by_themselves(stub: Stub) -> None:
    stub.stream = [json.dumps({"seq": 5, "time": SINCE, "kind": "added", "owner": "api:me"})]

    done = run(stub, "events", "--last", "7")

    assert (done.exit_code, done.stderr, stub.asked[0].query) == (0, "", {"last": "7"})
    assert run(stub, "events", "--last", "7", "--since", "0").exit_code == 2


def test_events_as_json_are_the_lines_as_they_come(stub: Stub) -> None:
    stub.stream = ['{"seq":1,"kind":"reload"}', '{"seq":2,"kind":"lost"}']

    assert run(stub, "events", "--json").stdout.splitlines() == stub.stream


@pytest.mark.parametrize(
    ("errors", "status", "stdout", "stderr"),
    [
        ([], 0, "all drop-ins read again: no errors\n", ""),
        (["a.yaml:1:1: unknown key 'x'"], 1, "", "a.yaml:1:1: unknown key 'x'\n"),
    ],
)
def test_reload(stub: Stub, errors: list[str], status: int, stdout: str, stderr: str) -> None:
    stub.say("POST", "/v1/reload", 200, {"errors": errors})

    done = run(stub, "reload")

    assert (done.exit_code, done.stdout, done.stderr) == (status, stdout, stderr)


@pytest.mark.parametrize(
    ("name", "status", "ends"),
    [
        ("invalid", 400, 1),
        ("malformed", 400, 1),
        ("not-found", 404, 1),
        ("precondition-failed", 412, 1),
        ("kernel-refused", 422, 1),
        ("storage", 507, 1),
        ("busy", 503, 3),
        ("denied", 403, 4),
        ("conflict", 409, 4),
        ("port-in-use", 409, 4),
    ],
)
def test_the_exit_status_of_a_problem(stub: Stub, name: str, status: int, ends: int) -> None:
    stub.say("GET", "/v1/status", *problem(name, status, "so it is"))

    done = run(stub, "status")

    assert (done.exit_code, done.stderr) == (ends, f"nfportctl: {name.replace('-', ' ')}: so it is\n")


def test_a_conflict_names_the_holder(stub: Stub) -> None:
    stub.say("PUT", f"/v1/owners/{OWN}", *problem("conflict", 409, "0.0.0.0:8080/tcp is held", holder=HOLDER))

    done = run(stub, "add", "8080", "10.88.0.11:80")

    assert done.stderr.splitlines() == [
        "nfportctl: conflict: 0.0.0.0:8080/tcp is held",
        f"  cni:net/4f/eth0 (api) has had it for {_age()}; nfportctl show cni:net/4f/eth0 tells more",
    ]


def test_a_port_in_use_names_the_process(stub: Stub) -> None:
    process = {"pid": 812, "name": "ngi\x1b[2Jnx"}
    stub.say("PUT", f"/v1/owners/{OWN}", *problem("port-in-use", 409, "8080 is in use", process=process))

    done = run(stub, "add", "8080", "10.88.0.11:80")

    assert done.stderr.splitlines()[1:] == ["  ngi?[2Jnx (pid 812) listens there"]


def test_a_denial_names_the_rule(stub: Stub) -> None:
    stub.say("PUT", f"/v1/owners/{OWN}", *problem("denied", 403, "you may not", rule="ports 1-1023"))

    assert "the access list lacks: ports 1-1023" in run(stub, "add", "80", "10.88.0.11:80").stderr


@pytest.mark.parametrize(
    "arguments", [["list"], ["status"], ["events"], ["reload"], ["add", "1", "10.88.0.1:1"], ["remove", "1"]]
)
def test_no_daemon(tmp_path: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(cli.main, ["--socket", str(tmp_path / "gone"), *arguments])

    assert (done.exit_code, done.stdout, "is nfportd running" in done.stderr) == (3, "", True)


def test_the_socket_by_the_environment(stub: Stub) -> None:
    done = CliRunner().invoke(cli.main, ["owners"], env={"NFPORTD_SOCKET": str(stub.path)})

    assert (done.exit_code, len(stub.asked)) == (0, 1)


# --- terminals


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"), [(False, "", False), (True, "", True), (True, "1", False)]
)
def test_colours_are_for_terminals(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", environment)
    stub.have("api:me", WEB)

    assert ("\x1b[" in run(stub, "list", color=terminal).stdout) == coloured


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(stub: Stub, shell: str) -> None:
    done = run(stub, "completion", shell)

    assert (done.exit_code, "_NFPORTCTL_COMPLETE" in done.stdout) == (0, True)


@pytest.mark.parametrize("socket", ["option", "environment"])
def test_the_shell_completes_mappings_and_owners(stub: Stub, socket: str) -> None:
    stub.have("api:me", {**WEB, "name": "also"}, WEB)
    option, environment = {
        "option": (f"--socket {stub.path}", {}),
        "environment": ("", {"NFPORTD_SOCKET": str(stub.path)}),
    }[socket]
    words = f"nfportctl {option} show a".replace("  ", " ")
    asking = {"_NFPORTCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    program = "from nfportd.cli import main; main(prog_name='nfportctl')"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, **asking},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert (done.stdout, stub.asked[1].query) == ("plain,also\nplain,api:me\n", {"prefix": "a"})


def test_check_needs_no_daemon(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("mappings: 1\n")

    done = run(stub, "check", str(tmp_path / "web.yaml"))

    assert (done.exit_code, stub.asked) == (1, [])

"""`nfportctl oci-hook` without a runtime: what an annotation asks of the daemon, and what ends a container's start.

It must not need a daemon, nor a network namespace: the container's addresses are given. The one idea: a state in, a
PUT or a sentence out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nfportd import oci_hook
from tests.unit.nfportctl import HOLDER, run
from tests.unit.stub import Json, Stub, problem, speaking

ID = "3f2a" * 16
OWNER = f"/v1/owners/oci:{ID}"
FOUR, SIX = "10.90.0.2", "fd90::2"
WEB = {"listen": "8080", "targets": [f"{FOUR}:80", f"[{SIX}]:80"], "protocol": ["tcp"]}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(oci_hook, "addresses", lambda _: {4: FOUR, 6: SIX})
    with speaking(tmp_path / "sock") as made:
        yield made


def hook(stub: Stub, ports: str | None, **state: Any) -> Result:
    """Call the hook as a runtime does."""
    annotations = {"org.example.other": "8080:80"} | ({} if ports is None else {"nfportd.ports": ports})
    whole = {"ociVersion": "1.0.2", "id": ID, "pid": 4242, "bundle": "/b", "status": "created"}
    return run(stub, "oci-hook", typed=json.dumps(whole | {"annotations": annotations} | state))


def sent(stub: Stub) -> list[Json]:
    """The mappings of the only request that writes."""
    (asked,) = [asked for asked in stub.asked if asked.method != "GET"]
    assert (asked.method, asked.path, asked.body["pid"]) == ("PUT", OWNER, 4242)
    assert "If-Match" not in asked.headers
    return list(asked.body["mappings"])


@pytest.mark.parametrize("ports", ["8080:80", " 8080:80,", "8080:80/tcp\n"])
def test_a_port_goes_to_both_addresses_and_lives_as_long_as_the_process(stub: Stub, ports: str) -> None:
    assert (hook(stub, ports).exit_code, sent(stub)) == (0, [WEB])


@pytest.mark.parametrize(
    ("entry", "mapping"),
    [
        ("8080", ("8080", [f"{FOUR}:8080", f"[{SIX}]:8080"], "tcp")),
        ("127.0.0.1:5353:53/udp", ("127.0.0.1:5353", [f"{FOUR}:53"], "udp")),
        ("0.0.0.0:81:80", ("0.0.0.0:81", [f"{FOUR}:80"], "tcp")),
        ("[2001:db8::1]:81:80/sctp", ("[2001:db8::1]:81", [f"[{SIX}]:80"], "sctp")),
        ("192.0.2.1:90-92", ("192.0.2.1:90-92", [f"{FOUR}:90-92"], "tcp")),
        ("[::]:90-92:190-192", ("[::]:90-92", [f"[{SIX}]:190-192"], "tcp")),
    ],
)
def test_forms_of_an_entry(stub: Stub, entry: str, mapping: tuple[str, list[str], str]) -> None:
    done = hook(stub, f"{entry},8080:80")

    listen, targets, protocol = mapping
    assert (done.exit_code, sent(stub)) == (0, [{"listen": listen, "targets": targets, "protocol": [protocol]}, WEB])


@pytest.mark.parametrize("ports", [None, "", " , "])
@pytest.mark.parametrize("pid", [0, 4242])
def test_without_ports_nobody_is_asked(stub: Stub, ports: str | None, pid: int) -> None:
    done = hook(stub, ports, pid=pid)

    assert (done.exit_code, done.output, stub.asked) == (0, "", [])


@pytest.mark.parametrize(
    "entry", ["8080:", ":80", "a:80", "8080:80/icmp", "1:2:3", "fd90::1:80:80", "8080:80/TCP", "-"]
)
def test_an_entry_of_no_form_names_itself_and_shows_one(stub: Stub, entry: str) -> None:
    done = hook(stub, f"81:80 {entry}")

    assert (done.exit_code, stub.asked) == (1, [])
    assert f"nfportctl: nfportd.ports: {entry}: " in done.stderr
    assert "write it like 8080:80" in done.stderr


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("70000:80", "port 70000 is out of range"),
        ("8080:0", "port 0 is out of range"),
        ("90-80:80", "range 90-80 runs backwards"),
        ("10.0.0.300:80:80", "'10.0.0.300' is not an IPv4 address"),
        ("[::1%lo]:80:80", "names an interface"),
    ],
)
def test_an_entry_with_a_mistake_is_explained(stub: Stub, entry: str, why: str) -> None:
    done = hook(stub, entry)

    assert (done.exit_code, why in done.stderr, stub.asked) == (1, True, [])


@pytest.mark.parametrize(
    ("entry", "found", "lacks"),
    [("8080:80", {}, "no address"), ("127.0.0.1:80", {6: SIX}, "no IPv4 address"), ("[::]:80", {4: FOUR}, "no IPv6")],
)
def test_a_container_without_the_address(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, entry: str, found: dict[int, str], lacks: str
) -> None:
    monkeypatch.setattr(oci_hook, "addresses", lambda _: found)

    done = hook(stub, entry)

    assert (done.exit_code, lacks in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "state", ["", "{", "[]", "null", '{"pid": 1}', '{"id": 1, "pid": 1}', '{"id": "a", "pid": "1"}',
              '{"id": "a", "pid": 1, "annotations": [1]}', '{"id": "a", "pid": 1, "annotations": {"nfportd.ports": 8}}',
              ]
)  # fmt: skip
def test_what_is_no_state_is_refused(stub: Stub, state: str) -> None:
    done = run(stub, "oci-hook", typed=state)

    assert (done.exit_code, stub.asked) == (1, [])
    assert "state (JSON with id, pid and annotations) is expected on standard input" in done.stderr


def test_a_state_without_annotations_is_one(stub: Stub) -> None:
    done = run(stub, "oci-hook", typed='{"id": "a"}')

    assert (done.exit_code, stub.asked) == (0, [])


def test_a_taken_port_names_the_holder_and_is_logged(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr("nfportd.cli.syslog.syslog", lambda _, line: logged.append(line))
    stub.say("PUT", OWNER, *problem("conflict", 409, "0.0.0.0:8080/tcp is taken", holder=HOLDER))

    done = hook(stub, "8080:80")

    assert (done.exit_code, HOLDER["owner"] in done.stderr) == (4, True)
    assert logged == ["oci-hook: 0.0.0.0:8080/tcp is taken"]


def test_an_error_of_the_daemon_names_the_entry(stub: Stub) -> None:
    errors = [{"pointer": "/mappings/1/targets", "detail": "a range maps 1:1"}]
    stub.say("PUT", OWNER, *problem("invalid", 400, "the body is wrong", errors=errors))

    done = hook(stub, "81:80 90-92:80/udp")

    assert (done.exit_code, "nfportd.ports: 90-92:80/udp: a range maps 1:1" in done.stderr) == (1, True)


def test_a_process_that_the_daemon_cannot_follow_is_followed_by_its_namespace(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_hook, "namespace", lambda _: "/run/netns/web")
    stub.say("PUT", OWNER, *problem("invalid", 400, "process 4242 cannot be followed"))

    done = hook(stub, "8080:80")

    assert (done.exit_code, [asked.body for asked in stub.asked]) == (
        0,
        [{"mappings": [WEB], "pid": 4242}, {"mappings": [WEB], "netns": "/run/netns/web"}],
    )


@pytest.mark.parametrize("path", [None, "/run/netns/web"])
def test_a_mapping_that_is_wrong_is_not_tried_again(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.setattr(oci_hook, "namespace", lambda _: path)
    errors = [{"pointer": "/mappings/0/listen", "detail": "so it is"}]
    stub.say("PUT", OWNER, *problem("invalid", 400, "so it is", errors=errors))

    assert (hook(stub, "8080:80").exit_code, len(stub.asked)) == (1, 1)


def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_hook, "addresses", lambda _: {4: FOUR})

    done = hook(Stub(tmp_path / "nobody"), "8080:80")

    assert (done.exit_code, str(tmp_path / "nobody") in done.stderr) == (3, True)


def test_a_process_of_this_namespace_and_one_that_is_gone() -> None:
    with pytest.raises(oci_hook.NotPublished, match="in the network of this host"):
        oci_hook.addresses(os.getpid())
    with pytest.raises(oci_hook.NotPublished, match="cannot be read"):
        oci_hook.addresses(2**22 + 1)


def test_the_shipped_hook_calls_this_command_for_this_annotation() -> None:
    shipped = json.loads((Path(__file__).parents[2] / "etc/containers/oci/hooks.d/nfportd.json").read_text())

    assert shipped["hook"]["args"] == ["nfportctl", "oci-hook"]
    assert shipped["when"] == {"annotations": {f"^{oci_hook.ANNOTATION.replace('.', chr(92) + '.')}$": "."}}
    assert shipped["stages"] == ["createRuntime"]

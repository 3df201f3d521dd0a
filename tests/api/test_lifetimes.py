"""Ends: deadlines, processes and network namespaces that owners are bound to, and the runtimes' sweep.

Must not know pidfd or inotify. The one idea: a thing ends, and soon nobody answers on the port.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable

import pytest

from nfportd.client import Client
from tests.api.calling import T1, T2, Commits, answers, body, client, eventually, mapping, refusal, states
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]


def test_a_deadline_ends_an_owner_unless_it_is_renewed(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("short", body(mapping(8080), expires_in=0.6))
    api.put("renewed", body(mapping(8081), expires_in=0.6))
    before = api.owner("renewed")
    assert before
    with Commits(lab.host) as commits:
        for _ in range(4):
            time.sleep(0.25)
            renewed = api.put("renewed", body(mapping(8081), expires_in=0.6))
        assert (renewed["added"], renewed["removed"]) == (0, 0)
        assert 0 < commits.seen() <= 4, "only the end of the other was written"

    assert (answers(lab, 8080), answers(lab, 8081)) == ("refused", "t1")
    assert api.owner("short") is None
    after = api.owner("renewed")
    assert after
    assert after["expires_at"] > before["expires_at"]
    assert after["etag"] == before["etag"]
    eventually(lambda: answers(lab, 8081), "refused")
    assert re.search(r"short ends: ", daemon.log)


def test_a_deadline_can_be_taken_away(lab: Lab, api: Client) -> None:
    api.put("web", body(mapping(8080), expires_in=0.4))
    api.put("web", body(mapping(8080)))
    time.sleep(0.8)

    assert answers(lab, 8080) == "t1"
    found = api.owner("web")
    assert found is not None
    assert found.get("expires_at") is None


def test_a_deadline_goes_on_across_a_restart(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("gone", body(mapping(8080), expires_in=0.3))
    api.put("later", body(mapping(8081), expires_in=2.5))
    daemon.kill9()
    time.sleep(0.3)
    daemon.start()

    assert answers(lab, 8080) == "refused"
    assert list(states(api)) == ["later 8081"]
    eventually(lambda: answers(lab, 8081), "refused")
    daemon.kill9()
    daemon.start()
    assert states(api) == {}


def test_a_namespace_made_anew_while_the_daemon_was_away_is_another(lab: Lab, daemon: Daemon, api: Client) -> None:
    pod = lab.space("reborn")
    path = f"/run/netns/{pod.full}"
    api.put("pod", body(mapping(8080), netns=path))
    daemon.kill9()
    subprocess.run(["ip", "netns", "delete", pod.full], check=True)
    subprocess.run(["ip", "netns", "add", pod.full], check=True)
    daemon.start()

    eventually(lambda: answers(lab, 8080), "refused")
    assert states(api) == {}
    assert re.search(r"pod ends: its pid or path belongs to another", daemon.log)


@pytest.mark.parametrize("expires_in", [0, -1, 1e300, "NaN", "Infinity", True, "5", [], 4e8])
def test_a_deadline_is_a_number_of_seconds(api: Client, expires_in: object) -> None:
    wish = body(mapping(8080), expires_in=float(expires_in) if expires_in in ("NaN", "Infinity") else expires_in)

    problem = refusal(api.put, "web", wish)

    assert problem.name in ("invalid", "malformed")
    assert states(api) == {}


def test_the_end_of_a_process_ends_its_owner(lab: Lab, daemon: Daemon, api: Client) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        api.put("bound", body(mapping(8080), pid=process.pid))
        api.put("free", body(mapping(8081)))
        assert answers(lab, 8080) == "t1"
        daemon.kill9()
        daemon.start()
        assert answers(lab, 8080) == "t1"
    finally:
        process.kill()
        process.wait()
    eventually(lambda: answers(lab, 8080), "refused")
    assert states(api) == {"free 8081": "active"}


def test_a_process_that_ended_while_the_daemon_was_away(lab: Lab, daemon: Daemon, api: Client) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        api.put("bound", body(mapping(8080), pid=process.pid))
        daemon.kill9()
    finally:
        process.kill()
        process.wait()
    daemon.start()
    eventually(lambda: answers(lab, 8080), "refused")


def test_the_end_of_a_network_namespace_ends_its_owner(lab: Lab, api: Client) -> None:
    space = lab.space("sandbox")
    path = f"/run/netns/{space.full}"
    api.put("cni:net/1/eth0", body(mapping(8080), netns=path))
    api.put("free", body(mapping(8081)))
    found = api.owner("cni:net/1/eth0")
    assert found
    assert (found["netns"], answers(lab, 8080)) == (path, "t1")

    lab.discard("sandbox")

    eventually(lambda: answers(lab, 8080), "refused")
    assert states(api) == {"free 8081": "active"}


@pytest.mark.parametrize(
    "bond",
    [
        {"pid": 2**22 + 1},
        {"pid": 2**40},
        {"netns": "/run/netns/there-is-none"},
        {"netns": "/" + "a" * 300},
        {"netns": "/etc/hostname"},
        {"netns": "/run/netns/\0"},
    ],
)
def test_what_is_gone_already_is_refused(lab: Lab, api: Client, bond: dict[str, object]) -> None:
    problem = refusal(api.put, "web", body(mapping(8080), **bond))

    assert (problem.status, problem.name) == (400, "invalid")
    assert answers(lab, 8080) == "refused"


def test_an_owner_that_was_made_anew_does_not_end_with_the_old_process(lab: Lab, api: Client) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        api.put("web", body(mapping(8080), pid=process.pid))
        api.delete("web")
        api.put("web", body(mapping(8080)))
    finally:
        process.kill()
        process.wait()
    time.sleep(0.3)

    assert answers(lab, 8080) == "t1"


def test_gc_takes_away_what_is_not_valid_under_a_prefix(lab: Lab, start: Start) -> None:
    daemon = start({"cni.yaml": dropin(written("file", 7000, T1))})
    with client(daemon) as api:
        owners = {f"cni:net/{n}": body(mapping(8080 + n, T1)) for n in range(4)}
        owners |= {"other": body(mapping(9000, T2)), "cni:network/0": body(mapping(9001, T2))}
        api.request("POST", "/v1/transactions", {"owners": owners})

        gone = api.request("POST", "/v1/gc", {"prefix": "cni:net/", "valid": ["cni:net/1", "cni:net/7"]})

        assert gone == {"removed": ["cni:net/0", "cni:net/2", "cni:net/3"]}
        kept = [each["owner"] for each in api.get("/v1/owners")["owners"]]
        assert kept == ["cni:net/1", "cni:network/0", "file:cni.yaml", "other"]
        assert (answers(lab, 8080), answers(lab, 8081), answers(lab, 9001)) == ("refused", "t1", "t2")

        again = api.request("POST", "/v1/gc", {"prefix": "cni:net/", "valid": ["cni:net/1", "cni:net/7"]})
        assert again == {"removed": []}
        assert api.request("POST", "/v1/gc", {"prefix": "file:", "valid": []}) == {"removed": []}
        assert refusal(api.request, "POST", "/v1/gc", {"prefix": "", "valid": []}).name == "invalid"
        daemon.kill9()
        daemon.start()
        assert answers(lab, 8080) == "refused"

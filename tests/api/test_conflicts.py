"""Who holds a key: the first that was promised it; drop-ins wait for the API, and take over when it lets go.

Must not know claims or ranks. The one idea: the refusal names the holder, and what waits comes by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from nfportd.client import Client
from tests.api.calling import T1, T2, T3, answers, body, client, eventually, mapping, refusal, states
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

Start = Callable[..., Daemon]


def test_the_first_holds_and_the_second_is_told_who_and_since_when(lab: Lab, api: Client) -> None:
    api.put("first", body(mapping(8080, T1)))

    problem = refusal(api.put, "second", body(mapping(8081, T2), mapping(8080, T2)))

    assert (problem.status, problem.name) == (409, "conflict")
    holder = problem.holder
    assert holder is not None
    assert (holder["owner"], holder["source"], holder["key"]) == ("first", "api", "0.0.0.0:8080/tcp")
    assert datetime.now(UTC) - datetime.fromisoformat(holder["since"]) < timedelta(minutes=1)
    assert (answers(lab, 8080), answers(lab, 8081)) == ("t1", "refused")
    assert api.owner("second") is None


def test_only_the_same_key_conflicts(lab: Lab, api: Client) -> None:
    """Another protocol, family or address of the same port is another key."""
    api.put("any", body(mapping("0.0.0.0:8080", T1)))
    api.put("udp", body(mapping(8080, T2, protocol="udp")))
    api.put("six", body(mapping("[::]:8080", "[fd88::12]:80")))
    api.put("one", body(mapping("192.0.2.2:8080", T3)))

    assert lab.client.ask("192.0.2.1", 8080).target == "t1"
    assert lab.client.ask("192.0.2.1", 8080, "udp").target == "t2"
    assert lab.client.ask("2001:db8::1", 8080).target == "t2"
    assert lab.client.ask("192.0.2.2", 8080).target == "t3"


def test_a_range_conflicts_by_one_of_its_ports(api: Client) -> None:
    api.put("range", body(mapping("9000-9999", "10.88.0.11:9000-9999")))

    problem = refusal(api.put, "one", body(mapping(9500)))

    assert problem.holder
    assert problem.holder["key"] == "0.0.0.0:9500/tcp"
    api.put("range", body(mapping("9000-9499", "10.88.0.11:9000-9499")))
    api.put("one", body(mapping(9500)))


def test_what_is_let_go_can_be_taken_at_once(lab: Lab, api: Client) -> None:
    for target, name in ((T1, "t1"), (T2, "t2"), (T3, "t3")):
        api.put(name, body(mapping(8080, target)))
        assert answers(lab, 8080) == name
        api.delete(name)


def test_the_api_does_not_take_what_a_file_holds(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": dropin(written("web", 8080, T1))})
    with client(daemon) as api:
        problem = refusal(api.put, "api", body(mapping(8080, T2)))

        assert problem.name == "conflict"
        assert problem.holder
        assert (problem.holder["owner"], problem.holder["source"]) == ("file:web.yaml", "file")
        assert answers(lab, 8080) == "t1"
        daemon.remove("web.yaml")
        api.put("api", body(mapping(8080, T2)))
    assert answers(lab, 8080) == "t2"


def test_a_file_waits_for_the_api_and_takes_over(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("api", body(mapping(8080, T2)))
    said = len(daemon.log)
    daemon.write("web.yaml", dropin(written("web", 8080, T1), written("free", 8081, T1)))

    assert (answers(lab, 8080), answers(lab, 8081)) == ("t2", "t1")
    assert states(api) == {"api 8080": "active", "file:web.yaml 8080": "conflict", "file:web.yaml 8081": "active"}
    waits = api.get("/v1/mappings", owner="file:web.yaml", port=8080)["mappings"][0]
    assert [each["owner"] for each in waits["conflicts"]] == ["api"]
    assert len(api.get("/v1/status")["conflicts"]) == 1
    assert re.search(r"web.*waits for.*8080.*api", daemon.log[said:])

    api.delete("api")

    assert answers(lab, 8080) == "t1"
    assert states(api) == {"file:web.yaml 8080": "active", "file:web.yaml 8081": "active"}
    assert api.get("/v1/status")["conflicts"] == []


def test_a_file_waits_for_part_of_a_range(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("api", body(mapping(8081, T2)))
    daemon.write("web.yaml", dropin(written("web", "8080-8082", "10.88.0.11:79-81")))

    assert states(api)["file:web.yaml 8080-8082"] == "conflict"
    assert answers(lab, 8081) == "t2"
    api.put("api", body())
    assert answers(lab, 8081) == "t1"
    assert states(api) == {"file:web.yaml 8080-8082": "active"}


def test_a_restart_keeps_who_holds_what(lab: Lab, daemon: Daemon, api: Client) -> None:
    """The file was there when the daemon starts, the API was first all the same."""
    api.put("api", body(mapping(8080, T2)))
    daemon.write("web.yaml", dropin(written("web", 8080, T1)))
    before = api.owner("api")
    for end in (daemon.kill9, daemon.stop):
        end()
        daemon.start()

        assert answers(lab, 8080) == "t2"
        assert states(api) == {"api 8080": "active", "file:web.yaml 8080": "conflict"}
        assert api.owner("api") == before, "also since when"
    api.delete("api")
    assert answers(lab, 8080) == "t1"


def test_what_a_file_held_before_a_restart_it_holds_after(lab: Lab, daemon: Daemon, api: Client) -> None:
    daemon.write("web.yaml", dropin(written("web", 8080, T1)))
    api.put("api", body(mapping(8081, T2)))
    daemon.kill9()
    daemon.start()

    assert refusal(api.put, "api", body(mapping(8080, T2))).name == "conflict"
    assert (answers(lab, 8080), answers(lab, 8081)) == ("t1", "t2")


def test_among_files_the_first_name_holds(lab: Lab, daemon: Daemon, api: Client) -> None:
    daemon.write("b.yaml", dropin(written("b", 8080, T2)))
    daemon.write("a.yaml", dropin(written("a", 8080, T1)))

    assert answers(lab, 8080) == "t1"
    assert states(api) == {"file:a.yaml 8080": "active", "file:b.yaml 8080": "conflict"}
    daemon.remove("a.yaml")
    eventually(lambda: answers(lab, 8080), "t2")


def test_a_file_reloaded_while_it_waits_still_waits(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("api", body(mapping(8080, T2)))
    daemon.write("web.yaml", dropin(written("web", 8080, T1)))
    assert api.request("POST", "/v1/reload") == {"errors": []}
    daemon.write("web.yaml", dropin(written("web", 8080, T3)))

    assert answers(lab, 8080) == "t2"
    api.delete("api")
    assert answers(lab, 8080) == "t3"


def test_reload_says_what_is_wrong_in_the_files(daemon: Daemon, api: Client) -> None:
    daemon.write("web.yaml", "mappings: [{listen: 8080}]\n")

    errors = api.request("POST", "/v1/reload")["errors"]

    assert len(errors) == 1
    assert "web.yaml:1:" in errors[0]
    assert "targets" in errors[0]
    assert api.get("/v1/status")["files"] == {"web.yaml": errors}

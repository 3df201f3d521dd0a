"""What the API says of connections: as many as clients made, whose they are, and how many a second.

Must not know how they are counted. The one idea: real connections are made, and the answer names their number.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from nfportd.client import Client, Json
from tests.api.calling import OWN, T1, T2, ask, body, eventually, mapping
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

PORTS = {8080: 5, 8081: 2, 8082: 0}


def by_name(api: Client, **query: object) -> dict[str, Json]:
    return {each["name"]: each for each in api.get("/v1/mappings", counters=True, **query)["mappings"]}


def connect(lab: Lab, port: int, times: int, proto: str = "tcp", address: str = OWN) -> None:
    for _ in range(times):
        assert lab.client.ask(address, port, proto)


def test_as_many_as_were_made(lab: Lab, api: Client) -> None:
    own = mapping("192.0.2.2:8080", T2, name="own")
    both = mapping(8081, T1, "[fd88::11]:80", name="both", protocol=["tcp", "udp"])
    api.put("web", body(mapping(8080, T1, name="web"), own, both, mapping(8082, name="idle")))

    connect(lab, 8080, 5)
    connect(lab, 8080, 3, address="192.0.2.2")
    connect(lab, 8081, 2)
    connect(lab, 8081, 2, "udp")
    connect(lab, 8081, 4, address="2001:db8::1")
    with lab.client.talk(OWN, 8080) as talk:
        for _ in range(10):
            assert talk.ask()

    assert {name: each["connections"] for name, each in by_name(api).items()} == {
        "web": 6,
        "own": 3,
        "both": 8,
        "idle": 0,
    }


def test_a_second_is_the_connections_between_two_readings(lab: Lab, api: Client) -> None:
    api.put("web", body(mapping(8080, name="web"), mapping(8081, name="idle")))
    by_name(api)
    time.sleep(1.1)
    by_name(api)
    time.sleep(1.1)
    connect(lab, 8080, 11)

    found = api.get("/v1/mappings", counters=True)

    web, idle = found["mappings"]
    seconds = found["rate_seconds"]
    assert 1 <= seconds < 10
    assert (round(web["rate"] * seconds), idle["rate"]) == (11, 0)
    assert round(found["rate"] * seconds) == 11


def test_a_mapping_that_waits_has_no_connections_of_the_holder(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080, name="web")))
    daemon.write("late.yaml", dropin(written("late", 8080, T2)))
    connect(lab, 8080, 2)

    found = by_name(api)

    assert (found["web"]["connections"], found["late"]["connections"], found["late"]["state"]) == (2, 0, "conflict")


def test_the_busiest_come_first(lab: Lab, api: Client) -> None:
    api.put("web", body(*(mapping(8080 + number, name=f"m{number}") for number in range(20))))
    connect(lab, 8085, 3)
    connect(lab, 8091, 5)

    found = api.get("/v1/mappings", busiest=4)

    assert ([each["name"] for each in found["mappings"]][:2], len(found["mappings"])) == (["m11", "m5"], 4)
    assert found["total"] == 20
    assert len(api.get("/v1/mappings", busiest=100)["mappings"]) == 20


def test_busiest_is_refused_beside_what_it_does_not_look_at(daemon: Daemon) -> None:
    for query in ("busiest=0", "busiest=x", "busiest=1001", "busiest=3&owner=web"):
        assert ask(daemon, "GET", f"/v1/mappings?{query}").status == 400
    assert ask(daemon, "GET", "/v1/mappings?busiest=3&counters=true").status == 200


def test_by_name(api: Client) -> None:
    api.put("web", body(mapping(8080, name="web"), mapping(8081, name="dns"), mapping(8082)))

    assert list(by_name(api, name="dns")) == ["dns"]


def test_what_has_changed_since_its_owner_came_says_when(api: Client) -> None:
    first = mapping(8080, T1, name="web")
    api.put("web", body(first, mapping(8081, name="dns")))
    assert {each["changed"] for each in by_name(api).values()} == {None}
    began = datetime.now(UTC)

    api.put("web", body(mapping(8080, T2, name="web"), mapping(8081, name="dns")))
    api.put("web", body(mapping(8080, T2, name="web"), mapping(8081, name="dns"), mapping(8082, name="new")))

    found = by_name(api)
    assert found["dns"]["changed"] is None
    web, new = (datetime.fromisoformat(found[name]["changed"]) for name in ("web", "new"))
    # Times are written in whole milliseconds.
    assert began.replace(microsecond=began.microsecond // 1000 * 1000) <= web < new <= datetime.now(UTC)


def test_a_target_without_a_route_is_named(api: Client) -> None:
    api.put("web", body(mapping(8080, "203.0.113.9:80", name="far"), mapping(8081, name="near")))
    # The client is on a network that this host reaches, and it has a default route for the rest, or none.
    found = by_name(api)

    assert found["near"]["unreached"] == []
    assert found["far"]["unreached"] in ([], ["203.0.113.9"])
    assert found["far"]["state"] == "active"


def test_the_minutes_and_the_last_events(daemon: Daemon, api: Client) -> None:
    assert "minutes" in api.get("/v1/traffic")
    api.put("web", body(mapping(8080), mapping(8081)))

    answer = ask(daemon, "GET", "/v1/events?last=1")

    assert [json.loads(line)["kind"] for line in answer.content.splitlines()] == ["added"]
    assert len(ask(daemon, "GET", "/v1/events?last=1000").content.splitlines()) >= 2
    for query in ("last=0", "last=1001", "last=5&since=0"):
        assert ask(daemon, "GET", f"/v1/events?{query}").status == 400


def test_counts_outlive_a_restart(lab: Lab, daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080, name="web")))
    connect(lab, 8080, 3)
    daemon.kill9()
    daemon.start()
    connect(lab, 8080, 1)

    eventually(lambda: by_name(api)["web"]["connections"], 4)
    # What was before the restart is not counted; the one after it may have come before the first reading.
    assert api.get("/v1/status")["connections"]["last_hour"] in (0, 1)

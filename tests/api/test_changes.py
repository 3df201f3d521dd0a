"""Changes as wholes: the same again, conditions, what would happen, several owners at once, and two writers of one.

Must not know the reconciler. The one idea: the kernel's own messages tell whether anything was written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from nfportd.client import Client, Json
from tests.api.calling import (
    T1,
    T2,
    Commits,
    answers,
    ask,
    body,
    client,
    mapping,
    refusal,
    states,
    transact,
)
from tests.lab import Daemon, Lab


@pytest.fixture
def commits(lab: Lab, api: Client) -> Iterator[Commits]:
    """The kernel's messages, with one mapping in force before."""
    api.put("web", body(mapping(8080, T1)))
    with Commits(lab.host) as watching:
        yield watching


# the same again


def test_the_same_again_writes_nothing(api: Client, commits: Commits) -> None:
    first = api.owner("web")
    again = api.put("web", body(mapping(8080, T1)))

    assert (again["added"], again["removed"]) == (0, 0)
    assert commits.seen() == 0
    assert api.owner("web") == first


def test_the_same_in_other_words_writes_nothing(api: Client, commits: Commits) -> None:
    api.put("web", body(mapping("8080", T1, protocol="tcp", masquerade="auto")))

    assert commits.seen() == 0


def test_a_change_writes_its_own_element_and_no_other(lab: Lab, api: Client, commits: Commits) -> None:
    api.put("other", body(*(mapping(port, T2) for port in range(9000, 9100))))
    assert commits.seen() > 0
    assert lab.client.ask("192.0.2.1", 9050)
    api.put("web", body(mapping(8080, T2)))

    assert 0 < commits.seen() < 8
    counted = [count for key, count in daemon_counters(lab).items() if key.endswith(". 9050")]
    assert counted == [1], "the element was made anew"


def daemon_counters(lab: Lab) -> dict[str, int]:
    return lab.daemons[-1].counters("any4")


# conditions


def test_if_match_lets_one_of_two_writers_win(lab: Lab, api: Client) -> None:
    etag = api.put("web", body(mapping(8080, T1)))["owners"]["web"]["etag"]
    changed = api.put("web", body(mapping(8080, T2)), etag=etag)["owners"]["web"]["etag"]
    assert changed != etag

    late = refusal(api.put, "web", body(mapping(8080, "10.88.1.2:80")), etag=etag)

    assert (late.status, late.name) == (412, "precondition-failed")
    assert answers(lab, 8080) == "t2"
    assert refusal(api.delete, "web", etag=etag).name == "precondition-failed"
    api.delete("web", etag=changed)
    assert answers(lab, 8080) == "refused"


def test_if_none_match_makes_an_owner_once(api: Client) -> None:
    api.put("web", body(mapping(8080, T1)), etag=None)
    second = refusal(api.put, "web", body(mapping(8081, T1)), etag=None)

    assert (second.status, second.name) == (412, "precondition-failed")
    assert states(api) == {"web 8080": "active"}


def test_if_match_of_any_needs_one(daemon: Daemon) -> None:
    kind = {"Content_Type": "application/json", "If_Match": "*"}
    text = b'{"mappings": [{"listen": 8080, "targets": "10.88.0.11:80"}]}'

    assert ask(daemon, "PUT", "/v1/owners/web", text, **kind).name == "precondition-failed"
    assert ask(daemon, "PUT", "/v1/owners/web", text, Content_Type="application/json").status == 200
    assert ask(daemon, "PUT", "/v1/owners/web", text, **kind).status == 200


def test_the_etag_of_the_header_is_the_one_of_the_body(daemon: Daemon, api: Client) -> None:
    api.put("web", body(mapping(8080)))
    answer = ask(daemon, "GET", "/v1/owners/web")

    assert answer.headers["ETag"] == f'"{answer.json["etag"]}"'


def test_one_of_several_etags_will_do(daemon: Daemon, api: Client) -> None:
    """RFC 9110, 13.1.1: If-Match is a list."""
    etag = api.put("web", body(mapping(8080)))["owners"]["web"]["etag"]
    found = ask(daemon, "DELETE", "/v1/owners/web", If_Match=f'"other", "{etag}"')

    assert found.status == 200


def test_two_writers_of_one_owner_each_get_their_own_answer(daemon: Daemon) -> None:
    """An etag of somebody else's content would let a writer overwrite what it never saw."""
    wrong: list[tuple[str, str]] = []

    def write(first: int) -> None:
        with client(daemon) as mine:
            for port in range(first, first + 50):
                answer = mine.put("web", body(mapping(8080, f"10.88.0.11:{port}")))
                shown = answer["owners"]["web"]["mappings"][0]["targets"][0]
                if shown != f"10.88.0.11:{port}":
                    wrong.append((f"10.88.0.11:{port}", shown))

    writers = [threading.Thread(target=write, args=(first,)) for first in (1000, 2000, 3000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert wrong == []


def test_read_modify_write_by_many_loses_nothing(daemon: Daemon, api: Client) -> None:
    def add(port: int) -> None:
        def more(now: Json | None) -> Json:
            kept = [{"listen": each["listen"], "targets": each["targets"]} for each in now["mappings"]] if now else []
            return body(*kept, mapping(port))

        with client(daemon) as mine:
            for _ in range(5):
                mine.edit("web", more)
                port += 1

    writers = [threading.Thread(target=add, args=(first,)) for first in (8000, 8100, 8200, 8300)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert len(states(api)) == 20
    assert len(daemon.elements("any4")) == 20


# what would happen


def test_a_dry_run_says_it_and_does_nothing(daemon: Daemon, api: Client, commits: Commits) -> None:
    before = api.owner("web")
    would = api.put("web", body(mapping(8080, T1), mapping(8081, T2)), dry_run=True)

    assert (would["added"], would["removed"], would["dry_run"]) == (1, 0, True)
    assert api.request("DELETE", "/v1/owners/web", query={"dry_run": True})["removed"] == 1
    assert commits.seen() == 0
    assert api.owner("web") == before
    daemon.kill9()
    daemon.start()
    assert states(api) == {"web 8080": "active"}


@pytest.mark.usefixtures("commits")
def test_a_dry_run_refuses_as_the_real_one_would(api: Client) -> None:
    for ask_for in (
        lambda: api.put("other", body(mapping(8080, T2)), dry_run=True),
        lambda: transact(api, dry_run=True, other=body(mapping(8080, T2))),
        lambda: api.request("POST", "/v1/check", {"owner": "other", **body(mapping(8080, T2))}),
    ):
        problem = refusal(ask_for)
        assert (problem.status, problem.name) == (409, "conflict")
        assert problem.holder
        assert problem.holder["owner"] == "web"
    assert refusal(api.put, "web", body(), dry_run=True, etag="other").name == "precondition-failed"


def test_check_tells_the_same_as_a_dry_run(api: Client, commits: Commits) -> None:
    wished = body(mapping(8081, T2), mapping(8082, T2))
    checked = api.request("POST", "/v1/check", {"owner": "web", **wished})

    assert (checked["added"], checked["removed"], checked["dry_run"]) == (2, 1, True)
    assert commits.seen() == 0


def test_a_dry_run_shows_the_owner_as_it_would_be(api: Client) -> None:
    api.put("web", body(mapping(8080, T1)))
    would = api.put("web", body(mapping(8080, T2)), dry_run=True)

    shown = would["owners"]["web"]
    assert shown is not None
    assert [each["targets"] for each in shown["mappings"]] == [[T2]]


# several owners at once


def test_a_transaction_changes_several_owners(lab: Lab, api: Client, commits: Commits) -> None:
    changed = transact(api, web=None, a=body(mapping(8081, T1)), b=body(mapping(8082, T2)))

    assert (changed["added"], changed["removed"]) == (2, 1)
    assert changed["owners"]["web"] is None
    assert states(api) == {"a 8081": "active", "b 8082": "active"}
    assert (answers(lab, 8080), answers(lab, 8081), answers(lab, 8082)) == ("refused", "t1", "t2")
    assert commits.seen() > 0


@pytest.mark.usefixtures("commits")
def test_a_transaction_moves_a_key_from_one_owner_to_another(lab: Lab, api: Client) -> None:
    held = lab.client.talk("192.0.2.1", 8080)
    with held:
        assert held.ask().target == "t1"
        transact(api, web=body(mapping(8081, T1)), new=body(mapping(8080, T2)))

        assert held.ask().target == "t1", "on_change: keep"
    assert answers(lab, 8080) == "t2"
    assert states(api) == {"new 8080": "active", "web 8081": "active"}


@pytest.mark.usefixtures("commits")
def test_two_owners_swap_their_keys(lab: Lab, api: Client) -> None:
    api.put("other", body(mapping(8081, T2)))
    transact(api, web=body(mapping(8081, T1)), other=body(mapping(8080, T2)))

    assert (answers(lab, 8080), answers(lab, 8081)) == ("t2", "t1")


def test_a_transaction_that_fails_in_part_changes_nothing(daemon: Daemon, api: Client, commits: Commits) -> None:
    api.put("holder", body(mapping(9000, T2)))
    before, seen = api.get("/v1/mappings"), commits.seen()
    assert seen
    for bad in (body(mapping(9000, T1)), body(mapping("9000-9010", "10.88.0.11:9000-9010"))):
        problem = refusal(transact, api, web=None, fresh=body(mapping(8085)), late=bad)
        assert problem.name == "conflict"
        assert problem.holder
        assert (problem.holder["owner"], problem.holder["source"]) == ("holder", "api")

    assert refusal(transact, api, web=None, fresh=body({"listen": 8085})).name == "invalid"
    assert api.get("/v1/mappings") == before
    assert commits.seen() == 0
    daemon.kill9()
    daemon.start()
    assert states(api) == {"holder 9000": "active", "web 8080": "active"}


def test_two_owners_of_one_transaction_cannot_both_have_a_key(api: Client) -> None:
    problem = refusal(transact, api, a=body(mapping(8080, T1)), b=body(mapping(8080, T2)))

    assert problem.name in ("conflict", "invalid")
    assert states(api) == {}


def test_an_owner_without_mappings_is_there_until_it_is_deleted(api: Client) -> None:
    api.put("web", body())

    found = api.owner("web")
    assert found is not None
    assert found["mappings"] == []
    api.delete("web")
    assert api.owner("web") is None


def test_deleting_twice_is_not_found_and_harmless(api: Client, commits: Commits) -> None:
    assert api.delete("web")["removed"] == 1
    commits.seen()

    second = refusal(api.delete, "web")

    assert (second.status, second.name) == (404, "not-found")
    assert commits.seen() == 0


def test_wishes_that_arrive_together_are_each_answered(daemon: Daemon, api: Client) -> None:
    """One of them is refused; the others, in the same transaction of the kernel or not, come true."""
    api.put("holder", body(mapping(8000)))
    outcomes: dict[int, str] = {}

    def wish(port: int) -> None:
        with client(daemon) as mine:
            try:
                mine.put(f"o{port}", body(mapping(port)))
                outcomes[port] = "done"
            except Exception as error:
                outcomes[port] = getattr(error, "name", repr(error))

    wishers = [threading.Thread(target=wish, args=(port,)) for port in range(8000, 8020)]
    for wisher in wishers:
        wisher.start()
    for wisher in wishers:
        wisher.join()

    assert outcomes == {8000: "conflict"} | dict.fromkeys(range(8001, 8020), "done")
    assert len(daemon.elements("any4")) == 20

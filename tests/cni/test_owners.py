"""Who has a port: retries, late deletes, ports that change hands, and what garbage collection takes away.

Must not know the daemon's store. The one idea: an attachment is an owner, so what one has no other
can take or withdraw.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from nfportd.client import Client
from tests.api.calling import answers, body, mapping
from tests.cni.calling import Attachment, Json, port
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

WEB = port(8080, 80)
VALID = "cni.dev/valid-attachments"


def valid(*attachments: Attachment) -> Json:
    return {VALID: [{"containerID": each.container, "ifname": each.ifname} for each in attachments]}


def owners(api: Client) -> list[str]:
    return [each["owner"] for each in api.get("/v1/owners")["owners"]]


def test_an_add_that_is_retried_changes_nothing(daemon: Daemon, lab: Lab, api: Client, t1: Attachment) -> None:
    t1.add(WEB)
    lab.outside.ask("192.0.2.1", 8080)
    etag = api.owner(t1.owner)

    t1.add(WEB)

    assert api.owner(t1.owner) == etag
    assert daemon.counters("any4") == {"tcp . 8080": 1}


def test_an_add_with_other_ports_replaces_the_first(lab: Lab, t1: Attachment) -> None:
    t1.add(WEB)
    t1.add(port(8081, 80))

    assert (answers(lab, 8080), answers(lab, 8081)) == ("refused", "t1")


def test_two_interfaces_of_one_container_are_two_owners(lab: Lab, t1: Attachment) -> None:
    second = t1.but(ifname="net1")
    t1.add(WEB)
    second.add(port(8081, 80))

    t1.remove(WEB)

    assert (answers(lab, 8080), answers(lab, 8081)) == ("refused", "t1")


def test_a_port_of_another_container_is_refused_and_its_holder_named(lab: Lab, t1: Attachment, t2: Attachment) -> None:
    t1.add(WEB)
    started = time.monotonic()

    reply = t2.call("ADD", port(8081, 80), WEB)

    assert time.monotonic() - started > 1.5
    assert (reply.code, t1.owner in reply.message, "8080/tcp" in reply.message) == (11, True, True)
    assert (answers(lab, 8080), answers(lab, 8081)) == ("t1", "refused")


def test_a_port_that_is_being_given_up_is_waited_for(lab: Lab, t1: Attachment, t2: Attachment) -> None:
    t1.add(WEB)
    leaving = threading.Timer(0.5, lambda: t1.remove(WEB))
    leaving.start()

    t2.add(WEB)

    leaving.join()
    assert answers(lab, 8080) == "t2"


def test_a_late_delete_takes_nothing_from_the_new_holder(lab: Lab, t1: Attachment, t2: Attachment) -> None:
    t1.add(WEB)
    t1.remove(WEB)
    t2.add(WEB)

    for _ in range(2):
        t1.remove(WEB)

    assert answers(lab, 8080) == "t2"


@pytest.mark.parametrize("holder", ["file:web.yaml", "api:web"])
def test_a_port_of_the_admin_is_refused_at_once(
    daemon: Daemon, lab: Lab, api: Client, t2: Attachment, holder: str
) -> None:
    if holder.startswith("file:"):
        daemon.write("web.yaml", dropin(written("web", 8080, "10.88.0.11:80")))
    else:
        api.put(holder, body(mapping(8080)))
    started = time.monotonic()

    reply = t2.call("ADD", WEB)

    assert time.monotonic() - started < 1.5
    assert (reply.code, holder in reply.message) == (101, True)
    assert answers(lab, 8080) == "t1"


def test_a_port_on_which_a_process_listens_is_refused(lab: Lab, t1: Attachment) -> None:
    with lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("0.0.0.0", 8080))
        listener.listen()
        reply = t1.call("ADD", WEB)

    assert (reply.code, "listens on 0.0.0.0 port 8080" in reply.message) == (101, True)
    t1.add(WEB)


def test_gc_takes_away_what_is_not_valid_in_this_network_and_nothing_else(
    daemon: Daemon, lab: Lab, api: Client, t1: Attachment
) -> None:
    kept, stale = t1.but(container="kept"), t1.but(container="stale")
    other, longer = stale.but(network="podnet2"), stale.but(network="podnet.x")
    interface = kept.but(ifname="net1")
    for number, each in enumerate((kept, stale, other, longer, interface)):
        each.add(port(8080 + number, 80))
    api.put("api:web", body(mapping(9090)))

    reply = kept.call("GC", **valid(kept))

    assert (reply.status, reply.output) == (0, "")
    assert set(owners(api)) == {kept.owner, other.owner, longer.owner, "api:web"}
    assert [answers(lab, 8080 + n) for n in range(5)] == ["t1", "refused", "t1", "t1", "refused"]


@pytest.mark.parametrize("none", [[], None])
def test_gc_without_a_valid_attachment_takes_all_of_the_network(
    api: Client, t1: Attachment, none: list[Json] | None
) -> None:
    t1.add(WEB)

    assert t1.call("GC", **{VALID: none}).status == 0
    assert owners(api) == []


@pytest.mark.parametrize(
    "more", [{}, {VALID: "all"}, {VALID: [1]}, {VALID: [{"containerID": "x"}]}, {VALID: {"containerID": "x"}}]
)
def test_gc_that_is_malformed_takes_nothing(api: Client, t1: Attachment, more: Json) -> None:
    t1.add(WEB)

    assert t1.call("GC", **more).code == 7
    assert owners(api) == [t1.owner]


def test_delete_needs_no_namespace_no_result_and_no_mapping(t1: Attachment) -> None:
    t1.add(WEB)
    config = t1.configuration()
    del config["prevResult"]

    for _ in range(2):
        assert t1.but(more={"prevResult": None}, netns="/run/netns/gone").call("DEL").status == 0
    assert t1.call("CHECK", WEB).code == 104


def meddle(lab: Lab, daemon: Daemon, commands: str) -> None:
    """What another program does to the table, where the kernel lets it."""
    if "owner" in daemon.objects("table")["nfportd"].get("flags", []):
        pytest.skip("nobody but nfportd can change a table with the flags owner, persist")
    lab.host.nft(commands)


@contextmanager
def hijacked(lab: Lab, daemon: Daemon) -> Iterator[None]:
    """Another program owns a table of our name: nobody else can change it while that program lives."""
    meddle(lab, daemon, "list tables")
    thief = lab.host.popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert thief.stdin
    thief.stdin.write("delete table inet nfportd; add table inet nfportd { flags owner; }\n")
    thief.stdin.flush()
    try:
        daemon.wait_for("another process owns table inet nfportd")
        yield
    finally:
        thief.kill()
        thief.wait()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda api: api.delete("cni:podnet/t1/eth0"), "has no mappings"),
        (lambda api: api.put("cni:podnet/t1/eth0", body(mapping(8080, "10.88.0.12:80"))), "has no mapping of"),
    ],
    ids=["owner", "target"],
)
def test_check_fails_where_the_daemon_has_another(
    lab: Lab, start: Callable[..., Daemon], change: Callable[[Client], object], says: str
) -> None:
    daemon = start()
    attached = Attachment(daemon.socket, f"/run/netns/{lab.t1.full}", container="t1")
    bystander = attached.but(container="bystander")
    attached.add(WEB)
    bystander.add(port(9090, 80))
    assert attached.call("CHECK", WEB).status == 0

    with Client(str(daemon.socket)) as api:
        change(api)

    reply = attached.call("CHECK", WEB)
    assert (reply.code, says in reply.message) == (104, True), reply
    assert bystander.call("CHECK", port(9090, 80)).status == 0


@pytest.mark.parametrize(
    "damage",
    [
        "delete element inet nfportd any4 { tcp . 8080 }",
        "flush map inet nfportd any6",
        "delete element inet nfportd any4 { tcp . 8080 }\nadd element inet nfportd any4 { tcp . 8080 : 10.0.0.1 . 80 }",
        "flush chain inet nfportd postrouting",
        "flush ruleset",
    ],
    ids=["element", "map", "value", "rules", "ruleset"],
)
def test_check_and_status_meet_what_others_did_when_it_is_repaired(
    lab: Lab, start: Callable[..., Daemon], damage: str
) -> None:
    daemon = start()
    attached = Attachment(daemon.socket, f"/run/netns/{lab.t1.full}", container="t1")
    attached.add(WEB)

    for verb in ("CHECK", "STATUS"):
        meddle(lab, daemon, damage)
        assert attached.call(verb, WEB).status == 0


def test_check_and_status_fail_while_nothing_can_be_repaired(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start()
    attached = Attachment(daemon.socket, f"/run/netns/{lab.t1.full}", container="t1")
    attached.add(WEB)

    with hijacked(lab, daemon):
        reply = attached.call("CHECK", WEB)
        assert (reply.code, "(drift)" in reply.message) == (104, True), reply
        assert attached.call("STATUS").code == 51

    daemon.wait_for("in force again, after", timeout=15)
    assert attached.call("CHECK", WEB).status == 0
    assert attached.call("STATUS").status == 0


def test_check_fails_for_ports_that_were_never_added(t1: Attachment) -> None:
    t1.add(WEB)

    assert t1.call("CHECK", WEB, port(8081, 80)).code == 104
    assert t1.call("CHECK", WEB, snat=False).code == 104

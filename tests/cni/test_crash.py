"""Many containers at once, and either side killed in the middle: nothing is lost, nothing is left.

Must not know how the daemon stores. The one idea: whatever dies, a runtime's next verb puts the state right.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from nfportd.client import Client
from tests.api.calling import answers
from tests.cni.calling import Attachment, Reply, port
from tests.lab import ADDRESSES, Daemon, Lab

CONTAINERS = 50
WEB = port(8080, 80)


def attached(daemon: Daemon, lab: Lab, container: str = "t1") -> Attachment:
    return Attachment(daemon.socket, f"/run/netns/{lab.t1.full}", ADDRESSES["t1"], container)


def test_fifty_containers_at_once(daemon: Daemon, lab: Lab) -> None:
    containers = [(attached(daemon, lab, f"c{n}"), port(9000 + n, 80)) for n in range(CONTAINERS)]
    with ThreadPoolExecutor(CONTAINERS) as pool:
        replies = list(pool.map(lambda each: each[0].call("ADD", each[1]), containers))
        assert [reply.status for reply in replies] == [0] * CONTAINERS
        assert {answers(lab, 9000 + n) for n in range(CONTAINERS)} == {"t1"}
        assert len(daemon.elements("any4")) == CONTAINERS
        list(pool.map(lambda each: each[0].remove(each[1]), containers))

    assert daemon.elements("any4") == {}


def test_of_ten_containers_that_want_one_port_one_gets_it(daemon: Daemon, lab: Lab) -> None:
    containers = [attached(daemon, lab, f"c{n}") for n in range(10)]
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(lambda each: each.call("ADD", WEB), containers))

    assert sorted(reply.status and reply.code for reply in replies) == [0] + [11] * 9
    winner = containers[[reply.status for reply in replies].index(0)]
    assert all(winner.owner in reply.message for reply in replies if reply.status)


def test_a_plugin_that_is_killed_leaves_nothing_that_delete_does_not_take(daemon: Daemon, lab: Lab) -> None:
    chance = random.Random(4)
    for _ in range(30):
        each = attached(daemon, lab)
        environment, config = each.environment("ADD"), json.dumps(each.configuration(WEB)).encode()
        process = subprocess.Popen([each.executable], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        assert process.stdin
        process.stdin.write(config)
        process.stdin.close()
        time.sleep(chance.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        process.wait()
        each.remove(WEB)
        assert daemon.elements("any4") == {}
    each.add(WEB)

    assert answers(lab, 8080) == "t1"


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_a_daemon_that_is_away(lab: Lab, start: Callable[..., Daemon], verb: str) -> None:
    daemon = start()
    each = attached(daemon, lab)
    each.add(WEB)
    daemon.kill9()

    reply = each.call(verb, WEB, **{"cni.dev/valid-attachments": []})

    wanted = {"ADD": 11, "DEL": 0, "CHECK": 11, "GC": 11, "STATUS": 50}[verb]
    assert (reply.status and reply.code) == wanted, reply
    assert answers(lab, 8080) == "t1"


def test_what_was_deleted_while_the_daemon_was_away_goes_by_gc_or_with_its_namespace(
    lab: Lab, start: Callable[..., Daemon]
) -> None:
    daemon = start()
    lab.attach("pod", "br0")
    stays, leaves = attached(daemon, lab, "stays"), attached(daemon, lab, "leaves")
    pod = stays.but(netns=f"/run/netns/{lab.spaces['pod'].full}", container="pod")
    for number, each in enumerate((stays, leaves, pod)):
        each.add(port(8080 + number, 80))
    daemon.kill9()
    assert "by GC" in leaves.remove(port(8081, 80)).remarks
    lab.discard("pod")
    daemon.start()

    with Client(str(daemon.socket)) as api:
        left = {each["owner"] for each in api.get("/v1/owners")["owners"]}
    assert left == {stays.owner, leaves.owner}
    reply = stays.call("GC", **{"cni.dev/valid-attachments": [{"containerID": "stays", "ifname": "eth0"}]})
    assert reply.status == 0
    assert [answers(lab, 8080 + n) for n in range(3)] == ["t1", "refused", "refused"]


def test_a_daemon_that_is_killed_between_requests(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start()
    done = threading.Event()
    acknowledged: dict[str, Reply] = {}

    def containers() -> None:
        number = 0
        while not done.is_set():
            each = attached(daemon, lab, f"c{number}")
            reply = each.call("ADD", port(9000 + number, 80))
            if reply.status == 0:
                acknowledged[each.owner] = reply
                number += 1
            else:
                assert reply.code == 11, reply

    thread = threading.Thread(target=containers)
    thread.start()
    for _ in range(6):
        time.sleep(0.4)
        daemon.kill9()
        daemon.start()
    done.set()
    thread.join()

    assert len(acknowledged) > 10
    assert {answers(lab, 9000 + n) for n in range(len(acknowledged))} == {"t1"}
    for number in range(len(acknowledged)):
        assert attached(daemon, lab, f"c{number}").call("CHECK", port(9000 + number, 80)).status == 0

"""64 clients at once: every acknowledged state is the kernel's, others' mappings are not touched, none loses a packet.

Must not know how wishes share a transaction. The one idea: the load says what it was promised, nft says what there is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from tests.api.calling import answers, body, client, mapping, states
from tests.conftest import dropin, mapping as written
from tests.hammer import Load, serve
from tests.lab import ROOT, Daemon, Lab

CLIENTS, OWNERS, CHANGES = 64, 2_048, 10_240
PLAIN_SERVER = 81


def test_ten_thousand_changes_by_64_clients(lab: Lab, start: Callable[..., Daemon]) -> None:
    serve(lab.t1, PLAIN_SERVER, "t1")
    daemon = start({"file.yaml": dropin(written("file", 8081, f"10.88.0.11:{PLAIN_SERVER}"))})
    with client(daemon) as api:
        api.put("stays", body(mapping(8080, f"10.88.0.11:{PLAIN_SERVER}")))
        stays = api.owner("stays")
        hammers = [Load(lab.outside, "192.0.2.1", 8080), Load(lab.client, "192.0.2.1", 8081)]

        command = [sys.executable, "-m", "tests.api.load", str(daemon.socket), str(CLIENTS), str(OWNERS), str(CHANGES)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=100)
        told = json.loads(done.stdout)
        tallies = [hammer.end() for hammer in hammers]

        outcomes = told["outcomes"]
        assert outcomes.keys() <= {"done", "conflict"}, outcomes
        assert outcomes["done"] > CHANGES * 0.95
        assert outcomes["conflict"] > 0, "they got into each other's way"
        promised = {f"{owner} {listen}" for owner, wish in told["acknowledged"].items() for listen in wish}
        assert set(states(api)) == promised | {"stays 8080", "file:file.yaml 8081"}
        assert set(states(api).values()) == {"active"}
        assert api.owner("stays") == stays

    wanted = {f"tcp . {p}": t.replace(":", " . ") for wish in told["acknowledged"].values() for p, t in wish.items()}
    wanted |= {f"tcp . {port}": f"10.88.0.11 . {PLAIN_SERVER}" for port in (8080, 8081)}
    assert daemon.elements("any4") == wanted
    assert [(tally.failed, tally.reasons) for tally in tallies] == [(0, {})] * 2
    assert min(tally.made for tally in tallies) > 300
    daemon.kill9()
    daemon.start()
    assert daemon.elements("any4") == wanted


def test_a_batch_of_ten_thousand_is_one_change(start: Callable[..., Daemon]) -> None:
    """And while it runs, others are answered."""
    daemon = start()
    with client(daemon) as api:
        owners = {f"batch:{port}": body(mapping(port, f"10.88.0.12:{port}")) for port in range(20_000, 30_000)}
        assert api.request("POST", "/v1/transactions", {"owners": owners})["added"] == 10_000
        assert len(daemon.elements("any4")) == 10_000
        gone = api.request("POST", "/v1/gc", {"prefix": "batch:", "valid": ["batch:20000"]})
        assert len(gone["removed"]) == 9_999
        assert daemon.elements("any4") == {"tcp . 20000": "10.88.0.12 . 20000"}


_FLOOD = """
import socket, sys
while True:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(sys.argv[1])
        except OSError:
            pass
"""


def test_who_connects_and_hangs_up_without_end_does_not_keep_the_daemon_from_a_stop(
    lab: Lab, start: Callable[..., Daemon]
) -> None:
    daemon = start({"web.yaml": dropin(written("web", 8080, "10.88.0.11:80"))})
    flood = subprocess.Popen([sys.executable, "-c", _FLOOD, str(daemon.socket)])
    try:
        time.sleep(1)

        assert answers(lab, 8080) == "t1"
        assert daemon.stop(timeout=4) == 0
    finally:
        flood.kill()
        flood.wait()

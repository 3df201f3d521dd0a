"""What the kernel, the API and the store say, so that a test can hold them against each other.

Must not know faults. The one idea: each is asked by a way of its own, none of them the daemon's word for another.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable

from nfportd.client import Client, Json, NotReachable, Problem
from tests.api.calling import client
from tests.conftest import dropin, mapping as written
from tests.lab import HOST, Daemon, Lab

#: Seconds in which everything must be right again.
SOON = 20.0
#: A mapping of a file that no test touches.
STILL = 8081
STILL_FILE = {"still.yaml": dropin(written("still", STILL, "10.88.0.11:80"))}
_STILL = {f"tcp . {STILL}": "10.88.0.11 . 80"}


def elements(mappings: Iterable[Json]) -> dict[str, str]:
    """Mappings as elements of the table."""
    return {f"tcp . {each['listen']}": str(each["targets"][0]).replace(":", " . ") for each in mappings}


def kernel(daemon: Daemon) -> dict[str, str]:
    """What is forwarded, by the kernel's word."""
    return daemon.elements("any4") if "any4" in daemon.objects("map") else {}


def listed(api: Client) -> dict[str, str]:
    """What is in force, by the API's word."""
    return elements(each for each in api.get("/v1/mappings")["mappings"] if each["state"] == "active")


def stored(daemon: Daemon) -> dict[str, str]:
    """What the next run would bring into force for owners of the API."""
    with contextlib.closing(sqlite3.connect(f"file:{daemon.dir}/run/mappings.db?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT content FROM owners").fetchall()
    return elements(each for (content,) in rows for each in json.loads(content)["mappings"])


def agreed(daemon: Daemon, *right: Json | None) -> Json | None:
    """Wait until kernel, API and store say the same, the untouched mapping and one of these bodies; that body."""
    until = time.monotonic() + SOON
    while True:
        with client(daemon) as api:
            found: object
            try:
                state = api.get("/v1/status")["table"]
                found = (state, kernel(daemon), listed(api), stored(daemon))
            except (Problem, NotReachable) as problem:
                found = problem  # libnftables died over this very question
        for each in right:
            wished = elements(each["mappings"]) if each else {}
            if found == ("intact", _STILL | wished, _STILL | wished, wished):
                return each
        assert time.monotonic() < until, f"after {SOON} s still {found}, not one of {right}\n{daemon.log[-3000:]}"
        time.sleep(0.02)


def left(lab: Lab) -> list[str]:
    """What of the daemon's is in the host: table, routes, sysctls."""
    found = [line for line in lab.host.nft("list tables").splitlines() if "nfportd" in line]
    found += [name for name in HOST if lab.host.sysctl(f"net/ipv4/conf/{name}/route_localnet") != "0"]
    routes = lab.host.ip("-6", "route", "show", "table", "local", "::1").splitlines()
    return found + [route for route in routes if "dev lo" not in route]

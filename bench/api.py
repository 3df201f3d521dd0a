"""What one mapping costs over the API and by nfportctl, how many a second 64 clients get, and 10,000 at once.

Must not reach past the socket. The one idea: every figure is a client's own, until its answer has come.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Sequence

from bench import results
from bench.hosts import FREE, Connection, answered, daemon_of, mapping, received
from bench.results import Row
from bench.ways import ADDED, REMOVED, Cost, Way, shared, spawn, timed
from tests.lab import ROOT, Daemon, Lab

#: Goals: mappings a second from so many clients; seconds for a batch of so many.
CLIENTS, PER_SECOND = 64, 3_000
BATCH, SECONDS = 10_000, 0.5


class Api(Way):
    """PUT and DELETE of an owner with one mapping, over one connection."""

    def __init__(self, daemon: Daemon, size: int, rounds: int) -> None:
        super().__init__("nfportd, API", size, rounds)
        self._connection = Connection(daemon.socket)

    def step(self, verb: str, number: int) -> Cost:
        """One request."""
        method, value = "DELETE", None
        if verb != REMOVED:
            method, value = "PUT", {"mappings": [mapping(FREE[0], number + 1 if verb == ADDED else number + 10_000)]}
        request = Connection.request(method, "/v1/owners/api:bench", value)
        self._connection.renew()
        began = time.perf_counter()
        self._connection.ask(request)
        return timed(began)


class Command(Way):
    """The command nfportctl, a process each time."""

    def __init__(self, daemon: Daemon, size: int, rounds: int) -> None:
        super().__init__("nfportd, nfportctl", size, rounds)
        self._file = daemon.dir / "wished.yaml"
        self._environment = {"NFPORTD_SOCKET": str(daemon.socket), "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}

    def step(self, verb: str, number: int) -> Cost:
        """One command."""
        port, target = FREE[1], f"10.88.0.11:{number + 1}"
        arguments = {ADDED: ["add", str(port), target], REMOVED: ["remove", str(port)]}.get(verb)
        if arguments is None:
            # A change is a new content of the owner.
            self._file.write_text(f"mappings:\n  - {{listen: {port}, targets: '10.88.0.12:{number + 1}'}}\n")
            arguments = ["apply", "--file", str(self._file), "--owner", "api:nfportctl"]
        return spawn([*Daemon.command("nfportctl"), *arguments], b"", self._environment)


def throughput(lab: Lab, share: int) -> list[Row]:
    """Many clients at once with a mapping each, and one with many mappings."""
    daemon = daemon_of(lab, "many")
    daemon.start()
    each = max(10, 100 * share // 100)
    rates, seconds = [], []
    for _ in range(shared(5, share)):
        rates.append(CLIENTS * each / _at_once(daemon, each))
        seconds.append(_batch(daemon))
    daemon.stop(timeout=60)
    many = f"{CLIENTS} clients at once, a PUT of one mapping each"
    return [
        results.row(many, 0, results.OURS, rates, "mappings/s", "more", PER_SECOND),
        results.row(f"One PUT of {BATCH:,} mappings", 0, results.OURS, seconds, "s", "less", SECONDS),
    ]


def _at_once(daemon: Daemon, each: int) -> float:
    """Seconds until all clients have had the answers to so many requests, each sent when the one before is answered."""
    clients = [Connection(daemon.socket) for _ in range(CLIENTS)]
    waiting = {client.sock: _requests(number, each) for number, client in enumerate(clients)}
    answers = dict.fromkeys(waiting, b"")
    selector = selectors.DefaultSelector()
    began = time.perf_counter()
    for sock, requests in waiting.items():
        selector.register(sock, selectors.EVENT_READ, sock)
        sock.sendall(requests.pop())
    while answers:
        for sock in [key.data for key, _ in selector.select()]:
            answers[sock] += received(sock)
            if not answered(answers[sock]):
                continue
            if requests := waiting[sock]:
                answers[sock] = b""
                sock.sendall(requests.pop())
            else:
                selector.unregister(sock)
                del answers[sock]
    took = time.perf_counter() - began
    _withdraw(clients[0], [f"api:{1 + port}" for port in range(CLIENTS * each)])
    for client in clients:
        client.close()
    return took


def _requests(client: int, each: int) -> list[bytes]:
    ports = range(1 + client * each, 1 + (client + 1) * each)
    return [Connection.request("PUT", f"/v1/owners/api:{port}", {"mappings": [mapping(port, 80)]}) for port in ports]


def _withdraw(connection: Connection, owners: Sequence[str]) -> None:
    connection.ask(Connection.request("POST", "/v1/transactions", {"owners": dict.fromkeys(owners)}))


def _batch(daemon: Daemon) -> float:
    connection = Connection(daemon.socket)
    wish = {"mappings": [mapping(port, 80) for port in range(20_000, 20_000 + BATCH)]}
    request = Connection.request("PUT", "/v1/owners/api:batch", wish)
    began = time.perf_counter()
    connection.ask(request)
    took = time.perf_counter() - began
    _withdraw(connection, ["api:batch"])
    connection.close()
    return took

"""`make bench-api`: what one PUT costs among few and many mappings, how many a second, and whether memory stays flat.

Must not reach past the socket. The one idea: the sizes are measured in turn, and every figure is a client's own.
"""

from __future__ import annotations

import atexit
import http.client
import json
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.dropins import host, ranges, resident
from tests.lab import Daemon, Lab

SIZES = (0, 1_000, 60_000)
ROUNDS = 300


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket, kept alive."""

    def __init__(self, path: Path) -> None:
        super().__init__("nfportd", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))

    def put(self, owner: str, ports: range, target: int) -> None:
        """Replace an owner's mappings; anything but 200 ends the measurement."""
        mappings = [{"listen": port, "targets": f"10.88.0.11:{target}"} for port in ports]
        body = json.dumps({"mappings": mappings}).encode()
        self.request("PUT", f"/v1/owners/{owner}", body, {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(text.decode())


def daemon_of(lab: Lab, name: str) -> Daemon:
    """A daemon whose run directory is in memory, as /run is."""
    host(lab, name)
    run = tempfile.mkdtemp(prefix="nfportd-bench-", dir="/dev/shm")
    atexit.register(shutil.rmtree, run, ignore_errors=True)
    daemon = Daemon(lab, space=name, arguments=["--run-dir", run])
    daemon.socket = Path(run) / "nfportd.sock"
    return daemon


class Measured:
    """A daemon with many keys by ranges, and a client that changes one mapping beside them."""

    def __init__(self, lab: Lab, count: int) -> None:
        self.count = count
        self.daemon = daemon_of(lab, f"n{count}")
        (self.daemon.dropins / "others.yaml").write_text(ranges(count) if count else "")
        self.daemon.start(timeout=120)
        self.connection = Connection(self.daemon.socket)
        self.milliseconds: list[float] = []

    def once(self, number: int) -> None:
        """One PUT of one mapping, another each time."""
        started = time.perf_counter()
        self.connection.put("api:bench", range(65000, 65001), number)
        self.milliseconds.append((time.perf_counter() - started) * 1000)


def one_put(lab: Lab) -> dict[str, Any]:
    """Milliseconds of a PUT until the kernel has it, for each size."""
    measured = [Measured(lab, count) for count in SIZES]
    for number in range(1, ROUNDS + 1):
        for each in measured:
            each.once(number)
    base = statistics.median(measured[0].milliseconds)
    print(f"\nPUT of one mapping, until it is stored and in the kernel ({ROUNDS} times each, in turn)")
    print(f"{'keys':>8}  {'p50 ms':>7}  {'p99 ms':>7}  {'ratio':>6}")
    results = {}
    for each in measured:
        half, high = statistics.median(each.milliseconds), statistics.quantiles(each.milliseconds, n=100)[-1]
        print(f"{each.count:>8,}  {half:>7.2f}  {high:>7.2f}  {half / base:>6.2f}")
        results[str(each.count)] = {"p50_ms": half, "p99_ms": high, "ratio": half / base}
        each.connection.close()
        each.daemon.stop(timeout=30)
    return results


def many(lab: Lab, clients: int = 64, each: int = 100, batch: int = 10_000) -> dict[str, float]:
    """Mappings a second from many clients at once, and from one batch; and what they take of memory."""
    daemon = daemon_of(lab, "many")
    daemon.start()
    idle = resident(daemon)

    def client(number: int) -> None:
        connection = Connection(daemon.socket)
        for port in range(1 + number * each, 1 + (number + 1) * each):
            connection.put(f"api:{port}", range(port, port + 1), 80)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = clients * each / (time.perf_counter() - started)
    connection = Connection(daemon.socket)
    started = time.perf_counter()
    connection.put("api:batch", range(20_000, 20_000 + batch), 80)
    seconds = time.perf_counter() - started
    memory = (resident(daemon) - idle) / (clients * each + batch) * 10_000
    connection.close()
    daemon.stop(timeout=30)
    print(f"\n{clients} clients, one mapping a PUT: {rate:,.0f} mappings a second")
    print(f"one PUT of {batch:,} mappings: {seconds:.2f} s, {batch / seconds:,.0f} mappings a second")
    print(f"memory: {idle:.0f} MiB idle, {memory:.0f} MiB more for 10,000 API mappings")
    return {"clients_per_second": rate, "batch_seconds": seconds, "idle_mib": idle, "mib_per_10000": memory}


def leak(lab: Lab, changes: int) -> dict[str, float]:
    """Resident memory over many changes of one mapping."""
    daemon = daemon_of(lab, "leak")
    daemon.start()
    connection = Connection(daemon.socket)
    samples = []
    for number in range(changes):
        connection.put("api:leak", range(8080, 8081), number % 60_000 + 1)
        if number in (changes // 10, changes - 1):
            samples.append(resident(daemon))
    connection.close()
    daemon.stop()
    print(f"\nmemory after a tenth and all of {changes:,} changes: {samples[0]:.1f} and {samples[1]:.1f} MiB")
    return {"early_mib": samples[0], "late_mib": samples[1]}


def main(changes: int = 20_000) -> dict[str, Any]:
    """Print all tables."""
    with Lab(build=False) as lab:
        return {"put": one_put(lab), "many": many(lab), "leak": leak(lab, changes)}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

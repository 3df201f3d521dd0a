"""`make bench`: how long what others have undone stays undone, among few and many mappings.

Must not time the start of a program, nor ask the daemon: what is undone goes to the kernel from here, the kernel says
when another process has written, and a client then gets through. The one idea: all sizes and all kinds are measured in
turn, and beside them nft itself loads the same table.
"""

from __future__ import annotations

import ctypes
import os
import socket
import statistics
import struct
import sys
import time
from typing import Any

import nftables

from bench.api import daemon_of
from bench.dropins import ADD_MEMBERSHIP, GROUP, NETLINK_NETFILTER, SOL_NETLINK, others
from tests.lab import Lab

#: How often each kind is measured, by the number of mappings.
ROUNDS = {0: 100, 100: 300, 1_000: 100, 10_000: 40, 60_000: 15}
FLUSH, LOAD = "flush ruleset", "nft loads it"
KINDS = {
    FLUSH: "flush ruleset",
    "chain flushed": "flush chain inet nfportd dispatch",
    "element removed": "delete element inet nfportd any4 {{ tcp . {port} }}",
    "element changed": "delete element inet nfportd any4 {{ tcp . {port} }}\n"
    "add element inet nfportd any4 {{ tcp . {port} : 10.88.0.99 . 9 }}",
}
#: Milliseconds that 99 of 100 repairs after a flush may take.
GOALS = {100: 20, 60_000: 1500}
# linux/netfilter/nfnetlink.h and nf_tables.h: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN, NFTA_GEN_PROC_PID
NEW_GENERATION, PROCESS_ID = 10 << 8 | 15, 2
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33


class Generations:
    """Who has committed to the tables of a namespace, and when it was told; nothing of what was committed."""

    def __init__(self, lab: Lab, space: str) -> None:
        self._socket = lab.spaces[space].socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        # nlmsg_type stands at byte 4, in the host's order; a filter reads it in the network's.
        kind = int.from_bytes(struct.pack("=H", NEW_GENERATION), "big")
        code = ((0x28, 0, 0, 4), (0x15, 0, 1, kind), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(program))
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP)
        self._socket.settimeout(30)

    def of_others(self) -> None:
        """Return when another process than this has committed."""
        while self._author(self._socket.recv(65536)) == os.getpid():
            pass

    def forget(self) -> None:
        """Leave out what has been told so far."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(65536):
                pass
        except BlockingIOError:
            self._socket.settimeout(30)

    @staticmethod
    def _author(message: bytes) -> int:
        place = 20  # struct nlmsghdr, struct nfgenmsg
        while place < len(message):
            length, kind = struct.unpack_from("=HH", message, place)
            if kind == PROCESS_ID:
                return int.from_bytes(message[place + 4 : place + length], "big")
            place += (length + 3) & ~3
        return 0


class Repaired:
    """A daemon with a number of mappings, a target, a client, and somebody who undoes things."""

    def __init__(self, lab: Lab, count: int) -> None:
        self.count, self.name = count, f"n{count}"
        self.port = max(count, 1)
        self.daemon = daemon_of(lab, self.name)
        for name, address in ((f"t{count}", "10.88.0.12"), (f"c{count}", "10.88.0.50")):
            lab.attach(name, "br0", host=self.name).batch(f"address add {address}/24 dev eth0\n")
        lab.spaces[f"t{count}"].serve([self.port], ["tcp"])
        self._client = lab.spaces[f"c{count}"]
        (self.daemon.dropins / "others.yaml").write_text(others(count) if count else "mappings: []\n")
        self.daemon.start(timeout=120)
        self._other = handle(lab, self.name)
        self._generations = Generations(lab, self.name)
        time.sleep(0.5)
        self._text = run(self._other, "list ruleset")
        lab.space(f"{self.name}-plain")
        self._plain = handle(lab, f"{self.name}-plain")
        self.milliseconds: dict[str, list[float]] = {kind: [] for kind in (*KINDS, LOAD)}

    def once(self, kind: str) -> None:
        """Undo something, wait for the daemon's transaction, and see that a client gets through."""
        if not self.count and "element" in kind:
            return
        self._generations.forget()
        started = time.perf_counter()
        run(self._other, KINDS[kind].format(port=self.port))
        self._generations.of_others()
        took = time.perf_counter() - started
        if self.count and (answer := self._client.ask("10.88.0.1", self.port)).outcome != "answered":
            raise RuntimeError(f"{kind}: {self.count} mappings are not in force again: {answer}")
        self.milliseconds[kind].append(took * 1000)
        # Repairs without a pause are a fight, and take their time.
        time.sleep(0.12 + 11 * min(took, 0.25))

    def load(self) -> None:
        """What nft takes to load the table as it lists it."""
        run(self._plain, "flush ruleset")
        started = time.perf_counter()
        run(self._plain, self._text)
        self.milliseconds[LOAD].append((time.perf_counter() - started) * 1000)


def handle(lab: Lab, space: str) -> Any:
    """libnftables in a namespace."""
    with lab.spaces[space].entered():
        return nftables.Nftables()


def run(nft: Any, text: str) -> str:
    """Run nft text; an error ends the measurement."""
    status, output, error = nft.cmd(text)
    if status:
        raise RuntimeError(error[:500])
    return str(output)


def spread(found: list[float]) -> dict[str, float]:
    """Median, 99 of 100 (where there are fewer: the most), the most."""
    ordered = sorted(found)
    return {
        "count": len(found),
        "p50_ms": statistics.median(found),
        "p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max_ms": ordered[-1],
    }


def table(measured: list[Repaired]) -> dict[str, Any]:
    """Print the figures of all sizes and kinds."""
    print("\nFrom what undoes it to the kernel's word that it is in force again (in turn); x: times nft's own loading")
    print(f"{'mappings':>8}  {'undone':<16} {'times':>5}  {'p50 ms':>8}  {'p99 ms':>8}  {'max ms':>8}  {'x':>6}")
    results: dict[str, Any] = {}
    for each in measured:
        base = statistics.median(each.milliseconds[LOAD])
        for kind, found in each.milliseconds.items():
            if not found:
                continue
            figures = spread(found)
            results.setdefault(str(each.count), {})[kind] = figures | {"ratio": figures["p50_ms"] / base}
            times = f"{figures['p50_ms']:>8.1f}  {figures['p99_ms']:>8.1f}  {figures['max_ms']:>8.1f}"
            goal = f"  goal: p99 <= {GOALS[each.count]:,} ms" if kind == FLUSH and each.count in GOALS else ""
            print(f"{each.count:>8,}  {kind:<16} {len(found):>5}  {times}  {figures['p50_ms'] / base:>6.2f}{goal}")
    return results


def main(share: int = 100) -> dict[str, Any]:
    """Print the table; `share` percent of the rounds."""
    with Lab(build=False) as lab:
        measured = [Repaired(lab, count) for count in ROUNDS]
        rounds = {count: max(2, times * share // 100) for count, times in ROUNDS.items()}
        for number in range(max(rounds.values())):
            for each in measured:
                if number < rounds[each.count]:
                    each.load()
                    for kind in KINDS:
                        each.once(kind)
        results = table(measured)
        for each in measured:
            each.daemon.stop(timeout=60)
    return results


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

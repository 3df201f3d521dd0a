"""`sudo make demo`: a small network, the real daemon on an example drop-in, and a table of real connections.

It must not know pytest or how the daemon works. The one idea: a row says what a client on the wire saw, and
a row that is not as expected makes the exit status 1.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import textwrap
import time
from typing import NamedTuple

from tests.lab import ADDRESSES, HOST, Daemon, Lab, endpoint
from tests.probes import Answer

DROPIN = """\
mappings:
  - name: web                        # both families, every address of the host
    listen: 8080
    targets: ["{web4}:80", "[{web6}]:80"]

  - name: dns                        # UDP
    listen: 5353
    protocol: udp
    targets: [10.88.0.12:53]

  - name: media                      # a range maps port by port
    listen: 20000-20009
    targets: [10.88.0.12:30000-30009]

  - name: admin                      # one address of the host only
    listen: "192.0.2.2:9090"
    targets: [10.88.0.11:9000]
"""
PORTS = {"t1": (80, 9000), "t2": (80, 53, *range(30000, 30010))}
OUTSIDE4, OUTSIDE6 = ADDRESSES["outside"]
PUBLIC4, PUBLIC6 = HOST["out0"][0][0], HOST["out0"][1][0]
BRIDGE4, BRIDGE6 = HOST["br0"][0][0], HOST["br0"][1][0]
FLIPS = 5


class Row(NamedTuple):
    """A connection to make and what should come of it; no target: nobody may answer."""

    client: str
    address: str
    port: int
    proto: str
    target: str
    target_port: int
    source: str
    why: str


ROWS = (
    Row("outside", PUBLIC4, 8080, "tcp", "t1", 80, OUTSIDE4, "the client's own address"),
    Row("outside", PUBLIC6, 8080, "tcp", "t1", 80, OUTSIDE6, "and in IPv6"),
    Row("host", "127.0.0.1", 8080, "tcp", "t1", 80, BRIDGE4, "loopback"),
    Row("host", "::1", 8080, "tcp", "t1", 80, BRIDGE6, "loopback in IPv6, in the kernel"),
    Row("host", PUBLIC4, 8080, "tcp", "t1", 80, PUBLIC4, "the host by its own address"),
    Row("t1", BRIDGE4, 8080, "tcp", "t1", 80, BRIDGE4, "hairpin: the target itself"),
    Row("t1", BRIDGE6, 8080, "tcp", "t1", 80, BRIDGE6, "and in IPv6"),
    Row("t2", BRIDGE4, 8080, "tcp", "t1", 80, BRIDGE4, "a sibling on the bridge"),
    Row("t2", PUBLIC6, 8080, "tcp", "t1", 80, BRIDGE6, "and in IPv6"),
    Row("outside", PUBLIC4, 5353, "udp", "t2", 53, OUTSIDE4, "UDP"),
    Row("t2", BRIDGE4, 5353, "udp", "t2", 53, BRIDGE4, "UDP, hairpin"),
    Row("outside", PUBLIC4, 20000, "tcp", "t2", 30000, OUTSIDE4, "a range, its first port"),
    Row("outside", PUBLIC4, 20009, "tcp", "t2", 30009, OUTSIDE4, "and its last"),
    Row("outside", "192.0.2.2", 9090, "tcp", "t1", 9000, OUTSIDE4, "one listen address"),
    Row("outside", "192.0.2.1", 9090, "tcp", "", 0, "", "and nobody on the others"),
)
WIDTHS = (9, 26, 6, 11, 16)
HEADINGS = ("from", "to", "over", "answered", "source it saw", "")


class Report:
    """Prints; remembers whether all went well. Colours only on a terminal."""

    def __init__(self) -> None:
        self.wrong = 0
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def _paint(self, text: str, colour: int) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text

    def title(self, text: str) -> None:
        print("\n" + self._paint(text, 1))

    def line(self, *columns: str, good: bool | None = None) -> None:
        """One line of the table; `good` adds whether it is as expected."""
        text = "  " + "".join(column.ljust(width) for column, width in zip(columns, WIDTHS, strict=False))
        verdict = {None: "     ", True: self._paint("ok   ", 32), False: self._paint("WRONG", 31)}[good]
        self.wrong += good is False
        print(f"{text}{verdict}  {' '.join(columns[len(WIDTHS) :])}".rstrip())

    def fact(self, text: str, good: bool) -> None:
        self.wrong += not good
        print(f"  {self._paint('ok   ', 32) if good else self._paint('WRONG', 31)}  {text}")


def connections(lab: Lab, report: Report, rows: tuple[Row, ...]) -> None:
    """Make each connection and print it as a line."""
    report.line(*HEADINGS)
    for row in rows:
        answer = lab.spaces[row.client].ask(row.address, row.port, row.proto)
        who = f"{answer.target}:{answer.port}" if answer else answer.outcome
        to = endpoint(row.address, row.port)
        report.line(row.client, to, row.proto, who, answer.source or "-", row.why, good=as_expected(row, answer))


def as_expected(row: Row, answer: Answer) -> bool:
    if not row.target:
        return answer.outcome == "refused"
    seen = (answer.target, answer.port, answer.source)
    return seen == (row.target, row.target_port, row.source)


def web_to(target: str) -> str:
    web4, web6 = ADDRESSES[target]
    return DROPIN.format(web4=web4, web6=web6)


class Flip(NamedTuple):
    milliseconds: float
    connections: int
    failed: int


def flip(lab: Lab, daemon: Daemon, target: str) -> Flip:
    """Point `web` at another target, and connect without pause until that target answers."""
    draft = daemon.dir / "demo.yaml.new"
    draft.write_text(web_to(target))
    made = failed = 0
    start = time.perf_counter()
    draft.rename(daemon.dropins / "demo.yaml")
    while time.perf_counter() - start < 5:
        answer = lab.outside.ask(PUBLIC4, 8080)
        took = time.perf_counter() - start
        made += 1
        failed += not answer
        if answer.target == target:
            return Flip(took * 1000, made, failed)
    raise AssertionError(f"5 s after the rename {target} does not answer\n{daemon.log[-2000:]}")


def change(lab: Lab, daemon: Daemon, report: Report) -> None:
    """Rewrite the file with another target while clients are connected."""
    seen = len(daemon.log)
    with lab.outside.talk(PUBLIC4, 8080) as open_flow:
        before = open_flow.ask()
        first = flip(lab, daemon, "t2")
        after = open_flow.ask()
    print(f"  {daemon.wait_for('applied: ', seen)}")
    print(f"  {first.milliseconds:.1f} ms from the rename of the file to the first connection answered by t2")
    kept = (before.target, after.target) == ("t1", "t1")
    report.fact("a connection opened before the change goes on with t1 (on_change: keep)", kept)
    flips = [first, *(flip(lab, daemon, ("t1", "t2")[n % 2]) for n in range(FLIPS - 1))]
    times = [each.milliseconds for each in flips]
    made, failed = sum(each.connections for each in flips), sum(each.failed for each in flips)
    report.fact(
        f"{FLIPS} changes: {min(times):.1f} to {max(times):.1f} ms, "
        f"median {statistics.median(times):.1f} ms; {made} connections meanwhile, {failed} failed",
        failed == 0,
    )


def show_elements(daemon: Daemon) -> None:
    """The maps as they are in the kernel; of a range its first and last port."""
    for name in ("any4", "any6", "addr4"):
        elements, counters = daemon.elements(name), daemon.counters(name)
        between = {f"tcp . {port}" for port in range(20001, 20009)}
        for key in sorted(elements.keys() - between):
            print(f"  {name:6} {key:24} : {elements[key]:18} {counters[key]} connections")
            if key == "tcp . 20000":
                print(f"         ... {len(between & elements.keys())} more ports of the range ...")


def scene(lab: Lab, report: Report) -> None:
    # With net.bridge.bridge-nf-call-ip6tables=1 the bridge already un-NATs the target's answer to ::1, and
    # the kernel then drops a packet to ::1 that comes from a link; with 0 it is un-NATed after that check.
    lab.bridge_netfilter(False)
    for name, ports in PORTS.items():
        lab.spaces[name].serve(ports)
    daemon = Daemon(lab)
    (daemon.dropins / "demo.yaml").write_text(web_to("t1"))
    report.title("The network")
    print(f"  outside {OUTSIDE4}, {OUTSIDE6} -- {PUBLIC4}, {PUBLIC6} host br0 {BRIDGE4}, {BRIDGE6}")
    for name in PORTS:
        print(f"  {name} on br0: {', '.join(ADDRESSES[name])}")
    report.title("The drop-in")
    print(textwrap.indent(web_to("t1").rstrip(), "  "))
    report.title("The daemon")
    print(f"  {daemon.start()}")
    report.title("Connections")
    connections(lab, report, ROWS)
    report.title("The same file, web now with target t2")
    change(lab, daemon, report)
    connections(lab, report, tuple(row._replace(target="t2") for row in ROWS[:4]))
    report.title("In the kernel: the elements of table inet nfportd")
    show_elements(daemon)
    report.title("Stop")
    status = daemon.stop()
    report.fact("the daemon ended with status 0 and its table is gone", status == 0 and not daemon.table())
    report.fact("nobody answers any more", lab.outside.ask(PUBLIC4, 8080).outcome == "refused")


def main() -> int:
    if os.geteuid() or not shutil.which("nft"):
        print(
            "the demo makes network namespaces and loads nft rules: run it as root, `sudo make demo`",
            file=sys.stderr,
        )
        return 2
    report = Report()
    lab = Lab()
    try:
        scene(lab, report)
    except Exception:
        print(lab.report(), file=sys.stderr)
        raise
    finally:
        lab.close()
    report.title(f"{report.wrong} rows are not as expected" if report.wrong else "All as expected")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""A live trace watches a real packet: it says where that ended, and leaves nothing behind.

It must not know how packets are marked. The one idea: a client on the wire and the trace tell of the same packet.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from nfportd.trace.facts import parse
from nfportd.trace.watch import table
from tests import frames
from tests.api.calling import client, eventually
from tests.coexistence import others
from tests.conftest import dropin, mapping
from tests.frames import Wire
from tests.lab import Daemon, Lab, endpoint
from tests.trace.asking import begin, live, run

OUTSIDE, HOST, LOOPBACK = "198.51.100.10", "192.0.2.1", "127.0.0.1"
T1 = ("10.88.0.11:80", "[fd88::11]:80")
WEB = dropin(
    mapping("web", 8080, *T1, protocol="[tcp, udp]"),
    mapping("guarded", 8090, *T1, sources="[192.0.2.0/24]"),
    mapping("gone", 8091, "10.88.0.99:80"),
    mapping("nowhere", 8093, "203.0.113.9:80"),
    mapping("shut", 8094, "10.88.0.11:81"),
    mapping("silent", 8098, "10.88.0.12:82"),
    mapping("alone", 8092, "10.88.0.12:80", isolate="true"),
)


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    lab.bridge_netfilter(on=False)
    begun = Daemon(lab)
    (begun.dropins / "web.yaml").write_text(WEB)
    begun.start()
    lab.t2.nft("table inet deaf { chain c { type filter hook input priority 0; tcp dport 82 drop; }\n}")
    yield begun
    assert others.tables(lab.host) == []
    assert "repaired" not in begun.log
    assert begun.stop() == 0


class Case(NamedTuple):
    """Who connects to what; what the client gets, and how the trace ends, with a part of its text."""

    client: str
    source: str
    to: str
    port: int
    proto: str
    outcome: str
    end: str
    text: str


CASES = [
    Case("outside", OUTSIDE, HOST, 8080, "tcp", "answered", "answered", "10.88.0.11:80 to 198.51.100.10:"),
    Case("outside", OUTSIDE, HOST, 8080, "udp", "answered", "answered", "10.88.0.11:80 to 198.51.100.10:"),
    Case("outside", "2001:db8:1::10", "2001:db8::1", 8080, "tcp", "answered", "answered", "[fd88::11]:80 to [2001:"),
    Case("host", LOOPBACK, LOOPBACK, 8080, "tcp", "answered", "answered", "10.88.0.11:80 to 10.88.0.1:"),
    Case("host", "::1", "::1", 8080, "udp", "answered", "answered", "[fd88::11]:80 to [fd88::1]:"),
    Case("t1", "10.88.0.11", "10.88.0.1", 8080, "tcp", "answered", "answered", "10.88.0.11:80 to 10.88.0.1:"),
    Case("outside", OUTSIDE, HOST, 8094, "tcp", "refused", "refused", "10.88.0.11:81 to 198.51.100.10:"),
    Case("outside", OUTSIDE, HOST, 8079, "tcp", "refused", "refused", "192.0.2.1:8079 to 198.51.100.10:"),
    Case("outside", OUTSIDE, HOST, 8090, "tcp", "timeout", "dropped", 'not in the `sources` (192.0.2.0/24) of mapping'),
    Case("outside", OUTSIDE, "10.88.0.12", 80, "tcp", "timeout", "dropped", "a mapping with `isolate: true` leads"),
    Case("outside", OUTSIDE, HOST, 8091, "tcp", "timeout", "left", "target 10.88.0.99 does not answer on br0"),
    Case("outside", OUTSIDE, HOST, 8098, "tcp", "timeout", "left", "the target drops it, or sends its answers another"),
    Case("outside", OUTSIDE, HOST, 8093, "tcp", "timeout|unreachable", "lost", "no route leads to target 203.0.113.9"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.client}-{endpoint(case.to, case.port)}-{case.proto}")
def test_where_a_packet_ends(lab: Lab, daemon: Daemon, case: Case) -> None:
    answer, seen = live(
        lab,
        daemon,
        lambda: lab.spaces[case.client].ask(case.to, case.port, case.proto, source=case.source, timeout=0.5),
        *(case.source, f"{endpoint(case.to, case.port)}/{case.proto}"),
    )

    assert answer.outcome in case.outcome.split("|")
    assert seen["end"] == case.end, seen["text"]
    assert case.text in seen["text"]
    assert (seen["arrives"], seen["status"]) == ((True, 0) if case.end == "answered" else (False, 1))
    assert seen["packets"][0]["packet"].startswith(f"{endpoint(case.source, '')}")
    assert others.tables(lab.host) == []


FIREWALLS = [
    ("plain", "by the policy of chain inet filter forward (nftables)", "nft insert rule inet filter forward"),
    ("docker-29.nft", 'drop comment "UNPUBLISHED PORT DROP"', "nft insert rule ip docker-bridges"),
    ("firewalld-2.3.1-strict.nft", "of chain inet firewalld filter_FORWARD", "firewall-cmd"),
    ("ufw-0.36.2", "chain ip filter", "ufw route allow proto tcp from any to 10.88.0.11 port 80"),
]  # fmt: skip


@pytest.mark.parametrize(("ruleset", "text", "command"), FIREWALLS, ids=[each[0] for each in FIREWALLS])
def test_a_drop_by_another_program(lab: Lab, daemon: Daemon, ruleset: str, text: str, command: str) -> None:
    with others.loaded(lab.host, ruleset):
        before = others.rules(lab.host)
        answer, seen = live(lab, daemon, lambda: lab.outside.ask(HOST, 8080, timeout=0.4), OUTSIDE, ":8080")
        # `:8080` is an address of the link by which the client comes, for the trace without a packet only.
        assert others.rules(lab.host) == before

    assert (bool(answer), seen["end"]) == (False, "dropped"), seen["text"]
    assert text in seen["text"]
    assert seen["commands"][0].startswith(command)


def test_a_translation_by_another_program(lab: Lab, daemon: Daemon) -> None:
    chain = "chain c { type nat hook prerouting priority -105;\n tcp dport 8080 dnat to 10.88.1.2:80\n}"
    lab.host.nft(f"table ip theirs {{ {chain}\n}}")
    try:
        answer, seen = live(lab, daemon, lambda: lab.outside.ask(HOST, 8080), OUTSIDE, ":8080")
    finally:
        lab.host.nft("delete table ip theirs")
        lab.host.run(["conntrack", "-F"])

    assert (answer.target, seen["end"]) == ("t3", "answered")
    assert "10.88.1.2:80 to 198.51.100.10:" in seen["text"]
    assert (
        "chain ip theirs c (dnat to 10.88.1.2:80) (nftables), before ours: our mappings are not asked" in seen["text"]
    )


def test_a_frame_with_a_loopback_address(lab: Lab, daemon: Daemon) -> None:
    process = begin(lab, daemon, "--seconds", "5", OUTSIDE, "127.0.0.1:8080/udp")
    with Wire(lab.outside) as wire:
        segment = frames.udp(OUTSIDE, LOOPBACK, 40000, 8080, b"?")
        wire.send(lab.host.mac("out0"), frames.packet(OUTSIDE, LOOPBACK, "udp", segment))
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "loopback_guard drops it: 127.0.0.1 serves connections from this host only" in said


def test_lines_for_people(lab: Lab, daemon: Daemon) -> None:
    process = begin(lab, daemon, "--seconds", "5", OUTSIDE, f"{HOST}:8080")
    port = lab.outside.ask(HOST, 8080).source_port
    said, _ = process.communicate(timeout=30)

    assert f"packet {OUTSIDE}:{port} to {HOST}:8080 (SYN)\n" in said
    assert f"  now {OUTSIDE}:{port} to 10.88.0.11:80\n  forward     inet nfportd isolation_forward: " in said
    assert said.endswith(f"answered: 10.88.0.11:80 to {OUTSIDE}:{port} (SYN ACK)\n")


def test_other_packets_are_not_marked(lab: Lab, daemon: Daemon) -> None:
    process = begin(lab, daemon, "--seconds", "1", OUTSIDE, f"{HOST}:8080/tcp")
    assert lab.client.ask(HOST, 8080)
    assert lab.outside.ask(HOST, 8080, "udp")
    assert lab.outside.ask("192.0.2.2", 8080)
    said, _ = process.communicate(timeout=30)

    assert (process.returncode, said) == (1, f"no packet of {OUTSIDE} to {HOST}:8080/tcp came in 1 s\n")


def test_many_connections_are_marked_ten_a_second(lab: Lab, daemon: Daemon) -> None:
    process = begin(lab, daemon, "--json", "--seconds", "2", OUTSIDE, f"{HOST}:8080/udp")
    for _ in range(100):
        assert lab.outside.ask(HOST, 8080, "udp")
    said, _ = process.communicate(timeout=30)

    assert process.returncode == 0
    assert said.count('"asking": true') <= 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_the_table_along(lab: Lab, daemon: Daemon, number: signal.Signals) -> None:
    process = begin(lab, daemon, OUTSIDE, ":8080")
    assert others.tables(lab.host) == ["inet nfportd_trace"]

    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == (1 if number == signal.SIGINT else 128 + number)
    assert errors in ("", "\nAborted!\n", "Aborted!\n")
    assert others.tables(lab.host) == []


def test_a_killed_trace_marks_nothing_for_long_and_the_next_one_clears_up(lab: Lab, daemon: Daemon) -> None:
    process = begin(lab, daemon, "--seconds", "1", OUTSIDE, f"{HOST}:8080")
    process.kill()
    process.wait(10)
    left = others.tables(lab.host)
    with client(daemon) as api:
        owned = api.get("/v1/status")["features"]["owner_persist"]
    if owned:
        eventually(lambda: others.tables(lab.host), [])
    else:  # what it matches expires
        assert left == ["inet nfportd_trace"]
        eventually(lambda: "198.51.100.10" in lab.host.nft("list set inet nfportd_trace from"), False)

    answer, seen = live(lab, daemon, lambda: lab.outside.ask(HOST, 8080), OUTSIDE, f"{HOST}:8080")

    assert (answer.outcome, seen["end"]) == ("answered", "answered")
    assert others.tables(lab.host) == []


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("source", [OUTSIDE, "2001:db8::7"])
@pytest.mark.parametrize("to", ["192.0.2.1", "2001:db8::1", ""])
def test_nft_takes_every_table(lab: Lab, source: str, to: str, protocol: str) -> None:
    if to and (":" in source) != (":" in to):
        return
    flow = parse(source, f"{endpoint(to, 80)}/{protocol}")

    lab.host.run(["nft", "-c", "-f", "-"], text=table(flow, 10, owned=False))


def test_one_at_a_time(lab: Lab, daemon: Daemon) -> None:
    process = begin(lab, daemon, OUTSIDE, ":8080")
    second = run(lab, daemon, "--live", OUTSIDE, ":8080")

    assert (second.returncode, second.stdout) == (1, "")
    assert "another `nfportctl trace --live` watches" in second.stderr
    assert others.tables(lab.host) == ["inet nfportd_trace"]
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)


def test_the_daemon_takes_no_notice(lab: Lab, daemon: Daemon) -> None:
    seen = len(daemon.log)

    live(lab, daemon, lambda: lab.outside.ask(HOST, 8080), OUTSIDE, ":8080")

    assert daemon.log[seen:] == ""


@pytest.mark.parametrize("arguments", [(), ("--live",)])
def test_without_rights(lab: Lab, daemon: Daemon, arguments: tuple[str, ...]) -> None:
    """Root without CAP_NET_ADMIN; another user would be stopped by the daemon's socket first."""
    if not shutil.which("capsh"):
        pytest.skip("capsh is not installed")
    command = [*Daemon.command("nfportctl"), "--socket", str(daemon.socket), "trace", *arguments, OUTSIDE, ":8080"]
    done = lab.host.run(["capsh", "--drop=cap_net_admin", "--", "-c", " ".join(command)], check=False)

    assert (done.returncode, done.stdout) == (4, "")
    assert "takes root (CAP_NET_ADMIN): sudo nfportctl trace" in done.stderr


def test_while_the_daemon_is_away(lab: Lab, daemon: Daemon) -> None:
    daemon.kill9()
    done = run(lab, daemon, OUTSIDE, ":8080")
    daemon.start()

    assert done.returncode == 0
    assert "what follows is the kernel's word alone" in done.stderr
    assert "the daemon does not tell whose it is" in done.stdout

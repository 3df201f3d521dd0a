"""Starts and ends: adoption after kill -9, what a stop takes away, tables of other versions, refusals of the kernel.

It must not know how adoption is done. The one idea: handles and counters tell what was touched and what was not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.conftest import dropin, mapping
from tests.hammer import Load, serve
from tests.lab import Daemon, Lab, address, endpoint

Start = Callable[..., Daemon]
OWN = "192.0.2.1"


def web(port: int, target: str, proto: str = "tcp", **more: str) -> str:
    both = (endpoint(address(target, 4), 80), endpoint(address(target, 6), 80))
    return dropin(mapping(f"web{port}", port, *both, protocol=proto, **more))


def handles(daemon: Daemon) -> dict[str, int]:
    """The handles of the table, its base chains, maps and sets: new ones mean that it was made anew."""
    table = next(entry["table"] for entry in daemon.table()["nftables"] if "table" in entry)
    found = {"table": table["handle"]}
    for kind in ("chain", "map", "set"):
        found |= {f"{kind} {name}": each["handle"] for name, each in daemon.objects(kind).items()}
    return found


def rules(daemon: Daemon) -> list[str]:
    """The chains' rules as nft lists them, without counters."""
    listed = daemon.space.run(["nft", "-s", "list", "table", "inet", "nfportd"]).stdout
    return re.findall(r"^\tchain .*?^\t}$", listed, re.MULTILINE | re.DOTALL)


def parameters(lab: Lab) -> dict[str, str]:
    """Every parameter of the host under net.ipv4, net.ipv6 and net.bridge that a program may set."""
    found = {}
    with lab.host.entered():
        for root in ("ipv4", "ipv6", "bridge"):
            for path in Path("/proc/sys/net", root).rglob("*"):
                if path.is_file() and path.stat().st_mode & 0o222 and path.stat().st_mode & 0o444:
                    try:
                        found[str(path)] = path.read_text()
                    except OSError:
                        continue
    return found


def left_by(lab: Lab) -> dict[str, object]:
    """What a program may leave in the host: tables, routes, rules, parameters."""
    return {
        "tables": lab.host.nft("list tables"),
        "routes": lab.host.ip("route", "show", "table", "all"),
        "routes6": lab.host.ip("-6", "route", "show", "table", "all"),
        "rules": lab.host.ip("rule") + lab.host.ip("-6", "rule"),
        "parameters": parameters(lab),
    }


def differences(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    if "parameters" in found:
        old, new = cast("tuple[dict[str, str], dict[str, str]]", found.pop("parameters"))
        found["parameters"] = {
            key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)
        }
    return found


def test_after_kill_9_the_forwarding_goes_on_and_a_start_changes_only_what_differs(lab: Lab, start: Start) -> None:
    files = {"one.yaml": web(8081, "t1"), "two.yaml": web(8082, "t2"), "gone.yaml": web(8083, "t3")}
    daemon = start(files)
    for port, target in ((8081, "t1"), (8081, "t1"), (8082, "t2"), (8083, "t3")):
        assert lab.outside.ask(OWN, port).target == target
    before, text = handles(daemon), rules(daemon)

    daemon.kill9()
    assert lab.outside.ask(OWN, 8081).target == "t1"
    daemon.write("two.yaml", web(8082, "t4"), wait=False)
    daemon.remove("gone.yaml", wait=False)
    daemon.write("new.yaml", web(8084, "t1"), wait=False)
    daemon.start()

    assert handles(daemon) == before
    assert rules(daemon) == text
    assert daemon.counters("any4") == {"tcp . 8081": 3, "tcp . 8082": 0, "tcp . 8084": 0}
    for port, target in ((8081, "t1"), (8082, "t4"), (8084, "t1")):
        assert lab.outside.ask(OWN, port).target == target
    assert lab.outside.ask(OWN, 8083).outcome == "refused"


def test_a_start_repairs_what_others_did_meanwhile(lab: Lab, start: Start) -> None:
    daemon = start({"one.yaml": web(8081, "t1"), "two.yaml": web(8082, "t2")})
    text = rules(daemon)
    daemon.kill9()
    lab.host.nft(
        "delete element inet nfportd any4 { tcp . 8081 }\n"
        "add element inet nfportd any4 { tcp . 9999 : 10.88.0.11 . 80 }\n"
        "delete element inet nfportd any6 { tcp . 8082 }\n"
        "add element inet nfportd any6 { tcp . 8082 : fd88::11 . 80 }\n"
        "flush chain inet nfportd loopback_guard\n"
    )
    daemon.start()
    assert daemon.elements("any4") == {"tcp . 8081": "10.88.0.11 . 80", "tcp . 8082": "10.88.0.12 . 80"}
    assert daemon.elements("any6") == {"tcp . 8081": "fd88::11 . 80", "tcp . 8082": "fd88::12 . 80"}
    assert rules(daemon) == text


class Monitor:
    """What `nft monitor` tells of the host between two moments; a table that comes and goes marks them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.path = lab.tmp / "monitor"
        with self.path.open("w") as out:
            self.process = lab.host.popen(["nft", "monitor"], stdout=out)
        self.mark("begins")

    def mark(self, name: str) -> None:
        until = time.monotonic() + 10
        while name not in self.path.read_text() and time.monotonic() < until:
            self.lab.host.nft(f"add table inet {name}\ndelete table inet {name}\n")
            time.sleep(0.05)

    def end(self) -> list[str]:
        self.mark("ends")
        self.process.kill()
        self.process.wait()
        lines = self.path.read_text().splitlines()
        return [line for line in lines if not re.search("inet (begins|ends)|^# new generation|^$", line)]


def test_a_start_that_changes_nothing_writes_nothing(lab: Lab, start: Start) -> None:
    daemon = start({"one.yaml": web(8081, "t1")})
    daemon.kill9()
    before = lab.host.nft("list ruleset")
    monitor = Monitor(lab)
    daemon.start()
    # newer nft: the table has an owner, and to take it over is an event of its own
    assert [line for line in monitor.end() if not line.startswith("add table inet nfportd")] == []
    assert without_owner(lab.host.nft("list ruleset")) == without_owner(before)


def without_owner(ruleset: str) -> str:
    return re.sub(r" *(flags (owner|persist).*|progname .*)", "", ruleset)


@pytest.mark.parametrize("kills", [0, 1])
def test_a_stop_leaves_nothing(lab: Lab, start: Start, kills: int) -> None:
    """Also when the one that set the parameters was killed, and another process stops in its place."""
    lab.host.sysctl("net/ipv4/ip_forward", 0)
    lab.host.sysctl("net/ipv6/conf/all/forwarding", 0)
    before = left_by(lab)
    try:
        daemon = start({"one.yaml": web(8081, "t1"), "two.yaml": web(8082, "t3"), "lan.yaml": web(8083, "lan")})
        for _ in range(kills):
            daemon.kill9()
            daemon.start()
        assert lab.outside.ask(OWN, 8081).target == "t1"
        assert lab.host.ask("127.0.0.1", 8082).target == "t3"
        assert daemon.stop() == 0
        assert differences(before, left_by(lab)) == {}
        assert lab.outside.ask(OWN, 8081).outcome == "refused"
    finally:
        lab.host.sysctl("net/ipv4/ip_forward", 1)
        lab.host.sysctl("net/ipv6/conf/all/forwarding", 1)


def test_a_stop_can_keep_the_forwarding(lab: Lab, start: Start) -> None:
    lab.bridge_netfilter(False)
    daemon = start({"one.yaml": web(8081, "t1")}, settings="on_stop: keep\n")
    assert lab.host.ask("::1", 8081).target == "t1"
    before, kept = handles(daemon), parameters(lab)
    assert daemon.stop() == 0
    assert handles(daemon) == before
    assert parameters(lab) == kept
    for client, to in ((lab.outside, OWN), (lab.t2, OWN), (lab.host, "127.0.0.1"), (lab.host, "::1")):
        assert client.ask(to, 8081).target == "t1"
    daemon.config.write_text("on_stop: remove\n")
    daemon.start()
    assert handles(daemon) == before


def test_a_udp_client_follows_over_a_kill_and_a_start(lab: Lab, start: Start) -> None:
    daemon = start({"dns.yaml": web(5300, "t1", "udp")})
    with lab.outside.talk(OWN, 5300, "udp", source_port=4000) as talk:
        assert talk.ask().target == "t1"
        daemon.kill9()
        daemon.write("dns.yaml", web(5300, "t2", "udp"), wait=False)
        assert talk.ask().target == "t1"
        daemon.start()
        assert talk.ask().target == "t2"


def test_a_udp_client_follows_over_a_stop_and_a_start(lab: Lab, start: Start) -> None:
    daemon = start({"dns.yaml": web(5300, "t1", "udp")})
    with lab.outside.talk(OWN, 5300, "udp", source_port=4000) as talk:
        assert talk.ask().target == "t1"
        daemon.stop()
        talk.ask(0.2)
        daemon.write("dns.yaml", web(5300, "t2", "udp"), wait=False)
        daemon.start()
        assert talk.ask().target == "t2"


def test_a_tcp_flow_goes_on_over_a_kill_and_a_start(lab: Lab, start: Start) -> None:
    daemon = start({"one.yaml": web(8081, "t1")})
    with lab.outside.talk(OWN, 8081) as talk, lab.host.talk("127.0.0.1", 8081) as loopback:
        assert talk.ask().target == loopback.ask().target == "t1"
        daemon.kill9()
        assert talk.ask().target == loopback.ask().target == "t1"
        daemon.start()
        assert talk.ask().target == loopback.ask().target == "t1"


def test_the_chains_of_an_older_version_are_refilled_without_a_gap(lab: Lab, start: Start) -> None:
    serve(lab.t1, 81, "t1")
    daemon = start({"web.yaml": dropin(mapping("web", 8080, endpoint(address("t1", 4), 81)))})
    before, text = handles(daemon), rules(daemon)
    daemon.kill9()
    chains = [name for name in before if name.startswith("chain ")]
    lab.host.nft("".join(f'insert rule inet nfportd {name[6:]} counter comment "old"\n' for name in chains))
    lab.host.nft("add rule inet nfportd dispatch tcp dport 7777 dnat ip to 10.88.0.11:80\n")
    lab.host.nft("add chain inet nfportd vestige\nadd rule inet nfportd vestige drop\n")
    assert rules(daemon) != text

    load = Load(lab.outside, OWN, 8080)
    for _ in range(3):
        daemon.start()
        daemon.kill9()
        lab.host.nft("".join(f'insert rule inet nfportd {name[6:]} counter comment "old"\n' for name in chains))
    daemon.start()
    tally = load.end()

    assert (tally.failed, tally.reasons) == (0, {})
    assert tally.made > 1000
    assert handles(daemon) == before
    assert rules(daemon) == text


def test_a_map_of_another_shape_is_made_anew(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web(8080, "t1")})
    text, elements = rules(daemon), daemon.elements("any4")
    daemon.kill9()
    lab.host.nft(
        "flush chain inet nfportd dispatch\ndelete map inet nfportd any4\n"
        "add map inet nfportd any4 { type inet_service : ipv4_addr; }\n"
        "add element inet nfportd any4 { 8080 : 10.88.0.12 }\n"
        "add rule inet nfportd dispatch dnat ip to tcp dport map @any4\n"
    )
    daemon.start()
    assert rules(daemon) == text
    assert daemon.elements("any4") == elements
    assert lab.outside.ask(OWN, 8080).target == "t1"


def small_table(daemon: Daemon, size: int) -> str:
    """The daemon's own table, as nft lists it, with a limit on any4."""
    listed = daemon.space.run(["nft", "-s", "list", "table", "inet", "nfportd"]).stdout
    listed = re.sub(r"\t\telements = \{.*?\}\n", "", listed, flags=re.DOTALL)
    return listed.replace("map any4 {\n", f"map any4 {{\nsize {size}\n")


def test_a_mapping_that_the_kernel_refuses_does_not_keep_out_the_others(lab: Lab, start: Start) -> None:
    daemon = start()
    text = small_table(daemon, 3)
    daemon.stop()
    lab.host.nft(text)
    mappings = [mapping(f"web{port}", port, endpoint(address("t1", 4), 80)) for port in range(8081, 8086)]
    (daemon.dropins / "web.yaml").write_text(dropin(*mappings))
    seen = len(daemon.log)
    daemon.start()

    assert len(daemon.elements("any4")) == 3
    reached = [port for port in range(8081, 8086) if lab.outside.ask(OWN, port).target == "t1"]
    assert len(reached) == 3
    log = daemon.log[seen:].splitlines()
    for port in range(8081, 8086):
        said = [line for line in log if re.search(rf"\bweb{port}\b", line)]
        assert bool(said) == (port not in reached), f"web{port}: {said}"
        if said:
            assert re.search("full|space|ENFILE|Too many", " ".join(said)), said

    # a mapping that goes makes room for one of those that wait, without a restart
    gone = reached[0]
    daemon.write("web.yaml", dropin(*(m for m in mappings if f"name: web{gone}\n" not in m)))
    assert lab.outside.ask(OWN, gone).outcome == "refused"
    until = time.monotonic() + 15
    while len(daemon.elements("any4")) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    assert len([port for port in range(8081, 8086) if lab.outside.ask(OWN, port).target == "t1"]) == 3


def test_two_daemons_do_not_share_a_run_directory(lab: Lab, start: Start) -> None:
    daemon = start({"one.yaml": web(8081, "t1")})
    second = lab.host.run([*daemon.command(), *daemon.arguments], check=False, timeout=10)
    assert second.returncode == 1
    assert str(daemon.pid) in second.stderr
    assert lab.outside.ask(OWN, 8081).target == "t1"
    assert json.dumps(daemon.elements("any4")) == '{"tcp . 8081": "10.88.0.11 . 80"}'

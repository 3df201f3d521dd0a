"""Other programs at our table: whatever they do to it is undone within moments, said, and counted.

It must not know how the daemon notices. The one idea: the table is listed before and after, and must be the same but
for handles and counters; connections are real.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.api.calling import ask, client
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint
from tests.netns import Namespace

OWN = "192.0.2.1"


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """One for all: each test leaves it as it found it."""
    running = Daemon(lab)
    both = (endpoint(address("t1", 4), 80), endpoint(address("t1", 6), 80))
    web = mapping("web", 8080, *both, protocol="[tcp, udp]")
    more = {"sources": "[192.0.2.0/24, 198.51.100.0/24]", "masquerade": "always", "isolate": "true"}
    inner = mapping("inner", f"{OWN}:8081", both[0], **more)
    (running.dropins / "web.yaml").write_text(dropin(web, inner))
    running.start()
    if "owner" in running.objects("table")["nfportd"].get("flags", []):
        pytest.skip("this table has an owner: nobody else can change it (tests/kernel/test_owner.py)")
    assert lab.outside.ask(OWN, 8080).target == "t1"
    yield running
    running.stop()
    lab.daemons.remove(running)
    lab.reset()


def listed(space: Namespace) -> list[str]:
    """The table in JSON, without what changes by itself: handles, counters, the order of chains, sets and elements."""
    found = space.run(["nft", "-j", "list", "table", "inet", "nfportd"], check=False).stdout
    items = [item for item in json.loads(found)["nftables"] if "metainfo" not in item] if found else []
    of_chains = sorted((item for item in items if "rule" in item), key=lambda item: str(item["rule"]["chain"]))
    rules = [json.dumps(plain(item), sort_keys=True) for item in of_chains]
    return rules + sorted(json.dumps(plain(item), sort_keys=True) for item in items if "rule" not in item)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in ("handle", "packets", "bytes")}
        return {key: sorted(map(str, map(plain, each))) if key == "elem" and isinstance(each, list) else plain(each)
                for key, each in kept.items()}  # fmt: skip
    return [plain(each) for each in value] if isinstance(value, list) else value


def repairs(daemon: Daemon) -> int:
    return int(client(daemon).get("/v1/status")["repairs"]["count"])


def repaired(daemon: Daemon, count: int) -> str:
    """What is said of the repair after the first `count`, once there was one."""
    until = time.monotonic() + 5
    while (found := client(daemon).get("/v1/status")["repairs"])["count"] == count:
        assert time.monotonic() < until, "no repair"
        time.sleep(0.01)
    return str(found["last"])


def settled(space: Namespace, wanted: list[str]) -> None:
    """Return once the table is as wanted; fail with what differs."""
    until = time.monotonic() + 5
    while (found := listed(space)) != wanted:
        if time.monotonic() > until:
            pytest.fail("not repaired:\n" + "\n".join(difflib.unified_diff(wanted, found, lineterm="", n=0)))
        time.sleep(0.01)


ELEMENT = "element inet nfportd any4 { tcp . 8080"
BASE = "chain inet nfportd loopback_guard"
DAMAGE = {
    "flush ruleset": "flush ruleset",
    "delete table": "delete table inet nfportd",
    "flush table": "flush table inet nfportd",
    "another table of that name": "delete table inet nfportd\nadd table inet nfportd\nadd chain inet nfportd dispatch",
    "asleep": "add table inet nfportd { flags dormant; }",
    "element removed": f"delete {ELEMENT} }}",
    "element changed": f"delete {ELEMENT} }}\nadd {ELEMENT} : 10.88.0.12 . 80 }}",
    "element added": "add element inet nfportd any4 { tcp . 9999 : 10.88.0.12 . 80 }",
    "element of another protocol": "add element inet nfportd any6 { dccp . 9999 : fd88::12 . 80 }",
    "map flushed": "flush map inet nfportd any6",
    "allowed source added": f"add element inet nfportd allowed_addr4 {{ 203.0.113.0/24 . {OWN} . tcp . 8081 }}",
    "allowed source removed": f"delete element inet nfportd allowed_addr4 {{ 192.0.2.0/24 . {OWN} . tcp . 8081 }}",
    "target opened": "delete element inet nfportd isolated4 { 10.88.0.11 . tcp . 80 }",
    "target isolated": "add element inet nfportd isolated6 { fd88::11 . tcp . 80 }",
    "isolation replaced": (
        "flush chain inet nfportd isolation\ndelete set inet nfportd isolated4\n"
        "add set inet nfportd isolated4 { type ipv4_addr; }"
    ),
    "on-link prefix removed": 'delete element inet nfportd onlink4 { 10.88.0.0/24 . "br0" }',
    "on-link range added": 'add element inet nfportd onlink4 { 203.0.113.1-203.0.113.5 . "br0" }',
    "on-link prefix of many interfaces": 'add element inet nfportd onlink4 { 203.0.113.0/24 . "eth*" }',
    "masquerade by another's wish": "add element inet nfportd always_any4 { tcp . 8080 }",
    "fingerprint": "flush set inet nfportd fingerprint",
    "chain flushed": "flush chain inet nfportd dispatch",
    "rule added": "insert rule inet nfportd prerouting drop",
    "base chain added": "add chain inet nfportd evil { type filter hook forward priority 0; policy drop; }",
    "policy": "add chain inet nfportd admission { type filter hook prerouting priority -110; policy drop; }",
    "guard removed": f"delete {BASE}",
    "chain of sources removed": "delete chain inet nfportd admission",
    "chains of isolation removed": "".join(
        f"delete chain inet nfportd isolation_{hook}\n" for hook in ("forward", "output", "input")
    ),
    "base chain replaced": f"delete {BASE}\nadd {BASE} {{ type filter hook prerouting priority 0; policy drop; }}",
    "set added": "add set inet nfportd extra { type mark; }",
    "set replaced": (
        "flush chain inet nfportd admission\ndelete set inet nfportd open_addr4\n"
        "add set inet nfportd open_addr4 { type ipv4_addr; }"
    ),
    "set made anew": (
        "flush chain inet nfportd postrouting\ndelete set inet nfportd onlink4\n"
        "add set inet nfportd onlink4 { type ipv4_addr . ifname; flags interval; }"
    ),
    "counter added": "add counter inet nfportd extra",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_others_do_to_the_table_is_undone(daemon: Daemon, lab: Lab, damage: str) -> None:
    wanted, count = listed(lab.host), repairs(daemon)
    talk = lab.outside.talk(OWN, 8080)
    try:
        assert talk.ask().target == "t1"
        lab.host.nft(damage)
        detail = repaired(daemon, count)
        settled(lab.host, wanted)
        assert talk.ask().target == "t1"
    finally:
        talk.close()
    assert re.search(r" by nft \(pid \d+\)", detail), detail
    for own in (OWN, "2001:db8::1"):
        assert lab.outside.ask(own, 8080).target == "t1"


def test_what_others_do_to_tables_of_their_own_is_nobodys_business(daemon: Daemon, lab: Lab) -> None:
    wanted, count = listed(lab.host), repairs(daemon)
    lab.host.nft(
        "add table inet other; add map inet other any4 { type mark : mark; }; add element inet other any4 {1 : 2}"
    )
    lab.host.nft(
        "add table ip nfportd; add chain ip nfportd dispatch; delete table ip nfportd; delete table inet other"
    )
    daemon.write("more.yaml", dropin(mapping("more", 8090, "10.88.0.11:80")))
    daemon.remove("more.yaml")
    assert repairs(daemon) == count
    assert listed(lab.host) == wanted


def test_a_repair_is_an_event_a_number_and_in_the_status(daemon: Daemon, lab: Lab) -> None:
    api = client(daemon)
    count = repairs(daemon)
    lab.host.nft("flush ruleset")
    detail = repaired(daemon, count)
    assert "the table was deleted by nft (pid " in detail
    assert api.get("/v1/status")["repairs"] == {"count": count + 1, "last": detail, "fight": False}
    event = next(each for each in map(json.loads, api.events(0)) if each.get("detail") == detail)
    assert (event["kind"], event["owner"]) == ("repaired", "")
    assert f"nfportd_repairs_total {count + 1}.0" in ask(daemon, "GET", "/metrics").content.decode()


@pytest.mark.alone
def test_a_fight_is_told_and_costs_little(daemon: Daemon, lab: Lab) -> None:
    """Another program that deletes the table as fast as it can: repairs get slower, wishes still come true."""
    seen = len(daemon.log)
    with fighting(lab.host):
        daemon.wait_for("undoes again and again", seen, timeout=60)
        assert client(daemon).get("/v1/status")["repairs"]["fight"]
        before, began = cpu(daemon), time.monotonic()
        time.sleep(3)
        share = (cpu(daemon) - before) / (time.monotonic() - began)
        assert share < 0.4
        assert "applied" in daemon.write("more.yaml", dropin(mapping("more", 8090, "10.88.0.11:80")))
    until = time.monotonic() + 20
    while not lab.outside.ask(OWN, 8090, timeout=0.2):
        assert time.monotonic() < until
    daemon.remove("more.yaml")


@contextmanager
def fighting(space: Namespace) -> Iterator[None]:
    """A program that deletes our table again and again."""
    code = (
        "import nftables, time\nnft = nftables.Nftables()\n"
        "while True: time.sleep(0.01); nft.cmd('add table inet nfportd; delete table inet nfportd')"
    )
    process = space.popen(["/usr/bin/python3", "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def cpu(daemon: Daemon) -> float:
    """Seconds of processor that the daemon and its children have used."""
    ticks = 0
    for pid in (daemon.pid, *children(daemon.pid)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_death_of_libnftables_costs_nothing(daemon: Daemon, lab: Lab) -> None:
    child = min(children(daemon.pid))  # another one may be looking at others' rules
    seen, wanted = len(daemon.log), listed(lab.host)
    os.kill(child, signal.SIGKILL)
    daemon.wait_for("was ended by SIGKILL", seen)
    daemon.write("more.yaml", dropin(mapping("more", 8090, "10.88.0.11:80")))
    assert lab.outside.ask(OWN, 8090).target == "t1"
    daemon.remove("more.yaml")
    settled(lab.host, wanted)
    lab.host.nft("flush ruleset")
    settled(lab.host, wanted)


def test_libnftables_ends_with_the_daemon(daemon: Daemon) -> None:
    child = min(children(daemon.pid))
    daemon.kill9()
    until = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < until
        time.sleep(0.01)
    daemon.start()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("own", [OWN, "2001:db8::1"])
def test_a_datagram_flow_that_began_meanwhile_gets_to_its_target(daemon: Daemon, lab: Lab, own: str) -> None:
    """The kernel remembers for each flow that nothing translated it, as long as the client goes on."""
    wanted, source_port = listed(lab.host), 40_000
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        lab.host.nft("flush chain inet nfportd dispatch")
        assert lab.outside.ask(own, 8080, "udp", source_port=source_port).outcome == "refused"
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    settled(lab.host, wanted)
    until = time.monotonic() + 5
    while lab.outside.ask(own, 8080, "udp", source_port=source_port, timeout=1).target != "t1":
        assert time.monotonic() < until, "the flow stays where it began"

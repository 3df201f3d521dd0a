"""nftables: others' rules that stop or take connections, our table as others have left it, and what nft cannot do.

It must not know how rules are followed. The one idea: the wire is asked before and after the command that doctor names.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from tests.api.calling import client
from tests.coexistence import others
from tests.conftest import dropin, mapping
from tests.doctor.conftest import UNMANAGED, V4, V6, Begin, Patient
from tests.kernel.test_downgrade import owned_table
from tests.kernel.test_lifecycle import small_table
from tests.lab import Lab

DNAT = "ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.88.0.12:80"
DOCKER_NFT = f"""
table ip nat {{
  chain DOCKER {{
    iifname "docker0" return
    {DNAT.removeprefix("ip daddr 192.0.2.1 ")}
  }}
  chain PREROUTING {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump DOCKER
  }}
  chain OUTPUT {{
    type nat hook output priority -100; policy accept;
    ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER
  }}
}}
"""
#: As the CNI plugin portmap 1.5 and newer writes it; its hooks come before ours.
PORTMAP = """
table inet cni_hostport {
  chain hostports { tcp dport 8080 dnat ip to 10.88.0.12:80
  }
  chain prerouting { type nat hook prerouting priority dstnat - 1; policy accept; fib daddr type local goto hostports
  }
}
"""


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize("ruleset", ["plain", "docker-28", "docker-29.nft", "iptables"])
def test_a_forward_chain_that_drops(lab: Lab, begin: Begin, ruleset: str) -> None:
    if ruleset in ("docker-28", "iptables") and not shutil.which("iptables-nft"):
        pytest.skip("iptables-nft is not installed")
    patient = begin()
    if ruleset == "iptables":
        for program in ("iptables-nft", "ip6tables-nft"):
            lab.host.run([program, "-P", "FORWARD", "DROP"])
    else:
        others.load(lab.host, ruleset)
    assert (patient.reached(V4), patient.reached(V6)) == ("timeout", "timeout")

    told = patient.examined()
    assert set(told.causes) == {"stopped-by-others"}
    for found in told.report["findings"]:
        assert (found["severity"], found["mappings"]) == ("error", ["web"])
        patient.take(found["commands"][0])
    assert (patient.reached(V4), patient.reached(V6)) == ("t1", "t1")
    assert patient.examined().causes == []


@pytest.mark.usefixtures("uplink")
def test_a_firewalld_that_is_strict_is_told_by_a_rule_that_translates_nothing(lab: Lab, begin: Begin) -> None:
    """tests/system runs the real firewall-cmd."""
    patient = begin(mapping("web", 8080, "10.88.0.11:80"))
    others.load(lab.host, "firewalld-2.3.1-strict.nft")

    found = patient.examined().only()

    assert (found["cause"], found["severity"]) == ("stopped-by-others", "error")
    assert found["commands"] == [
        'firewall-cmd --add-rich-rule=\'rule family="ipv4" destination address="127.0.0.1" forward-port '
        'port="8080" protocol="tcp" to-port="80" to-addr="10.88.0.11"\''
    ]


@pytest.mark.parametrize(
    ("rules", "who", "look"),
    [
        (DOCKER_NFT, "Docker", "docker ps --filter publish=8080"),
        (PORTMAP, "the CNI plugin portmap", None),
        (
            f"table ip own {{ chain c {{ type nat hook prerouting priority -150; {DNAT}\n }}\n}}",
            "another program",
            None,
        ),
    ],
)
def test_another_program_translates_the_port_first(
    lab: Lab, begin: Begin, rules: str, who: str, look: str | None
) -> None:
    patient = begin()
    assert patient.reached() == "t1"
    lab.host.nft(rules)
    assert patient.reached() == "t2"

    found = patient.examined().only()
    assert (found["cause"], found["severity"], found["mappings"]) == ("translated-by-others", "error", ["web"])
    assert f"(dnat to 10.88.0.12:80) of {who} takes 0.0.0.0:8080/tcp" in found["what"]
    assert found["commands"][:-1] == ([look] if look else [])
    patient.take(found["commands"][-1])
    assert patient.reached() == "t1"
    assert patient.examined().causes == []


def test_iptables_translates_the_port_first(lab: Lab, begin: Begin) -> None:
    """What Docker writes through iptables-nft, of which nft lists the names only."""
    if not shutil.which("iptables-nft"):
        pytest.skip("iptables-nft is not installed")
    patient = begin()
    for line in (
        "-N DOCKER",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.88.0.12:80",
    ):
        lab.host.run(["iptables-nft", "-t", "nat", *line.split()])
    assert patient.reached() == "t2"

    found = patient.examined().only()
    assert (found["cause"], found["commands"][0]) == ("translated-by-others", "docker ps --filter publish=8080")
    patient.take(found["commands"][1])
    assert patient.reached() == "t1"
    assert patient.examined().causes == []


def test_a_translation_that_comes_later_or_is_for_others_is_no_finding(lab: Lab, begin: Begin) -> None:
    patient = begin()
    lab.host.nft(
        f"table ip own {{\n chain late {{ type nat hook prerouting priority -90; {DNAT}\n }}\n"
        " chain early { type nat hook prerouting priority -150; tcp dport 8081 dnat to 10.88.0.12:80\n"
        " ip daddr 203.0.113.1 tcp dport 8080 dnat to 10.88.0.12:80\n udp dport 8082 redirect to :53\n }\n}"
    )

    assert patient.reached() == "t1"
    assert patient.examined().causes == []


def stopped(begin: Begin, *mappings: str) -> Patient:
    """A daemon that a crash has ended; its table is in force."""
    patient = begin(*mappings, settings=UNMANAGED)
    if "owner" in patient.lab.host.nft("list table inet nfportd"):
        pytest.skip("nobody else can change a table that has an owner")
    patient.daemon.kill9()
    return patient


def test_a_table_asleep(lab: Lab, begin: Begin) -> None:
    patient = stopped(begin)
    lab.host.nft("add table inet nfportd { flags dormant; }")
    assert patient.reached() != "t1"

    found = patient.examined().only("daemon-not-running")
    assert found["cause"] == "table-asleep"
    patient.take(found["commands"][0])
    assert patient.reached() == "t1"
    assert patient.examined().causes == ["daemon-not-running"]


def test_a_table_that_another_process_owns(lab: Lab, begin: Begin) -> None:
    patient = begin()
    patient.daemon.stop()
    with owned_table(lab, "nfportd"):
        found = patient.examined("web").only("daemon-not-running")
        assert (found["cause"], found["severity"]) == ("table-owned", "error")
    lab.reset()  # the owner has ended
    patient.daemon.start()
    assert patient.examined().causes == []


def test_a_table_that_somebody_has_changed(lab: Lab, begin: Begin) -> None:
    patient = stopped(begin)
    lab.host.nft("insert rule inet nfportd dispatch return")
    assert patient.reached() != "t1"

    assert patient.examined().only("daemon-not-running")["cause"] == "table-changed"
    patient.daemon.start()
    assert patient.reached() == "t1"
    assert patient.examined().causes == []


def test_a_table_that_is_missing_though_a_daemon_is_there(lab: Lab, begin: Begin) -> None:
    patient = begin(settings=UNMANAGED)
    patient.lab.host.run(["kill", "-STOP", str(patient.daemon.pid)])
    try:
        if lab.host.nft("delete table inet nfportd", check=False) or patient.daemon.table():
            pytest.skip("nobody can delete a table that has an owner")
        assert patient.examined().only("daemon-not-answering")["cause"] == "table-missing"
    finally:
        patient.lab.host.run(["kill", "-CONT", str(patient.daemon.pid)])


def test_mappings_that_came_after_a_crash(begin: Begin) -> None:
    patient = stopped(begin)
    (patient.daemon.dropins / "new.yaml").write_text(dropin(mapping("new", 8081, "10.88.0.12:80")))

    found = patient.examined().only("daemon-not-running")
    assert (found["cause"], found["mappings"]) == ("mapping-not-in-table", ["new"])
    patient.daemon.start()
    assert patient.reached(port=8081) == "t2"
    assert patient.examined().causes == []


def test_a_mapping_that_the_kernel_refuses(lab: Lab, begin: Begin) -> None:
    """A map of an earlier run has room for four elements."""
    patient = begin(mapping("web", 8080, "10.88.0.11:80"))
    text = small_table(patient.daemon, 4)
    patient.daemon.stop()
    lab.host.nft(text)
    patient.daemon.start()
    patient.daemon.write("more.yaml", dropin(mapping("more", "9000-9005", "10.88.0.12:80-85")))

    found = patient.examined().only("target-refuses")
    assert (found["cause"], found["severity"], found["mappings"]) == ("mapping-refused", "error", ["more"])
    assert "the map or set is full" in found["what"]
    patient.daemon.write("more.yaml", dropin(mapping("more", 9000, "10.88.0.12:80")))
    assert patient.reached(port=9000) == "t2"
    assert patient.examined().causes == []


def test_a_fight(lab: Lab, begin: Begin) -> None:
    patient = begin()
    if "owner" in lab.host.nft("list table inet nfportd"):
        pytest.skip("nobody else can change a table that has an owner")
    ended = threading.Event()

    def undo() -> None:
        while not ended.wait(0.001):
            lab.host.nft("flush chain inet nfportd dispatch", check=False)

    thread = threading.Thread(target=undo)
    thread.start()
    try:
        with client(patient.daemon) as api:
            while not api.get("/v1/status")["repairs"]["fight"]:
                assert patient.daemon.process
        told = patient.examined()
    finally:
        ended.set()
        thread.join()

    assert told.causes == ["table-fight"]
    assert "by nft (pid " in told.report["findings"][0]["what"]


#: A libnftables that says of itself, or refuses, what the real one does not.
FAKE = """
import sys
sys.path.remove({place!r})
_fake = sys.modules.pop("nftables")
import nftables as _real
sys.modules["nftables"] = _fake
{body}
"""
OLD = """
class Nftables(_real.Nftables):
    def cmd(self, text):
        status, output, error = super().cmd(text)
        old, new = '"version": "1.', '"version": "0.9.'
        return status, output.replace(*(old, new) if isinstance(output, str) else (old.encode(), new.encode())), error
"""
LACKING = """
class Nftables(_real.Nftables):
    def cmd(self, text):
        if isinstance(text, bytes) and b"fib daddr" in text:
            return 1, b"", b"internal:0:0-0: Error: Could not process rule: No such file or directory"
        return super().cmd(text)
"""


@pytest.mark.parametrize(
    ("body", "cause", "says"),
    [
        ("raise ImportError('there is none')", "nft-unusable", "libnftables cannot be used: no libnftables, "),
        (OLD, "nft-old", "nftables is version 0.9."),
        (LACKING, "kernel-lacks", "the kernel would not take nfportd's table: No such file or directory"),
    ],
)
def test_what_nftables_cannot_do(begin: Begin, tmp_path: Path, body: str, cause: str, says: str) -> None:
    patient = begin()
    (tmp_path / "nftables.py").write_text(FAKE.format(place=str(tmp_path), body=body))

    told = patient.examined(environment={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"})

    found = told.only()
    assert (found["cause"], found["severity"]) == (cause, "error")
    assert found["what"].startswith(says)
    assert patient.reached() == "t1"

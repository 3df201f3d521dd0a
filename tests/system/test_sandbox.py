"""What the service may do and what it may not, with its unit as shipped.

It must not read the unit file. The one idea: a probe runs in place of the daemon, in the same unit, and tells what came
through; and everything that nfportd does for ports works there.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from nfportd.client import Client
from tests.cni.calling import Attachment, port
from tests.conftest import dropin, mapping
from tests.lab import ROOT, Lab
from tests.system.machine import SOCKET, Machine, wait_for

pytestmark = pytest.mark.timeout(600)

OWN = "192.0.2.1"
#: The threshold of `systemd-analyze security`, in tenths.
EXPOSURE = 12
PROBE = """[Service]
Type=oneshot
ExecStart=
ExecStart=/opt/nfportd/bin/python /src/tests/system/probe.py
StandardOutput=file:/run/probe.json
Restart=no
"""


@pytest.fixture(scope="module")
def probed(machine: Machine) -> dict[str, str]:
    """What a process in the service's place may do."""
    machine.systemctl("stop", "nfportd.service", check=False)
    machine.change_unit(PROBE, name="probe")
    try:
        machine.systemctl("start", "nfportd.service")
        return dict(json.loads((machine.root / "run/probe.json").read_text()))
    finally:
        machine.change_unit("", name="probe")
        for left in ("probe", "probe.sh"):
            machine.remove(f"/run/nfportd/{left}")
            machine.remove(f"/var/lib/nfportd/{left}")


def test_it_is_a_user_of_its_own_with_one_capability(machine: Machine, probed: dict[str, str]) -> None:
    uid, gid = machine.run("getent", "passwd", "nfportd").stdout.split(":")[2:4]
    net_admin = f"{1 << 12:016x}"

    assert probed["user"] == f"{uid}:{gid}:[{gid}]"
    assert uid != "0"
    assert [probed[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")] == [net_admin] * 4
    assert (probed["NoNewPrivs"], probed["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize(
    "attempt", ["write /var/lib/nfportd", "write /run/nfportd", "write /proc/sys/net", "open a netlink socket"]
)
def test_what_it_needs_is_allowed(probed: dict[str, str], attempt: str) -> None:
    assert probed[attempt] == "done"


@pytest.mark.parametrize(
    ("attempt", "refusals"),
    [
        ("write /etc", {"EROFS"}),
        ("write /usr", {"EROFS", "EACCES"}),
        ("write /usr/lib", {"EROFS", "EACCES"}),
        ("write /opt/nfportd", {"EROFS", "EACCES"}),
        ("write /home", {"EROFS", "EACCES"}),
        ("write /proc/sys/kernel", {"EROFS"}),
        ("write /sys", {"EROFS"}),
        ("read /root", {"EACCES"}),
        ("read /etc/shadow", {"EACCES"}),
        ("see the first process", {"ENOENT"}),
        ("kill another's process", {"EPERM", "ESRCH"}),
        ("run a shell", {"EACCES"}),
        ("run nft", {"EACCES"}),
        ("run what it has written in /run", {"EACCES"}),
        ("run what it has written in /tmp", {"EACCES"}),
        ("run what it has written in /var", {"EACCES"}),
        ("become root", {"EPERM"}),
        ("change an owner", {"EPERM"}),
        ("make a user namespace", {"EPERM"}),
        ("make a network namespace", {"EPERM"}),
        ("mount", {"EPERM"}),
        ("trace", {"EPERM"}),
        ("set the clock", {"EPERM"}),
        ("set the host's name", {"EPERM"}),
        ("load a module", {"EPERM"}),
        ("open a packet socket", {"EAFNOSUPPORT"}),
        ("open an IP socket", {"EAFNOSUPPORT"}),
        ("map memory to write and run", {"EPERM", "EACCES"}),
        ("open a device", {"ENOENT", "EPERM", "EACCES"}),
        ("read the kernel's log", {"ENOENT", "EPERM", "EACCES"}),
    ],
)
def test_what_it_does_not_need_is_refused(probed: dict[str, str], attempt: str, refusals: set[str]) -> None:
    assert probed[attempt] in refusals


def test_its_exposure_is_low(machine: Machine) -> None:
    found = machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE}", "nfportd.service", check=False)

    assert found.returncode == 0, found.stdout


def test_systemd_finds_nothing_wrong_in_the_units(machine: Machine) -> None:
    found = machine.run("systemd-analyze", "verify", "--man=no", "nfportd.service", "nfportd.socket")

    assert (found.stdout, found.stderr) == ("", "")


def test_stale_flows_of_udp_are_cut_in_the_sandbox(service: Machine, lab: Lab) -> None:
    def to(target: str) -> None:
        text = dropin(mapping("dns", 5300, f"{target}:80", protocol="udp"))
        service.write("/etc/nfportd.d/dns.yaml", text)
        service.systemctl("reload", "nfportd")

    to("10.88.0.11")
    with lab.client.talk(OWN, 5300, "udp") as flow:
        before = flow.ask().target
        to("10.88.0.12")
        after = flow.ask().target

    assert (before, after) == ("t1", "t2")


def test_loopback_is_served_by_what_it_sets_in_the_sandbox(service: Machine, lab: Lab) -> None:
    service.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8080, "10.88.0.11:80", "[fd88::11]:80")))
    service.systemctl("reload", "nfportd")
    lab.bridge_netfilter(on=False)

    answers = [lab.host.ask(address, 8080).outcome for address in ("127.0.0.1", "::1")]

    lab.bridge_netfilter(on=True)
    assert answers == ["answered", "answered"]


def add(machine: Machine, name: str, port: int, **bond: object) -> None:
    """Publish a port until what it is bound to ends."""
    with Client(str(machine.root / SOCKET.lstrip("/"))) as api:
        api.put(f"api:{name}", {"mappings": [{"listen": str(port), "targets": ["10.88.0.11:80"]}], **bond})


def test_an_owner_ends_with_its_process(service: Machine, lab: Lab) -> None:
    process = service.popen("sh", "-c", "echo $$; exec sleep 100")
    assert process.stdout is not None
    inner = process.stdout.readline().strip()
    add(service, "bound", 8092, pid=int(inner))
    before = lab.client.ask(OWN, 8092).outcome
    service.systemctl("restart", "nfportd")
    between = lab.client.ask(OWN, 8092).outcome

    process.send_signal(signal.SIGKILL)
    service.run("kill", inner, check=False)

    assert (before, between) == ("answered", "answered")
    wait_for(lambda: lab.client.ask(OWN, 8092).outcome == "refused", "the mapping outlives its process")


def test_the_cni_plugin_publishes_until_the_container_is_gone(service: Machine, lab: Lab) -> None:
    service.run("ip", "netns", "add", "pod")
    pod = Attachment(Path(SOCKET), "/run/netns/pod", executable=Path("/src/nfportd/cni.py"))
    told = [f"{name}={value}" for name, value in pod.environment("ADD").items() if name != "PATH"]
    config = json.dumps(pod.configuration(port(8094, 80)))

    service.run("env", *told, str(pod.executable), text=config)
    before = lab.client.ask(OWN, 8094).outcome
    service.systemctl("restart", "nfportd")
    between = lab.client.ask(OWN, 8094).outcome
    service.run("env", *told, "CNI_COMMAND=CHECK", str(pod.executable), text=config)
    service.run("ip", "netns", "delete", "pod")

    assert (before, between) == ("answered", "answered")
    wait_for(lambda: lab.client.ask(OWN, 8094).outcome == "refused", "the mapping outlives its container")


def test_an_owner_ends_with_a_namespace_that_was_made_later(service: Machine, lab: Lab) -> None:
    service.run("ip", "netns", "add", "later")
    add(service, "bound", 8093, netns="/run/netns/later")
    before = lab.client.ask(OWN, 8093).outcome

    service.run("ip", "netns", "delete", "later")

    assert before == "answered"
    wait_for(lambda: lab.client.ask(OWN, 8093).outcome == "refused", "the mapping outlives its namespace")


def test_a_port_in_use_is_seen_without_the_name_of_its_process(service: Machine, lab: Lab) -> None:
    lab.host.serve([8094], ["tcp"])

    refused = service.run("nfportctl", "add", "8094", "10.88.0.11:80", check=False)

    assert refused.returncode == 4
    assert "a process of this host listens on" in refused.stderr


def test_reserved_ports_need_the_drop_in_and_say_so(stopped: Machine, lab: Lab) -> None:
    stopped.systemctl("start", "nfportd")
    text = dropin(mapping("low", 443, "10.88.0.11:80", reserve="true"))
    stopped.write("/etc/nfportd.d/low.yaml", text)
    stopped.systemctl("reload", "nfportd")
    lines = [entry["MESSAGE"] for entry in stopped.journal("_COMM=nfportd")]
    answered = lab.client.ask(OWN, 443).outcome

    stopped.write("/run/systemd/system/nfportd.service.d/reserve.conf", (ROOT / "systemd/reserve.conf").read_text())
    stopped.systemctl("daemon-reload")
    stopped.systemctl("restart", "nfportd")

    assert any("cannot be reserved" in line and "RestrictAddressFamilies=" in line for line in lines)
    assert answered == "answered"
    held = lab.host.run(["ss", "-Hltn", "sport", "=", "443"]).stdout
    assert ":443" in held
    assert lab.client.ask(OWN, 443).outcome == "answered"


def test_the_relay_needs_the_drop_in_and_says_so(stopped: Machine, lab: Lab) -> None:
    lab.bridge_netfilter(True)
    try:
        stopped.systemctl("start", "nfportd")
        stopped.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8095, "[fd88::11]:80", protocol="[tcp, udp]")))
        stopped.systemctl("reload", "nfportd")
        lines = [entry["MESSAGE"] for entry in stopped.journal("_COMM=nfportd")]
        listed = stopped.run("nfportctl", "list").stdout

        stopped.write("/run/systemd/system/nfportd.service.d/relay.conf", (ROOT / "systemd/relay.conf").read_text())
        stopped.systemctl("daemon-reload")
        stopped.systemctl("restart", "nfportd")

        assert any("may open no IPv6 sockets" in line and "relay.conf" in line for line in lines)
        assert " no " in listed
        assert [lab.host.ask("::1", 8095, proto).target for proto in ("tcp", "udp")] == ["t1", "t1"]
    finally:
        lab.bridge_netfilter(False)

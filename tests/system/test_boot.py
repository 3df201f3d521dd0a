"""Boots and starts: what is in force when others start, what survives a reboot, and hosts or files that are not right.

It must not know how nfportd starts. The one idea: the machine is rebooted for real, and each start that cannot be says
so in one line, with its exit status, and is not tried again.
"""

from __future__ import annotations

import re

import pytest

from tests.conftest import dropin, mapping
from tests.lab import Lab
from tests.system.machine import Machine, wait_for

pytestmark = pytest.mark.timeout(600)

OWN = "192.0.2.1"
WEB = dropin(mapping("web", 8080, "10.88.0.11:80"))
#: Starts once the network is there, as container runtimes do, and remembers what it found.
DEPENDENT = """[Unit]
After=network.target
Wants=network.target
[Service]
Type=oneshot
ExecStart=sh -c 'nft list map inet nfportd any4 > /var/tmp/found'
[Install]
WantedBy=multi-user.target
"""
FLUSHES = """#!/usr/sbin/nft -f
flush ruleset
"""


def end_of(machine: Machine) -> tuple[str, str, str]:
    """How the service ended: the state, the exit status, and how often systemd started it again."""
    wait_for(lambda: machine.show("ActiveState") == "failed", "the service does not end")
    return machine.show("Result"), machine.show("ExecMainStatus"), machine.show("NRestarts")


def lines(machine: Machine) -> list[str]:
    """What the daemon has said since the last start, without its traces of ordinary life."""
    invocation = machine.show("InvocationID")
    found = machine.journal(f"_SYSTEMD_INVOCATION_ID={invocation}")
    return [str(entry["MESSAGE"]) for entry in found if int(entry["PRIORITY"]) <= 4]


def test_after_a_reboot_all_is_in_force_before_who_needs_it(stopped: Machine, lab: Lab) -> None:
    stopped.systemctl("start", "nfportd")
    stopped.write("/etc/nfportd.d/web.yaml", WEB)
    stopped.write("/etc/systemd/system/dependent.service", DEPENDENT)
    stopped.write("/etc/nftables.conf", FLUSHES, mode=0o755)
    stopped.systemctl("enable", "dependent.service", "nftables.service")
    api = ("nfportctl", "add", "--name")
    stopped.run(*api, "lasting", "8081", "10.88.0.11:80", "--persistent")
    stopped.run(*api, "passing", "8082", "10.88.0.11:80", "--owner", "api:passing")

    stopped.reboot()

    assert stopped.show("ActiveState", "nftables.service") == "active"
    found = (stopped.root / "var/tmp/found").read_text()
    assert ("8080" in found, "8081" in found, "8082" in found) == (True, True, False)
    assert [lab.client.ask(OWN, port).outcome for port in (8080, 8081, 8082)] == ["answered", "answered", "refused"]
    stopped.systemctl("disable", "dependent.service", "nftables.service")


def test_a_target_whose_interface_appears_later_is_reached_then(stopped: Machine, lab: Lab) -> None:
    stopped.write("/etc/nfportd.d/late.yaml", dropin(mapping("late", 8083, "10.99.0.2:80")))
    stopped.systemctl("start", "nfportd")
    ready_without = stopped.show("ActiveState")

    late = lab.space("late")
    lab.link(late, "eth0", lab.host, "late0")
    lab.host.ip("addr", "add", "10.99.0.1/24", "dev", "late0")
    late.ip("addr", "add", "10.99.0.2/24", "dev", "eth0")
    late.ip("route", "add", "default", "via", "10.99.0.1")
    late.serve([80], ["tcp"])

    assert ready_without == "active"
    wait_for(lambda: lab.host.ask("127.0.0.1", 8083).outcome == "answered", "the interface is not picked up")
    assert lab.client.ask(OWN, 8083).target == "late"
    lab.discard("late")


def test_without_a_directory_of_drop_ins_it_waits_for_one(stopped: Machine, lab: Lab) -> None:
    (stopped.root / "etc/nfportd.d").rmdir()
    stopped.systemctl("start", "nfportd")
    said = lines(stopped)

    stopped.write("/etc/nfportd.d/web.yaml", WEB)

    assert said == ["/etc/nfportd.d does not exist; mappings are read as soon as it does"]
    wait_for(lambda: lab.client.ask(OWN, 8080).outcome == "answered", "the directory is not picked up")


def test_without_ipv6_the_rest_works_and_one_line_says_so(stopped: Machine, lab: Lab) -> None:
    stopped.change_unit("[Service]\nTemporaryFileSystem=/proc/sys/net/ipv6:ro\n")
    stopped.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8080, "10.88.0.11:80", "[fd88::11]:80")))

    stopped.systemctl("start", "nfportd")

    assert lab.client.ask(OWN, 8080).outcome == "answered"
    assert len([line for line in lines(stopped) if "IPv6 disabled" in line]) == 1


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("CapabilityBoundingSet=\nAmbientCapabilities=", "nftables cannot be used: .*Operation not permitted.*"),
        ("RestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX", "the kernel gives no netlink socket .*"),
    ],
)
def test_a_host_that_cannot_do_it_is_told_so_once(stopped: Machine, lacks: str, says: str) -> None:
    stopped.change_unit(f"[Service]\n{lacks}\n")

    stopped.systemctl("start", "nfportd", check=False)

    assert end_of(stopped) == ("exit-code", "1", "0")
    said = lines(stopped)
    assert [bool(re.fullmatch(says, line)) for line in said] == [True], said


def test_wrong_settings_are_said_once_and_not_tried_again(stopped: Machine) -> None:
    stopped.write("/etc/nfportd/nfportd.yaml", "mark_bit: 32\n")

    failed = stopped.systemctl("start", "nfportd", check=False)

    assert (failed.returncode, end_of(stopped)) == (1, ("exit-code", "1", "0"))
    assert [line.startswith("/etc/nfportd/nfportd.yaml:1:11: ") for line in lines(stopped)] == [True]


def test_state_that_others_can_write_to_is_refused(stopped: Machine) -> None:
    path = "/run/nfportd/sysctls.json"
    stopped.write(path, "{}", mode=0o666)

    stopped.systemctl("start", "nfportd", check=False)

    assert end_of(stopped) == ("exit-code", "1", "0")
    assert lines(stopped) == [f"{path} can be written to by others (mode 0666); run: chmod go-w {path}"]
    stopped.run("chmod", "go-w", path)
    stopped.systemctl("start", "nfportd")


def test_a_drop_in_that_others_can_write_to_keeps_its_last_good_content(service: Machine, lab: Lab) -> None:
    service.write("/etc/nfportd.d/web.yaml", WEB)
    service.systemctl("reload", "nfportd")

    service.write("/etc/nfportd.d/web.yaml", dropin(), mode=0o646)
    failed = service.systemctl("reload", "nfportd", check=False)
    said = service.run("nfportctl", "reload", check=False).stderr

    assert (failed.returncode, lab.client.ask(OWN, 8080).outcome) == (1, "answered")
    assert "can be written to by others (mode 0646); run: chmod go-w /etc/nfportd.d/web.yaml" in said
    service.run("chmod", "go-w", "/etc/nfportd.d/web.yaml")
    service.systemctl("reload", "nfportd")
    assert lab.client.ask(OWN, 8080).outcome == "refused"

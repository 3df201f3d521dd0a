"""The real firewalld beside the real service, through a reload and with StrictForwardPorts.

It must not know firewalld's rules. The one idea: an admin's commands, and what a client outside sees after each.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

import pytest

from nfportd.client import Json
from tests.conftest import dropin, mapping
from tests.lab import ROOT
from tests.system.machine import Machine, wait_for

CONFIG = "/etc/firewalld/firewalld.conf"
POLKIT = "/etc/polkit-1/rules.d/60-nfportd.rules"


@pytest.fixture
def firewalld(service: Machine) -> Iterator[Machine]:
    """The machine with firewalld running as installed, and one mapping."""
    if not (service.root / "usr/bin/firewall-cmd").exists():
        pytest.skip("firewalld is not in this machine")
    service.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8080, "10.88.0.11:80", "[fd88::11]:80")))
    config = (service.root / CONFIG.lstrip("/")).read_text()
    service.systemctl("start", "dbus.service", "firewalld.service")
    try:
        asked = ("firewall-cmd", "--state")
        wait_for(lambda: service.run(*asked, check=False).stdout == "running\n", "firewalld does not run")
        wait_for(lambda: reached(service), "the mapping is not in force")
        yield service
    finally:
        service.systemctl("stop", "firewalld.service")
        service.write(CONFIG, config)
        service.remove(POLKIT)


def reached(machine: Machine, address: str = "192.0.2.1") -> bool:
    return bool(machine.lab.outside.ask(address, 8080, timeout=0.4))


def findings(machine: Machine) -> list[Json]:
    return list(json.loads(machine.run("nfportctl", "status", "--json", check=False).stdout)["forwarding"])


def be_strict(machine: Machine) -> bool:
    """Have firewalld reject what others forward, if it can."""
    config = (machine.root / CONFIG.lstrip("/")).read_text()
    if "StrictForwardPorts=" not in config:
        return False
    machine.write(CONFIG, re.sub("^StrictForwardPorts=.*", "StrictForwardPorts=yes", config, flags=re.MULTILINE))
    machine.run("firewall-cmd", "--reload")
    assert not reached(machine)
    return True


def both_reached(machine: Machine) -> bool:
    return reached(machine) and reached(machine, "2001:db8::1")


def test_a_reload_and_strict_forward_ports(firewalld: Machine) -> None:
    """A reload takes nothing away; where firewalld is told to reject what others forward, the command that nfportd
    names lets the mapping through at once."""
    firewalld.run("nft", "list", "table", "inet", "firewalld")
    firewalld.run("firewall-cmd", "--reload")
    assert reached(firewalld)
    assert reached(firewalld, "2001:db8::1")
    assert findings(firewalld) == []

    if not be_strict(firewalld):
        return  # an older firewalld
    (finding,) = findings(firewalld)
    assert (finding["firewall"], finding["certain"]) == ("firewalld", True)
    for command in finding["commands"]:
        firewalld.run(*shlex.split(command))
    assert reached(firewalld)
    assert reached(firewalld, "2001:db8::1")
    wait_for(lambda: not findings(firewalld), "the finding stays")


def opened(machine: Machine) -> list[str]:
    """What firewalld has been asked for, at run time."""
    return machine.run("firewall-cmd", "--list-rich-rules").stdout.strip().splitlines()


def test_open_forward(firewalld: Machine) -> None:
    """What strict firewalld stops is open as soon as polkit lets nfportd ask for it, again after a reload, and no
    longer than the mapping and nfportd are there; a connection through this host to that port is left alone."""
    if not be_strict(firewalld):
        pytest.skip("this firewalld has no StrictForwardPorts")
    (finding,) = findings(firewalld)
    assert (finding["firewall"], opened(firewalld)) == ("firewalld", [])  # the setting is off
    firewalld.write("/etc/nfportd/nfportd.yaml", "open_forward: firewalld\n")
    firewalld.systemctl("restart", "nfportd.service")
    wait_for(lambda: "Not Authorized(polkit)" in firewalld.log(), "nothing is said of polkit")
    assert not reached(firewalld)

    firewalld.write(POLKIT, (ROOT / POLKIT.lstrip("/")).read_text())
    # A reload of nfportd makes it look sooner than its next try.
    wait_for(lambda: firewalld.run("nfportctl", "reload") and both_reached(firewalld), "the mapping is not let through")
    wait_for(lambda: not findings(firewalld), "the finding stays")
    assert len(opened(firewalld)) == 2
    assert not firewalld.lab.outside.ask("10.88.0.12", 8080, timeout=0.4)

    firewalld.run("firewall-cmd", "--reload")
    wait_for(lambda: both_reached(firewalld), "a reload closes it", timeout=8)

    firewalld.systemctl("restart", "nfportd.service")
    firewalld.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8080, "10.88.0.11:80")))
    wait_for(lambda: len(opened(firewalld)) == 1, "what is no longer mapped stays open")
    assert reached(firewalld)

    firewalld.systemctl("stop", "nfportd.service")
    assert opened(firewalld) == []

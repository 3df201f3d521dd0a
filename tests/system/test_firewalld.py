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
from tests.system.machine import Machine, wait_for

CONFIG = "/etc/firewalld/firewalld.conf"


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


def reached(machine: Machine, address: str = "192.0.2.1") -> bool:
    return bool(machine.lab.outside.ask(address, 8080, timeout=0.4))


def findings(machine: Machine) -> list[Json]:
    return list(json.loads(machine.run("nfportctl", "status", "--json", check=False).stdout)["forwarding"])


def test_a_reload_and_strict_forward_ports(firewalld: Machine) -> None:
    """A reload takes nothing away; where firewalld is told to reject what others forward, the command that nfportd
    names lets the mapping through at once."""
    firewalld.run("nft", "list", "table", "inet", "firewalld")
    firewalld.run("firewall-cmd", "--reload")
    assert reached(firewalld)
    assert reached(firewalld, "2001:db8::1")
    assert findings(firewalld) == []

    config = (firewalld.root / CONFIG.lstrip("/")).read_text()
    if "StrictForwardPorts=" not in config:
        return  # an older firewalld
    firewalld.write(CONFIG, re.sub("^StrictForwardPorts=.*", "StrictForwardPorts=yes", config, flags=re.MULTILINE))
    firewalld.run("firewall-cmd", "--reload")
    assert not reached(firewalld)
    (finding,) = findings(firewalld)
    assert (finding["firewall"], finding["certain"]) == ("firewalld", True)
    for command in finding["commands"]:
        firewalld.run(*shlex.split(command))
    assert reached(firewalld)
    assert reached(firewalld, "2001:db8::1")
    wait_for(lambda: not findings(firewalld), "the finding stays")

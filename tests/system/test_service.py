"""What each systemctl verb does to the ports of a host: start, stop, restart, reload, and what nobody asked for.

It must not know how nfportd does it. The one idea: a load of connections runs while the process is ended in every way,
and the number that may fail is 0.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import dropin, mapping
from tests.hammer import Load
from tests.lab import Lab
from tests.system.conftest import LOADED
from tests.system.machine import SOCKET, Machine, wait_for

pytestmark = pytest.mark.timeout(600)  # the root with systemd 257 may have to be made first

OWN = "192.0.2.1"
#: What clients ask, and what takes a load.
ASKED, HAMMERED = 8080, 8081
WEB = dropin(mapping("web", ASKED, "10.88.0.11:80", "[fd88::11]:80"), mapping("load", HAMMERED, f"10.88.0.11:{LOADED}"))
BROKEN = "mappings:\n  - listen: 70000\n    targets: [10.88.0.11:80]\n"


def publish(machine: Machine, text: str = WEB, name: str = "web.yaml") -> None:
    machine.write(f"/etc/nfportd.d/{name}", text)
    wait_for(lambda: "10.88.0.11" in table(machine), "the mapping is not in force")


def table(machine: Machine) -> str:
    """The table as the machine's own nft lists it: an older one knows not every flag."""
    return machine.run("nft", "-a", "list", "table", "inet", "nfportd", check=False).stdout


def handle(machine: Machine) -> str:
    """The table's handle: another one means that it was made anew, and its hooks registered again."""
    return table(machine).partition("\n")[0]


def restarted(machine: Machine, before: int) -> int:
    """The new main process, once it is ready."""

    def ready() -> int | None:
        now = machine.main
        return now if now not in (0, before) and machine.show("SubState") == "running" else None

    return wait_for(ready, "the service is not started again", 30)


def test_a_start_publishes_and_its_status_line_counts(service: Machine, lab: Lab) -> None:
    publish(service)

    assert lab.client.ask(OWN, ASKED).outcome == "answered"
    assert service.show("ActiveState") == "active"
    wait_for(
        lambda: service.show("StatusText") == "2 mappings of 1 owner, 3 elements in force; 0 waiting, 0 refused",
        "the status line does not follow",
    )


def test_a_stop_takes_everything_away(stopped: Machine, lab: Lab) -> None:
    before = [lab.host.sysctl(f"net/ipv4/conf/{name}/route_localnet") for name in ("br0", "up0")]
    lab.host.sysctl("net.ipv4.ip_forward", 0)
    stopped.systemctl("start", "nfportd")
    publish(stopped)
    set_meanwhile = lab.host.sysctl("net.ipv4.ip_forward"), lab.host.sysctl("net/ipv4/conf/br0/route_localnet")
    routes_meanwhile = lab.host.ip("-6", "route", "show", "table", "local", "::1")

    stopped.systemctl("stop", "nfportd")

    assert (set_meanwhile, "br0" in routes_meanwhile) == (("1", "1"), True)
    assert table(stopped) == ""
    assert lab.host.sysctl("net.ipv4.ip_forward") == "0"
    assert [lab.host.sysctl(f"net/ipv4/conf/{name}/route_localnet") for name in ("br0", "up0")] == before
    assert "br0" not in lab.host.ip("-6", "route", "show", "table", "local", "::1")
    lab.host.sysctl("net.ipv4.ip_forward", 1)


def test_a_stop_keeps_where_the_settings_say_so(stopped: Machine, lab: Lab) -> None:
    stopped.write("/etc/nfportd/nfportd.yaml", "on_stop: keep\n")
    stopped.systemctl("start", "nfportd")
    publish(stopped)

    stopped.systemctl("stop", "nfportd")

    assert stopped.show("ActiveState") == "inactive"
    assert lab.client.ask(OWN, ASKED).outcome == "answered"


def test_a_restart_loses_no_connection(service: Machine, lab: Lab) -> None:
    publish(service)
    before, load = handle(service), Load(lab.client, OWN, HAMMERED)

    service.systemctl("restart", "nfportd")

    tally = load.end()
    assert (tally.failed, tally.reasons, tally.made > 200) == (0, {}, True)
    assert handle(service) == before


def test_mappings_of_the_api_outlive_a_restart(service: Machine, lab: Lab) -> None:
    service.run("nfportctl", "add", "8090", "10.88.0.11:80", "--name", "kept")

    service.systemctl("restart", "nfportd")

    assert "kept" in service.run("nfportctl", "list").stdout
    assert lab.client.ask(OWN, 8090).outcome == "answered"


def test_a_crash_loses_no_connection(service: Machine, lab: Lab) -> None:
    publish(service)
    before, load = handle(service), Load(lab.client, OWN, HAMMERED)
    old = service.main

    os.kill(old, signal.SIGKILL)
    restarted(service, old)

    tally = load.end()
    assert (tally.failed, tally.reasons, tally.made > 200) == (0, {}, True)
    assert (handle(service), service.show("NRestarts")) == (before, "1")
    service.remove("/etc/nfportd.d/web.yaml")
    wait_for(lambda: lab.client.ask(OWN, ASKED).outcome == "refused", "the new process does not follow files")


def test_the_watchdog_ends_a_process_that_stands_still(stopped: Machine, lab: Lab) -> None:
    stopped.change_unit("[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s\n")
    stopped.systemctl("start", "nfportd")
    publish(stopped)
    old, load = stopped.main, Load(lab.client, OWN, HAMMERED)

    os.kill(old, signal.SIGSTOP)
    restarted(stopped, old)

    tally = load.end()
    assert (tally.failed, tally.reasons, tally.made > 200) == (0, {}, True)
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in stopped.journal("UNIT=nfportd.service"))


def test_the_watchdog_sees_a_libnftables_that_stands_still(stopped: Machine, lab: Lab) -> None:
    stopped.change_unit("[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s\n")
    stopped.systemctl("start", "nfportd")
    publish(stopped)
    old = stopped.main
    time.sleep(1.5)  # longer than the watchdog takes
    alive_before = stopped.main

    (child,) = Path(f"/proc/{old}/task/{old}/children").read_text().split()
    os.kill(int(child), signal.SIGSTOP)
    restarted(stopped, old)

    assert alive_before == old
    assert lab.client.ask(OWN, ASKED).outcome == "answered"
    stacks = "\n".join(str(entry["MESSAGE"]) for entry in stopped.journal("_COMM=nfportd"))
    assert "most recent call first" in stacks


def test_a_reload_returns_when_the_files_are_in_force(service: Machine, lab: Lab) -> None:
    many = dropin(*(mapping(f"m{port}", port, "10.88.0.11:80") for port in range(20000, 20500)))
    service.write("/etc/nfportd.d/many.yaml", many)

    service.systemctl("reload", "nfportd")

    assert lab.client.ask(OWN, 20499).outcome == "answered"
    assert service.show("ActiveState") == "active"


def test_a_reload_fails_with_a_broken_file_and_its_last_good_content_stays(service: Machine, lab: Lab) -> None:
    publish(service)
    service.write("/etc/nfportd.d/web.yaml", BROKEN)

    failed = service.systemctl("reload", "nfportd", check=False)
    asked = service.run("nfportctl", "reload", check=False)

    assert (failed.returncode, asked.returncode) == (1, 1)
    assert "web.yaml:2:13: " in asked.stderr
    assert "port 70000 is out of range" in asked.stderr
    assert (service.show("ActiveState"), lab.client.ask(OWN, ASKED).outcome) == ("active", "answered")
    service.write("/etc/nfportd.d/web.yaml", WEB)
    service.systemctl("reload", "nfportd")


def test_a_reload_that_hangs_ends_and_the_service_goes_on(stopped: Machine, lab: Lab) -> None:
    stopped.change_unit("[Service]\nTimeoutStartSec=2s\n")
    stopped.systemctl("start", "nfportd")
    publish(stopped)
    process = stopped.main
    os.kill(process, signal.SIGSTOP)
    began = time.monotonic()

    failed = stopped.systemctl("reload", "nfportd", check=False)
    took = time.monotonic() - began
    os.kill(process, signal.SIGCONT)

    assert (failed.returncode, 1.5 < took < 8) == (1, True)
    stopped.systemctl("reload", "nfportd")
    assert (stopped.main, lab.client.ask(OWN, ASKED).outcome) == (process, "answered")


def test_the_first_client_starts_the_service(stopped: Machine) -> None:
    before = stopped.show("ActiveState")

    answer = stopped.run("nfportctl", "status")

    assert (before, answer.returncode, stopped.show("ActiveState")) == ("inactive", 0, "active")


def test_a_client_that_comes_during_a_restart_waits(service: Machine) -> None:
    old = service.main

    os.kill(old, signal.SIGKILL)
    answer = service.run("nfportctl", "add", "8091", "10.88.0.11:80")

    assert answer.returncode == 0
    assert "8091" in service.run("nfportctl", "list").stdout


def test_without_its_socket_unit_it_makes_the_socket_itself(stopped: Machine) -> None:
    stopped.systemctl("stop", "nfportd.socket")
    stopped.systemctl("mask", "--runtime", "nfportd.socket")

    stopped.systemctl("start", "nfportd.service")

    assert stopped.run("nfportctl", "status").returncode == 0
    assert stopped.run("stat", "-c", "%U:%G %a", SOCKET).stdout == "nfportd:nfportd 660\n"


def test_the_socket_unit_gives_the_socket_to_the_group(service: Machine) -> None:
    assert service.run("stat", "-c", "%G %a", SOCKET).stdout == "nfportd 660\n"
    as_nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "nfportctl", "status")
    assert service.run(*as_nobody, check=False).returncode == 4
    group = service.run("getent", "group", "nfportd").stdout.split(":")[2]
    as_member = ("setpriv", "--reuid", "65534", "--regid", "65534", "--groups", group, "nfportctl", "status")
    assert service.run(*as_member).returncode == 0

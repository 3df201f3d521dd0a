"""Installation: the Debian package and `make install`, from nothing to nothing, on a booted machine.

It must not know what is in them. The one idea: a machine's files are listed before and after, so that whatever an
installation leaves behind is seen; and clients go on connecting while it is upgraded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import dropin, mapping
from tests.hammer import Load, Tally, serve
from tests.lab import ROOT, Lab
from tests.system.conftest import LOADED, _root_of
from tests.system.machine import SOCKET, Machine, wait_for

pytestmark = pytest.mark.timeout(600)

OWN = "192.0.2.1"
#: What clients ask, and what takes a load.
ASKED, HAMMERED = 8080, 8081
WEB = dropin(mapping("web", ASKED, "10.88.0.11:80"), mapping("load", HAMMERED, f"10.88.0.11:{LOADED}"))
SETTINGS = "/etc/nfportd/nfportd.yaml"

#: What changes by itself, or belongs to dpkg, the journal and systemd.
_NOISE = re.compile(
    r"var/(lib/(dpkg|systemd|apt)|log|cache|tmp|lib/misc)/|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$"
    r"|etc/\.pwd\.lock|etc/ld\.so\.cache|usr/lib/python3|.*__pycache__"
)


#: Asks the API again and again, and ends at the first question that is not answered.
_ASKING = f"""
import socket
import time
while True:
    time.sleep(0.01)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("{SOCKET}")
        sock.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: nfportd\\r\\nConnection: close\\r\\n\\r\\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
"""

#: What bash makes of "nfportctl rem<tab>".
_COMPLETE = """
source /usr/share/bash-completion/completions/nfportctl
COMP_WORDS=(nfportctl rem) COMP_CWORD=1
_nfportctl_completion nfportctl
echo "${COMPREPLY[@]}"
"""


@dataclass
class Life:
    """What has been seen of a package so far."""

    version: str
    machine: Machine
    before: set[str]
    states: tuple[str, str]
    former: int = 0
    tally: Tally | None = None
    unanswered: str = ""


def files(machine: Machine) -> set[str]:
    """Every file and directory of the machine that an installation could have made."""
    found = machine.run("find", "/etc", "/usr", "/opt", "/var", "/lib", "/run/nfportd", "-xdev", check=False).stdout
    return {each for each in found.splitlines() if not _NOISE.match(each.lstrip("/"))}


def table(machine: Machine) -> str:
    """The table as the machine's own nft lists it: an older one knows not every flag."""
    return machine.run("nft", "list", "table", "inet", "nfportd", check=False).stdout


def publish(machine: Machine) -> None:
    machine.write("/etc/nfportd.d/web.yaml", WEB)
    wait_for(lambda: "10.88.0.11" in table(machine), "the mapping is not in force")


@pytest.fixture(scope="module", params=["252", "257"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bare(version: str) -> Iterator[Machine]:
    """A booted machine without nfportd."""
    root = _root_of(version)
    with Lab() as lab:
        lab.t1.serve([80])
        serve(lab.t1, LOADED, "t1")
        made = Machine(lab, root, f"bare{version}")
        try:
            made.boot()
            made.systemctl("disable", "--now", "nfportd.service", "nfportd.socket")
            for place in ("opt/nfportd", "etc/nfportd", "etc/nfportd.d", "var/lib/nfportd", "run/nfportd"):
                shutil.rmtree(made.root / place, ignore_errors=True)
            for place in ("system/nfportd.service", "system/nfportd.socket", "catalog/nfportd.catalog"):
                (made.root / "usr/lib/systemd" / place).unlink()
            for place in ("sysusers.d", "tmpfiles.d"):
                (made.root / "usr/lib" / place / "nfportd.conf").unlink()
            made.systemctl("daemon-reload")
            made.run("userdel", "nfportd")
            # Images of containers forbid packages to start services.
            (made.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def package(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package for the machine's release, as `make deb` builds it."""
    if version == "257" and not (ROOT / "build/deb/trixie").exists():
        pytest.skip("there is no root to build for Debian 13 (make deb-trixie makes one)")
    if version == "252" and not shutil.which("dh"):
        pytest.skip("debhelper is not installed (make deb installs it)")
    output = tmp_path_factory.mktemp("deb")
    command = [str(ROOT / "packaging/deb.sh"), *(["--trixie"] if version == "257" else []), str(output)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def newer(package: Path) -> Path:
    """The same under a higher version."""
    tree = package.parent / "newer"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*", "Version: 9.0", control.read_text(), flags=re.MULTILINE))
    made = package.with_name("nfportd_9.0.deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, made], check=True, capture_output=True)
    return made


def dpkg(machine: Machine, what: str, package: Path | str = "nfportd") -> None:
    """dpkg in the machine; files are handed in."""
    if isinstance(package, Path):
        shutil.copy(package, machine.root / "var/tmp" / package.name)
        package = f"/var/tmp/{package.name}"
    machine.run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", what, package, timeout=120)


# Each of the next three is made once, from the one before: the tests stand in the order of a package's life.


@pytest.fixture(scope="module")
def installed(version: str, bare: Machine, package: Path) -> Life:
    """The package installed, and ports published."""
    before = files(bare)
    dpkg(bare, "--install", package)
    life = Life(version, bare, before, (bare.show("ActiveState"), bare.show("ActiveState", "nfportd.socket")))
    publish(bare)
    return life


@pytest.fixture(scope="module")
def upgraded(installed: Life, newer: Path) -> Life:
    """A higher version over it, with settings that an admin has changed, while clients connect and ask the API."""
    machine = installed.machine
    machine.write(SETTINGS, "mark_bit: 21\non_stop: keep\n")
    machine.systemctl("restart", "nfportd")
    installed.former = machine.main
    asking = machine.popen("setpriv", "--pdeathsig", "KILL", "/usr/bin/python3", "-c", _ASKING)
    load = Load(machine.lab.client, OWN, HAMMERED)
    dpkg(machine, "--install", newer)
    installed.tally = load.end()
    asking.kill()
    installed.unanswered = asking.communicate()[1]
    return installed


@pytest.fixture(scope="module")
def removed(upgraded: Life) -> Life:
    """Not purged: an admin may come back to it."""
    upgraded.machine.write(SETTINGS, "mark_bit: 21\n")
    upgraded.machine.systemctl("restart", "nfportd")
    upgraded.machine.run("nfportctl", "add", "8090", "10.88.0.11:80", "--persistent")
    dpkg(upgraded.machine, "--remove")
    return upgraded


def test_installed_it_runs_and_starts_at_each_boot(installed: Life) -> None:
    machine = installed.machine

    assert installed.states == ("active", "active")
    assert machine.systemctl("is-enabled", "nfportd.service", "nfportd.socket").stdout == "enabled\nenabled\n"
    assert machine.lab.client.ask(OWN, ASKED).outcome == "answered"


def test_its_programs_are_where_one_looks_for_them(installed: Life) -> None:
    machine = installed.machine

    assert "web" in machine.run("/usr/bin/nfportctl", "list").stdout
    assert machine.run("/usr/sbin/nfportd", "check").stdout.endswith("the kernel takes them\n")
    assert '"cniVersion"' in machine.run("env", "CNI_COMMAND=VERSION", "/usr/lib/cni/nfportd-cni").stdout
    assert machine.run("bash", "-c", _COMPLETE).stdout.split() == ["remove"]


def test_lintian_finds_no_error(package: Path) -> None:
    if not shutil.which("lintian"):
        pytest.skip("lintian is not installed (make deb installs it)")

    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error", package], check=False, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_an_upgrade_loses_no_connection(upgraded: Life) -> None:
    assert upgraded.tally is not None
    assert (upgraded.tally.failed, upgraded.tally.reasons, upgraded.tally.made > 200) == (0, {}, True)
    assert upgraded.machine.run("dpkg-query", "-W", "-f", "${Version}", "nfportd").stdout == "9.0"
    assert (upgraded.machine.show("ActiveState"), upgraded.machine.main != upgraded.former) == ("active", True)


def test_who_asks_the_api_during_an_upgrade_gets_an_answer(upgraded: Life) -> None:
    assert upgraded.unanswered == ""


def test_an_upgrade_keeps_what_an_admin_has_written(upgraded: Life) -> None:
    assert (upgraded.machine.root / SETTINGS.lstrip("/")).read_text() == "mark_bit: 21\non_stop: keep\n"
    assert upgraded.machine.lab.client.ask(OWN, ASKED).outcome == "answered"


def test_removed_it_is_off_and_its_config_stays(removed: Life) -> None:
    machine = removed.machine

    assert (machine.lab.client.ask(OWN, ASKED).outcome, table(machine)) == ("refused", "")
    assert machine.show("ActiveState", "nfportd.socket") == "inactive"
    assert (machine.root / SETTINGS.lstrip("/")).read_text() == "mark_bit: 21\n"
    assert (machine.root / "var/lib/nfportd").exists()


def test_purged_it_leaves_only_what_people_wrote(removed: Life) -> None:
    machine = removed.machine
    # What a stop with `on_stop: keep` leaves.
    flags = "" if removed.version == "252" else "{ flags owner, persist; }"
    machine.run("nft", f"add table inet nfportd {flags}")

    dpkg(machine, "--purge")

    assert files(machine) - removed.before == {"/etc/nfportd.d", "/etc/nfportd.d/web.yaml"}
    assert machine.run("nft", "list", "tables").stdout == ""
    assert machine.systemctl("list-unit-files", "--no-legend", "nfportd*", check=False).stdout == ""
    assert machine.systemctl("list-units", "--all", "--no-legend", "nfportd*").stdout == ""
    shutil.rmtree(machine.root / "etc/nfportd.d")


def test_make_install_and_make_uninstall(bare: Machine, version: str, tmp_path: Path) -> None:
    if version != "252":
        pytest.skip("a venv belongs to the Python that made it, and this host has one only")
    if subprocess.run(["/usr/bin/python3", "-c", "import hatchling"], check=False, capture_output=True).returncode:
        pytest.skip("python3-hatchling is not installed (make install installs it)")
    before = files(bare)
    script = str(ROOT / "packaging/install.sh")
    subprocess.run([script, "install"], env={**os.environ, "DESTDIR": str(tmp_path / "dest")}, check=True)
    shutil.copytree(tmp_path / "dest", bare.root, symlinks=True, dirs_exist_ok=True)
    for command in ("systemd-sysusers", "systemd-tmpfiles --create nfportd.conf", "systemctl daemon-reload"):
        bare.run(*command.split())

    bare.systemctl("enable", "--now", "nfportd.service")
    publish(bare)
    assert bare.lab.client.ask(OWN, ASKED).outcome == "answered"
    assert bare.run("/usr/local/bin/nfportctl", "list").stdout.count(" web ") == 1
    done = bare.run("/src/packaging/install.sh", "uninstall")

    assert done.stdout == "kept: /etc/nfportd.d\n"
    shutil.rmtree(bare.root / "etc/nfportd.d")
    assert {each for each in files(bare) - before if not each.startswith("/usr/local")} == set()
    assert [each for each in files(bare) - before if (bare.root / each.lstrip("/")).is_file()] == []
    assert (bare.lab.client.ask(OWN, ASKED).outcome, table(bare)) == ("refused", "")
    assert bare.run("getent", "passwd", "nfportd", check=False).stdout == ""

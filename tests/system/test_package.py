"""Installation: the Debian package and `make install`, from nothing to nothing, on a booted machine.

It must not know what is in them. The one idea: a machine's files are listed before and after, so that whatever an
installation leaves behind is seen; and clients go on connecting while it is upgraded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import dropin, mapping
from tests.hammer import Load, serve
from tests.lab import ROOT, Lab
from tests.system.conftest import LOADED, _root_of
from tests.system.machine import SOCKET, Machine, wait_for

pytestmark = pytest.mark.timeout(600)

OWN = "192.0.2.1"
PORT = 8080
WEB = dropin(mapping("web", PORT, f"10.88.0.11:{LOADED}"))
SETTINGS = "/etc/nfportd/nfportd.yaml"

#: What changes by itself, or belongs to dpkg, the journal and systemd.
_NOISE = re.compile(
    r"var/(lib/(dpkg|systemd|apt)|log|cache|tmp|lib/misc)/|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$"
    r"|etc/\.pwd\.lock|etc/ld\.so\.cache|usr/lib/python3|.*__pycache__"
)


def files(machine: Machine) -> set[str]:
    """Every file and directory of the machine that an installation could have made."""
    found = machine.run("find", "/etc", "/usr", "/opt", "/var", "/lib", "/run/nfportd", "-xdev", check=False).stdout
    return {each for each in found.splitlines() if not _NOISE.match(each.lstrip("/"))}


def table(machine: Machine) -> str:
    return machine.lab.host.run(["nft", "list", "table", "inet", "nfportd"], check=False).stdout


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
    command = [ROOT / "packaging/deb.sh", *(["--trixie"] if version == "257" else []), output]
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
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, made], check=True, capture_output=True)
    return made


@pytest.fixture
def dpkg(bare: Machine) -> Iterator[Callable[..., str]]:
    """dpkg in the machine; files are handed in. Afterwards the package is gone."""

    def run(what: str, package: Path | str = "nfportd") -> str:
        if isinstance(package, Path):
            shutil.copy(package, bare.root / "var/tmp" / package.name)
            package = f"/var/tmp/{package.name}"
        environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
        done = bare.run(*environment, "dpkg", what, package, timeout=120)
        return done.stdout + done.stderr

    yield run
    bare.run("dpkg", "--purge", "nfportd", check=False)
    shutil.rmtree(bare.root / "etc/nfportd.d", ignore_errors=True)


def test_installed_it_runs_and_starts_at_each_boot(bare: Machine, dpkg: Callable[..., str], package: Path) -> None:
    dpkg("--install", package)

    assert bare.show("ActiveState") == "active"
    assert bare.systemctl("is-enabled", "nfportd.service", "nfportd.socket").stdout.split() == ["enabled", "enabled"]
    assert bare.run("nfportctl", "list").stdout
    assert bare.run("nfportd", "check").stdout.endswith("the kernel takes them\n")
    assert (bare.root / "proc" / bare.show("MainPID") / "cmdline").read_bytes().count(b"/usr/lib/nfportd/bin/nfportd")
    assert bare.run("/usr/lib/cni/nfportd-cni", check=False).stdout.startswith('{"cniVersion"')
    publish(bare)
    assert bare.lab.client.ask(OWN, PORT).outcome == "answered"


def test_an_upgrade_loses_no_connection_and_keeps_the_config(
    bare: Machine, dpkg: Callable[..., str], package: Path, newer: Path
) -> None:
    dpkg("--install", package)
    bare.write(SETTINGS, "mark_bit: 21\n")
    bare.systemctl("restart", "nfportd")
    publish(bare)
    before, load = bare.main, Load(bare.lab.client, OWN, PORT)

    dpkg("--install", newer)

    tally = load.end()
    assert (tally.failed, tally.reasons, tally.made > 200) == (0, {}, True)
    assert bare.run("dpkg-query", "-W", "-f", "${Version}", "nfportd").stdout == "9.0"
    assert (bare.show("ActiveState"), bare.main != before) == ("active", True)
    assert (bare.root / SETTINGS.lstrip("/")).read_text() == "mark_bit: 21\n"
    assert bare.lab.client.ask(OWN, PORT).outcome == "answered"


def test_who_asks_the_api_during_an_upgrade_waits(
    bare: Machine, dpkg: Callable[..., str], package: Path, newer: Path
) -> None:
    dpkg("--install", package)
    script = (
        f"import socket, sys\nwhile True:\n s = socket.socket(socket.AF_UNIX)\n s.connect('{SOCKET}')\n s.close()\n"
    )
    asking = bare.popen("/usr/bin/python3", "-c", script)

    dpkg("--install", newer)

    assert asking.poll() is None, asking.communicate()[1]
    asking.kill()


def test_removed_it_is_off_and_installed_again_it_goes_on(
    bare: Machine, dpkg: Callable[..., str], package: Path
) -> None:
    dpkg("--install", package)
    publish(bare)

    dpkg("--remove")
    off = bare.lab.client.ask(OWN, PORT).outcome

    assert (off, table(bare), bare.show("ActiveState", "nfportd.socket")) == ("refused", "", "inactive")
    assert (bare.root / SETTINGS.lstrip("/")).exists()
    dpkg("--install", package)
    wait_for(lambda: "10.88.0.11" in table(bare), "the mapping is not in force again")
    assert bare.lab.client.ask(OWN, PORT).outcome == "answered"


def test_purged_it_leaves_only_what_people_wrote(bare: Machine, dpkg: Callable[..., str], package: Path) -> None:
    before = files(bare)
    dpkg("--install", package)
    bare.write(SETTINGS, "on_stop: keep\n")
    bare.systemctl("restart", "nfportd")
    publish(bare)
    bare.run("nfportctl", "add", "8090", "10.88.0.11:80", "--persistent")

    dpkg("--purge")

    assert files(bare) - before == {"/etc/nfportd.d", "/etc/nfportd.d/web.yaml"}
    assert table(bare) == ""
    assert bare.systemctl("list-unit-files", "nfportd*", check=False).stdout.startswith("0 unit files")
    assert bare.systemctl("list-units", "--all", "--no-legend", "nfportd*").stdout == ""


def test_make_install_and_make_uninstall(bare: Machine, version: str, tmp_path: Path) -> None:
    if version != "252":
        pytest.skip("a venv belongs to the Python that made it, and this host has one only")
    before = files(bare)
    script = str(ROOT / "packaging/install.sh")
    subprocess.run([script, "install"], env={**os.environ, "DESTDIR": str(tmp_path / "dest")}, check=True)
    shutil.copytree(tmp_path / "dest", bare.root, symlinks=True, dirs_exist_ok=True)
    for command in ("systemd-sysusers", "systemd-tmpfiles --create nfportd.conf", "systemctl daemon-reload"):
        bare.run(*command.split())

    bare.systemctl("enable", "--now", "nfportd.service")
    publish(bare)
    assert bare.lab.client.ask(OWN, PORT).outcome == "answered"
    assert bare.run("/usr/local/bin/nfportctl", "list").stdout.count("web") == 1
    done = bare.run("/src/packaging/install.sh", "uninstall")

    assert done.stdout == "kept: /etc/nfportd.d\n"
    shutil.rmtree(bare.root / "etc/nfportd.d")
    assert {each for each in files(bare) - before if not each.startswith("/usr/local")} == set()
    assert [each for each in files(bare) - before if (bare.root / each.lstrip("/")).is_file()] == []
    assert (bare.lab.client.ask(OWN, PORT).outcome, table(bare)) == ("refused", "")
    assert bare.run("getent", "passwd", "nfportd", check=False).stdout == ""

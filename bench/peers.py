"""The programs of others that the benches measure beside nfportd, from Debian sid: CNI's `portmap`, and netavark.

Must not change the host's packages or apt's state: lists and cache are its own, in build/. The one idea: whatever
is in the way (no network, a libc too old), the reason is told and the bench goes on with nfportd alone.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import ROOT

#: The packages of `portmap` and of netavark, and the C library of the same release, with which netavark runs.
PORTMAP, NETAVARK = "containernetworking-plugins", "netavark"
PACKAGES = (PORTMAP, NETAVARK, "libc6", "libgcc-s1")
PLACE = ROOT / "build/peers"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unavailable(Exception):
    """A peer that cannot be had here, and why."""


def portmap() -> tuple[Path, str]:
    """The plugin, fetched where it is not there yet, and the version of its package."""
    program = _program(PORTMAP, "usr/lib/cni/portmap")
    with _reasons(PORTMAP):
        asked = _run(program, text='{"cniVersion": "1.0.0"}', CNI_COMMAND="VERSION")
        if "1.0.0" not in json.loads(asked)["supportedVersions"]:
            raise Unavailable(f"{program} speaks other versions of CNI: {asked}")
    return program, _version(PORTMAP)


def netavark() -> tuple[list[str], str]:
    """The command that runs netavark with the C library of its release, and the version of its package."""
    program = _program(NETAVARK, "usr/lib/podman/netavark")
    with _reasons(NETAVARK):
        library = next((PLACE / "root").glob("**/libc.so.6"), Path("missing")).parent
        loader = next(library.glob("ld-linux-*.so.*"), library)
        command = [str(loader), "--library-path", str(library), str(program)]
        _run(*command, "--version")
    return command, _version(NETAVARK)


def _program(package: str, path: str) -> Path:
    program = PLACE / "root" / path
    with _reasons(package):
        if not program.exists():
            _fetch()
    return program


@contextmanager
def _reasons(package: str) -> Iterator[None]:
    """Whatever goes wrong in the body makes this peer unavailable."""
    try:
        yield
    except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or error
        raise Unavailable(f"{package} of Debian sid: {str(why).strip()}") from None


def _version(package: str) -> str:
    return str(re.findall(rf"{package}_([^_]+)_", " ".join(each.name for each in PLACE.glob("*.deb")))[0])


def _fetch() -> None:
    """From the first mirror that has them, the packages and their content into build/peers."""
    shutil.rmtree(PLACE, ignore_errors=True)
    for part in ("lists/partial", "cache/archives/partial"):
        (PLACE / part).mkdir(parents=True)
    (PLACE / "status").touch()
    refused = None
    for mirror in _mirrors():
        (PLACE / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} sid main\n")
        try:
            _run("apt-get", *_private(), "-qq", "update")
            _run("apt-get", *_private(), "-qq", "download", *(f"{package}/sid" for package in PACKAGES))
        except subprocess.CalledProcessError as error:
            refused = error
            continue
        for package in PLACE.glob("*.deb"):
            _run("dpkg-deb", "-x", package, PLACE / "root")
        shutil.rmtree(PLACE / "lists")
        return
    raise refused or Unavailable("apt's sources name no Debian mirror")


def _mirrors() -> Iterator[str]:
    """The mirrors from which this system installs its own release: apt itself reads its sources, of either format."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    listed = _run("apt-get", "--print-uris", "update")
    for uri in re.findall(rf"^'(.*)/dists/(?:{suite}|stable)/InRelease' ", listed, re.M):
        if uri.startswith("mirror+file:"):
            yield from re.findall(r"^https?:\S+", Path(uri.removeprefix("mirror+file:")).read_text(), re.M)
        else:
            yield uri


def _private() -> list[str]:
    """apt's options for sources, lists and a cache of its own; root fetches, for _apt cannot write there."""
    options = {"Dir::Etc::sourcelist": "sources.list", "Dir::State::lists": "lists", "Dir::Cache": "cache"}
    options |= {"Dir::State::status": "status"}
    settings = [f"{name}={PLACE / path}" for name, path in options.items()]
    settings += ["Dir::Etc::sourceparts=-", "Dir::Etc::preferencesparts=-", "APT::Sandbox::User=root"]
    settings += ["Acquire::Languages=none", "APT::Update::Error-Mode=any"]
    return [part for setting in settings for part in ("-o", setting)]


def _run(*command: str | Path, text: str = "", **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        input=text,
        env=os.environ | {"LC_ALL": "C.UTF-8"} | environment,
        cwd=PLACE if PLACE.exists() else ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout

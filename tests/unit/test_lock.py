"""What an installation brings along is pinned, with hashes: every dependency of pyproject.toml and what that needs.

It must not ask a registry. The one idea: the lock is read as pip reads it, and held against what pyproject.toml allows.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
#: Debian's own: packaging/lock.sh says why.
FROM_DEBIAN = {"pyyaml", "systemd-python"}


def locked() -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each pinned package."""
    text = (ROOT / "packaging/requirements.lock").read_text().replace("\\\n", " ")
    found = {}
    for line in filter(None, re.sub(r"#.*", "", text).splitlines()):
        pinned, *hashes = line.split()
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9.]*)", pinned).groups()  # type: ignore[union-attr]
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
        found[str(canonicalize_name(name))] = (str(version), len(hashes))
    return found


def needed() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {canonicalize_name(need.name): need for need in map(Requirement, project["dependencies"])}
    return {name: need for name, need in found.items() if name not in FROM_DEBIAN}


def test_every_dependency_is_pinned_within_what_is_allowed() -> None:
    pins = locked()

    assert {name for name, need in needed().items() if name not in pins or pins[name][0] not in need.specifier} == set()


def test_every_pin_has_hashes() -> None:
    assert [name for name, (_, hashes) in locked().items() if not hashes] == []


def test_the_lock_holds_what_the_dependencies_need_and_nothing_else() -> None:
    """As the installed packages say it themselves, on this Python."""
    seen, left = set[str](), list(needed())
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        for need in map(Requirement, importlib.metadata.requires(name) or ()):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                left.append(canonicalize_name(need.name))
    # Older versions of Python than 3.13 need one more, and pip-compile locks for the oldest.
    assert seen <= set(locked())
    assert set(locked()) - seen <= {"typing-extensions"}

"""What the tests share: a laboratory a module, a daemon in it, and what a failure shows.

It must not know what a test asserts. The one idea: a failed test prints the host's ruleset and the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from tests.lab import TARGETS, Daemon, Lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [("laboratory", lab.report()) for lab in Lab.alive]
    return report


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A laboratory a module."""
    yield from furnished()


def furnished() -> Iterator[Lab]:
    """The host with its targets, each of which answers on port 80 with its name."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab() as built:
        for name in TARGETS:
            built.spaces[name].serve([80])
        yield built


@pytest.fixture
def start(lab: Lab) -> Iterator[Callable[..., Daemon]]:
    """Start daemons in the host for one test; they are stopped, and the table removed, at its end."""
    begun: list[Daemon] = []

    def begin(files: dict[str, str] | None = None, **options: Any) -> Daemon:
        daemon = Daemon(lab, **options)
        begun.append(daemon)
        for name, text in (files or {}).items():
            (daemon.dropins / name).write_text(text)
        daemon.start()
        return daemon

    yield begin
    for daemon in begun:
        if daemon.process is not None:
            daemon.stop()
        lab.daemons.remove(daemon)
    lab.reset()


def mapping(name: str, listen: str | int, *targets: str, **more: str) -> str:
    """One mapping of a drop-in, as a user writes it."""
    lines = [f"  - name: {name}", f'    listen: "{listen}"']
    lines.append("    targets: [" + ", ".join(f'"{target}"' for target in targets) + "]")
    lines += [f"    {key}: {value}" for key, value in more.items()]
    return "\n".join(lines) + "\n"


def dropin(*mappings: str) -> str:
    return "mappings:\n" + "".join(mappings) if mappings else "mappings: []\n"

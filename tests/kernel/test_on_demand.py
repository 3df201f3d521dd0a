"""Chains that cost every packet stand only where a mapping has a use for them, and from its first packet on.

It must not know what is in them. The one idea: the chains' names before, with and after such a mapping.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import dropin, mapping
from tests.kernel.test_lifecycle import Monitor, handles
from tests.lab import Daemon, Lab

PLAIN = mapping("web", 8080, "10.88.0.11:80")
GUARDED = mapping("guarded", 8081, "10.88.0.11:80", sources="[203.0.113.0/24]")
ISOLATED = mapping("isolated", 8082, "10.88.0.12:80", isolate="true")
SOURCES = {"admission"}
ISOLATION = {"isolation_forward", "isolation_output", "isolation_input"}


def standing(daemon: Daemon) -> set[str]:
    return daemon.objects("chain").keys() & (SOURCES | ISOLATION)


def reaches(lab: Lab, address: str, port: int) -> bool:
    return lab.client.ask(address, port, timeout=0.3).outcome == "answered"


def test_without_use_there_are_none(start: Callable[..., Daemon]) -> None:
    assert standing(start({"web.yaml": dropin(PLAIN)})) == set()


@pytest.mark.parametrize(
    ("added", "chains", "closed"),
    [(GUARDED, SOURCES, ("192.0.2.1", 8081)), (ISOLATED, ISOLATION, ("10.88.0.12", 80))],
    ids=["sources", "isolate"],
)
def test_they_come_with_the_first_mapping_that_needs_them(
    lab: Lab, start: Callable[..., Daemon], added: str, chains: set[str], closed: tuple[str, int]
) -> None:
    daemon = start({"web.yaml": dropin(PLAIN)})
    daemon.write("web.yaml", dropin(PLAIN, added))
    assert standing(daemon) == chains
    assert not reaches(lab, *closed)
    assert reaches(lab, "192.0.2.1", 8080)
    made = handles(daemon)
    daemon.kill9()
    monitor = Monitor(lab)
    daemon.start()
    assert [line for line in monitor.end() if not line.startswith("add table inet nfportd")] == []
    assert handles(daemon) == made
    assert not reaches(lab, *closed)


def test_a_table_made_anew_has_them_from_the_start(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start({"web.yaml": dropin(PLAIN, GUARDED, ISOLATED)})
    assert standing(daemon) == SOURCES | ISOLATION
    assert not reaches(lab, "192.0.2.1", 8081)
    daemon.stop()
    (daemon.dropins / "web.yaml").write_text(dropin(PLAIN))
    daemon.start()
    assert standing(daemon) == set()

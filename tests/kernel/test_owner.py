"""A table that belongs to the daemon: other programs cannot take it away, and it outlives the process.

It must not know how the flags are probed for. The one idea: what another program tries is told by its exit status and
by the connections that go on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfportd import ruleset
from tests.api.calling import Commits, client, eventually
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint

Start = Callable[..., Daemon]
OWN = "192.0.2.1"


def web(name: str, port: int = 8080) -> str:
    return dropin(mapping("web", port, endpoint(address(name, 4), 80), endpoint(address(name, 6), 80)))


@pytest.fixture
def owned(lab: Lab) -> None:
    probe = lab.host.run(["nft", "-c", "add table inet nfportd_probe { flags owner, persist; }"], check=False)
    if probe.returncode:
        pytest.skip("this nft or kernel knows no tables with the flags owner, persist (nft >= 1.1.0, Linux >= 6.9)")


@pytest.mark.usefixtures("owned")
@pytest.mark.parametrize(
    "command",
    [
        "delete table inet nfportd",
        "add element inet nfportd any4 { tcp . 9999 : 10.88.0.12 . 80 }",
        "flush chain inet nfportd dispatch",
        "flush map inet nfportd any4",
    ],
)
def test_another_program_is_refused(lab: Lab, start: Start, command: str) -> None:
    start({"web.yaml": web("t1")})
    assert lab.host.run(["nft", command], check=False).returncode != 0
    assert lab.outside.ask(OWN, 8080).target == "t1"


@pytest.mark.usefixtures("owned")
def test_a_flush_of_the_whole_ruleset_leaves_the_table(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1")})
    lab.host.run(["nft", "add table inet other"])
    before = daemon.table()
    lab.host.run(["nft", "flush ruleset"], check=False)
    assert "other" not in lab.host.run(["nft", "list", "tables"]).stdout
    assert lab.outside.ask(OWN, 8080).target == "t1"
    daemon.write("web.yaml", web("t2"))
    assert lab.outside.ask(OWN, 8080).target == "t2"
    assert {c["handle"] for c in daemon.objects("chain").values()} == {
        item["chain"]["handle"] for item in before["nftables"] if "chain" in item
    }


@pytest.mark.usefixtures("owned")
def test_the_next_start_takes_the_table_over(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1")})
    chains = {name: chain["handle"] for name, chain in daemon.objects("chain").items()}
    daemon.kill9()
    assert lab.outside.ask(OWN, 8080).target == "t1"
    (daemon.dropins / "web.yaml").write_text(web("t2"))
    daemon.start()
    assert lab.outside.ask(OWN, 8080).target == "t2"
    assert {name: chain["handle"] for name, chain in daemon.objects("chain").items()} == chains
    assert lab.host.run(["nft", "delete table inet nfportd"], check=False).returncode != 0
    assert daemon.stop() == 0
    assert "nfportd" not in lab.host.run(["nft", "list", "tables"]).stdout


def flags(daemon: Daemon) -> object:
    return next(item["table"] for item in daemon.table()["nftables"] if "table" in item).get("flags")


def owners_of(daemon: Daemon) -> list[int]:
    """The process whose socket the table belongs to, as the daemon has it, too: its child that runs libnftables."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return [int(each) for each in children if b"nft_worker" in Path(f"/proc/{each}/cmdline").read_bytes()]


@pytest.mark.usefixtures("owned")
@pytest.mark.parametrize(
    "meddling",
    [
        "",
        "flush map inet nfportd any4",
        "flush chain inet nfportd dispatch; add element inet nfportd any4 { tcp . 9999 : 10.88.0.12 . 80 }",
        "flush ruleset",
        "delete table inet nfportd",
    ],
)
def test_it_belongs_to_the_daemon_again_when_the_owner_was_killed(lab: Lab, start: Start, meddling: str) -> None:
    """What others do in the moment without an owner is repaired."""
    daemon = start({"web.yaml": web("t1")})
    elements, before = daemon.elements("any4"), owners_of(daemon)
    os.kill(before[0], signal.SIGKILL)
    # Until the daemon has taken it again; then this is refused.
    if meddling:
        lab.host.run(["nft", meddling], check=False)

    eventually(lambda: bool(set(owners_of(daemon)) - set(before)), True)
    eventually(lambda: lab.outside.ask(OWN, 8080, timeout=0.3).target, "t1")
    eventually(lambda: flags(daemon), ["owner", "persist"])
    eventually(lambda: lab.host.run(["nft", "add chain inet nfportd other"], check=False).returncode != 0, True)
    eventually(lambda: daemon.elements("any4"), elements)
    with client(daemon) as api:
        eventually(lambda: api.get("/v1/status")["table"], "intact")
    daemon.write("web.yaml", web("t2"))
    assert lab.outside.ask(OWN, 8080).target == "t2"


@pytest.mark.usefixtures("owned")
def test_drift_in_the_gap_is_repaired(lab: Lab, start: Start) -> None:
    """The next owner stands still meanwhile, so the gap is long enough for everything."""
    daemon = start({"web.yaml": web("t1")})
    elements, before = daemon.elements("any4"), owners_of(daemon)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: bool(set(owners_of(daemon)) - set(before)), True)
    (following,) = set(owners_of(daemon)) - set(before)
    os.kill(following, signal.SIGSTOP)
    try:
        eventually(lambda: flags(daemon), "persist")
        lab.host.nft("flush chain inet nfportd dispatch\nflush map inet nfportd any4\nadd chain inet nfportd other\n")
    finally:
        os.kill(following, signal.SIGCONT)
    daemon.wait_for("repaired: ")
    eventually(lambda: lab.outside.ask(OWN, 8080, timeout=0.3).target, "t1")
    assert daemon.elements("any4") == elements
    assert "other" not in daemon.objects("chain")
    assert flags(daemon) == ["owner", "persist"]


@pytest.mark.usefixtures("owned")
def test_while_the_daemon_stands_still_its_child_may_die(lab: Lab, start: Start) -> None:
    """The table belongs to the socket that both have."""
    daemon = start({"web.yaml": web("t1")})
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        os.kill(owners_of(daemon)[0], signal.SIGKILL)
        time.sleep(0.2)
        assert flags(daemon) == ["owner", "persist"]
        assert lab.host.run(["nft", "flush chain inet nfportd dispatch"], check=False).returncode != 0
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    daemon.wait_for("libnftables runs again")
    eventually(lambda: flags(daemon), ["owner", "persist"])


@pytest.mark.usefixtures("owned")
def test_a_start_after_kill_9_writes_nothing_but_its_ownership(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1")})
    before = daemon.table()
    daemon.kill9()
    eventually(lambda: flags(daemon), "persist")  # its child ends with it
    with Commits(lab.host) as commits:
        daemon.start()
        time.sleep(0.1)
        # A table, and the generation that this made.
        assert commits.seen() <= 2
    assert "applied: all files: +0 -0 elements" in daemon.log
    assert daemon.table() == before


@pytest.mark.usefixtures("owned")
def test_a_table_without_an_owner_is_adopted_and_gets_one_after_a_stop(lab: Lab, start: Start) -> None:
    """After an upgrade from nft 1.0.6: the kernel gives a live table no owner."""
    lab.host.nft(ruleset.skeleton(13))
    lab.host.nft(f"add element inet nfportd any4 {{ tcp . 8080 : {address('t1', 4)} . 80 }}")
    daemon = start({"web.yaml": web("t1")})
    assert "the table keeps having no owner; it gets one when it is made anew, after a stop" in daemon.log
    assert flags(daemon) is None
    with client(daemon) as api:
        status = api.get("/v1/status")
        assert (status["table"], status["features"]) == ("intact", {"owner_persist": False})
    lab.host.run(["nft", "flush ruleset"])
    daemon.wait_for("repaired: ")
    assert lab.outside.ask(OWN, 8080).target == "t1"
    assert daemon.stop() == 0
    daemon.start()
    assert flags(daemon) == ["owner", "persist"]


def test_without_the_flags_it_says_so(lab: Lab, start: Start) -> None:
    probe = lab.host.run(["nft", "-c", "add table inet nfportd_probe { flags owner, persist; }"], check=False)
    daemon = start({"web.yaml": web("t1")})
    flags = next(item["table"] for item in daemon.table()["nftables"] if "table" in item).get("flags")
    assert bool(flags) == (probe.returncode == 0)
    assert ("no flags owner, persist" in daemon.log) == (probe.returncode != 0)

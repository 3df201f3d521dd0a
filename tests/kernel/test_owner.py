"""A table that belongs to the daemon: other programs cannot take it away, and it outlives the process.

It must not know how the flags are probed for. The one idea: what another program tries is told by its exit status and
by the connections that go on.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

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


def test_without_the_flags_it_says_so(lab: Lab, start: Start) -> None:
    probe = lab.host.run(["nft", "-c", "add table inet nfportd_probe { flags owner, persist; }"], check=False)
    daemon = start({"web.yaml": web("t1")})
    flags = next(item["table"] for item in daemon.table()["nftables"] if "table" in item).get("flags")
    assert bool(flags) == (probe.returncode == 0)
    assert ("no flags owner, persist" in daemon.log) == (probe.returncode != 0)

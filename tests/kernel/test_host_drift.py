"""What others undo beside the table: parameters and routes that nfportd has set; and what is only the network's doing.

It must not know how the change is noticed. The one idea: connections from everywhere say that all is well again, and
the count of repairs says whose doing it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from nfportd.client import Client
from tests.api.calling import ask, client
from tests.conftest import dropin, mapping
from tests.lab import HOST, Daemon, Lab, address, endpoint

OWN = {4: "192.0.2.1", 6: "2001:db8::1"}
PORTS = {"t1": 8080, "t3": 8081, "t4": 8082}
#: Seconds in which all is well again: parameters are looked at each second, everything else is told by the kernel.
PATIENCE = 3.0
#: Seconds for which one line about repairs may keep the next out of the log.
QUIET = 1.1


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """One for the module, with targets behind two bridges and one behind a routed link."""
    lab.bridge_netfilter(False)
    made = Daemon(lab)
    ports = (
        mapping(name, port, endpoint(address(name, 4), 80), endpoint(address(name, 6), 80))
        for name, port in PORTS.items()
    )
    (made.dropins / "web.yaml").write_text(dropin(*ports))
    made.start()
    yield made
    if made.process is not None:
        made.stop()
    lab.reset()


@pytest.fixture
def api(daemon: Daemon) -> Iterator[Client]:
    with client(daemon) as made:
        yield made


def fails(lab: Lab, name: str) -> list[str]:
    """What does not reach a target: from outside, from the host's loopback, from the target itself."""
    wrong = []
    for family, loopback in ((4, "127.0.0.1"), (6, "::1")):
        for space, to in ((lab.outside, OWN[family]), (lab.host, loopback), (lab.spaces[name], OWN[family])):
            answer = space.ask(to, PORTS[name], timeout=0.25)
            if answer.target != name:
                wrong.append(f"{space.name} to {to}: {answer.outcome}")
    return wrong


def well_again(lab: Lab, *names: str) -> None:
    until = time.monotonic() + PATIENCE
    while wrong := [each for name in names for each in fails(lab, name)]:
        assert time.monotonic() < until, wrong
        time.sleep(0.02)


def repairs(api: Client) -> int:
    return int(api.get("/v1/status")["repairs"]["count"])


def counted(daemon: Daemon) -> float:
    lines = ask(daemon, "GET", "/metrics").content.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("nfportd_repairs_total "))


def set_to_0(name: str) -> Callable[[Lab], object]:
    return lambda lab: lab.host.sysctl(name, 0)


def without_route(link: str) -> Callable[[Lab], object]:
    return lambda lab: lab.host.ip("-6", "route", "del", "local", "::1", "dev", link, "table", "local")


@pytest.mark.parametrize(
    ("undo", "named"),
    [
        (set_to_0("net/ipv4/ip_forward"), r"net\.ipv4\.ip_forward=1 was undone"),
        (set_to_0("net/ipv6/conf/all/forwarding"), r"net\.ipv6\.conf\.all\.forwarding=1 was undone"),
        (set_to_0("net/ipv4/conf/br0/route_localnet"), r"net\.ipv4\.conf\.br0\.route_localnet=1 was undone"),
        (without_route("veth3"), r"route local ::1 dev veth3 was undone"),
    ],
    ids=["ip_forward", "forwarding", "route_localnet", "::1"],
)
def test_what_is_undone_is_done_again_and_told(
    lab: Lab, daemon: Daemon, api: Client, undo: Callable[[Lab], object], named: str
) -> None:
    well_again(lab, *PORTS)
    time.sleep(QUIET)
    seen, before = len(daemon.log), (repairs(api), counted(daemon))
    undo(lab)

    line = daemon.wait_for(rf"repaired: {named}; right again in [0-9.]+ ms", seen, PATIENCE)
    well_again(lab, *PORTS)
    assert (repairs(api), counted(daemon)) == (before[0] + 1, before[1] + 1)
    last = api.get("/v1/status")["repairs"]["last"]
    assert last in line
    events = (json.loads(each) for each in api.events(0))
    assert next(each for each in events if each["detail"] == last)["kind"] == "repaired"


@pytest.fixture
def untold(daemon: Daemon, api: Client) -> Iterator[None]:
    """Nothing of this is a repair: nobody undid what was ours."""
    seen, before = len(daemon.log), (repairs(api), counted(daemon))
    yield
    assert (repairs(api), counted(daemon)) == before, daemon.log[seen:]
    assert "repaired:" not in daemon.log[seen:]


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize(("link", "target"), [("br1", "t4"), ("veth3", "t3")])
def test_a_link_that_is_renamed_and_renamed_back(lab: Lab, link: str, target: str) -> None:
    well_again(lab, target)
    for before, after in ((link, "other0"), ("other0", link)):
        lab.host.ip("link", "set", before, "name", after)
        well_again(lab, target)
        assert f'"{after}"' in lab.host.nft("list set inet nfportd onlink4")
        assert f'"{before}"' not in lab.host.nft("list set inet nfportd onlink4")


@pytest.mark.usefixtures("untold")
def test_a_bridge_that_is_made_anew_with_the_same_name(lab: Lab) -> None:
    well_again(lab, "t4")
    lab.host.ip("link", "del", "br1")
    lab.bridge(lab.host, "br1")
    lab.host.ip("link", "set", "v-t4", "master", "br1")
    lab.host.run(["bridge", "link", "set", "dev", "v-t4", "hairpin", "on"])
    (four, six) = HOST["br1"]
    lab.host.batch(f"addr add {four[0]}/24 dev br1\naddr add {six[0]}/64 dev br1 nodad\n")
    well_again(lab, "t4")


def number_veth3(lab: Lab) -> None:
    """The addresses and routes of the routed link, on the host's side."""
    lab.host.batch(
        "addr replace 10.88.1.1 peer 10.88.1.2/32 dev veth3\naddr replace fd88:0:0:1::1/128 dev veth3 nodad\n"
        "route replace fd88:0:0:1::2/128 dev veth3\n"
    )


@pytest.mark.usefixtures("untold")
def test_a_routed_link_that_is_made_anew_with_the_same_name(lab: Lab) -> None:
    well_again(lab, "t3")
    lab.host.ip("link", "del", "veth3")
    lab.link(lab.t3, "eth0", lab.host, "veth3")
    number_veth3(lab)
    lab.t3.batch(
        "addr add 10.88.1.2 peer 10.88.1.1/32 dev eth0\nroute add default via 10.88.1.1\n"
        "addr add fd88:0:0:1::2/128 dev eth0 nodad\nroute add fd88:0:0:1::1/128 dev eth0\n"
        "route add default via fd88:0:0:1::1\n"
    )
    well_again(lab, "t3")


@pytest.mark.usefixtures("untold")
def test_a_link_that_goes_down_and_up_at_once(lab: Lab) -> None:
    """The kernel takes all IPv6 routes of a link away with it, also ours."""
    well_again(lab, "t3")
    lab.host.batch("link set veth3 down\nlink set veth3 up\n")
    number_veth3(lab)
    well_again(lab, "t3")


@pytest.mark.usefixtures("untold")
def test_an_on_link_route_that_goes_and_comes(lab: Lab, daemon: Daemon) -> None:
    well_again(lab, "t4")
    routes = "route {0} 10.88.2.0/24 dev br1 proto kernel scope link src 10.88.2.1\nroute {0} fd88:0:0:2::/64 dev br1\n"
    seen = len(daemon.log)
    lab.host.batch(routes.format("del"))
    daemon.wait_for("no route leads to target 10.88.2.11", seen)
    lab.host.batch(routes.format("add"))
    well_again(lab, "t4")


def test_at_the_end_everything_is_given_back(lab: Lab, daemon: Daemon) -> None:
    """Also what came by another name meanwhile."""
    well_again(lab, *PORTS)
    lab.host.ip("link", "set", "veth3", "name", "other0")
    try:
        well_again(lab, "t3")
        assert lab.host.sysctl("net/ipv4/conf/other0/route_localnet") == "1"
        assert daemon.stop() == 0
        for name in ("br0", "br1", "other0"):
            assert lab.host.sysctl(f"net/ipv4/conf/{name}/route_localnet") == "0"
        assert lab.host.ip("-6", "route", "show", "table", "local", "proto", "110") == ""
    finally:
        lab.host.ip("link", "set", "other0", "name", "veth3")

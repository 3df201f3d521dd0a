"""What the host must allow follows its links and routes: sysctls, on-link prefixes, routes for loopback.

It must not know where they come from. The one idea: the network changes under the daemon, and clients say whether the
forwarding followed.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint, host_addresses
from tests.netns import Namespace
from tests.probes import Answer

Start = Callable[..., Daemon]
OWN = {4: "192.0.2.1", 6: "2001:db8::1"}
LATE = {4: "10.88.5.11", 6: "fd88:0:0:5::11"}
LATE_HOST = {4: "10.88.5.1", 6: "fd88:0:0:5::1"}
INTERFACES = ("up0", "out0", "br0", "br1", "veth3")


def web(*names: str) -> str:
    return dropin(
        *(
            mapping(f"web-{name}", 8080 + i, endpoint(address(name, 4), 80), endpoint(address(name, 6), 80))
            for i, name in enumerate(names)
        )
    )


def route_localnet(lab: Lab) -> dict[str, str]:
    return {
        name: lab.host.sysctl(f"net/ipv4/conf/{name}/route_localnet") for name in ("all", "default", "lo", *INTERFACES)
    }


def soon(question: Callable[[], Answer], target: str) -> Answer:
    """Ask until `target` answers, for three seconds; the last answer."""
    until = time.monotonic() + 3
    while True:
        answer = question()
        if answer.target == target or time.monotonic() > until:
            return answer
        time.sleep(0.02)


@pytest.fixture
def closed(lab: Lab) -> Iterator[None]:
    """A host that forwards nothing and opens no loopback."""
    forwarding = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    for key in forwarding:
        lab.host.sysctl(key, 0)
    for name in ("all", *INTERFACES):
        lab.host.sysctl(f"net/ipv4/conf/{name}/route_localnet", 0)
    yield
    for key in forwarding:
        lab.host.sysctl(key, 1)


@pytest.mark.usefixtures("closed")
def test_route_localnet_is_set_on_the_targets_interfaces_alone(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": web("t1", "t3")})
    assert {name for name, value in route_localnet(lab).items() if value != "0"} == {"br0", "veth3"}
    daemon.write("more.yaml", web("t1", "t3", "t4").replace("808", "909").replace("web-", "more-"))
    assert {name for name, value in route_localnet(lab).items() if value != "0"} == {"br0", "br1", "veth3"}
    assert daemon.stop() == 0
    assert set(route_localnet(lab).values()) == {"0"}


@pytest.mark.usefixtures("closed")
def test_a_family_that_no_target_uses_is_not_forwarded(lab: Lab, start: Start) -> None:
    daemon = start({"web.yaml": dropin(mapping("web", 8080, endpoint(address("t1", 4), 80)))})
    assert lab.host.sysctl("net/ipv4/ip_forward") == "1"
    assert lab.host.sysctl("net/ipv6/conf/all/forwarding") == "0"
    daemon.write("six.yaml", dropin(mapping("six", 8080, endpoint(address("t1", 6), 80))))
    assert lab.host.sysctl("net/ipv6/conf/all/forwarding") == "1"
    assert lab.outside.ask(OWN[6], 8080).target == "t1"


@pytest.mark.usefixtures("closed")
def test_without_leave_it_reports_what_is_missing_and_sets_nothing(lab: Lab, start: Start) -> None:
    before = route_localnet(lab)
    daemon = start({"web.yaml": web("t1")}, settings="manage_sysctls: false\n")
    assert lab.host.sysctl("net/ipv4/ip_forward") == "0"
    assert lab.host.sysctl("net/ipv6/conf/all/forwarding") == "0"
    assert route_localnet(lab) == before
    for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding", "ipv4.conf.br0.route_localnet"):
        assert len(re.findall(rf"{re.escape(key)}\b", daemon.log)) == 1, f"{key} is named once"
        lab.host.sysctl(f"net.{key}", 1)
    assert lab.outside.ask(OWN[4], 8080).target == lab.host.ask("127.0.0.1", 8080).target == "t1"
    daemon.stop()
    assert lab.host.sysctl("net/ipv4/conf/br0/route_localnet") == "1", "what an admin set is not taken away"


@pytest.mark.usefixtures("closed")
def test_what_was_on_before_stays_on_after(lab: Lab, start: Start) -> None:
    for key in ("net/ipv4/ip_forward", "net/ipv4/conf/br0/route_localnet"):
        lab.host.sysctl(key, 1)
    daemon = start({"web.yaml": web("t1", "t3")})
    daemon.stop()
    assert lab.host.sysctl("net/ipv4/ip_forward") == "1"
    assert lab.host.sysctl("net/ipv6/conf/all/forwarding") == "0"
    assert lab.host.sysctl("net/ipv4/conf/br0/route_localnet") == "1"
    assert lab.host.sysctl("net/ipv4/conf/veth3/route_localnet") == "0"


@pytest.fixture
def late(lab: Lab) -> Iterator[Callable[[], Namespace]]:
    """A call that makes target `late` on a new bridge br5 of the host; both go at the end."""
    made: list[Namespace] = []

    def make() -> Namespace:
        lab.bridge(lab.host, "br5")
        space = lab.attach("late", "br5")
        made.append(space)
        for host, its in zip(LATE_HOST.values(), LATE.values(), strict=True):
            length = ipaddress.ip_address(host).max_prefixlen * 3 // 4 if "." in host else 64
            nodad = [] if "." in host else ["nodad"]
            lab.host.ip("addr", "add", f"{host}/{length}", "dev", "br5", *nodad)
            space.ip("addr", "add", f"{its}/{length}", "dev", "eth0", *nodad)
            space.ip("route", "add", "default", "via", host)
        return space

    lab.bridge_netfilter(False)
    yield make
    lab.bridge_netfilter(True)
    lab.host.run(["ip", "link", "del", "br5"], check=False)
    lab.host.run(["ip", "link", "del", "v-late"], check=False)
    if made:
        lab.discard("late")


@pytest.mark.parametrize("family", [4, 6])
def test_a_target_whose_interface_comes_later(
    lab: Lab, start: Start, late: Callable[[], Namespace], family: int
) -> None:
    daemon = start({"web.yaml": dropin(mapping("web", 8080, endpoint(LATE[family], 80)))})
    assert LATE[family] in daemon.log, "a target without a route is reported"
    space = late()
    service = space.serve([80])
    try:
        loopback = "127.0.0.1" if family == 4 else "::1"
        assert soon(lambda: lab.outside.ask(OWN[family], 8080, timeout=0.3), "late").target == "late"
        assert soon(lambda: lab.host.ask(loopback, 8080, timeout=0.3), "late").source == LATE_HOST[family]
        assert soon(lambda: space.ask(OWN[family], 8080, timeout=0.3), "late").source == LATE_HOST[family]
    finally:
        service.close()


@pytest.mark.parametrize("family", [4, 6])
def test_an_interface_that_is_made_anew(lab: Lab, start: Start, late: Callable[[], Namespace], family: int) -> None:
    """A container runtime recreates its bridge: same name, another index, sysctls and routes gone."""
    late()
    daemon = start({"web.yaml": dropin(mapping("web", 8080, endpoint(LATE[family], 80)))})
    lab.host.ip("link", "del", "br5")
    lab.host.ip("link", "del", "v-late")
    lab.discard("late")
    service = late().serve([80])
    try:
        loopback = "127.0.0.1" if family == 4 else "::1"
        assert soon(lambda: lab.host.ask(loopback, 8080, timeout=0.3), "late").source == LATE_HOST[family]
        assert soon(lambda: lab.late.ask(OWN[family], 8080, timeout=0.3), "late").source == LATE_HOST[family]
        assert lab.outside.ask(OWN[family], 8080).target == "late"
    finally:
        service.close()
    assert daemon.stop() == 0
    assert "::1" not in lab.host.ip("-6", "route", "show", "table", "local", "dev", "br5").split()


@pytest.mark.parametrize("family", [4, 6])
def test_an_address_that_a_bridge_gets_later_is_on_link(lab: Lab, start: Start, family: int) -> None:
    """A second subnet on br0: when the host has an address in it, its neighbours there are hairpin clients."""
    host, target, sibling, length = [
        ("10.88.6.1", "10.88.6.11", "10.88.6.12", 24),
        ("fd88:0:0:6::1", "fd88:0:0:6::11", "fd88:0:0:6::12", 64),
    ][family == 6]
    added = [(lab.t1, target, "eth0"), (lab.t2, sibling, "eth0"), (lab.host, host, "br0")]
    lab.bridge_netfilter(False)
    start({"web.yaml": dropin(mapping("web", 8080, endpoint(target, 80)))})
    try:
        for space, own, interface in added:
            space.ip("addr", "add", f"{own}/{length}", "dev", interface, *(["nodad"] if family == 6 else []))
        for client, source in ((lab.t2, sibling), (lab.t1, target)):
            answer = soon(lambda: client.ask(OWN[family], 8080, source=source, timeout=0.3), "t1")  # noqa: B023
            assert (answer.target, answer.source in (host, *host_addresses("br0", family))) == ("t1", True)
    finally:
        lab.bridge_netfilter(True)
        for space, own, interface in added:
            space.ip("addr", "del", f"{own}/{length}", "dev", interface)


def test_an_interface_that_flaps(lab: Lab, start: Start) -> None:
    """Down and up again: IPv6 addresses and routes go with it, and must be seen to come back."""
    lab.bridge_netfilter(False)
    start({"web.yaml": web("t3")})
    assert lab.host.ask("::1", 8080).target == "t3"
    lab.host.ip("link", "set", "veth3", "down")
    lab.host.ip("link", "set", "veth3", "up")
    lab.host.batch(
        "addr replace fd88:0:0:1::1/128 dev veth3 nodad\nroute replace fd88:0:0:1::2/128 dev veth3\n"
        "addr replace 10.88.1.1 peer 10.88.1.2/32 dev veth3\n"
    )
    for client, to in ((lab.outside, OWN[4]), (lab.outside, OWN[6]), (lab.host, "127.0.0.1"), (lab.host, "::1")):
        assert soon(lambda: client.ask(to, 8080, timeout=0.3), "t3").target == "t3", to  # noqa: B023
    lab.bridge_netfilter(True)


@pytest.mark.alone
def test_a_thousand_routes_that_change_are_no_burden(lab: Lab, start: Start) -> None:
    """A router's table moves; what is in force for our targets does not."""
    daemon = start({"web.yaml": web("t1")})
    before = daemon.objects("set")["onlink4"]
    routes = [f"198.51.100.{i % 256}/32 via 192.0.2.{10 + i % 3} metric {1000 + i}" for i in range(1000)]
    lab.host.batch("".join(f"route add {route}\n" for route in routes))
    try:
        began = time.monotonic()
        daemon.write("more.yaml", dropin(mapping("more", 8090, endpoint(address("t2", 4), 80))))
        assert time.monotonic() - began < 2
        assert lab.client.ask(OWN[4], 8090).target == "t2"
        assert daemon.objects("set")["onlink4"] == before
    finally:
        lab.host.batch("".join(f"route del {route}\n" for route in routes))


def test_a_client_in_another_subnet_of_the_targets_segment(lab: Lab, start: Start) -> None:
    """The LAN target has an address there too and would answer past the host."""
    added = ((lab.host, "10.88.9.1", "up0"), (lab.client, "10.88.9.10", "eth0"), (lab.lan, "10.88.9.50", "eth0"))
    for space, own, interface in added:
        space.ip("addr", "add", f"{own}/24", "dev", interface)
    try:
        start({"web.yaml": web("lan")})
        answer = soon(lambda: lab.client.ask("10.88.9.1", 8080, source="10.88.9.10", timeout=0.3), "lan")
        assert (answer.target, answer.source) == ("lan", "192.0.2.1")
    finally:
        for space, own, interface in added:
            space.ip("addr", "del", f"{own}/24", "dev", interface)

"""What the host must allow: each thing broken by itself, found, and mended by the command that doctor names.

It must not know how it is judged. The one idea: a client that got no answer gets one after the command.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

import pytest

from tests.api.calling import eventually
from tests.conftest import mapping
from tests.doctor.conftest import UNMANAGED, V4, V6, WEB, Begin, Patient
from tests.lab import Lab

WEB_V4 = mapping("web", 8080, "10.88.0.11:80")


class Parameter(NamedTuple):
    """A parameter that breaks something, what is found, for whom it is broken, and by which family."""

    name: str
    value: int
    cause: str
    command: str
    family: int = V4
    client: str = "outside"


PARAMETERS = [
    Parameter("net/ipv4/ip_forward", 0, "forwarding-off", "sysctl -w net.ipv4.ip_forward=1"),
    Parameter("net/ipv6/conf/all/forwarding", 0, "forwarding-off", "sysctl -w net.ipv6.conf.all.forwarding=1", V6),
    Parameter("net/ipv4/conf/br0/forwarding", 0, "link-forwarding-off", "sysctl -w net.ipv4.conf.br0.forwarding=1"),
    Parameter("net/ipv4/conf/out0/forwarding", 0, "link-forwarding-off", "sysctl -w net.ipv4.conf.out0.forwarding=1"),
    Parameter(
        "net/ipv4/conf/br0/route_localnet",
        0,
        "route-localnet-off",
        "sysctl -w net.ipv4.conf.br0.route_localnet=1",
        client="host",
    ),
]


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize("broken", PARAMETERS, ids=lambda each: each.name)
def test_a_parameter(lab: Lab, begin: Begin, broken: Parameter) -> None:
    patient = begin(settings=UNMANAGED)
    assert patient.reached(broken.family, client=broken.client) == "t1"
    lab.host.sysctl(broken.name, broken.value)

    assert patient.reached(broken.family, client=broken.client) != "t1"
    found = patient.examined().only()
    assert (found["cause"], found["mappings"], found["commands"]) == (broken.cause, ["web"], [broken.command])

    patient.take(broken.command)
    assert patient.reached(broken.family, client=broken.client) == "t1"
    assert patient.examined().causes == []


@pytest.mark.usefixtures("uplink")
def test_a_bridge_that_hands_ipv6_to_ip6tables_is_no_trouble_where_the_relay_serves(lab: Lab, begin: Begin) -> None:
    patient = begin()
    lab.host.sysctl("net/bridge/bridge-nf-call-ip6tables", 1)

    eventually(lambda: patient.reached(V6, client="host"), "t1")
    assert patient.examined().causes == []


def test_the_route_for_answers_to_loopback(lab: Lab, begin: Begin) -> None:
    """A daemon that runs puts it back at once; what a crash has left in force is judged as well."""
    patient = begin()
    patient.daemon.kill9()
    lab.host.ip("-6", "route", "del", "local", "::1", "dev", "br0", "table", "local")

    assert patient.reached(V6, client="host") != "t1"
    found = patient.examined().only("daemon-not-running")
    assert found["cause"] == "loopback-route-missing"

    (command,) = found["commands"]
    patient.take(command)
    assert patient.reached(V6, client="host") == "t1"
    assert patient.examined().causes == ["daemon-not-running"]
    patient.daemon.start()
    assert patient.daemon.stop() == 0  # knows the route for its own, and takes it away
    assert "br0" not in lab.host.ip("-6", "route", "show", "table", "local", "::1")


def test_clients_from_afar_by_a_link_that_is_not_the_best(lab: Lab, begin: Begin) -> None:
    """Two uplinks, strict reverse path filtering on the worse one; answers take the better one."""
    patient = begin(WEB_V4, settings=UNMANAGED)
    far = "203.0.113.9"
    lab.host.ip("route", "add", "default", "via", "198.51.100.10", "metric", "100")
    lab.host.ip("route", "add", "default", "via", "192.0.2.50", "dev", "up0", "metric", "200")
    lab.link(lab.client, "eth1", lab.outside, "eth1")
    lab.client.ip("addr", "add", f"{far}/24", "dev", "eth1")
    lab.outside.ip("addr", "add", "203.0.113.1/24", "dev", "eth1")
    lab.outside.sysctl("net.ipv4.ip_forward", 1)
    try:
        assert patient.reached(client="client", source=far) == "t1"
        lab.host.sysctl("net/ipv4/conf/up0/rp_filter", 1)
        assert patient.reached(client="client", source=far) == "timeout"

        found = patient.examined().only()
        assert (found["cause"], found["severity"]) == ("rp-filter", "warning")
        assert found["commands"] == ["sysctl -w net.ipv4.conf.up0.rp_filter=2"]
        patient.take(found["commands"][0])
        assert patient.reached(client="client", source=far) == "t1"
        assert patient.examined().causes == []
    finally:
        lab.host.sysctl("net/ipv4/conf/up0/rp_filter", 0)
        lab.host.ip("route", "flush", "default")
        lab.client.ip("link", "del", "eth1")


def test_answers_by_another_link_than_the_one_that_leads_there(lab: Lab, begin: Begin) -> None:
    patient = begin(WEB_V4, settings=UNMANAGED)
    lab.link(lab.t1, "eth1", lab.host, "x0")
    # Without an address of its own no link passes a filter, be it loose (__fib_validate_source in fib_frontend.c).
    lab.host.ip("addr", "add", "10.77.0.1/24", "dev", "x0")
    lab.t1.ip("addr", "add", "10.88.0.11/32", "dev", "eth1")
    lab.t1.ip("route", "replace", "10.88.0.1/32", "dev", "eth1", "src", "10.88.0.11")
    # The host would not even tell its address to a neighbour from the wrong side.
    lab.t1.ip("neigh", "add", "10.88.0.1", "lladdr", lab.host.mac("x0"), "dev", "eth1", "nud", "permanent")
    try:
        assert patient.examined().causes == []
        lab.host.sysctl("net/ipv4/conf/x0/rp_filter", 1)

        found = patient.examined().only()
        assert (found["cause"], found["severity"], found["mappings"]) == ("rp-filter", "error", ["web"])
        assert found["commands"] == ["sysctl -w net.ipv4.conf.x0.rp_filter=2"]
        assert lab.host.ask("10.88.0.1", 8080, timeout=0.4).outcome == "timeout"
        patient.take(found["commands"][0])
        assert lab.host.ask("10.88.0.1", 8080, timeout=0.4).target == "t1"
        assert patient.examined().causes == []
    finally:
        lab.host.ip("link", "del", "x0")
        lab.t1.ip("route", "flush", "10.88.0.1/32")


def test_routes_from_advertisements_end(lab: Lab, begin: Begin) -> None:
    patient = begin()
    lab.host.ip("-6", "route", "add", "default", "via", "2001:db8:1::10", "dev", "out0", "proto", "ra")
    lab.host.sysctl("net/ipv6/conf/out0/accept_ra", 1)
    try:
        found = patient.examined().only()
        assert (found["cause"], found["severity"]) == ("advertised-routes-end", "warning")
        patient.take(*found["commands"])
        assert lab.host.sysctl("net/ipv6/conf/out0/accept_ra") == "2"
        assert patient.examined().causes == []
    finally:
        lab.host.sysctl("net/ipv6/conf/out0/accept_ra", 0)
        lab.host.ip("-6", "route", "flush", "default")


@pytest.mark.parametrize("link", ["all", "br0"])
def test_ipv6_is_disabled(lab: Lab, begin: Begin, link: str) -> None:
    patient = begin()
    lab.host.sysctl(f"net/ipv6/conf/{link}/disable_ipv6", 1)

    try:
        found = patient.examined().only()
        assert (found["cause"], found["commands"]) == (
            "ipv6-disabled",
            [f"sysctl -w net.ipv6.conf.{link}.disable_ipv6=0"],
        )
        patient.take(found["commands"][0])
    finally:
        lab.host.sysctl(f"net/ipv6/conf/{link}/disable_ipv6", 0)
        number_again(lab)
    eventually(lambda: patient.reached(V6), "t1")
    eventually(lambda: patient.reached(V6, client="host"), "t1")
    assert patient.examined().causes == []


def number_again(lab: Lab) -> None:
    """The host's IPv6 addresses, which went with IPv6."""
    given = {"up0": ("2001:db8::1", "2001:db8::2"), "out0": ("2001:db8:1::1",), "br0": ("fd88::1",)}
    given |= {"br1": ("fd88:0:0:2::1",)}
    for link, addresses in given.items():
        for address in addresses:
            lab.host.ip("addr", "replace", f"{address}/64", "dev", link, "nodad")
    lab.host.ip("addr", "replace", "fd88:0:0:1::1/128", "dev", "veth3", "nodad")
    lab.host.ip("-6", "route", "replace", "fd88:0:0:1::2/128", "dev", "veth3")


@pytest.mark.alone
def test_the_connection_tracking_table_is_full(lab: Lab, begin: Begin) -> None:
    """Filled for real; its size is that of the whole machine, so the command is not run."""
    patient = begin(WEB)
    limit = int(lab.host.sysctl("net/netfilter/nf_conntrack_max"))
    if limit > 300_000:
        pytest.skip("filling this table takes too long")
    try:
        fill(patient, limit * 93 // 100)
        found = patient.examined().only()
        assert (found["cause"], found["severity"]) == ("conntrack-full", "warning")
        assert found["commands"] == [f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}"]
    finally:
        lab.host.run(["conntrack", "-F"])
    assert patient.examined().causes == []


def fill(patient: Patient, wanted: int) -> None:
    """Have so many flows: datagrams from one socket to as many addresses and ports of the host itself."""
    sent = 0
    with patient.lab.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(1, 10):
            for port in range(1, 60_000):
                sock.sendto(b"", (f"127.0.9.{number}", port))
                sent += 1
                if sent >= wanted:
                    return

"""Targets that do not answer, each for another reason; and what brings them back.

It must not know how they are tried. The one idea: the target is broken in its own namespace, as its admin would do it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.conftest import dropin, mapping
from tests.doctor.conftest import V4, V6, WEB, Begin
from tests.lab import Lab

SILENT = "table inet own {{ chain c {{ type filter hook input priority 0; meta l4proto tcp tcp dport {} {}\n }}\n}}"


@pytest.fixture(autouse=True)
def clean(lab: Lab) -> Iterator[None]:
    """No rules in the target, before and after."""
    yield
    lab.t1.run(["nft", "flush", "ruleset"])


@pytest.mark.parametrize(("family", "target", "via"), [(V4, "10.99.0.5", "10.88.0.11"), (V6, "fd99::5", "fd88::11")])
def test_no_route(lab: Lab, begin: Begin, family: int, target: str, via: str) -> None:
    patient = begin(WEB, mapping("far", 8081, f"[{target}]:80" if family == V6 else f"{target}:80"))
    lab.t1.ip("addr", "add", target, "dev", "lo", *(["nodad"] if family == V6 else []))

    found = patient.examined().only()
    assert (found["cause"], found["mappings"]) == ("target-no-route", ["far"])
    assert found["what"] == f"no route leads to target {target}"
    patient.take(found["commands"][0].replace("GATEWAY", via))
    try:
        time.sleep(0.1)
        assert patient.reached(family, 8081) == "t1"
        assert patient.examined().causes == []
    finally:
        lab.host.ip("route", "del", target, "via", via)
        lab.t1.ip("addr", "del", target, "dev", "lo")


@pytest.mark.parametrize("default", [False, True])
def test_the_link_is_down(lab: Lab, begin: Begin, request: pytest.FixtureRequest, default: bool) -> None:
    """Where there is a default route, packets take that instead."""
    if default:
        request.getfixturevalue("uplink")
    patient = begin(WEB, mapping("four", 8081, "10.88.2.11:80"))
    lab.host.ip("link", "set", "br1", "down")

    found = patient.examined().only()
    assert (found["cause"], found["commands"]) == ("target-no-route", ["ip link set br1 up"])
    assert found["what"] == "br1, by which target 10.88.2.11 is reached, is down"
    patient.take(found["commands"][0])
    lab.host.ip("addr", "replace", "fd88:0:0:2::1/64", "dev", "br1", "nodad")
    time.sleep(0.1)
    assert patient.reached(port=8081) == "t4"
    assert patient.examined().causes == []


@pytest.mark.usefixtures("uplink")
def test_a_network_that_is_not_there(begin: Begin) -> None:
    """Packets for it take the default route."""
    patient = begin(WEB, mapping("far", 8081, "10.99.0.6:80"))

    found = patient.examined().only()
    assert found["cause"] in ("target-rejects", "target-silent")
    assert "It is reached by gateway 198.51.100.10 on out0; where it is a container " in found["why"]


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
def test_a_route_that_says_no(lab: Lab, begin: Begin, kind: str) -> None:
    patient = begin(WEB, mapping("far", 8081, "10.99.0.6:80"))
    lab.host.ip("route", "add", kind, "10.99.0.0/24")
    try:
        found = patient.examined().only()
    finally:
        lab.host.ip("route", "del", kind, "10.99.0.0/24")

    assert found["what"] == f"target 10.99.0.6 cannot be reached: a route of type {kind}"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_no_neighbour(lab: Lab, begin: Begin, protocol: str) -> None:
    lab.host.ip("neigh", "flush", "dev", "br0")
    patient = begin(WEB, mapping("gone", 8081, "10.88.0.77:80", protocol=protocol))

    found = patient.examined().only()
    assert (found["cause"], found["mappings"]) == ("target-no-neighbour", ["gone"])
    assert found["what"].startswith("target 10.88.0.77 does not answer on br0 (its neighbour entry is ")
    for command in found["commands"]:
        patient.take(command)  # shows what was found

    lab.t2.ip("addr", "add", "10.88.0.77/24", "dev", "eth0")  # the container comes up
    lab.host.ip("neigh", "flush", "dev", "br0")
    try:
        assert patient.reached(port=8081, proto=protocol, timeout=2) == "t2"
        assert patient.examined().causes == []
    finally:
        lab.t2.ip("addr", "del", "10.88.0.77/24", "dev", "eth0")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("target", ["10.88.0.11", "[fd88::11]"])
def test_nobody_listens(lab: Lab, begin: Begin, protocol: str, target: str) -> None:
    patient = begin(WEB, mapping("wrong", 8081, f"{target}:81", protocol=protocol))

    found = patient.examined().only()
    assert (found["cause"], found["mappings"]) == ("target-refuses", ["wrong"])
    assert found["what"].startswith(f"{target}:81/{protocol} refuses connections (")
    patient.take(found["commands"][0], "t1")  # shows nobody

    service = lab.t1.serve([81])
    try:
        assert patient.reached(V6 if "fd" in target else V4, 8081, proto=protocol) == "t1"
        assert patient.examined().causes == []
    finally:
        service.close()


@pytest.mark.parametrize(
    ("verdict", "cause"), [("drop", "target-silent"), ("reject with icmpx admin-prohibited", "target-rejects")]
)
def test_a_firewall_in_the_target(lab: Lab, begin: Begin, verdict: str, cause: str) -> None:
    patient = begin(WEB, mapping("shut", 8081, "10.88.0.11:82", "[fd88::11]:82"))
    service = lab.t1.serve([82])
    lab.t1.nft(SILENT.format(82, verdict))
    try:
        told = patient.examined()
        assert told.causes == [cause, cause]  # one for each family
        assert patient.reached(port=8081) in ("timeout", "unreachable")

        lab.t1.run(["nft", "flush", "ruleset"])
        assert patient.reached(port=8081) == "t1"
        assert patient.examined().causes == []
    finally:
        service.close()


@pytest.mark.parametrize("family", [V4, V6])
def test_a_target_without_a_way_back(lab: Lab, begin: Begin, family: int) -> None:
    """It answers its neighbours, which the host is; only by another source it is seen what clients see."""
    target, ip = ("10.88.0.12:80", ["ip"]) if family == V4 else ("[fd88::12]:80", ["ip", "-6"])
    patient = begin(WEB, mapping("two", 8081, target))
    lab.t2.run([*ip, "route", "del", "default"])
    # Without a route there is an ICMP error of the target's own kernel to itself, and silence for the client.
    assert patient.reached(family, 8081) == "timeout"
    assert patient.reached(family, 8081, client="host") == "t2"

    found = patient.examined().only()
    assert (found["cause"], found["mappings"]) == ("answers-go-elsewhere", ["two"])
    (command,) = found["commands"]
    patient.take(command, "t2")
    assert patient.reached(family, 8081) == "t2"
    assert patient.examined().causes == []


def test_a_target_without_a_way_back_is_fine_where_all_is_masqueraded(lab: Lab, begin: Begin) -> None:
    patient = begin(mapping("two", 8081, "10.88.0.12:80", masquerade="always"))
    lab.t2.ip("route", "del", "default")
    try:
        assert patient.reached(port=8081) == "t2"
        assert patient.examined().causes == []
    finally:
        lab.t2.ip("route", "add", "default", "via", "10.88.0.1")


def test_an_isolated_target_is_tried_through_its_mapping(lab: Lab, begin: Begin) -> None:
    patient = begin(mapping("alone", 8081, "10.88.0.11:83", isolate="true"))

    assert patient.examined().only()["cause"] == "target-refuses"
    service = lab.t1.serve([83])
    assert patient.examined().causes == []
    patient.daemon.write("open.yaml", dropin(mapping("open", 8082, "10.88.0.11:83")))
    assert patient.examined("open").causes == []
    service.close()


def test_many_targets_take_no_longer_than_one(begin: Begin) -> None:
    """60 targets that do not answer, 10 that refuse: all at once, and one finding for each."""
    gone = [mapping(f"gone{n}", 9000 + n, f"10.88.3.{n}:80") for n in range(1, 61)]
    shut = [mapping(f"shut{n}", 9100 + n, f"10.88.0.11:{9100 + n}") for n in range(10)]
    patient = begin(*gone, *shut)
    patient.lab.host.ip("route", "add", "10.88.3.0/24", "dev", "br0")
    began = time.monotonic()
    try:
        told = patient.examined()
    finally:
        patient.lab.host.ip("route", "del", "10.88.3.0/24", "dev", "br0")

    assert sorted(told.causes) == ["target-no-neighbour"] * 60 + ["target-refuses"] * 10
    assert time.monotonic() - began < 15

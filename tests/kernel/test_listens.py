"""Listen addresses and ranges: what one mapping holds and what it leaves to others.

It must not know the ruleset. The one idea: several mappings on one port, told apart by who answers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint

BOTH = "[tcp, udp]"
OTHERS = {4: "192.0.2.2", 6: "2001:db8::2"}
OWN = {4: "192.0.2.1", 6: "2001:db8::1"}
ANY = {4: "0.0.0.0", 6: "::"}
Start = Callable[..., Daemon]


def to(target: str, family: int, port: int | str = 80) -> str:
    return endpoint(address(target, family), port)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_listen_address_of_its_own_goes_before_the_wildcard(lab: Lab, start: Start, family: int, proto: str) -> None:
    start(
        {
            "any.yaml": dropin(mapping("any", 8080, to("t1", family), protocol=BOTH)),
            "own.yaml": dropin(mapping("own", endpoint(OWN[family], 8080), to("t2", family), protocol=BOTH)),
        }
    )
    for client in (lab.outside, lab.client, lab.t4, lab.host):
        assert client.ask(OWN[family], 8080, proto).target == "t2"
        assert client.ask(OTHERS[family], 8080, proto).target == "t1"


def test_one_address_alone_leaves_the_port_of_the_others_to_the_host(lab: Lab, start: Start) -> None:
    start({"own.yaml": dropin(mapping("own", "192.0.2.1:8080", to("t1", 4), protocol=BOTH))})
    service = lab.host.serve([8080], name="the-host")
    try:
        for proto in ("tcp", "udp"):
            assert lab.outside.ask("192.0.2.1", 8080, proto).target == "t1"
    finally:
        service.close()
    assert lab.outside.ask("192.0.2.2", 8080).outcome == "refused"
    assert lab.outside.ask("2001:db8::1", 8080).outcome == "refused"
    assert lab.host.ask("127.0.0.1", 8080).outcome == "refused"


def test_three_mappings_on_one_port_that_differ_in_address_or_protocol(lab: Lab, start: Start) -> None:
    """The HostPort conformance case of Kubernetes: three pods, one port."""
    start(
        {
            "pod1.yaml": dropin(mapping("pod1", "127.0.0.1:54323", to("t1", 4))),
            "pod2.yaml": dropin(mapping("pod2", "192.0.2.1:54323", to("t2", 4))),
            "pod3.yaml": dropin(mapping("pod3", "192.0.2.1:54323", to("t4", 4), protocol="udp")),
        }
    )
    assert lab.host.ask("127.0.0.1", 54323).target == "t1"
    assert lab.host.ask("127.0.0.1", 54323, "udp").outcome == "refused"
    for client in (lab.host, lab.outside, lab.client):
        assert client.ask("192.0.2.1", 54323).target == "t2"
        assert client.ask("192.0.2.1", 54323, "udp").target == "t4"
    assert lab.outside.ask("192.0.2.2", 54323).outcome == "refused"


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_one_port_on_distinct_loopback_addresses(lab: Lab, start: Start, proto: str) -> None:
    start(
        {
            "two.yaml": dropin(mapping("two", "127.0.0.2:8080", to("t1", 4), protocol=BOTH)),
            "three.yaml": dropin(mapping("three", "127.0.0.3:8080", to("t3", 4), protocol=BOTH)),
        }
    )
    assert lab.host.ask("127.0.0.2", 8080, proto).target == "t1"
    assert lab.host.ask("127.0.0.3", 8080, proto).target == "t3"
    assert lab.host.ask("127.0.0.1", 8080, proto).outcome == "refused"
    assert lab.client.ask("192.0.2.1", 8080, proto).outcome == "refused"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_the_wildcard_of_one_family_is_not_that_of_the_other(lab: Lab, start: Start, family: int, proto: str) -> None:
    other = 10 - family
    start({"any.yaml": dropin(mapping("any", endpoint(ANY[family], 8080), to("t1", family), protocol=BOTH))})
    for here in (OWN, OTHERS):
        assert lab.outside.ask(here[family], 8080, proto).target == "t1"
        assert lab.outside.ask(here[other], 8080, proto).outcome == "refused"


def test_the_wildcards_of_both_families_may_differ(lab: Lab, start: Start) -> None:
    four = mapping("four", "0.0.0.0:8080", to("t1", 4), protocol=BOTH)
    six = mapping("six", "[::]:8080", to("t2", 6), protocol=BOTH)
    start({"both.yaml": dropin(four, six)})
    for proto in ("tcp", "udp"):
        assert lab.outside.ask("192.0.2.1", 8080, proto).target == "t1"
        assert lab.outside.ask("2001:db8::1", 8080, proto).target == "t2"


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_each_port_of_a_shifted_range_reaches_its_own(lab: Lab, start: Start, proto: str) -> None:
    start(
        {
            "range.yaml": dropin(
                mapping(
                    "range",
                    "20000-20999",
                    to("t2", 4, "30000-30999"),
                    to("t2", 6, "30000-30999"),
                    protocol=BOTH,
                )
            )
        }
    )
    service = lab.t2.serve(range(30000, 31000), [proto])
    try:
        wrong = {
            (to_address, port): answer
            for to_address in (OWN[4], OWN[6])
            for port in range(20000, 21000)
            if (answer := lab.outside.ask(to_address, port, proto)).port != port + 10000
        }
    finally:
        service.close()
    assert not wrong
    for port in (19999, 21000):
        assert lab.outside.ask(OWN[4], port, proto).outcome == "refused"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_an_address_that_is_routed_through_is_left_alone(lab: Lab, start: Start, family: int, proto: str) -> None:
    """The host forwards to t2 by route; port 80 of t2 is not the host's port 80."""
    start({"web.yaml": dropin(mapping("web", 80, to("t1", family), protocol=BOTH))})
    for client in ("outside", "client", "t3"):
        assert lab.spaces[client].ask(OWN[family], 80, proto).target == "t1"
        answer = lab.spaces[client].ask(address("t2", family), 80, proto)
        assert (answer.target, answer.source) == ("t2", address(client, family))
    assert lab.host.ask(address("t2", family), 80, proto).target == "t2"


def test_an_address_that_comes_to_the_host_later_is_covered(lab: Lab, start: Start) -> None:
    start({"web.yaml": dropin(mapping("web", 8080, to("t1", 4)))})
    lab.host.ip("addr", "add", "192.0.2.7/24", "dev", "up0")
    try:
        assert lab.client.ask("192.0.2.7", 8080).target == "t1"
    finally:
        lab.host.ip("addr", "del", "192.0.2.7/24", "dev", "up0")

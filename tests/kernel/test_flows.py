"""Flows that live through a change: UDP follows the mapping, TCP goes on or is cut, those of others stay.

It must not know how flows are removed. The one idea: a client keeps its socket, and the host's conntrack entries
are known again by their id.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import pytest

from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint
from tests.probes import Answer, Talk

Start = Callable[..., Daemon]
OWN = {4: "192.0.2.1", 6: "2001:db8::1"}
OTHERS = {4: "192.0.2.2", 6: "2001:db8::2"}


def to(target: str, family: int, port: int | str = 80) -> str:
    return endpoint(address(target, family), port)


def udp(target: str, family: int, port: int | str = 5300) -> str:
    return dropin(mapping("dns", port, to(target, family), protocol="udp"))


def soon(talk: Talk, target: str) -> Answer:
    """Ask again and again until `target` answers; the last answer."""
    for _ in range(20):
        answer = talk.ask(0.2)
        if answer.target == target:
            break
        time.sleep(0.02)
    return answer


def entries(lab: Lab, family: int, *words: str) -> dict[str, str]:
    """conntrack entries of the host whose line has all these words: id -> line."""
    name = "ipv6" if family == 6 else "ipv4"
    listed = lab.host.run(["conntrack", "-L", "-f", name, "-o", "id"]).stdout
    lines = [line for line in listed.splitlines() if set(words) <= set(line.split())]
    return {found[1]: line for line in lines if (found := re.search(r"\bid=(\d+)", line))}


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("client", ["outside", "client", "t4", "host"])
def test_a_udp_client_that_keeps_sending_follows_the_mapping(lab: Lab, start: Start, family: int, client: str) -> None:
    daemon = start()
    with lab.spaces[client].talk(OWN[family], 5300, "udp", source_port=4000) as talk:
        assert talk.ask(0.2).outcome in ("refused", "timeout")  # it began before the mapping was there
        assert talk.ask(0.2).outcome in ("refused", "timeout")
        daemon.write("dns.yaml", udp("t1", family))
        assert soon(talk, "t1").target == "t1"
        daemon.write("dns.yaml", udp("t2", family))
        assert soon(talk, "t2").target == "t2"
        daemon.write("dns.yaml", dropin())
        assert soon(talk, "nobody").outcome == "refused"
        daemon.write("dns.yaml", udp("t1", family))
        assert soon(talk, "t1").target == "t1"


def test_a_udp_client_of_loopback_follows_the_mapping(lab: Lab, start: Start) -> None:
    daemon = start()
    with lab.host.talk("127.0.0.1", 5300, "udp", source_port=4000) as talk:
        assert talk.ask(0.2).outcome == "refused"
        daemon.write("dns.yaml", udp("t1", 4))
        assert soon(talk, "t1").target == "t1"
        daemon.write("dns.yaml", udp("t3", 4))
        assert soon(talk, "t3").target == "t3"


def test_a_udp_flow_to_the_hosts_own_service_goes_to_the_mapping_and_back(lab: Lab, start: Start, family: int) -> None:
    service = lab.host.serve([5300], ["udp"])
    try:
        daemon = start()
        with lab.outside.talk(OWN[family], 5300, "udp", source_port=4000) as talk:
            assert talk.ask().target == "host"
            shadowing = mapping("dns", 5300, to("t1", family), protocol="udp", shadow_listener="true")
            daemon.write("dns.yaml", dropin(shadowing))
            assert soon(talk, "t1").target == "t1"
            daemon.remove("dns.yaml")
            assert soon(talk, "host").target == "host"
    finally:
        service.close()


@pytest.mark.parametrize("port", [5310, 5319])
def test_each_port_of_a_range_follows(lab: Lab, start: Start, family: int, port: int) -> None:
    def shifted(target: str) -> str:
        return dropin(mapping("range", "5310-5319", to(target, family, "6310-6319"), protocol="udp"))

    services = [lab.spaces[name].serve(range(6310, 6320), ["udp"]) for name in ("t1", "t2")]
    try:
        daemon = start({"range.yaml": shifted("t1")})
        with lab.outside.talk(OWN[family], port, "udp", source_port=4000) as talk:
            assert talk.ask().target == "t1"
            daemon.write("range.yaml", shifted("t2"))
            answer = soon(talk, "t2")
            assert (answer.target, answer.port) == ("t2", port + 1000)
    finally:
        for service in services:
            service.close()


def test_a_listen_address_that_comes_takes_over_its_own_flows_alone(lab: Lab, start: Start, family: int) -> None:
    daemon = start({"any.yaml": udp("t1", family)})
    with (
        lab.outside.talk(OWN[family], 5300, "udp", source_port=4000) as here,
        lab.outside.talk(OTHERS[family], 5300, "udp", source_port=4000) as there,
    ):
        assert (here.ask().target, there.ask().target) == ("t1", "t1")
        kept = entries(lab, family, f"dst={OTHERS[family]}", "sport=4000")
        daemon.write("own.yaml", udp("t2", family, endpoint(OWN[family], 5300)))
        assert soon(here, "t2").target == "t2"
        assert entries(lab, family, f"dst={OTHERS[family]}", "sport=4000").keys() == kept.keys() != set()
        assert there.ask().target == "t1"
        daemon.remove("own.yaml")
        assert soon(here, "t1").target == "t1"


def test_a_wildcard_that_changes_leaves_the_flows_of_a_listen_address(lab: Lab, start: Start, family: int) -> None:
    own = udp("t2", family, endpoint(OWN[family], 5300))
    daemon = start({"any.yaml": udp("t1", family), "own.yaml": own})
    with (
        lab.outside.talk(OWN[family], 5300, "udp", source_port=4000) as here,
        lab.outside.talk(OTHERS[family], 5300, "udp", source_port=4000) as there,
    ):
        assert (here.ask().target, there.ask().target) == ("t2", "t1")
        kept = entries(lab, family, f"dst={OWN[family]}", "sport=4000")
        daemon.write("any.yaml", udp("t3", family))
        assert soon(there, "t3").target == "t3"
        assert entries(lab, family, f"dst={OWN[family]}", "sport=4000").keys() == kept.keys() != set()
        assert here.ask().target == "t2"


@pytest.fixture
def bystanders(lab: Lab, family: int) -> Iterator[list[Talk]]:
    """UDP flows that have nothing to do with the key udp/5300: another key's, routed ones, the host's."""
    service = lab.host.serve([9100], ["udp"])
    own = OWN[family]
    routed = lab.t2.serve([5300], ["udp"])
    talks = [
        lab.outside.talk(own, 5301, "udp", source_port=4001),  # another key
        lab.outside.talk(address("t2", family), 5300, "udp", source_port=4002),  # routed through, same port
        lab.outside.talk(own, 9100, "udp", source_port=4003),  # the host's own service
        lab.t1.talk(address("t2", family), 5300, "udp", source_port=4004),  # between neighbours on a bridge
        lab.outside.talk(address("t1", family), 80, "udp", source_port=4005),  # the old target itself, by route
        lab.host.talk(address("t2", family), 5300, "udp", source_port=4006),  # the host as a client of such a service
    ]
    yield talks
    for talk in talks:
        talk.close()
    service.close()
    routed.close()


def test_the_udp_flows_of_others_stay(lab: Lab, start: Start, family: int, bystanders: list[Talk]) -> None:
    lab.bridge_netfilter(True)
    both = dropin(
        mapping("dns", 5300, to("t1", family), protocol="udp"),
        mapping("other", 5301, to("t2", family), protocol="udp"),
    )
    daemon = start({"dns.yaml": both})
    with lab.outside.talk(OWN[family], 5300, "udp", source_port=4000) as talk:
        assert talk.ask().target == "t1"
        assert all(bystander.ask() for bystander in bystanders)
        before = {port: entries(lab, family, f"sport={port}") for port in range(4001, 4007)}
        daemon.write("dns.yaml", both.replace(to("t1", family), to("t3", family)))
        assert soon(talk, "t3").target == "t3"
        after = {port: entries(lab, family, f"sport={port}") for port in before}
    for port, kept in before.items():
        assert kept.keys() == after[port].keys() != set(), f"the flow with source port {port}"
    assert all(bystander.ask() for bystander in bystanders)


def test_udp_flows_of_a_key_that_did_not_change_stay_when_its_file_is_rewritten(
    lab: Lab, start: Start, family: int
) -> None:
    daemon = start({"dns.yaml": udp("t1", family)})
    with lab.outside.talk(OWN[family], 5300, "udp", source_port=4000) as talk:
        assert talk.ask().target == "t1"
        before = entries(lab, family, "sport=4000")
        more = dropin(mapping("more", 5399, to("t2", family), protocol="udp"))
        daemon.write("dns.yaml", udp("t1", family) + more.removeprefix("mappings:\n"))
        assert entries(lab, family, "sport=4000").keys() == before.keys() != set()


@pytest.mark.parametrize("client", ["outside", "client", "t2", "host"])
def test_a_tcp_flow_goes_on_after_its_target_changed(lab: Lab, start: Start, family: int, client: str) -> None:
    daemon = start({"web.yaml": dropin(mapping("web", 8080, to("t1", family)))})
    with lab.spaces[client].talk(OWN[family], 8080) as talk:
        assert talk.ask().target == "t1"
        daemon.write("web.yaml", dropin(mapping("web", 8080, to("t3", family))))
        assert lab.spaces[client].ask(OWN[family], 8080).target == "t3"
        assert talk.ask().target == "t1"
        daemon.remove("web.yaml")
        assert talk.ask().target == "t1"


@pytest.mark.parametrize("client", ["outside", "host"])
def test_a_client_whose_target_does_not_answer_gets_through_when_the_mapping_moves(
    lab: Lab, start: Start, family: int, client: str
) -> None:
    silent = "add table inet silent\nadd chain inet silent input { type filter hook input priority 0; }\n"
    lab.t2.run(["nft", f"{silent}add rule inet silent input tcp dport 80 drop"])
    try:
        daemon = start({"web.yaml": dropin(mapping("web", 8080, to("t2", family)))})
        with futures.ThreadPoolExecutor() as pool:
            waiting = pool.submit(lab.spaces[client].ask, OWN[family], 8080, timeout=2.5)
            time.sleep(0.3)
            daemon.write("web.yaml", dropin(mapping("web", 8080, to("t1", family))))
            # It repeats its SYN after a second.
            assert waiting.result().target == "t1"
    finally:
        lab.t2.run(["nft", "delete table inet silent"])


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_a_tcp_flow_of_loopback_goes_on_after_its_target_moved_to_another_interface(
    lab: Lab, start: Start, loopback: str
) -> None:
    lab.bridge_netfilter(False)
    family = 6 if ":" in loopback else 4
    daemon = start({"web.yaml": dropin(mapping("web", 8080, to("t1", family)))})
    with lab.host.talk(loopback, 8080) as talk:
        assert talk.ask().target == "t1"
        daemon.write("web.yaml", dropin(mapping("web", 8080, to("t3", family))))
        assert lab.host.ask(loopback, 8080).target == "t3"
        assert talk.ask(1).target == "t1"
        daemon.remove("web.yaml")
        assert talk.ask(1).target == "t1"


@pytest.mark.parametrize("client", ["outside", "client", "t2", "host"])
def test_a_tcp_flow_ends_when_the_mapping_says_cut(lab: Lab, start: Start, family: int, client: str) -> None:
    def web(target: str) -> str:
        return dropin(
            mapping("web", 8080, to(target, family), on_change="cut"),
            mapping("other", 8081, to("t1", family), on_change="cut"),
        )

    daemon = start({"web.yaml": web("t1")})
    with lab.spaces[client].talk(OWN[family], 8080) as talk, lab.outside.talk(OWN[family], 8081) as other:
        assert talk.ask().target == other.ask().target == "t1"
        daemon.write("web.yaml", web("t3"))
        assert lab.spaces[client].ask(OWN[family], 8080).target == "t3"
        assert talk.ask(0.5).outcome in ("reset", "timeout")
        assert other.ask().target == "t1"

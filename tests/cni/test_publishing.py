"""What users of portmap and netavark rely on, seen by clients on the wire.

Must not know the daemon's API. The one idea: each behaviour that the suites of the peers test has its counterpart here,
called as a runtime calls and asked as a client asks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.calling import answers, eventually
from tests.cni.calling import LATEST, Attachment, port, result
from tests.frames import sent_init
from tests.lab import ADDRESSES, Daemon, Lab, host_addresses

OWN = {4: "192.0.2.1", 6: "2001:db8::1"}
OTHER = {4: "192.0.2.2", 6: "2001:db8::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture(autouse=True)
def _unbridged(lab: Lab) -> Iterator[None]:
    """The bridge keeps its packets from the IP hooks, as on a host without Kubernetes or Docker."""
    lab.bridge_netfilter(False)
    yield
    lab.bridge_netfilter(True)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "TCP", "Udp"])
def test_a_port_answers_from_everywhere(lab: Lab, t1: Attachment, protocol: str, family: int) -> None:
    t1.add(port(8080, 80, protocol))
    seen = {}
    for name, space, to in (
        ("outside", lab.outside, OWN[family]),
        ("loopback", lab.host, LOOPBACK[family]),
        ("host", lab.host, OWN[family]),
        ("hairpin", lab.t1, OWN[family]),
        ("sibling", lab.t2, OWN[family]),
    ):
        answer = space.ask(to, 8080, protocol.lower())
        seen[name] = (answer.target, answer.source)
    bridge = host_addresses("br0", family)[0]
    outside = ADDRESSES["outside"][family == 6]

    own = OWN[family]
    assert seen == {
        "outside": ("t1", outside),
        "loopback": ("t1", bridge),
        "host": ("t1", own),
        "hairpin": ("t1", bridge),
        "sibling": ("t1", bridge),
    }
    t1.remove(port(8080, 80, protocol))
    assert {lab.outside.ask(own, 8080, protocol.lower()).outcome for _ in range(2)} == {"refused"}


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_range_maps_port_by_port(lab: Lab, t1: Attachment, protocol: str, families: tuple[int, ...]) -> None:
    service = lab.t1.serve(range(6000, 6003), [protocol])
    addresses = tuple(ADDRESSES["t1"][family == 6] for family in families)
    t1.but(addresses=addresses).add(*(port(5000 + n, 6000 + n, protocol) for n in range(3)))
    found = {
        (family, 5000 + n): lab.outside.ask(OWN[family], 5000 + n, protocol).port
        for family in families
        for n in range(3)
    }
    service.close()

    assert found == {(family, 5000 + n): 6000 + n for family in families for n in range(3)}


@pytest.mark.parametrize("family", [4, 6])
def test_sctp(lab: Lab, t1: Attachment, family: int) -> None:
    t1.add(port(9999, 80, "SCTP"))
    seen = sent_init(lab.outside, lab.host.mac("out0"), ADDRESSES["outside"][family == 6], OWN[family], 9999, lab.t1)

    assert seen is not None
    assert (seen.destination, seen.dport) == (ADDRESSES["t1"][family == 6], 80)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_host_address_takes_its_port_only_there(lab: Lab, t1: Attachment, protocol: str, family: int) -> None:
    t1.add(port(8080, 80, protocol, hostIP=OWN[family]))

    assert lab.outside.ask(OWN[family], 8080, protocol).target == "t1"
    assert lab.outside.ask(OTHER[family], 8080, protocol).outcome == "refused"
    assert lab.outside.ask(OWN[10 - family], 8080, protocol).outcome == "refused"


@pytest.mark.parametrize(("host", "family"), [("0.0.0.0", 4), ("::", 6), ("::ffff:0.0.0.0", 4)])
def test_an_unspecified_host_address_is_every_address_of_its_family(
    lab: Lab, t1: Attachment, host: str, family: int
) -> None:
    t1.add(port(8080, 80, hostIP=host))

    assert {lab.outside.ask(each, 8080).target for each in (OWN[family], OTHER[family])} == {"t1"}
    assert lab.outside.ask(OWN[10 - family], 8080).outcome == "refused"


def test_an_unspecified_host_address_of_a_family_that_the_container_lacks_is_left_out(lab: Lab, t1: Attachment) -> None:
    only4 = t1.but(addresses=ADDRESSES["t1"][:1])
    only4.add(port(8080, 80, hostIP="0.0.0.0"), port(8080, 80, hostIP="::"))

    assert lab.outside.ask(OWN[4], 8080).target == "t1"
    assert only4.call("CHECK", port(8080, 80, hostIP="0.0.0.0"), port(8080, 80, hostIP="::")).status == 0


def test_a_host_address_of_a_family_that_the_container_lacks_is_said(t1: Attachment) -> None:
    reply = t1.but(addresses=ADDRESSES["t1"][:1]).call("ADD", port(8080, 80, hostIP=OWN[6]))

    assert (reply.code, f"hostIP is {OWN[6]}" in reply.message) == (7, True)


def test_a_loopback_host_address_is_served_to_the_host_alone(lab: Lab, t1: Attachment) -> None:
    t1.add(port(8080, 80, hostIP="127.0.0.1"))

    assert lab.host.ask("127.0.0.1", 8080).target == "t1"
    assert lab.outside.ask(OWN[4], 8080).outcome == "refused"


def test_two_containers_on_one_port_of_two_loopback_addresses(lab: Lab, t1: Attachment, t2: Attachment) -> None:
    t1.add(port(8080, 80, hostIP="127.0.0.2"))
    t2.add(port(8080, 80, hostIP="127.0.0.3"))

    assert [lab.host.ask(f"127.0.0.{n}", 8080).target for n in (2, 3)] == ["t1", "t2"]


def test_tcp_and_udp_of_one_number_are_two_ports_and_go_together(lab: Lab, t1: Attachment) -> None:
    both = (port(8080, 80, "tcp"), port(8080, 80, "udp"), port(8081, 80, "tcp", hostIP=OWN[4]))
    t1.add(*both)
    assert [lab.outside.ask(OWN[4], 8080, each).target for each in ("tcp", "udp")] == ["t1", "t1"]

    t1.remove(*both)

    assert {lab.outside.ask(OWN[4], each).outcome for each in (8080, 8081)} == {"refused"}
    assert lab.outside.ask(OWN[4], 8080, "udp").outcome == "refused"


def test_two_host_ports_lead_to_one_container_port(lab: Lab, t1: Attachment) -> None:
    t1.add(port(8080, 80), port(8443, 80))

    assert [lab.outside.ask(OWN[4], each).target for each in (8080, 8443)] == ["t1", "t1"]


def test_a_udp_client_reaches_the_new_container_on_the_port_of_the_old(
    lab: Lab, t1: Attachment, t2: Attachment
) -> None:
    with lab.outside.talk(OWN[4], 5353, "udp") as talk:
        assert talk.ask(0.3).outcome in ("refused", "timeout")
        t1.add(port(5353, 80, "udp"))
        assert talk.ask().target == "t1"
        t1.remove(port(5353, 80, "udp"))
        t2.add(port(5353, 80, "udp"))
        assert talk.ask().target == "t2"


def test_strict_reverse_path_filters_do_not_stand_in_the_way(lab: Lab, t1: Attachment) -> None:
    for key in ("all", "up0", "out0", "br0"):
        lab.host.sysctl(f"net/ipv4/conf/{key}/rp_filter", 1)
    try:
        t1.add(port(8080, 80))
        found = [lab.outside.ask(OWN[4], 8080).target, lab.t1.ask(OWN[4], 8080).target]
        found.append(lab.host.ask("127.0.0.1", 8080).target)
    finally:
        for key in ("all", "up0", "out0", "br0"):
            lab.host.sysctl(f"net/ipv4/conf/{key}/rp_filter", 0)

    assert found == ["t1", "t1", "t1"]


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", LATEST])
def test_the_first_address_of_each_family_is_the_target(lab: Lab, t1: Attachment, version: str) -> None:
    before = result(version, ADDRESSES["t1"], sandbox=t1.netns)
    if "ips" in before:
        before["ips"] += [{**each, "address": "10.88.0.99/24"} for each in before["ips"][:1]]
    t1.but(version=version).add(port(8080, 80), prevResult=before)

    assert [lab.outside.ask(OWN[family], 8080).target for family in (4, 6)] == ["t1", "t1"]


def test_snat_false_keeps_the_address_of_a_sibling(lab: Lab, t1: Attachment) -> None:
    lab.bridge_netfilter(True)
    t1.add(port(8080, 80), snat=False)

    assert lab.t2.ask(OWN[4], 8080).source == ADDRESSES["t2"][0]
    assert lab.host.ask("127.0.0.1", 8080).target == "t1"
    assert t1.call("CHECK", port(8080, 80), snat=False).status == 0


def test_masq_all_hides_every_client(lab: Lab, t1: Attachment) -> None:
    t1.add(port(8080, 80), masqAll=True)

    assert lab.outside.ask(OWN[4], 8080).source == host_addresses("br0", 4)[0]


@pytest.mark.parametrize("name", ["conditionsV4", "conditionsV6"])
def test_conditions_are_refused_with_key_and_value(t1: Attachment, name: str) -> None:
    reply = t1.call("ADD", port(8080, 80), **{name: ["-s", "192.0.2.0/24"]})

    assert (reply.code, name in reply.message, "192.0.2.0/24" in reply.message) == (2, True, True)
    assert t1.add(port(8080, 80), **{name: []}).remarks == ""


@pytest.mark.parametrize(
    ("name", "value"), [("backend", "iptables"), ("markMasqBit", 13), ("externalSetMarkChain", "X")]
)
def test_what_has_no_meaning_is_ignored_and_said(lab: Lab, t1: Attachment, name: str, value: object) -> None:
    reply = t1.add(port(8080, 80), **{name: value})

    assert name in reply.remarks
    assert lab.outside.ask(OWN[4], 8080).target == "t1"


def test_a_file_called_portmap_serves_as_one(lab: Lab, daemon: Daemon, t1: Attachment) -> None:
    linked, copied = Path(daemon.dir, "portmap"), Path(daemon.dir, "copy", "portmap")
    linked.symlink_to(t1.executable)
    copied.parent.mkdir()
    copied.write_bytes(t1.executable.read_bytes())
    copied.chmod(0o755)
    try:
        for name, number in ((linked, 8080), (copied, 8081)):
            t1.but(executable=name, container=str(number)).add(port(number, 80), type="portmap")
    finally:
        linked.unlink()
        copied.unlink()
        copied.parent.rmdir()

    assert [lab.outside.ask(OWN[4], each).target for each in (8080, 8081)] == ["t1", "t1"]


def test_the_pods_name_is_told_to_people(t1: Attachment, t2: Attachment) -> None:
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=3f2a"
    assert t1.say("ADD", json.dumps(t1.configuration(port(8080, 80))).encode(), CNI_ARGS=pod).status == 0

    assert '"shop/web-0"' in t2.call("ADD", port(8080, 80)).message


def test_the_ports_go_with_the_network_namespace(lab: Lab, daemon: Daemon, t1: Attachment) -> None:
    lab.attach("pod", "br0")
    pod = t1.but(netns=f"/run/netns/{lab.spaces['pod'].full}", container="pod")
    pod.add(port(8080, 80))
    assert answers(lab, 8080, "outside") == "t1"

    lab.discard("pod")

    eventually(lambda: answers(lab, 8080, "outside"), "refused")
    assert pod.remove(port(8080, 80)).remarks == ""


def test_many_ports_are_few_mappings(daemon: Daemon, lab: Lab, t1: Attachment) -> None:
    ports = [port(10_000 + n, 20_000 + n, each) for n, each in itertools.product(range(2_000), ("tcp", "udp"))]
    t1.add(*ports)

    assert len(daemon.elements("any4")) == 4_000
    listed = lab.host.run(["curl", "-s", "--unix-socket", str(daemon.socket), f"http://x/v1/owners/{t1.owner}"]).stdout
    assert listed.count('"listen":"10000-11999"') == 2
    assert t1.call("CHECK", *ports).status == 0

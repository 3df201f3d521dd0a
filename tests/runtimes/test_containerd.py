"""containerd, asked as the kubelet asks it, publishes host ports of pods through nfportd.

Must not know how the plugin speaks to the daemon. The one idea: a pod is made and removed over CRI, and what counts is
what clients on the wire get meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("grpc", reason="no gRPC for Python (extra `test`)")
pytest.importorskip("google.protobuf", reason="no protobuf for Python (extra `test`)")

from nfportd.client import Client
from tests.conftest import dropin, mapping
from tests.lab import Lab
from tests.netns import Namespace
from tests.runtimes import containerd, plugins
from tests.runtimes.containerd import Containerd
from tests.runtimes.cri import Refused, port
from tests.runtimes.images import ask
from tests.runtimes.room import SOCKET, Resident, Room, needs, wait_for

OWN, OWN6 = "192.0.2.1", "2001:db8::1"
BRIDGE, BRIDGE6 = "10.89.0.1", "fd89::1"
PORT = 10000


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    needs(*containerd.PROGRAMS)


@pytest.fixture(scope="module")
def runtime(room: Room, resident: Resident) -> Iterator[Containerd]:
    networks = room.dir / "net.d"
    plugins.network(networks, "podnet")
    made = Containerd(room, plugins.directory(room.dir / "bin"), networks)
    if why := made.trial():
        made.close()
        pytest.skip(f"containerd runs no containers here: {why}")
    yield made
    made.close()


@pytest.fixture
def pods(runtime: Containerd, daemon: Resident) -> Iterator[Containerd]:
    """containerd without pods; at the end of a test nothing of its pods is left."""
    yield runtime
    if daemon.process is None:
        daemon.start()
    runtime.clear()
    for file in daemon.dropins.iterdir():
        daemon.remove(file.name)
    assert_nothing_left(runtime, daemon)


def assert_nothing_left(runtime: Containerd, daemon: Resident) -> None:
    assert runtime.pods() == []
    assert runtime.room.namespaces() == runtime.room.leases() == []
    assert daemon.elements("any4") == daemon.elements("any6") == {}
    with Client(str(daemon.socket)) as api:
        assert api.get("/v1/owners", prefix="cni:")["owners"] == []


def seen(space: Namespace, address: str) -> tuple[str, str]:
    """Who answers on the port, and the source it sees; or why nobody does."""
    answer = ask(space, address, PORT)
    return (answer.target, answer.source) if answer else (answer.outcome, "")


def test_a_pod_is_reached_from_everywhere(lab: Lab, pods: Containerd) -> None:
    web, sibling = pods.run("web", port(PORT)), pods.run("sibling")

    # Clients from elsewhere are seen with their own addresses.
    assert seen(lab.outside, OWN) == ("web", "198.51.100.10")
    assert seen(lab.outside, OWN6) == ("web", "2001:db8:1::10")
    assert seen(lab.client, OWN) == ("web", "192.0.2.10")
    assert seen(lab.client, OWN6) == ("web", "2001:db8::10")
    # The host reaches it by loopback and by its own addresses.
    assert seen(lab.host, "127.0.0.1") == ("web", BRIDGE)
    assert seen(lab.host, OWN)[0] == seen(lab.host, OWN6)[0] == "web"
    # What itself and its neighbour on the bridge ask comes back through the host.
    for space in (web.inside, sibling.inside):
        assert seen(space, OWN) == ("web", BRIDGE)
        assert seen(space, OWN6) == ("web", BRIDGE6)


def test_a_removed_pod_takes_its_port_and_its_owner_with_it(lab: Lab, pods: Containerd, api: Client) -> None:
    pod = pods.run("web", port(PORT))
    assert ask(lab.outside, OWN, PORT)
    (owner,) = api.get("/v1/owners", prefix="cni:")["owners"]
    assert owner["owner"] == f"cni:podnet/{pod.id}/eth0"

    pods.remove(pod.id)

    assert ask(lab.outside, OWN, PORT).outcome == "refused"
    assert ask(lab.host, "127.0.0.1", PORT).outcome == "refused"
    assert api.get("/v1/owners", prefix="cni:")["owners"] == []


def test_udp_and_tcp_on_one_number_and_a_single_host_address(lab: Lab, pods: Containerd) -> None:
    pod = pods.run("dns", port(PORT, 53, "udp"), port(PORT, 80), port(PORT + 1, 80, address=OWN))
    pod.inside.serve([53], ["udp"])

    for address in (OWN, OWN6):
        answer = lab.outside.ask(address, PORT, "udp")
        assert (answer.target, answer.port) == ("dns", 53)
        assert ask(lab.outside, address, PORT).target == "dns"
    assert ask(lab.outside, OWN, PORT + 1).target == "dns"
    assert ask(lab.outside, "198.51.100.1", PORT + 1).outcome == "refused"


def test_the_port_lives_while_containerd_is_dead_and_after(lab: Lab, pods: Containerd) -> None:
    pod = pods.run("web", port(PORT))

    pods.kill()
    assert ask(lab.outside, OWN, PORT).target == "web"
    pods.start()

    assert ask(lab.outside, OWN, PORT).target == "web"
    assert pods.pods() == [pod.id]
    pods.remove(pod.id)
    assert ask(lab.outside, OWN, PORT).outcome == "refused"


def test_the_port_lives_while_nfportd_is_dead_and_after(lab: Lab, pods: Containerd, daemon: Resident) -> None:
    old = pods.run("old", port(PORT))

    daemon.kill9()
    assert ask(lab.outside, OWN, PORT).target == "old"
    with pytest.raises(Refused, match=f"nfportd does not answer on {SOCKET}"):
        pods.run("early", port(PORT + 1))
    daemon.start()

    assert ask(lab.outside, OWN, PORT).target == "old"
    pods.run("new", port(PORT + 1))
    assert ask(lab.outside, OWN, PORT + 1).target == "new"
    assert len(pods.room.namespaces()) == 2
    pods.remove(old.id)
    assert ask(lab.outside, OWN, PORT).outcome == "refused"


def test_a_stop_and_a_start_of_nfportd_bring_the_port_back(lab: Lab, pods: Containerd, daemon: Resident) -> None:
    pods.run("web", port(PORT))

    daemon.stop()
    assert ask(lab.outside, OWN, PORT).outcome == "refused"
    daemon.start()

    assert ask(lab.outside, OWN, PORT).target == "web"
    assert ask(lab.host, "127.0.0.1", PORT).target == "web"


def test_a_pod_removed_while_nfportd_was_dead_is_forgotten(lab: Lab, pods: Containerd, daemon: Resident) -> None:
    pod = pods.run("web", port(PORT))

    daemon.kill9()
    pods.remove(pod.id)  # it succeeds: a container must be removable without the daemon
    daemon.start()

    wait_for(lambda: daemon.elements("any4") == {}, "the end of the owner whose namespace is gone")
    assert pods.run("next", port(PORT)).name == ask(lab.outside, OWN, PORT).target


def test_a_port_of_a_host_process_is_refused_by_the_name_of_the_process(lab: Lab, pods: Containerd) -> None:
    with pods.room.listener(PORT) as pid:
        with pytest.raises(Refused, match=rf"busybox \(pid {pid}\) listens .* port {PORT}"):
            pods.run("web", port(PORT))

        assert pods.room.namespaces() == []
        assert ask(lab.outside, OWN, PORT).target == "process"
    pods.run("web", port(PORT))
    assert ask(lab.outside, OWN, PORT).target == "web"


def test_a_port_of_a_drop_in_is_refused_by_the_name_of_the_file(lab: Lab, pods: Containerd, daemon: Resident) -> None:
    daemon.write("web.yaml", dropin(mapping("web", PORT, "10.88.0.11:80")))

    with pytest.raises(Refused, match=r"file:web\.yaml"):
        pods.run("web", port(PORT))

    assert pods.room.namespaces() == []
    assert lab.outside.ask(OWN, PORT).target == "t1"


def test_a_port_of_a_pod_that_stays_is_refused_by_the_name_of_the_pod(lab: Lab, pods: Containerd) -> None:
    first = pods.run("first", port(PORT))

    with pytest.raises(Refused, match=f"another container has the port: .*cni:podnet/{first.id}/eth0"):
        pods.run("second", port(PORT))

    assert len(pods.room.namespaces()) == 1
    assert ask(lab.outside, OWN, PORT).target == "first"


def test_a_pod_waits_for_the_port_of_one_that_is_going(lab: Lab, pods: Containerd) -> None:
    first = pods.run("first", port(PORT))

    with ThreadPoolExecutor() as pool:
        second = pool.submit(pods.run, "second", port(PORT))
        time.sleep(0.8)  # it has asked for the port by now, and waits
        assert not second.done()
        pods.remove(first.id)
        second.result()

    assert ask(lab.outside, OWN, PORT).target == "second"


def test_a_udp_client_that_goes_on_reaches_the_next_pod(lab: Lab, pods: Containerd) -> None:
    first = pods.run("first", port(PORT, 53, "udp"))
    first.inside.serve([53], ["udp"])

    with lab.outside.talk(OWN, PORT, "udp") as four, lab.outside.talk(OWN6, PORT, "udp") as six:
        assert four.ask().target == six.ask().target == "first"
        pods.remove(first.id)
        second = pods.run("second", port(PORT, 53, "udp"))
        second.inside.serve([53], ["udp"])

        assert four.ask().target == six.ask().target == "second"

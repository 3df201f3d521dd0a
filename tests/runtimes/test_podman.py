"""podman with its CNI backend publishes ports of containers through nfportd.

Must not know how the plugin speaks to the daemon. The one idea: an administrator types podman commands, and what
counts is what clients on the wire get. Podman's conmon listens on each published port as well, to reserve it; it
never answers, so nobody may come to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nfportd.client import Client
from tests.lab import Lab
from tests.netns import Namespace
from tests.runtimes import plugins, podman
from tests.runtimes.images import ask
from tests.runtimes.podman import Podman
from tests.runtimes.room import SOCKET, Resident, Room, needs, wait_for

OWN, OWN6 = "192.0.2.1", "2001:db8::1"
MANY = 20


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    needs(*podman.PROGRAMS)


@pytest.fixture(scope="module")
def engine(room: Room, resident: Resident) -> Podman:
    networks = room.dir / "net.d"
    plugins.network(networks, "podnet")
    plugins.network(networks, "links", "ptp")
    plugins.of_debian(networks)
    made = Podman(room, plugins.directory(room.dir / "bin"), networks, "podnet")
    if why := made.trial():
        pytest.skip(f"podman runs no containers here: {why}")
    return made


@pytest.fixture
def containers(engine: Podman, daemon: Resident) -> Iterator[Podman]:
    """podman without containers; at the end of a test nothing of its containers is left."""
    yield engine
    if daemon.process is None:
        daemon.start()
    engine.clear()
    assert engine.room.namespaces() == engine.room.leases() == []
    assert daemon.elements("any4") == daemon.elements("any6") == {}
    with Client(str(daemon.socket)) as api:
        assert api.get("/v1/owners", prefix="cni:")["owners"] == []


def seen(space: Namespace, address: str, port: int = 8080) -> tuple[str, str]:
    """Who answers, and the source it sees; or why nobody does."""
    answer = ask(space, address, port)
    return (answer.target, answer.source) if answer else (answer.outcome, "")


@pytest.mark.parametrize(("network", "gateway"), [("podnet", "10.89.0.1"), ("links", "10.91.0.1")])
def test_a_container_is_reached_from_everywhere(lab: Lab, containers: Podman, network: str, gateway: str) -> None:
    web = containers.run("web", "--network", network, "-p", "8080:80")

    assert seen(lab.outside, OWN) == ("web", "198.51.100.10")
    assert seen(lab.outside, OWN6) == ("web", "2001:db8:1::10")
    assert seen(lab.client, OWN) == ("web", "192.0.2.10")
    assert seen(lab.host, "127.0.0.1") == ("web", gateway)
    assert seen(lab.host, OWN)[0] == seen(lab.host, OWN6)[0] == "web"
    assert seen(web.inside, OWN) == ("web", gateway)
    assert seen(web.inside, OWN6)[0] == "web"

    containers.remove("web")
    assert seen(lab.outside, OWN) == seen(lab.host, "127.0.0.1") == ("refused", "")


@pytest.mark.parametrize("network", ["podnet", "links"])
def test_a_container_is_reached_by_the_loopback_of_ipv6(lab: Lab, containers: Podman, network: str) -> None:
    lab.bridge_netfilter(network != "podnet")  # behind a bridge it needs this to be off: the README's known limit
    try:
        containers.run("web", "--network", network, "-p", "8080:80")

        assert seen(lab.host, "::1")[0] == "web"
    finally:
        lab.bridge_netfilter(True)


def test_debians_network_works_unchanged_with_our_portmap(lab: Lab, containers: Podman, api: Client) -> None:
    web = containers.run("web", "--network", "podman", "-p", "8080:80")

    assert [each["owner"] for each in api.get("/v1/owners")["owners"]] == [f"cni:podman/{web.id}/eth0"]
    assert seen(lab.outside, OWN) == ("web", "198.51.100.10")
    assert seen(lab.host, "127.0.0.1") == ("web", "10.90.0.1")
    assert seen(web.inside, OWN) == ("web", "10.90.0.1")
    assert "cni_hostport" not in lab.host.nft("list ruleset")
    assert "CNI-HOSTPORT" not in lab.host.nft("list ruleset")


def test_ranges_protocols_and_one_address(lab: Lab, containers: Podman) -> None:
    options = ["-p", "5000-5005:6000-6005", "-p", "5053:53/udp", "-p", "127.0.0.1:5080:80", "-p", f"[{OWN6}]:5081:80"]
    inside = containers.run("many", *options).inside
    inside.serve(range(6000, 6006), ["tcp"])
    inside.serve([53], ["udp"])

    assert [lab.outside.ask(OWN, 5000 + n).port for n in range(6)] == [6000 + n for n in range(6)]
    assert lab.outside.ask(OWN, 5053, "udp").port == lab.outside.ask(OWN6, 5053, "udp").port == 53
    assert lab.host.ask("127.0.0.1", 5053, "udp").target == "many"
    assert seen(lab.host, "127.0.0.1", 5080)[0] == "many"
    assert seen(lab.host, OWN, 5080)[0] == seen(lab.outside, OWN, 5080)[0] == "refused"
    assert seen(lab.outside, OWN6, 5081)[0] == "many"
    assert seen(lab.outside, "2001:db8::2", 5081)[0] == "refused"


def test_twenty_containers_at_once(lab: Lab, containers: Podman) -> None:
    ports = {f"c{number}": 7000 + number for number in range(MANY)}

    with ThreadPoolExecutor(MANY) as pool:
        list(pool.map(lambda name: containers.start(name, "-p", f"{ports[name]}:80"), ports))

    for name, port in ports.items():
        wait_for(lambda port=port: ask(lab.outside, OWN, port), f"{name} to answer")  # type: ignore[misc]
    assert {name: ask(lab.outside, OWN, port).target for name, port in ports.items()} == {name: name for name in ports}


def test_a_restart_and_a_stop_and_a_start_keep_the_port(lab: Lab, containers: Podman, daemon: Resident) -> None:
    containers.run("web", "-p", "8080:80")

    containers("restart", "--time", "0", "web")
    containers.settled("web")
    assert seen(lab.outside, OWN) == ("web", "198.51.100.10")

    containers("stop", "--time", "0", "web")
    assert daemon.elements("any4") == {}
    assert seen(lab.outside, OWN)[0] == "refused"
    containers("start", "web")
    containers.settled("web")
    assert seen(lab.outside, OWN)[0] == seen(lab.host, "127.0.0.1")[0] == "web"


def test_a_container_that_dies_lets_its_port_go(lab: Lab, containers: Podman, daemon: Resident) -> None:
    containers.run("web", "-p", "8080:80")

    containers("kill", "web")

    wait_for(lambda: daemon.elements("any4") == {}, "the port of a dead container to go")
    wait_for(lambda: containers.room.namespaces() == [], "its namespace to go")
    assert seen(lab.outside, OWN)[0] == "refused"


def test_the_second_container_on_a_port_is_refused_by_the_name_of_the_first(lab: Lab, containers: Podman) -> None:
    first = containers.run("first", "-p", "8080:80")

    said = containers.refused("second", "-p", "8080:80")

    assert re.search(rf"8080/tcp is held by .*cni:podnet/{first.id}/eth0", said), said
    assert len(containers.room.namespaces()) == 1
    assert seen(lab.outside, OWN)[0] == "first"
    containers.remove("first")
    containers("start", "second")
    containers.settled("second")
    assert ask(lab.outside, OWN, 8080)


def test_a_port_of_a_host_process_is_refused_by_its_name(lab: Lab, containers: Podman) -> None:
    with containers.room.listener(8080) as pid:
        said = containers.refused("web", "-p", "8080:80")

        assert re.search(rf"busybox \(pid {pid}\) listens .* port 8080", said), said
        assert containers.room.namespaces() == []
        assert ask(lab.outside, OWN, 8080).target == "process"


def test_a_crash_of_nfportd_is_not_seen(lab: Lab, containers: Podman, daemon: Resident) -> None:
    containers.run("web", "-p", "8080:80")
    assert containers.room.listening() == {8080: "conmon"}

    daemon.kill9()
    assert seen(lab.outside, OWN)[0] == "web"
    assert f"nfportd does not answer on {SOCKET}" in containers.refused("early", "-p", "8081:80")
    daemon.start()

    assert seen(lab.outside, OWN)[0] == seen(lab.outside, OWN6)[0] == "web"


def test_a_stop_and_a_start_of_nfportd_bring_the_port_back(lab: Lab, containers: Podman, daemon: Resident) -> None:
    containers.run("web", "-p", "8080:80")
    assert containers.room.listening() == {8080: "conmon"}

    daemon.stop()
    daemon.start()

    assert seen(lab.outside, OWN)[0] == seen(lab.outside, OWN6)[0] == seen(lab.host, "127.0.0.1")[0] == "web"


def test_a_reload_of_the_network_keeps_the_port(lab: Lab, containers: Podman) -> None:
    containers.run("web", "-p", "8080:80")
    assert containers.room.listening() == {8080: "conmon"}

    containers("network", "reload", "web")  # DEL and ADD while conmon listens

    assert seen(lab.outside, OWN)[0] == seen(lab.host, "127.0.0.1")[0] == "web"
    containers.settled("web")
    assert seen(lab.outside, OWN6)[0] == "web"


def test_a_container_with_users_of_its_own(lab: Lab, containers: Podman) -> None:
    # Its network is made last: conmon listens before ADD.
    containers.run("web", "--uidmap", "0:100000:5000", "-p", "8080:80")

    assert seen(lab.outside, OWN)[0] == seen(lab.outside, OWN6)[0] == seen(lab.host, "127.0.0.1")[0] == "web"

"""Containers of podman with netavark, published by the OCI hook: what clients see from the start to the end.

It must not use -p: netavark publishes nothing here. The one idea: the mappings live as long as the container's
process, however that ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api.calling import body, client, eventually, mapping
from tests.lab import Daemon, Lab
from tests.recipes.conftest import PORTCTL, is_dead, owners, page, recipe
from tests.recipes.podman import PROGRAMS, Podman
from tests.runtimes.room import Room, needs

CLIENT, OUTSIDE = "192.0.2.10", "2001:db8:1::10"

with_each_runtime = pytest.mark.parametrize("podman", ["crun", "runc"], indirect=True)


@pytest.fixture(scope="module")
def installed(room: Room) -> Callable[[str], Podman]:
    """podman with a runtime, made once."""
    return functools.cache(lambda runtime: Podman(room, runtime))


@pytest.fixture
def podman(request: pytest.FixtureRequest, installed: Callable[[str], Podman], daemon: Daemon) -> Iterator[Podman]:
    runtime = getattr(request, "param", "crun")
    needs(*PROGRAMS, runtime)
    made = installed(runtime)
    made.hook(daemon)
    yield made
    made.clear()


def ports(entries: str) -> tuple[str, str]:
    return "--annotation", f"nfportd.ports={entries}"


@with_each_runtime
def test_a_container_is_reached_from_everywhere_until_it_stops(podman: Podman, daemon: Daemon, lab: Lab) -> None:
    container = podman.run("web", *ports("8080:80"))

    assert owners(daemon) == [f"oci:{container}"]
    eventually(lambda: page(lab, 8080), f"web {CLIENT}")
    assert page(lab, 8080, "outside", "2001:db8::1") == f"web {OUTSIDE}"
    assert page(lab, 8080, "host", "127.0.0.1").startswith("web ")
    assert page(lab, 8080, "t1").startswith("web ")

    podman("stop", "--time", "0", "web")

    eventually(lambda: is_dead(lab, 8080), True)
    assert owners(daemon) == []


def test_every_form_of_an_entry(podman: Podman, lab: Lab) -> None:
    podman.run("many", *ports("192.0.2.2:81:80 8080-8081:9080-9081 5353:53/udp [2001:db8::1]:82:80"))
    podman.inside("many").serve([9080, 9081, 53])

    eventually(lambda: page(lab, 81, host="192.0.2.2"), f"many {CLIENT}")
    assert is_dead(lab, 81, host="192.0.2.1")
    assert [lab.client.ask("192.0.2.1", port).port for port in (8080, 8081)] == [9080, 9081]
    assert lab.client.ask("192.0.2.1", 5353, "udp").source == CLIENT
    assert page(lab, 82, "outside", "2001:db8::1") == f"many {OUTSIDE}"


def test_the_port_is_dead_when_the_process_was_killed(podman: Podman, daemon: Daemon, lab: Lab) -> None:
    podman.run("web", *ports("8080:80"))
    eventually(lambda: page(lab, 8080), f"web {CLIENT}")

    podman("kill", "--signal", "KILL", "web")

    eventually(lambda: is_dead(lab, 8080), True)
    assert owners(daemon) == []


def test_a_restarted_container_is_published_anew(podman: Podman, daemon: Daemon, lab: Lab) -> None:
    container = podman.run("web", *ports("8080:80"))

    podman("restart", "--time", "0", "web")

    assert owners(daemon) == [f"oci:{container}"]
    eventually(lambda: page(lab, 8080), f"web {CLIENT}")


def test_the_mappings_outlive_a_crash_of_the_daemon_but_not_the_container(
    podman: Podman, daemon: Daemon, lab: Lab
) -> None:
    podman.run("web", *ports("8080:80"))
    eventually(lambda: page(lab, 8080), f"web {CLIENT}")

    daemon.kill9()
    assert page(lab, 8080) == f"web {CLIENT}"
    daemon.start()
    assert page(lab, 8080) == f"web {CLIENT}"
    podman("stop", "--time", "0", "web")

    eventually(lambda: is_dead(lab, 8080), True)
    assert owners(daemon) == []


def reason(podman: Podman, place: Path, *options: str, network: str = "both") -> str:
    """Why a container was not started: runc says what the hook said, crun only writes it to a file that is named."""
    shown = ("--annotation", f"run.oci.hooks.stderr={place}")
    done = podman.refused("web", *shown, *options, network=network)
    return place.read_text() if podman.runtime == "crun" else done.stderr


@with_each_runtime
def test_a_port_that_is_taken_stops_the_start(podman: Podman, daemon: Daemon, lab: Lab, tmp_path: Path) -> None:
    with client(daemon) as api:
        api.put("api:holder", body(mapping(8080)))

    said = reason(podman, tmp_path / "said", *ports("8079:80 8080:80"))

    assert "conflict" in said
    assert "api:holder" in said
    assert owners(daemon) == ["api:holder"]
    assert is_dead(lab, 8079)


def test_without_the_daemon_only_containers_with_ports_do_not_start(
    podman: Podman, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.stop()

    said = reason(podman, tmp_path / "said", *ports("8080:80"))
    podman.clear()
    podman.run("plain")

    assert str(daemon.socket) in said


def test_a_container_in_the_network_of_the_host_is_refused(podman: Podman, tmp_path: Path) -> None:
    said = reason(podman, tmp_path / "said", *ports("8080:80"), network="host")

    assert "in the network of this host" in said


def test_the_recipe_for_docker_works_on_what_podman_says_of_a_container(
    podman: Podman, daemon: Daemon, room: Room, lab: Lab
) -> None:
    (asked,) = recipe("Docker, without -p", r"^ +(docker inspect .*)$")
    container = podman.run("web", "--label", "nfportd.ports=8080:80")
    assert owners(daemon) == []

    line = asked.replace("docker ", "podman ").replace("nfportctl", f"{PORTCTL} --socket {daemon.socket}")
    room.run("sh", "-euc", line.replace('"$id"', container), env=podman.env)

    eventually(lambda: page(lab, 8080), f"web {CLIENT}")
    podman("stop", "--time", "0", "web")
    eventually(lambda: is_dead(lab, 8080), True)

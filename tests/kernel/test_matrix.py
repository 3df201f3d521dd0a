"""Who reaches which target, and which source it sees: every kind of client, both families, TCP and UDP.

It must not know the ruleset. The one idea: each cell of the matrix is one question asked on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.api import calling
from tests.conftest import dropin, mapping
from tests.lab import HOST, LINK_OF, TARGETS, Daemon, Lab, address, endpoint, host_addresses

PORTS = {name: 8081 + index for index, name in enumerate(TARGETS)}
WEB = dropin(
    *(
        mapping(name, port, endpoint(address(name, 4), 80), endpoint(address(name, 6), 80), protocol="[tcp, udp]")
        for name, port in PORTS.items()
    )
)
UPLINK = {4: "192.0.2.1", 6: "2001:db8::1"}
ON_A_BRIDGE = ("t1", "t2", "t4")


class Cell(NamedTuple):
    """`client` asks the host's address `to`; `target` answers and sees (`kept`) the client's own source."""

    client: str
    to: str
    target: str
    kept: bool
    source: str = ""  # what the client binds, when it does

    @property
    def family(self) -> int:
        return 6 if ":" in self.to else 4

    def __str__(self) -> str:
        bound = f"[from {self.source}]" if self.source else ""
        return f"{self.client}{bound}-to-{self.to}-is-{self.target}"


def from_outside(family: int) -> Iterator[Cell]:
    for target in TARGETS:
        yield Cell("outside", UPLINK[family], target, kept=True)
    for interface in ("up0", "out0", "br0", "veth3"):
        for other in host_addresses(interface, family):
            yield Cell("outside", other, "t2", kept=True)


def from_the_lan(family: int) -> Iterator[Cell]:
    for target in TARGETS:
        yield Cell("client", UPLINK[family], target, kept=target != "lan")
    yield Cell("lan", UPLINK[family], "lan", kept=False)  # to itself


def from_targets(family: int) -> Iterator[Cell]:
    gateways = {name: (UPLINK[family], host_addresses(LINK_OF[name], family)[0]) for name in PORTS}
    for client in ("t1", "t2", "t3", "t4"):
        for target in ("t1", "t3", "t4", "lan"):
            for to in gateways[client]:  # by the host's name for the world, and by the gateway that it knows
                yield Cell(client, to, target, kept=LINK_OF[client] != LINK_OF[target])


def from_the_host(family: int) -> Iterator[Cell]:
    for target in TARGETS:
        if family == 6:
            yield Cell("host", "::1", target, kept=False)
        else:
            yield Cell("host", "127.0.0.1", target, kept=False)
            yield Cell("host", "127.0.0.5", target, kept=False)
            yield Cell("host", "127.0.0.1", target, kept=False, source="127.0.0.5")
        for interface in HOST:
            for own in host_addresses(interface, family):
                yield Cell("host", own, target, kept=LINK_OF[target] != interface)


def cells() -> Iterator[object]:
    for family in (4, 6):
        for each in (from_outside, from_the_lan, from_targets, from_the_host):
            for cell in each(family):
                for bridged in ("plain", "bridge-nf") if cell.target in ON_A_BRIDGE else ("plain",):
                    for proto in ("tcp", "udp"):
                        yield pytest.param(cell, proto, bridged, id=f"{proto}-{cell}-{bridged}")


@pytest.fixture(scope="module", autouse=True)
def daemon(lab: Lab) -> Daemon:
    begun = Daemon(lab)
    (begun.dropins / "web.yaml").write_text(WEB)
    begun.start()
    return begun


def served(daemon: Daemon, target: str, way: str) -> None:
    """Wait until [::1] leads to a target this way."""

    def ways() -> list[str]:
        found = api.get("/v1/mappings", port=PORTS[target])["mappings"]
        return [each["loopback6"] for each in found]

    with calling.client(daemon) as api:
        calling.eventually(ways, [way])


@pytest.mark.parametrize(("cell", "proto", "bridged"), list(cells()))
def test_cell(lab: Lab, daemon: Daemon, cell: Cell, proto: str, bridged: str) -> None:
    lab.bridge_netfilter(bridged == "bridge-nf")
    if cell.to == "::1":
        # The kernel tells nobody of the parameter; it is looked at each second.
        served(daemon, cell.target, "relay" if bridged == "bridge-nf" else "kernel")

    answer = lab.spaces[cell.client].ask(cell.to, PORTS[cell.target], proto, source=cell.source)

    assert (answer.outcome, answer.target) == ("answered", cell.target)
    if not cell.kept:
        assert answer.source in host_addresses(LINK_OF[cell.target], cell.family)
    elif cell.client == "host":  # the kernel may prefer another address of the same interface
        assert answer.source in next(own for four, six in HOST.values() for own in (four, six) if cell.to in own)
    else:
        assert answer.source == address(cell.client, cell.family)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("client", ["outside", "client", "t1", "t2", "t3", "host"])
def test_a_strict_reverse_path_check_is_no_obstacle(lab: Lab, client: str, target: str, proto: str) -> None:
    checked = [f"net/ipv4/conf/{name}/rp_filter" for name in ("all", *HOST)]
    for key in checked:
        lab.host.sysctl(key, 1)
    try:
        to = "127.0.0.1" if client == "host" else host_addresses("out0", 4)[0]
        answer = lab.spaces[client].ask(to, PORTS[target], proto)
    finally:
        for key in checked:
            lab.host.sysctl(key, 0)
    assert answer.target == target

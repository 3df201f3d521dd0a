"""Crafted frames: 127.0.0.0/8 and ::1 of the host stay out of reach of every link, whatever the sysctls say.

It must not know the ruleset. The one idea: a frame bears a mark that NAT keeps (payload, sequence number) and
is looked for wherever it could come out; first without nfportd, to show that the frame is dangerous.
"""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import Iterator

import pytest

from tests import frames
from tests.conftest import dropin, mapping
from tests.frames import Wire
from tests.lab import LINK_OF, Daemon, Lab, address, endpoint, host_addresses

ANY_PORT, LOOPBACK_PORT, SERVICE_PORT, OPEN_PORT = 8080, 8081, 9000, 9001
SWITCHES = ("all", "up0", "br0")
ATTACKERS = ("client", "outside", "t1", "t3")
TO_T1 = (endpoint(address("t1", 4), 80), endpoint(address("t1", 6), 80))
PUBLISHED = dropin(
    mapping("any", ANY_PORT, *TO_T1, protocol="[tcp, udp]"),
    mapping("loopback", f"127.0.0.1:{LOOPBACK_PORT}", TO_T1[0], protocol="[tcp, udp]"),
    mapping("loopback6", f"[::1]:{LOOPBACK_PORT}", TO_T1[1], protocol="[tcp, udp]"),
)


@pytest.fixture(scope="module", autouse=True)
def services(lab: Lab) -> None:
    for attacker in ATTACKERS:  # who attacks sees to it that the host knows his MAC address
        for family in (4, 6):
            assert lab.host.ask(address(attacker, family), 9).outcome == "refused"
    lab.host.serve([SERVICE_PORT], address="127.0.0.1", name="service-on-127.0.0.1")
    lab.host.serve([SERVICE_PORT], address="::1", name="service-on-::1")
    lab.host.serve([OPEN_PORT], name="service-on-any")


@pytest.fixture(scope="module")
def daemon(lab: Lab, services: None) -> Iterator[Daemon]:
    begun = Daemon(lab)
    (begun.dropins / "web.yaml").write_text(PUBLISHED)
    begun.start()
    yield begun
    begun.stop()


@pytest.fixture
def open_sysctls(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """route_localnet on the interfaces that the test names, off on the others; put back at the end."""
    keys = {name: f"net/ipv4/conf/{name}/route_localnet" for name in SWITCHES}
    before = {name: lab.host.sysctl(key) for name, key in keys.items()}
    for name, key in keys.items():
        lab.host.sysctl(key, int(name in request.param))
    yield
    for name, key in keys.items():
        lab.host.sysctl(key, before[name])


COMBINATIONS = [
    pytest.param(chosen, id="+".join(chosen) or "none")
    for size in range(len(SWITCHES) + 1)
    for chosen in itertools.combinations(SWITCHES, size)
]


class Attack:
    """Frames that one attacker sends to the host's MAC address, and where each came out."""

    def __init__(self, lab: Lab, attacker: str) -> None:
        self.lab = lab
        self.attacker = attacker
        self.datagrams: dict[bytes, str] = {}
        self.syns: dict[int, str] = {}
        self.wire = Wire(lab.spaces[attacker])
        self.link = Wire(lab.t1)
        self.mac = lab.host.mac(LINK_OF[attacker])

    def send(self, destination: str, port: int, source: str = "", sport: int = 0) -> None:
        """A UDP datagram and a TCP SYN, by default from any port."""
        source = source or address(self.attacker, 6 if ":" in destination else 4)
        payload, sequence = secrets.token_bytes(8), secrets.randbelow(1 << 31)
        self.datagrams[payload] = f"udp {source} -> {endpoint(destination, port)}"
        self.syns[sequence] = f"tcp {source} -> {endpoint(destination, port)}"
        sport = sport or 20000 + secrets.randbelow(40000)
        datagram = frames.udp(source, destination, sport, port, payload)
        syn = frames.tcp_syn(source, destination, sport, port, sequence)
        self.wire.send(self.mac, frames.packet(source, destination, "udp", datagram))
        self.wire.send(self.mac, frames.packet(source, destination, "tcp", syn))

    def reached(self, wait: float = 0.15) -> list[str]:
        """Frames that came out somewhere, and where, after a moment in which they had time to."""
        self.wire.see(lambda _: False, wait)
        self.link.see(lambda _: False, 0.01)
        out = [
            f"{self.datagrams[h.payload]}: {h.target}"
            for h in list(self.lab.servers.heard)
            if h.payload in self.datagrams
        ]
        answers = {seen.acknowledged - 1 for seen in self.wire.all if seen.proto == frames.PROTO["tcp"]}
        passed = {seen.sequence for seen in self.link.all if seen.proto == 6 and seen.dport == 80}
        out += [f"{what}: an answer" for sequence, what in self.syns.items() if sequence in answers]
        out += [f"{what}: on the target's link" for sequence, what in self.syns.items() if sequence in passed]
        return out

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()
        self.link.close()


@pytest.mark.parametrize("open_sysctls", [("all",)], indirect=True, ids=["all"])
@pytest.mark.parametrize("attacker", ATTACKERS)
def test_without_nfportd_the_frames_get_through(lab: Lab, attacker: str, open_sysctls: None) -> None:
    mine = address(attacker, 4)
    with Attack(lab, attacker) as attack:
        attack.send("127.0.0.1", SERVICE_PORT)
        attack.send("192.0.2.1", OPEN_PORT, source="127.0.0.5")
        assert attack.reached() == [
            f"udp {mine} -> 127.0.0.1:{SERVICE_PORT}: service-on-127.0.0.1",
            f"udp 127.0.0.5 -> 192.0.2.1:{OPEN_PORT}: service-on-any",
            f"tcp {mine} -> 127.0.0.1:{SERVICE_PORT}: an answer",
        ]


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("attacker", ATTACKERS)
def test_an_honest_frame_reaches_the_target(lab: Lab, attacker: str, family: int) -> None:
    mine, own = address(attacker, family), host_addresses("up0", family)[0]
    with Attack(lab, attacker) as attack:
        attack.send(own, ANY_PORT)
        assert attack.reached() == [
            f"udp {mine} -> {endpoint(own, ANY_PORT)}: t1",
            f"tcp {mine} -> {endpoint(own, ANY_PORT)}: an answer",
            f"tcp {mine} -> {endpoint(own, ANY_PORT)}: on the target's link",
        ]


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("open_sysctls", COMBINATIONS, indirect=True)
@pytest.mark.parametrize("attacker", ATTACKERS)
def test_a_frame_to_loopback_reaches_nobody(lab: Lab, attacker: str, open_sysctls: None) -> None:
    with Attack(lab, attacker) as attack:
        for destination in ("127.0.0.1", "127.0.0.5", "::1"):
            for port in (ANY_PORT, LOOPBACK_PORT, SERVICE_PORT, OPEN_PORT):
                attack.send(destination, port)
        assert attack.reached() == []


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("open_sysctls", COMBINATIONS, indirect=True)
@pytest.mark.parametrize("attacker", ATTACKERS)
def test_a_frame_from_loopback_reaches_nobody(lab: Lab, attacker: str, open_sysctls: None) -> None:
    with Attack(lab, attacker) as attack:
        for source, own in (("127.0.0.1", "192.0.2.1"), ("127.0.0.5", "192.0.2.1"), ("::1", "2001:db8::1")):
            for port in (OPEN_PORT, ANY_PORT):
                attack.send(own, port, source=source)
        assert attack.reached() == []


@pytest.mark.usefixtures("daemon")
def test_a_mapping_of_loopback_serves_the_host_alone(lab: Lab) -> None:
    for proto in ("tcp", "udp"):
        assert lab.host.ask("127.0.0.1", LOOPBACK_PORT, proto).target == "t1"
        for client in ATTACKERS:
            assert lab.spaces[client].ask("192.0.2.1", LOOPBACK_PORT, proto).outcome == "refused"


@pytest.mark.usefixtures("daemon")
def test_the_hosts_own_loopback_services_are_as_before(lab: Lab) -> None:
    for proto in ("tcp", "udp"):
        assert lab.host.ask("127.0.0.1", SERVICE_PORT, proto).source == "127.0.0.1"
        assert lab.host.ask("::1", SERVICE_PORT, proto).source == "::1"


@pytest.fixture
def their_rules(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """A table of somebody else, with this chain."""
    lab.host.nft(f"table ip theirs {{\n chain c {{ {request.param}; }}\n}}")
    yield
    lab.host.nft("delete table ip theirs")


UNTRACKED = "type filter hook prerouting priority -310; notrack"


@pytest.mark.usefixtures("daemon", "their_rules")
@pytest.mark.parametrize("their_rules", [UNTRACKED], indirect=True, ids=["notrack"])
@pytest.mark.parametrize("open_sysctls", [("all",)], indirect=True, ids=["all"])
@pytest.mark.parametrize("attacker", ATTACKERS)
def test_a_frame_that_is_not_tracked_reaches_nobody(lab: Lab, attacker: str, open_sysctls: None) -> None:
    with Attack(lab, attacker) as attack:
        attack.send("127.0.0.1", SERVICE_PORT)
        attack.send("192.0.2.1", OPEN_PORT, source="127.0.0.5")
        assert attack.reached() == []


ELSEWHERE = f"type nat hook output priority -110; udp dport 9003 dnat to 127.0.0.1:{SERVICE_PORT}"


@pytest.mark.usefixtures("daemon", "their_rules")
@pytest.mark.parametrize("their_rules", [ELSEWHERE], indirect=True, ids=["output"])
@pytest.mark.parametrize("open_sysctls", [("all",)], indirect=True, ids=["all"])
@pytest.mark.parametrize("attacker", ATTACKERS)
def test_a_frame_that_hits_a_running_flow_of_the_hosts_own_reaches_nobody(
    lab: Lab, attacker: str, open_sysctls: None
) -> None:
    with lab.host.entered():
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with flow, Attack(lab, attacker) as attack:
        flow.settimeout(5)
        flow.bind(("127.0.0.5", 0))
        flow.connect(("127.0.0.1", 9003))
        flow.send(b"translated")
        assert flow.recv(1000)
        attack.send("127.0.0.1", 9003, source="127.0.0.5", sport=flow.getsockname()[1])
        assert attack.reached() == []


REDIRECTED = f"type nat hook prerouting priority -110; udp dport 9002 dnat to 127.0.0.1:{SERVICE_PORT}"


@pytest.mark.usefixtures("daemon", "their_rules")
@pytest.mark.parametrize("their_rules", [REDIRECTED], indirect=True, ids=["dnat"])
@pytest.mark.parametrize("open_sysctls", [("all",)], indirect=True, ids=["all"])
def test_who_leads_others_to_his_loopback_himself_goes_on_doing_so(lab: Lab, open_sysctls: None) -> None:
    assert lab.client.ask("192.0.2.1", 9002, "udp").target == "service-on-127.0.0.1"

"""[::1] where a bridge undoes the translation before IPv6 looks at the packet: the relay takes it, within bounds.

It must not know how the relay works inside. The one idea: clients on the host's loopback and servers behind the bridge
say what arrived, and the daemon's memory says what it kept meanwhile.
"""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nfportd.client import Client
from tests.api.calling import ask, client, eventually
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint
from tests.probes import LINGER_RESET, Talk

PORT = 8080
T1, T2, T3 = (endpoint(address(name, 6), 80) for name in ("t1", "t2", "t3"))
T1_SLOW = endpoint(address("t1", 6), 9000)
MIB = 1 << 20
BYTES = 1024 * MIB
#: Bytes by which the daemon's memory may differ from what it was; it keeps 64 KiB a direction.
FLAT = 4 * MIB

#: The daemon, and both ends of a connection that it relays.
Pair = tuple[Daemon, socket.socket, socket.socket]


@pytest.fixture(autouse=True)
def _bridged(lab: Lab) -> Iterator[None]:
    """The bridges of the host hand IPv6 to ip6tables, as with Docker and Kubernetes."""
    lab.bridge_netfilter(True)
    yield
    lab.bridge_netfilter(False)


@pytest.fixture
def _many_files() -> Iterator[None]:
    """This process holds both ends of many connections."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def ways(api: Client) -> dict[str, str]:
    """The way to each mapping, by its name."""
    return {each["name"]: each["loopback6"] for each in api.get("/v1/mappings")["mappings"]}


def web(to: str = T1, **more: str) -> dict[str, str]:
    return {"web.yaml": dropin(mapping("web", PORT, to, **more))}


def to_loopback(lab: Lab) -> socket.socket:
    made = lab.host.socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.settimeout(5)
    made.connect(("::1", PORT))
    return made


@pytest.fixture
def slow(lab: Lab) -> Iterator[socket.socket]:
    """A server at t1 that does only what a test says."""
    with lab.t1.socket(socket.AF_INET6, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(5)
        made.bind(("::", 9000))
        made.listen(16)
        yield made


@pytest.fixture
def pair(lab: Lab, start: Callable[..., Daemon], slow: socket.socket) -> Iterator[Pair]:
    daemon = start(web(T1_SLOW))
    with to_loopback(lab) as near:
        far, _ = slow.accept()
        far.settimeout(5)
        with far:
            yield daemon, near, far


def memory(daemon: Daemon, which: str = "VmRSS") -> int:
    """Bytes of memory that the daemon has now, or (VmHWM) had at most since `at_most_from_here`."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(which)))


def at_most_from_here(daemon: Daemon) -> int:
    Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")
    return memory(daemon)


def ticks(daemon: Daemon) -> int:
    """Hundredths of a second for which the daemon has worked."""
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def metric(daemon: Daemon, name: str) -> float:
    lines = ask(daemon, "GET", "/metrics").content.decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def relayed(daemon: Daemon, protocol: str = "tcp") -> int:
    return int(metric(daemon, f'nfportd_relay_connections{{protocol="{protocol}"}}'))


def ended(daemon: Daemon) -> None:
    eventually(lambda: relayed(daemon), 0)


def rest(sock: socket.socket) -> bytes:
    """Everything until the end."""
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def fill(sock: socket.socket, pattern: bytes) -> int:
    """Send a repeated pattern until nothing more is taken for a while; how many bytes were."""
    sock.settimeout(0.5)
    sent, many = 0, pattern * 4096
    while True:
        try:
            sent += sock.send(many[sent % len(pattern) :])
        except TimeoutError:
            return sent


def test_each_mapping_says_which_way_it_is_served(lab: Lab, start: Callable[..., Daemon]) -> None:
    wanted = {
        "bridged": (mapping("bridged", 8080, T1, protocol="[tcp, udp]"), "relay"),
        "routed": (mapping("routed", 8081, T3), "kernel"),
        "sctp": (mapping("sctp", 8082, T1, protocol="sctp"), "no"),
        "only-ipv4": (mapping("only-ipv4", 8083, "10.88.0.11:80"), "no"),
        "elsewhere": (mapping("elsewhere", "[2001:db8::1]:8084", T1), "no"),
        "here": (mapping("here", "[::1]:8085", T1), "relay"),
        "hidden": (mapping("hidden", 8085, T3), "no"),
    }
    daemon = start({"web.yaml": dropin(*(text for text, _ in wanted.values()))})

    with client(daemon) as api:
        assert ways(api) == {name: way for name, (_, way) in wanted.items()}
    assert (lab.host.ask("::1", 8085).target, lab.host.ask("2001:db8::1", 8085).target) == ("t1", "t3")


@pytest.mark.usefixtures("_many_files")
def test_a_thousand_connections_at_once(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start(web())
    before = at_most_from_here(daemon)
    talks: list[Talk] = []
    try:
        for _ in range(1000):
            talks.append(lab.host.talk("::1", PORT))
        answers = [talk.ask() for talk in talks]
        grown, count = memory(daemon) - before, relayed(daemon)
    finally:
        for talk in talks:
            talk.close()

    print(f"1,000 connections: {grown / MIB:.1f} MiB")
    assert [answer.target for answer in answers] == ["t1"] * 1000
    assert (count, grown < 8 * MIB) == (1000, True)
    ended(daemon)
    # Counted once each, as in the kernel.
    name = 'nfportd_connections_total{family="ipv6",mapping="web",owner="file:web.yaml",port="8080",protocol="tcp"}'
    assert metric(daemon, name) == 1000


def test_a_gibibyte_goes_through_in_bounded_memory(pair: Pair) -> None:
    daemon, near, far = pair
    sent = bytes(range(256)) * 4096
    found: list[int] = []

    def take() -> None:
        buffer, count, crc = bytearray(MIB), 0, 0
        while got := far.recv_into(buffer):
            count, crc = count + got, zlib.crc32(memoryview(buffer)[:got], crc)
        found.extend((count, crc))

    reader = threading.Thread(target=take)
    before = at_most_from_here(daemon)
    reader.start()
    begun, crc, waits = time.monotonic(), 0, []
    for number in range(BYTES // MIB):
        near.sendall(sent)
        crc = zlib.crc32(sent, crc)
        if number % 128 == 64:
            asked = time.monotonic()
            assert ask(daemon, "GET", "/v1/owners").status == 200
            waits.append(time.monotonic() - asked)
    near.shutdown(socket.SHUT_WR)
    reader.join(20)
    took, grown = time.monotonic() - begun, memory(daemon, "VmHWM") - before

    print(f"1 GiB in {took:.1f} s, {grown / MIB:.1f} MiB more; the API answered in {max(waits) * 1000:.0f} ms at most")
    assert found == [BYTES, crc]
    assert grown < FLAT


def test_it_is_half_closed_as_its_ends_are(lab: Lab, pair: Pair, slow: socket.socket) -> None:
    daemon, near, far = pair
    near.sendall(b"question")
    near.shutdown(socket.SHUT_WR)
    assert rest(far) == b"question"
    far.sendall(b"answer" * 100_000)
    far.close()
    assert rest(near) == b"answer" * 100_000
    ended(daemon)

    with to_loopback(lab) as other:
        served, _ = slow.accept()
        with served:
            served.sendall(b"greeting")
            served.shutdown(socket.SHUT_WR)
            assert rest(other) == b"greeting"
            other.sendall(b"late" * 100_000)
            other.close()
            assert rest(served) == b"late" * 100_000
    ended(daemon)


def test_a_target_that_stalls_stalls_the_client(pair: Pair) -> None:
    daemon, near, far = pair
    before, pattern = at_most_from_here(daemon), bytes(range(251))
    sent = fill(near, pattern)
    worked = ticks(daemon)
    time.sleep(1)
    worked, grown = ticks(daemon) - worked, memory(daemon, "VmHWM") - before
    near.shutdown(socket.SHUT_WR)

    print(f"stalled after {sent / MIB:.1f} MiB, {grown / MIB:.1f} MiB more in the daemon")
    assert rest(far) == (pattern * (sent // len(pattern) + 1))[:sent]
    # It waits without working.
    assert (grown < FLAT, worked <= 5) == (True, True)


def test_a_client_that_goes_while_the_target_stalls(pair: Pair) -> None:
    daemon, near, far = pair
    fill(near, b"?")
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    near.close()

    ended(daemon)
    with pytest.raises(ConnectionResetError):
        rest(far)


def test_a_target_that_goes_takes_the_client_along(pair: Pair) -> None:
    daemon, near, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    far.close()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    ended(daemon)


def test_a_target_that_refuses(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start(web(endpoint(address("t1", 6), 9)))
    assert lab.host.ask("::1", PORT).outcome == "reset"
    ended(daemon)


def test_udp_of_several_clients_to_several_ports(lab: Lab, start: Callable[..., Daemon]) -> None:
    mappings = (mapping(f"to-{n}", PORT + n, to, protocol="udp") for n, to in enumerate((T1, T2)))
    daemon = start({"dns.yaml": dropin(*mappings)})
    socks = [lab.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(20)]
    try:
        for sock in socks * 3:
            sock.settimeout(3)
            # From one port to both, so only conntrack can tell them apart.
            for number, name in enumerate(("t1", "t2")):
                sock.sendto(b"?", ("::1", PORT + number))
                answer, (_, source, *_) = sock.recvfrom(256)
                assert (answer.split()[0].decode(), source) == (name, PORT + number)
        assert relayed(daemon, "udp") == 40
    finally:
        for sock in socks:
            sock.close()


def test_a_range_needs_no_more_sockets_than_a_port(lab: Lab, start: Callable[..., Daemon]) -> None:
    first, last = 20000, 24999
    target = f"[fd88::11]:{first}-{last}"
    start({"range.yaml": dropin(mapping("range", f"{first}-{last}", target, protocol="[tcp, udp]"))})
    listening = lab.host.run(["ss", "-Hltun6"]).stdout.count("[::1]")
    ends = [(proto, port) for proto in ("tcp", "udp") for port in (first, last)]
    with closing(lab.t1.serve([first, last])):
        answers = [lab.host.ask("::1", port, proto).port for proto, port in ends]

    assert (answers, listening) == ([port for _, port in ends], 2)


def test_there_is_an_end_to_connections_of_one_mapping(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start(web())
    # An eighth of them for connections, half of those for one mapping.
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (256, 256))
    talks = [lab.host.talk("::1", PORT) for _ in range(16)]
    try:
        assert [talk.ask().target for talk in talks] == ["t1"] * 16
        assert [lab.host.ask("::1", PORT).outcome for _ in range(3)] == ["reset"] * 3
        line = daemon.wait_for(r'port 8080 of mapping "web" \(file:web.yaml line 2\): 16 connections are relayed')
        assert "new ones are refused until some have ended" in line
        assert metric(daemon, "nfportd_relay_refused_total") == 3
        talks.pop().close()
        eventually(lambda: lab.host.ask("::1", PORT).target, "t1")
    finally:
        for talk in talks:
            talk.close()


def test_it_switches_over_while_connections_run(lab: Lab, start: Callable[..., Daemon]) -> None:
    lab.bridge_netfilter(False)
    daemon = start(web(protocol="[tcp, udp]"))
    with client(daemon) as api, lab.host.talk("::1", PORT) as kernel, lab.host.talk("::1", PORT, "udp") as flow:
        assert (ways(api)["web"], kernel.ask().target, flow.ask().target) == ("kernel", "t1", "t1")

        lab.bridge_netfilter(True)
        # Begun before anybody has noticed, it is helped by the client's next attempt.
        assert lab.host.ask("::1", PORT, timeout=5).target == "t1"
        assert ways(api)["web"] == "relay"
        eventually(lambda: flow.ask(0.3).target, "t1")
        with lab.host.talk("::1", PORT) as relay:
            assert relay.ask().target == "t1"

            lab.bridge_netfilter(False)
            eventually(lambda: ways(api)["web"], "kernel")
            assert (relay.ask().target, relayed(daemon)) == ("t1", 1)
            eventually(lambda: flow.ask(0.3).target, "t1")
            assert lab.host.ask("::1", PORT).target == "t1"
            # It was begun in the kernel, and could wait until answers came through again.
            assert kernel.ask(5).target == "t1"
        ended(daemon)
    assert "[::1] is not relayed any more; connections that go on: 1" in daemon.log


@pytest.mark.parametrize(("on_change", "outcome"), [("keep", "answered"), ("cut", "reset")])
def test_a_mapping_that_goes(lab: Lab, start: Callable[..., Daemon], on_change: str, outcome: str) -> None:
    daemon = start({**web(on_change=on_change), "udp.yaml": dropin(mapping("udp", PORT, T1, protocol="udp"))})
    with lab.host.talk("::1", PORT) as talk, lab.host.talk("::1", PORT, "udp") as flow:
        assert (talk.ask().target, flow.ask().target) == ("t1", "t1")
        daemon.remove("web.yaml")
        daemon.remove("udp.yaml")

        assert talk.ask().outcome == outcome
        assert (lab.host.ask("::1", PORT).outcome, flow.ask(0.3).outcome) == ("refused", "refused")
    assert not [key for key in daemon.elements("addr6") if "::1" in key]
    assert "[::1]" not in lab.host.run(["ss", "-Hltun6"]).stdout


@pytest.mark.parametrize(("on_change", "old"), [("keep", "t1"), ("cut", "")])
def test_a_mapping_whose_target_changes(lab: Lab, start: Callable[..., Daemon], on_change: str, old: str) -> None:
    daemon = start(web(T1, on_change=on_change, protocol="[tcp, udp]"))
    with lab.host.talk("::1", PORT) as talk, lab.host.talk("::1", PORT, "udp") as flow:
        assert (talk.ask().target, flow.ask().target) == ("t1", "t1")
        daemon.write("web.yaml", web(T2, on_change=on_change, protocol="[tcp, udp]")["web.yaml"])

        assert (talk.ask().target, flow.ask().target, lab.host.ask("::1", PORT).target) == (old, "t2", "t2")


def test_a_key_on_loopback_goes_before_the_wildcard(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start({"any.yaml": dropin(mapping("any", PORT, T1))})
    for to, name in ((T3, "t3"), (T2, "t2")):
        daemon.write("own.yaml", dropin(mapping("own", f"[::1]:{PORT}", to)))
        assert lab.host.ask("::1", PORT).target == name
    daemon.remove("own.yaml")
    assert lab.host.ask("::1", PORT).target == "t1"
    daemon.write("own.yaml", dropin(mapping("own", f"[::1]:{PORT}", T3)))
    daemon.remove("any.yaml")
    assert lab.host.ask("::1", PORT).target == "t3"


def test_a_restart_ends_what_is_relayed_and_nothing_else(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start({"web.yaml": dropin(mapping("web", PORT, T1), mapping("routed", PORT + 1, T3))})
    with lab.host.talk("::1", PORT) as relay, lab.host.talk("::1", PORT + 1) as kernel:
        assert (relay.ask().target, kernel.ask().target) == ("t1", "t3")
        daemon.kill9()
        assert relay.ask().outcome == "reset"
        assert lab.host.ask("::1", PORT).outcome == "refused"
        daemon.start()

        assert (kernel.ask().target, lab.host.ask("::1", PORT).target) == ("t3", "t1")


def test_a_process_that_listens_on_loopback_already(lab: Lab, start: Callable[..., Daemon]) -> None:
    with lab.host.socket(socket.AF_INET6, socket.SOCK_STREAM) as other:
        other.bind(("::1", PORT))
        other.listen()
        daemon = start(web())
        with client(daemon) as api:
            (found,) = api.get("/v1/mappings")["mappings"]
            assert (found["state"], found["loopback6"]) == ("port-in-use", "no")
            daemon.write("web.yaml", web(shadow_listener="true")["web.yaml"])
            assert ways(api) == {"web": "relay"}
        assert lab.host.ask("::1", PORT).target == "t1"


def test_an_isolated_target_is_reached_by_the_relay_alone(lab: Lab, start: Callable[..., Daemon]) -> None:
    start(web(isolate="true", protocol="[tcp, udp]"))
    assert (lab.host.ask("::1", PORT).target, lab.host.ask("::1", PORT, "udp").target) == ("t1", "t1")
    assert lab.host.ask(address("t1", 6), 80, timeout=0.5).outcome == "timeout"


def test_an_element_that_somebody_deletes_comes_back(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start(web())
    (key,) = (key for key in daemon.elements("addr6") if key.startswith("::1 "))
    value = daemon.elements("addr6")[key]
    lab.host.nft(f"delete element inet nfportd addr6 {{ {key} : {value} }}")
    eventually(lambda: daemon.elements("addr6").get(key), value)
    assert lab.host.ask("::1", PORT).target == "t1"


def test_the_option_of_one_bridge_counts_and_so_does_what_stands_on_it(lab: Lab, start: Callable[..., Daemon]) -> None:
    lab.bridge_netfilter(False)
    daemon = start({"web.yaml": dropin(mapping("one", 8080, T1), mapping("other", 8081, "[fd88:0:0:2::11]:80"))})
    with client(daemon) as api:
        assert ways(api) == {"one": "kernel", "other": "kernel"}
        lab.host.ip("link", "set", "br0", "type", "bridge", "nf_call_ip6tables", "1")
        try:
            eventually(lambda: ways(api), {"one": "relay", "other": "kernel"})
            assert lab.host.ask("::1", 8080).target == "t1"
            lab.host.ip("link", "add", "link", "br0", "name", "on-br0", "type", "macvlan", "mode", "bridge")
            lab.host.ip("link", "set", "on-br0", "up")
            lab.host.ip("-6", "route", "add", "fd88::12/128", "dev", "on-br0")
            daemon.write("above.yaml", dropin(mapping("above", 8082, T2)))
            eventually(lambda: ways(api)["above"], "relay")
        finally:
            lab.host.run(["ip", "link", "del", "on-br0"], check=False)
            lab.host.ip("link", "set", "br0", "type", "bridge", "nf_call_ip6tables", "0")
        eventually(lambda: ways(api)["one"], "kernel")


def test_the_relays_own_ports_are_nobodys_listeners(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start(web())
    found = re.search(r"tcp at port (\d+)", daemon.log)
    assert found
    daemon.write("own.yaml", dropin(mapping("own", found[1], T2)))
    with client(daemon) as api:
        assert ways(api) == {"web": "relay", "own": "relay"}
    assert (lab.host.ask("::1", PORT).target, lab.host.ask("::1", int(found[1])).target) == ("t1", "t2")


def test_more_udp_flows_than_there_is_room_for(lab: Lab, start: Callable[..., Daemon]) -> None:
    """The longest idle one makes room; who asks again gets a new one."""
    daemon = start()
    daemon.stop()
    # A sixteenth of them for flows, half of those for one mapping.
    daemon.prefix = ["prlimit", "--nofile=256:256"]
    (daemon.dropins / "web.yaml").write_text(web(protocol="udp")["web.yaml"])
    daemon.start()
    talks = [lab.host.talk("::1", PORT, "udp") for _ in range(12)]
    try:
        assert [talk.ask().target for talk in talks * 2] == ["t1"] * 24
        assert relayed(daemon, "udp") == 8
    finally:
        for talk in talks:
            talk.close()

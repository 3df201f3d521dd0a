"""Each firewall beside nfportd: connections do what the finding says, and the command that it names opens them.

It must not know how rules are followed. The one idea: the wire is asked, then the daemon, then the command is run and
both are asked again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nfportd.client import Json
from tests.api.calling import client, eventually
from tests.coexistence import others
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address

WEB = dropin(
    mapping("web", 8080, "10.88.0.11:80", "[fd88::11]:80", protocol="[tcp, udp]"),
)
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
GATEWAY = {4: "10.88.0.1", 6: "fd88::1"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
V4, V6 = 4, 6


class Case(NamedTuple):
    """A ruleset, and by family the chain that stops connections; whose it is; a command that opens it."""

    ruleset: str
    firewall: str
    chains: dict[int, str]
    commands: dict[int, str]


UFW = "ufw route allow proto tcp from any to {} port 80"
DNAT = "-m conntrack --ctstate DNAT -j ACCEPT"
CASES = [
    Case(
        "ufw-0.36.2",
        "ufw",
        {V4: "ip filter FORWARD", V6: "ip6 filter FORWARD"},
        {V4: UFW.format("10.88.0.11"), V6: UFW.format("fd88::11")},
    ),
    Case(
        "docker-28",
        "docker",
        {V4: "ip filter FORWARD", V6: "ip6 filter FORWARD"},
        {V4: f"iptables -I DOCKER-USER {DNAT}", V6: f"ip6tables -I DOCKER-USER {DNAT}"},
    ),
    Case(
        "docker-29.nft",
        "docker with nftables",
        {V4: "ip docker-bridges filter-FORWARD", V6: "ip6 docker-bridges filter-FORWARD"},
        {
            V4: "nft insert rule ip docker-bridges filter-FORWARD ct status dnat accept",
            V6: "nft insert rule ip6 docker-bridges filter-FORWARD ct status dnat accept",
        },
    ),
    Case(
        "iptables",
        "iptables",
        {V4: "ip filter FORWARD", V6: "ip6 filter FORWARD"},
        {V4: f"iptables -I FORWARD {DNAT}", V6: f"ip6tables -I FORWARD {DNAT}"},
    ),
    Case(
        "plain",
        "nftables",
        {V4: "inet filter forward", V6: "inet filter forward"},
        dict.fromkeys((V4, V6), "nft insert rule inet filter forward ct status dnat accept"),
    ),
    Case(
        "firewalld-2.3.1-strict.nft",
        "firewalld",
        {V4: "inet firewalld filter_FORWARD", V6: "inet firewalld filter_FORWARD"},
        {
            V4: 'firewall-cmd --add-rich-rule=\'rule family="ipv4" destination address="127.0.0.1" forward-port '
            'port="8080" protocol="tcp" to-port="80" to-addr="10.88.0.11"\'',
            V6: 'firewall-cmd --add-rich-rule=\'rule family="ipv6" destination address="::1" forward-port '
            'port="8080" protocol="tcp" to-port="80" to-addr="fd88::11"\'',
        },
    ),
]
#: What that command of firewalld 2.3.1 adds; tests/system runs the real one. nft 1.0.6 wants the protocol in front.
STRICT_OPENED = "nft insert rule inet firewalld filter_FORWARD_dnat meta l4proto tcp ct original proto-dst 8080 accept"


@pytest.fixture(scope="module", autouse=True)
def daemon(lab: Lab) -> Iterator[Daemon]:
    """A daemon for all; clients come by the default route."""
    lab.host.ip("route", "add", "default", "via", "198.51.100.10")
    lab.host.ip("-6", "route", "add", "default", "via", "2001:db8:1::10")
    begun = Daemon(lab)
    (begun.dropins / "web.yaml").write_text(WEB)
    begun.start()
    yield begun
    assert begun.stop() == 0


@pytest.fixture(autouse=True)
def nobody_else(lab: Lab, daemon: Daemon) -> Iterator[None]:
    """Nobody's rules but ours, before and after."""
    yield
    others.clear(lab.host)
    lab.host.run(["conntrack", "-F"])
    eventually(lambda: findings(daemon), [])


def findings(daemon: Daemon) -> list[Json]:
    with client(daemon) as api:
        return list(api.get("/v1/status")["forwarding"])


def of(daemon: Daemon, chain: str) -> Json:
    """The finding about a chain, as soon as there is one."""
    eventually(lambda: chain in [each["chain"] for each in findings(daemon)], True)
    return next(each for each in findings(daemon) if each["chain"] == chain)


def reached(lab: Lab, family: int, client: str = "outside", proto: str = "tcp") -> bool:
    to = GATEWAY[family] if client.startswith("t") else LOOPBACK[family] if client == "host" else HOST[family]
    return bool(lab.spaces[client].ask(to, 8080, proto, timeout=0.4))


def load(lab: Lab, ruleset: str) -> None:
    if ruleset == "iptables":
        for program in ("iptables-nft", "ip6tables-nft"):
            lab.host.run([program, "-P", "FORWARD", "DROP"])
    else:
        others.load(lab.host, ruleset)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.ruleset)
def test_what_stops_connections_is_named_with_what_opens_it(
    lab: Lab, daemon: Daemon, case: Case, tmp_path: Path
) -> None:
    for program in ("iptables-nft", "ufw") if case.firewall == "ufw" else ("iptables-nft",):
        if not case.ruleset.endswith(".nft") and not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    lab.bridge_netfilter(on=False)
    load(lab, case.ruleset)
    seen = len(daemon.log)

    for family in (V4, V6):
        assert not reached(lab, family)
        if case.firewall != "firewalld":  # it has a say in the output hook as well
            assert reached(lab, family, "host"), "no forward hook on the way of the host's own connections"
        found = of(daemon, case.chains[family])
        assert (found["firewall"], found["certain"]) == (case.firewall, True)
        assert case.commands[family] in found["commands"]
        daemon.wait_for(f"WARNING chain {case.chains[family]} .*stops what is forwarded to", seen)

    for command in dict.fromkeys(case.commands.values()):
        run(lab, STRICT_OPENED if command.startswith("firewall-cmd") else command, tmp_path)
    for family in (V4, V6):
        assert reached(lab, family)
        assert reached(lab, family, "t1"), "hairpin"
    if case.firewall in ("ufw", "firewalld"):  # they are told for each target and protocol
        assert {target for each in findings(daemon) for target in each["targets"] if target.endswith("tcp")} == set()
        assert not reached(lab, V4, proto="udp")
        return
    eventually(lambda: findings(daemon), [])
    for family in (V4, V6):
        assert reached(lab, family, proto="udp")
        daemon.wait_for(f"INFO chain {case.chains[family]} .*lets pass", seen)


def run(lab: Lab, command: str, scratch: Path) -> None:
    if command.startswith("ufw "):
        others.ufw(lab.host, scratch, command)
    else:
        lab.host.run(command.split())
    time.sleep(0.3)  # what status has just looked at is not looked at again


@pytest.mark.parametrize("ruleset", ["firewalld-1.3.3.nft", "firewalld-2.3.1.nft", "kube-proxy.nft"])
def test_those_that_let_pass_what_is_forwarded_are_not_named(lab: Lab, daemon: Daemon, ruleset: str) -> None:
    others.load(lab.host, ruleset)
    time.sleep(0.3)

    for family in (V4, V6):
        assert all(reached(lab, family, client) for client in ("outside", "host", "t1", "t2"))
    assert findings(daemon) == []


def test_each_survives_the_reload_of_the_other(lab: Lab, daemon: Daemon) -> None:
    others.load(lab.host, "firewalld-1.3.3.nft")
    before, ours = others.rules(lab.host), daemon.elements("any4")

    # What `firewall-cmd --reload` does: everything away and made anew.
    lab.host.nft("delete table inet firewalld\n" + others.text("firewalld-1.3.3.nft"))
    assert daemon.elements("any4") == ours
    assert reached(lab, V4)

    daemon.hup()
    daemon.write("more.yaml", dropin(mapping("more", 8081, "10.88.0.12:80")))
    daemon.remove("more.yaml")
    assert daemon.stop() == 0
    assert others.rules(lab.host) == before
    daemon.start()
    assert others.rules(lab.host) == before


def test_answers_that_are_dropped_are_noticed(lab: Lab, daemon: Daemon) -> None:
    """Somebody has opened the way to the target and forgotten the way back."""
    lab.host.nft(
        "table inet own { chain fw { type filter hook forward priority 5; policy drop;\n"
        " ip daddr 10.88.0.11 meta l4proto { tcp, udp } th dport 80 accept\n ip6 nexthdr { tcp, udp } accept\n }\n}"
    )

    assert not reached(lab, V4)
    found = of(daemon, "inet own fw")
    assert (found["certain"], found["targets"]) == (True, ["10.88.0.11:80/tcp", "10.88.0.11:80/udp"])
    lab.host.run(found["commands"][0].split())
    assert reached(lab, V4)


def test_rules_against_some_clients_are_not_an_obstacle(lab: Lab, daemon: Daemon) -> None:
    lab.host.nft(
        "table inet own {\n set bad { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }\n"
        " chain fw { type filter hook forward priority 5; policy accept;\n ip saddr @bad drop\n"
        ' iifname "br9" drop\n limit rate over 9/second log\n ct state invalid drop\n }\n}'
    )
    time.sleep(0.3)

    assert reached(lab, V4)
    assert findings(daemon) == []


def test_a_chain_that_lets_some_pass_may_stop_others(lab: Lab, daemon: Daemon) -> None:
    lab.host.nft(
        "table inet own { chain fw { type filter hook forward priority 5; policy drop;\n"
        " ct state established accept\n ip saddr 198.51.100.0/24 accept\n }\n}"
    )

    assert reached(lab, V4)
    found = of(daemon, "inet own fw")
    assert (found["certain"], found["why"]) == (True, ["policy drop of chain inet own fw"])  # for IPv6
    assert found["targets"] == ["[fd88::11]:80/tcp", "[fd88::11]:80/udp"]
    lab.host.run(["nft", "insert", "rule", "inet", "own", "fw", "meta", "nfproto", "ipv6", "accept"])
    eventually(lambda: of(daemon, "inet own fw")["certain"], False)


def test_nfportctl_status_says_what_to_run(lab: Lab, daemon: Daemon) -> None:
    seen = len(daemon.log)
    others.load(lab.host, "plain")
    daemon.wait_for("WARNING chain inet filter forward .*open it with: nft insert rule", seen)

    done = lab.host.run([*Daemon.command("nfportctl"), "--socket", str(daemon.socket), "status"], check=False)

    assert done.returncode == 1
    assert "chain inet filter forward (nftables) stops what is forwarded to 10.88.0.11:80/tcp" in done.stdout
    assert "  run: nft insert rule inet filter forward ct status dnat accept" in done.stdout


def test_an_element_of_a_large_map_is_found(lab: Lab, daemon: Daemon) -> None:
    """Sets are not listed; the kernel is asked for the one element that matters."""
    elements = ", ".join(f"10.99.{number >> 8}.{number & 0xFF} . tcp . 80 : drop" for number in range(2000))
    lab.host.nft(
        f"table ip own {{\n map m {{ type ipv4_addr . inet_proto . inet_service : verdict\n"
        f" elements = {{ {elements}, {address('t1', 4)} . tcp . 80 : drop }}\n }}\n"
        " set s { type ipv4_addr; flags interval; elements = { 10.88.0.0-10.88.0.10, 10.88.0.12/30 }\n }\n"
        " chain c { type filter hook forward priority 5; policy accept;\n"
        " ip daddr @s drop\n ip daddr . meta l4proto . th dport vmap @m\n }\n}"
    )

    assert not reached(lab, V4)
    found = of(daemon, "ip own c")
    assert (found["certain"], found["targets"]) == (True, ["10.88.0.11:80/tcp"])
    assert reached(lab, V4, proto="udp")

    lab.host.nft(f"delete element ip own m {{ {address('t1', 4)} . tcp . 80 }}")
    assert reached(lab, V4)

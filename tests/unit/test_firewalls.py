"""Who is named for a chain, and which command.

It must not run one: tests/coexistence does. The one idea: a chain and those beside it, as nft lists them.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from nfportd import firewalls, forwarding
from nfportd.firewalls import Connection, Finding
from nfportd.forwarding import Lookups
from nfportd.model import Mapping
from nfportd.notation import Ports, Target
from nfportd.topology import Link, Network, Route, Topology

WEB = Connection("tcp", Ports(8080, 8080), Target("10.88.0.11", 4, Ports(80, 80)), "eth0", "br0")
RTP = Connection("udp", Ports(20000, 20009), Target("fd88::11", 6, Ports(30000, 30009)), "eth0", "br0")


def mapping(written: dict[str, Any]) -> Mapping:
    return TypeAdapter(Mapping).validate_python(written)


def found(family: str, table: str, base: str, *beside: str, of: Connection = WEB) -> Finding:
    """What is said of a base chain that drops."""
    listed: Any = [
        {"chain": {"family": family, "table": table, "name": base, "hook": "forward", "prio": 0, "policy": "drop"}}
    ]
    listed += [{"chain": {"family": family, "table": table, "name": name}} for name in beside]
    (finding,) = firewalls.findings(forwarding.read([{"nftables": listed}]), [of], Lookups())
    return finding


@pytest.mark.parametrize(
    ("chain", "firewall", "command"),
    [
        ("ip filter FORWARD", "iptables", "iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
        ("ip mangle FORWARD", "iptables", "iptables -t mangle -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
        ("ip filter FORWARD ufw-user-forward", "ufw", "ufw route allow proto tcp from any to 10.88.0.11 port 80"),
        (
            "ip filter FORWARD ufw-user-forward DOCKER-USER",
            "docker",
            "iptables -I DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT",
        ),
        (
            "ip docker-bridges filter-FORWARD",
            "docker with nftables",
            "nft insert rule ip docker-bridges filter-FORWARD ct status dnat accept",
        ),
        (
            "inet firewalld filter_FORWARD",
            "firewalld",
            'firewall-cmd --add-rich-rule=\'rule family="ipv4" destination address="127.0.0.1" forward-port '
            'port="8080" protocol="tcp" to-port="80" to-addr="10.88.0.11"\'',
        ),
        ("inet filter FORWARD", "nftables", "nft insert rule inet filter FORWARD ct status dnat accept"),
        ("ip own fw", "nftables", "nft insert rule ip own fw ct status dnat accept"),
    ],
)
def test_each_is_told_in_its_own_words(chain: str, firewall: str, command: str) -> None:
    family, table, base, *beside = chain.split()

    finding = found(family, table, base, *beside)

    assert (finding.firewall, finding.certain, finding.commands) == (firewall, True, (command,))
    assert str(finding).endswith(f"; open it with: {command}")


@pytest.mark.parametrize(
    ("chain", "command"),
    [
        ("ip6 filter FORWARD", "ip6tables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
        (
            "ip6 filter FORWARD ufw6-user-forward",
            "ufw route allow proto udp from any to fd88::11 port 30000:30009",
        ),
        (
            "inet firewalld filter_FORWARD",
            'firewall-cmd --add-rich-rule=\'rule family="ipv6" destination address="::1" forward-port '
            'port="20000-20009" protocol="udp" to-port="30000-30009" to-addr="fd88::11"\'',
        ),
    ],
)
def test_ranges_and_ipv6(chain: str, command: str) -> None:
    family, table, base, *beside = chain.split()

    finding = found(family, table, base, *beside, of=RTP)

    assert (finding.commands, finding.targets) == ((command,), ("[fd88::11]:30000-30009/udp",))


def test_connections_of_a_mapping_and_the_links_that_they_take() -> None:
    links = (Link(2, "eth0"), Link(3, "br0"))
    routes = (
        Route(4, "0.0.0.0/0", 2, 100, on_link=False),
        Route(4, "0.0.0.0/0", 3, 200, on_link=False),
        Route(4, "10.88.0.0/16", 3, 0, on_link=True),
    )
    topology = Topology(Network(links, routes, frozenset({(4, "10.88.0.1")})))
    both = mapping({"listen": "8080", "protocol": ["tcp", "udp"], "targets": ["10.88.0.11:80", "[fd88::11]:80"]})
    here = mapping({"listen": "8080", "targets": "10.88.0.1:80"})

    assert [(str(each), each.uplink, each.link) for each in firewalls.connections(both, topology)] == [
        ("10.88.0.11:80/tcp", "eth0", "br0"),
        ("10.88.0.11:80/udp", "eth0", "br0"),
        ("[fd88::11]:80/tcp", None, None),
        ("[fd88::11]:80/udp", None, None),
    ]
    assert list(firewalls.connections(here, topology)) == []


def test_nothing_opens_a_service_without_endpoints() -> None:
    finding = found("ip", "kube-proxy", "filter-forward")

    assert finding.commands == ()
    assert str(finding) == (
        "chain ip kube-proxy filter-forward (kube-proxy) stops what is forwarded to 10.88.0.11:80/tcp: "
        "policy drop of chain ip kube-proxy filter-forward"
    )

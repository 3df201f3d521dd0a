"""Whose rules stop connections through mappings, and the command that opens them.

Must not run or ask anything. The one idea: an accept in our table cannot help where another table drops, so the way out
is a command in the words of the program that wrote the rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from nfportd.forwarding import Chain, Lookups, Obstacle, Place, Ruleset, obstacles
from nfportd.matches import Packet
from nfportd.model import Mapping
from nfportd.notation import Family, Ports, Target
from nfportd.topology import Topology


class Firewall(StrEnum):
    """Whose chain it is, by its name and those beside it."""

    FIREWALLD = "firewalld"
    UFW = "ufw"
    DOCKER = "docker"
    DOCKER_NFT = "docker with nftables"
    KUBE_PROXY = "kube-proxy"
    IPTABLES = "iptables"
    LEGACY = "iptables-legacy"
    NFT = "nftables"


@dataclass(frozen=True, slots=True)
class Connection:
    """What a mapping forwards by one protocol in one family: from these ports to those of the target.

    `uplink`, `link`: the interfaces by which clients and the target are reached, where that is known.
    """

    protocol: str
    listen: Ports
    target: Target
    uplink: str | None
    link: str | None

    @property
    def family(self) -> Family:
        return self.target.family

    @property
    def packet(self) -> Packet:
        """The first packet to the first port."""
        to, port = self.target.address, self.target.ports.first
        listen = self.listen.first
        return Packet(self.family, self.protocol, None, None, to, port, self.uplink, self.link, listen)

    def __str__(self) -> str:
        return f"{self.target}/{self.protocol}"


def connections(mapping: Mapping, topology: Topology) -> Iterable[Connection]:
    """What a mapping forwards, once for each protocol and family; not what goes to this host itself."""
    for target in mapping.targets:
        if (target.family, target.address) in topology.network.addresses:
            continue
        uplink, link = topology.uplink(target.family), topology.link_to(target.family, target.address)
        for protocol in mapping.protocol:
            yield Connection(str(protocol), mapping.listen.ports, target, uplink, link)


class Finding(NamedTuple):
    """A base chain that stops connections through mappings. Not certain: nfportd cannot tell whether it does.

    `why`: where they end. `commands` open it, one for all connections or one for each; there may be none.
    """

    chain: str
    firewall: Firewall
    certain: bool
    why: tuple[str, ...]
    targets: tuple[str, ...]
    commands: tuple[str, ...]

    def __str__(self) -> str:
        targets = ", ".join(self.targets[:_SHOWN]) + (" and others" if len(self.targets) > _SHOWN else "")
        verb = "stops" if self.certain else "may stop"
        text = f"chain {self.chain} ({self.firewall}) {verb} what is forwarded to {targets}: {'; '.join(self.why[:2])}"
        if not self.commands:
            return text
        more = f" (and {len(self.commands) - 1} more like it)" if len(self.commands) > 1 else ""
        return f"{text}; {'look' if self.firewall is Firewall.LEGACY else 'open it'} with: {self.commands[0]}{more}"


#: So many targets and commands are named.
_SHOWN, _COMMANDS = 3, 50


def findings(ruleset: Ruleset, asked: Iterable[Connection], lookups: Lookups) -> list[Finding]:
    """What stops some of these connections, one for each base chain, or their answers."""
    stopped: dict[Chain, list[tuple[Connection, Obstacle]]] = {}
    for connection in asked:
        for packet in (connection.packet, connection.packet.answered()):
            for obstacle in obstacles(ruleset, packet, lookups):
                stopped.setdefault(obstacle.base, []).append((connection, obstacle))
    return [_finding(ruleset, base, found) for base, found in stopped.items()]


def _finding(ruleset: Ruleset, base: Chain, found: list[tuple[Connection, Obstacle]]) -> Finding:
    # Where it is certain for one, the others are not worth a finding of their own.
    certain = any(obstacle.certain for _, obstacle in found)
    mine = [(connection, obstacle) for connection, obstacle in found if obstacle.certain == certain]
    places: dict[Place, None] = {place: None for _, obstacle in mine for place in obstacle.places}
    chosen = list(dict.fromkeys(connection for connection, _ in mine))
    firewall = whose(ruleset, base)
    commands = dict.fromkeys(command for each in chosen for command in _commands(firewall, base, each))
    return Finding(
        str(base),
        firewall,
        certain,
        tuple(map(str, places)),
        tuple(dict.fromkeys(map(str, chosen))),
        tuple(commands)[:_COMMANDS],
    )


#: The base chains that iptables makes.
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def opening(ruleset: Ruleset, base: Chain, connection: Connection) -> list[str]:
    """The commands that let a connection pass a base chain of the forward hook; there may be none."""
    return _commands(whose(ruleset, base), base, connection)


def whose(ruleset: Ruleset, base: Chain) -> Firewall:
    """Who wrote a base chain."""
    beside = {chain.name for chain in ruleset.rules if chain[:2] == base[:2]}
    named = {"firewalld": Firewall.FIREWALLD, "docker-bridges": Firewall.DOCKER_NFT, "kube-proxy": Firewall.KUBE_PROXY}
    if base.table in named:
        return named[base.table]
    if base.name not in BUILT_IN or base.family == "inet":
        return Firewall.NFT
    if base.table == "nat":
        found = {"DOCKER": Firewall.DOCKER, "KUBE-SERVICES": Firewall.KUBE_PROXY}
        return next((firewall for name, firewall in found.items() if name in beside), Firewall.IPTABLES)
    # An accept in DOCKER-USER comes before everything else in FORWARD, ufw's chains included.
    if "DOCKER-USER" in beside:
        return Firewall.DOCKER
    return Firewall.UFW if beside & {"ufw-user-forward", "ufw6-user-forward"} else Firewall.IPTABLES


#: How rich rules for mappings begin: no packet has this destination where firewalld looks for one, so they translate
#: nothing.
RICH_RULES: dict[Family, str] = {
    4: 'rule family="ipv4" destination address="127.0.0.1" forward-port ',
    6: 'rule family="ipv6" destination address="::1" forward-port ',
}


def rich_rule(connection: Connection) -> str:
    """The rule, as firewalld itself writes it, by which it lets a connection pass.

    firewalld 2.3 accepts by the port that was asked for alone (`ct original proto-dst`), whichever rule names it; its
    plain forward port would also translate connections *through* this host to that port, whoever they are for.
    """
    to = f'to-port="{connection.target.ports}" to-addr="{connection.target.address}"'
    listen = f'port="{connection.listen}" protocol="{connection.protocol}"'
    return f"{RICH_RULES[connection.family]}{listen} {to}"


def _commands(firewall: Firewall, base: Chain, connection: Connection) -> list[str]:
    address, ports = connection.target.address, connection.target.ports
    iptables = "iptables" if connection.family == 4 else "ip6tables"
    match firewall:
        case Firewall.FIREWALLD:
            return [f"firewall-cmd --add-rich-rule='{rich_rule(connection)}'"]
        case Firewall.UFW:
            written = str(ports).replace("-", ":")
            return [f"ufw route allow proto {connection.protocol} from any to {address} port {written}"]
        case Firewall.DOCKER:
            return [f"{iptables} -I DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT"]
        case Firewall.IPTABLES:
            table = "" if base.table == "filter" else f"-t {base.table} "
            return [f"{iptables} {table}-I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"]
        case Firewall.NFT | Firewall.DOCKER_NFT:
            return [f"nft insert rule {base} ct status dnat accept"]
    return []


def legacy(family: Family) -> Finding:
    """The filter table of iptables-legacy is there, and cannot be read from here."""
    iptables = "iptables-legacy" if family == 4 else "ip6tables-legacy"
    why = ("nfportd cannot read the rules of iptables-legacy",)
    return Finding("filter FORWARD", Firewall.LEGACY, False, why, ("any target",), (f"{iptables} -S FORWARD",))

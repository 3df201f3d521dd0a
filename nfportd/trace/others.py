"""What others' chains do to a connection, in words, with the command that lets it pass.

Must not know our table. The one idea: forwarding and translation say where it ends; here it gets the words of the
program whose chain it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nfportd import firewalls
from nfportd.firewalls import Connection
from nfportd.forwarding import Lookups, Obstacle, Ruleset, obstacles
from nfportd.matches import Packet
from nfportd.notation import Ports, Target
from nfportd.trace.facts import Flow, Step
from nfportd.translation import Translation


class Part(NamedTuple):
    """The filter chains of a hook with priorities between two. `target`: where the connection goes by a mapping."""

    hook: str
    before: int
    after: int
    target: tuple[str, int] | None
    flow: Flow


class Filters:
    """Others' filter chains of a part of a hook."""

    def __init__(self, ruleset: Ruleset, part: Part, lookups: Lookups) -> None:
        bases = tuple(base for base in ruleset.bases if base.type != "nat" and part.after < base.priority < part.before)
        self._ruleset = ruleset._replace(bases=bases)
        self._part = part
        self._lookups = lookups

    def steps(self, packet: Packet) -> Iterator[Step]:
        """What stops a packet, or may."""
        for found in obstacles(self._ruleset, packet, self._lookups):
            yield self._step(found, packet)

    def _step(self, found: Obstacle, packet: Packet) -> Step:
        firewall = firewalls.whose(self._ruleset, found.base)
        verb = "stops" if found.certain else "may stop"
        what = "the answers" if packet.reply else "it"
        places = "; ".join(map(str, found.places[:3]))
        text = f"chain {found.base} ({firewall}) {verb} {what}: {places}"
        more = {"chain": str(found.base), "firewall": str(firewall)}
        commands = tuple(self._commands(found, packet))
        return Step(f"others' {self._part.hook}", "stops" if found.certain else "may stop", text, commands, more)

    def _commands(self, found: Obstacle, packet: Packet) -> Iterator[str]:
        part, base = self._part, found.base
        if part.target is None or not packet.translated:
            yield f"nft -a list chain {base}"
        elif part.hook == "forward":
            address, port = part.target
            target = Target(address, part.flow.family, Ports(port, port))
            listen = Ports(part.flow.port, part.flow.port)
            yield from firewalls.opening(
                self._ruleset, base, Connection(part.flow.protocol, listen, target, packet.iif, packet.oif)
            )
        elif base.family == "inet" or base.name not in firewalls.BUILT_IN:
            yield f"nft insert rule {base} ct status dnat accept"
        else:
            iptables = "iptables" if part.flow.family == 4 else "ip6tables"
            table = "" if base.table == "filter" else f"-t {base.table} "
            yield f"{iptables} {table}-I {base.name} -m conntrack --ctstate DNAT -j ACCEPT"


def told(ruleset: Ruleset, found: Translation) -> str:
    """What a nat chain does to a packet."""
    verb = "" if found.certain else "may do so: "
    return f"{verb}{found.place} ({firewalls.whose(ruleset, found.base)})"

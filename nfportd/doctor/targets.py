"""What keeps targets from answering, judged: routes, neighbours, and what became of a short connection to each.

Must not knock at any. The one idea: the first thing on the way that is wrong explains the rest, so each target gets one
finding, and targets with the same trouble share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nfportd.doctor.facts import Door, Facts, Outcome, Published, Way, titles
from nfportd.doctor.findings import Cause, Check, Finding, Unseen
from nfportd.doctor.host import drops_answers, lacks_ipv6

_LOST = ("INCOMPLETE", "FAILED")
#: So many are named in a sentence.
_SHOWN = 3

Findings = Iterator[Finding | Unseen]
Those = tuple[Door, list[Published]]


def _doors(facts: Facts) -> list[Those]:
    """Every door, with the mappings that lead there."""
    found: dict[Door, list[Published]] = {}
    for each in facts.published:
        if each.wanted:
            for door in each.doors():
                if not (door.target.family == 6 and lacks_ipv6(facts, each)):
                    found.setdefault(door, []).append(each)
    return list(found.items())


def _ways(facts: Facts) -> Findings:
    """Routes, then neighbours: one finding for each address, or for each hop."""
    unrouted: dict[Door, list[Published]] = {}
    unmet: dict[tuple[str, str], list[Those]] = {}
    skipped: set[str] = set()
    for door, those in _doors(facts):
        way = facts.way(door.target.address)
        if door.target.address not in facts.ways:
            skipped.add(door.target.address)
        elif way.trouble or _down(facts, door):
            first = next((each for each in unrouted if each.target.address == door.target.address), door)
            unrouted.setdefault(first, []).extend(those)
        elif (hop := _lost(facts, door, way)) is not None:
            unmet.setdefault(hop, []).append((door, those))
    for door, those in unrouted.items():
        yield _unrouted(facts, door, those)
    for (neighbour, link), found in unmet.items():
        yield _unmet(facts, neighbour, link, found)
    if skipped:
        yield Unseen(f"{len(skipped)} addresses more than are looked at in one pass; name a mapping")


def _down(facts: Facts, door: Door) -> str | None:
    """A link that is down, by which a target is reached otherwise; without it packets may take the default route."""
    address, link = door.target.address, facts.interfaces.get(facts.way(door.target.address).link)
    if facts.way(address).local or (link and link.covers(address)):
        return None
    return next((each.name for each in facts.interfaces.values() if not each.up and each.covers(address)), None)


def _lost(facts: Facts, door: Door, way: Way) -> tuple[str, str] | None:
    """The neighbour by which a target is reached, and its link, where it does not answer."""
    # Of UDP silence says nothing, but the question woke the neighbour up.
    if way.local or facts.doors.get(door, Outcome.NOT_ASKED) in (Outcome.NOT_ASKED, Outcome.REFUSED):
        return None
    if door.protocol == "tcp" and facts.doors[door] is Outcome.ANSWERS:
        return None
    hop = way.gateway or door.target.address, way.link
    return hop if facts.neighbours.get(hop) in _LOST else None


def _unrouted(facts: Facts, door: Door, those: list[Published]) -> Finding:
    address, trouble = door.target.address, facts.way(door.target.address).trouble
    ip = "ip -6" if ":" in address else "ip"
    if down := _down(facts, door):
        what, commands = f"{down}, by which target {address} is reached, is down", [f"ip link set {down} up"]
    elif trouble == "no route":
        what, commands = f"no route leads to target {address}", [f"{ip} route add {address} via GATEWAY"]
    else:
        what, commands = f"target {address} cannot be reached: {trouble}", [f"{ip} route show to match {address}"]
    why = "Connections to it fail. Routes of containers come with their network: is it there, and is the "
    why += "address right?"
    return Finding(Cause.TARGET_NO_ROUTE, "error", titles(those), what, why, tuple(commands))


def _unmet(facts: Facts, hop: str, link: str, found: list[Those]) -> Finding:
    doors, those = [door for door, _ in found], [each for _, some in found for each in some]
    gateway = hop not in {door.target.address for door in doors}
    what = f"{'gateway' if gateway else 'target'} {hop} does not answer on {link} (its neighbour entry is "
    what += f"{facts.neighbours[hop, link]})"
    interface = facts.interfaces.get(link)
    if interface and not interface.carrier:
        what += f"; {link} has no carrier: nothing is plugged in, or all that is on the bridge is down"
    why = f"Nobody on {link} has this address"
    why += f", by which {_listed(doors)} is reached." if gateway else "."
    why += " Is the container, the machine or its interface up, and the address right?"
    look = (f"ip neigh show to {hop} dev {link}", f"bridge link show master {link}")
    bridge = interface is not None and interface.kind == "bridge"
    return Finding(Cause.TARGET_NO_NEIGHBOUR, "error", titles(those), what, why, look if bridge else look[:1])


def _answers(facts: Facts) -> Findings:
    by_outcome: dict[Outcome, list[Those]] = {outcome: [] for outcome in Outcome}
    for door, those in _doors(facts):
        way = facts.way(door.target.address)
        if not way.trouble and not _down(facts, door) and _lost(facts, door, way) is None:
            by_outcome[facts.doors.get(door, Outcome.NOT_ASKED)].append((door, those))
    for door, those in by_outcome[Outcome.REFUSED]:
        yield _refused(door, those)
    for door, those in by_outcome[Outcome.REJECTED]:
        yield Finding(
            Cause.TARGET_REJECTS,
            "error",
            titles(those),
            f"a connection to {door} is rejected with an ICMP error",
            "Something on the way does not allow it: a firewall in the target (with `reject`), one of this host's "
            f"output chains, or a router.{_by_gateway(facts, door)}",
            (f"ip route get {door.target.address}", "nft list ruleset"),
        )
    # Answers that the reverse path filter drops have a finding of their own.
    silent = [] if drops_answers(facts) else by_outcome[Outcome.SILENT]
    for door, those in silent:
        yield Finding(
            Cause.TARGET_SILENT,
            "error",
            titles(those),
            f"{door} does not answer a connection",
            "What goes to this port is dropped, by a firewall in the target or by one on the way; or the answers do "
            f"not find the way back to this host.{_by_gateway(facts, door)}",
            (f"ip route get {door.target.address}",),
        )
    yield from _from_afar(facts, by_outcome[Outcome.ANSWERS])
    if skipped := [door for door, _ in by_outcome[Outcome.NOT_ASKED]]:
        yield Unseen(
            f"{_listed(skipped)} could not be tried (SCTP, more than are tried in one pass, or rules of this host)"
        )


def _by_gateway(facts: Facts, door: Door) -> str:
    """What is said of a target behind a router."""
    way = facts.way(door.target.address)
    if not way.gateway:
        return ""
    text = f" It is reached by gateway {way.gateway} on {way.link}; where it is a container or machine of this host, "
    return f"{text}its network is not there, and packets for it leave by the default route."


def _refused(door: Door, those: list[Published]) -> Finding:
    by = "a reset" if door.protocol == "tcp" else "ICMP port unreachable"
    port, kind = door.target.ports.first, "t" if door.protocol == "tcp" else "u"
    return Finding(
        Cause.TARGET_REFUSES,
        "error",
        titles(those),
        f"{door} refuses connections ({by})",
        f"Nobody listens there on port {port}. Is the program up, does it listen on {door.target.address} or on every "
        "address (not on 127.0.0.1 alone), and is this the right port? The command shows it, run in the target.",
        (f"ss -ln{kind}p 'sport = :{port}'",),
    )


def _from_afar(facts: Facts, answering: Iterable[Those]) -> Findings:
    for door, those in answering:
        outcome, source = facts.doors_from_afar.get(door, (Outcome.ANSWERS, ""))
        concerned = [each for each in those if each.mapping.masquerade != "always"]
        if outcome is Outcome.SILENT and concerned:
            way = facts.way(door.target.address)
            here = _address_on(facts, way.link, door)
            yield Finding(
                Cause.ANSWERS_GO_ELSEWHERE,
                "error",
                titles(concerned),
                f"{door} answers its neighbours, but not a connection from {source}, which is not on {way.link}",
                "Clients from elsewhere get no answers: the target has no route back by this host, or takes "
                "connections of its neighbours only. Give it this host for a gateway (the command is for the target), "
                "or say `masquerade: always` in the mapping.",
                (f"{'ip -6' if door.target.family == 6 else 'ip'} route replace default via {here}",) if here else (),
            )


def _address_on(facts: Facts, link: str, door: Door) -> str | None:
    """This host's address among a target's neighbours."""
    interface = facts.interfaces.get(link)
    mine = (each.partition("/")[0] for each in interface.addresses) if interface else ()
    return next((each for each in mine if (":" in each) == (door.target.family == 6)), None)


def _listed(doors: list[Door]) -> str:
    more = f" and {len(doors) - _SHOWN} more" if len(doors) > _SHOWN else ""
    return ", ".join(map(str, doors[:_SHOWN])) + more


CHECKS = (
    Check("routes and neighbours of targets", _ways),
    Check("targets answer a short connection", _answers),
)

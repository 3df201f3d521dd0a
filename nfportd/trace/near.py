"""Which mapping a connection meets, and which it misses narrowly, by what the API tells of a port.

Must not ask the daemon. The one idea: whoever asks why a port does not answer has nearly hit something: another
protocol, another address, a mapping that waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nfportd.notation import Listen, Ports, Target, parse_listen, parse_target
from nfportd.trace.facts import Flow

Mapping = dict[str, Any]


def at(mappings: Iterable[Mapping], flow: Flow, *, specific: bool) -> Mapping | None:
    """The mapping in force that has the key of a connection: that of its address, or that of every address."""
    mine = [each for each in mappings if _takes(each, flow) and each["state"] in ("active", "drift", "conflict")]
    fitting = [each for each in mine if (_listen(each).address is not None) == specific]
    # Of two that claim a key, the one without a conflict holds it.
    return min(fitting, key=lambda each: each["state"] == "conflict", default=None)


def target(mapping: Mapping, flow: Flow) -> Target:
    """Where a mapping sends a connection; it has a target of that family."""
    found = next(each for each in map(parse_target, mapping["targets"]) if each.family == flow.family)
    port = found.ports.first + flow.port - _listen(mapping).ports.first
    return Target(found.address, found.family, Ports(port, port))


def titled(mapping: Mapping | None) -> str:
    """A mapping as a person calls it."""
    if mapping is None:
        return "its mapping"
    name = f'mapping "{mapping["name"]}"' if mapping.get("name") else f"mapping {mapping['listen']}"
    listen = _listen(mapping)
    wide = f", range {listen.ports}" if listen.ports.count > 1 else ""
    return f"{name} of {mapping['owner']}{wide}"


def beside(mappings: list[Mapping] | None, flow: Flow) -> Iterator[str]:
    """What is on the port all the same, and why it does not take the connection."""
    if mappings is None:
        yield "the daemon does not answer, so what waits or is refused is not known"
    for each in mappings or ():
        listen = _listen(each)
        if flow.protocol not in each["protocol"]:
            yield f"{titled(each)} has this port by {' and '.join(each['protocol'])}, not by {flow.protocol}"
        elif listen.address not in (None, flow.to) or listen.family not in (None, flow.family):
            yield f"{titled(each)} listens on {listen}, not on {flow.to}"
        elif each["state"] != "active":
            why = each.get("reason") or "no reason given"
            yield f"{titled(each)} is there, but not in force ({each['state']}: {why})"
        elif not any((":" in target.rpartition(":")[0]) == (flow.family == 6) for target in each["targets"]):
            yield f"{titled(each)} has no target of IPv{flow.family}"
        else:
            yield f"{titled(each)} should be in force, but the kernel has no element of it"


def _takes(mapping: Mapping, flow: Flow) -> bool:
    listen = _listen(mapping)
    return (
        flow.protocol in mapping["protocol"]
        and listen.address in (None, flow.to)
        and listen.family in (None, flow.family)
        and listen.ports.first <= flow.port <= listen.ports.last
    )


def _listen(mapping: Mapping) -> Listen:
    return parse_listen(mapping["listen"])

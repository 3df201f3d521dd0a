"""`nfportctl trace`: what happens to a connection, explained from the live state or watched on a real packet.

Must not load what asks the kernel before it is called. The one idea: the daemon is asked for names only; what is true
is in the kernel, and a trace works also while the daemon is away.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from nfportd import columns
from nfportd.client import Client, NotReachable, Problem
from nfportd.errors import EXIT_WRONG

if TYPE_CHECKING:
    from nfportd.trace.facts import Explanation, Flow
    from nfportd.trace.live import Seen

_MARKS = {"passes": ("green", "ok"), "stops": ("red", "no"), "may stop": ("yellow", "??"), "leaves": ("yellow", "--")}


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("to", metavar="TO")
@click.option("--live", is_flag=True, help="Watch a real packet through all tables; make the connection meanwhile.")
@click.option(
    "--seconds", type=click.IntRange(1, 600), default=10, show_default=True, help="How long --live waits for a packet."
)
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
@click.pass_obj
def trace(client: Client, source: str, to: str, live: bool, seconds: int, as_json: bool) -> None:
    """Explain what happens to a connection from FROM to TO, step by step, from what the kernel has now.

    FROM is the client's address, TO what it connects to: :8080 (an address of this host), 192.0.2.1:8080/udp or
    [2001:db8::1]:8080. Needs root.

    \b
    Examples:
      nfportctl trace 198.51.100.7 :8080            # a client from outside
      nfportctl trace 127.0.0.1 127.0.0.1:8080      # this host itself
      nfportctl trace 10.88.0.12 10.88.0.1:8080     # a container, by its gateway
      nfportctl trace --live 198.51.100.7 :8080     # watch a real packet

    Exit status: 0 it reaches a target (--live: it is answered), 1 it does not, 2 wrong usage, 4 no right to ask the
    kernel.
    """
    from nfportd.trace.facts import parse  # noqa: PLC0415
    from nfportd.trace.reading import NoRights  # noqa: PLC0415
    from nfportd.trace.session import Ended, run  # noqa: PLC0415

    try:
        flow = parse(source, to)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    mappings = _mappings(client, flow)
    waiting = f"waiting up to {seconds} s for a packet from {flow}: make the connection now"
    try:
        explained, seen = run(flow, mappings, seconds if live else 0, lambda: click.echo(waiting, err=True))
    except NoRights as error:
        raise Problem(403, {"type": "urn:nfportd:problem:denied", "detail": str(error)}) from None
    except Ended as error:
        sys.exit(128 + error.number)
    if as_json:
        click.echo(json.dumps(_json(explained, seen), indent=2, ensure_ascii=False))
    else:
        for line in _seen(seen) if seen else _explained(explained):
            click.echo(line)
    if not (seen.arrives if seen else explained.arrives):
        sys.exit(EXIT_WRONG)


def _mappings(client: Client, flow: Flow) -> list[dict[str, Any]] | None:
    """What listens on the port, as the daemon tells."""
    try:
        found: list[dict[str, Any]] = client.get("/v1/mappings", port=flow.port)["mappings"]
    except NotReachable as error:
        click.echo(f"nfportctl: {error}; what follows is the kernel's word alone", err=True)
        return None
    return found


def _explained(found: Explanation) -> Iterator[str]:
    yield columns.coloured(columns.printable(found.flow), "bold")
    width = max(len(step.at) for step in found.steps)
    for step in found.steps:
        colour, mark = _MARKS[step.verdict]
        yield f"  {columns.coloured(mark, colour)} {step.at.ljust(width)}  {columns.printable(step.text)}"
        yield from _commands(step.commands)
    text = "it does not reach a target of a mapping"
    if found.arrives:
        doubt = ", unless what is marked ?? stops it" if any(s.verdict == "may stop" for s in found.steps) else ""
        source = found.seen_as or "an address of this host"
        text = f"it reaches {found.target} from {source}{doubt}; whether a program answers there, only --live sees"
    yield from _verdict(found.arrives, text)


def _commands(commands: tuple[str, ...]) -> Iterator[str]:
    return (f"       run: {columns.printable(command)}" for command in commands)


def _verdict(arrives: bool, text: str) -> Iterator[str]:
    yield columns.coloured(columns.printable(text), "green" if arrives else "red")


def _seen(found: Seen) -> Iterator[str]:
    yield from map(columns.printable, found.lines)
    yield from _verdict(found.arrives, found.end)
    yield from _commands(found.commands)


def _json(explained: Explanation, seen: Seen | None) -> dict[str, Any]:
    steps = [dataclasses.asdict(step) for step in explained.steps]
    answer = dataclasses.asdict(explained.flow) | {
        "arrives": explained.arrives,
        "target": explained.target,
        "seen_as": explained.seen_as,
        "steps": [step | step.pop("more") for step in steps],
    }
    if seen:
        packets = [
            {"asking": each.asking, "packet": each.packet, "flags": each.flags,
             "events": [event._asdict() | {"chain": str(event.chain)} for event in each.events]}
            for each in seen.passages
        ]  # fmt: skip
        answer |= {
            "arrives": seen.arrives,
            "end": seen.how,
            "text": seen.end,
            "commands": list(seen.commands),
            "packets": packets,
        }
    return answer

"""Which mapping or owner somebody at a terminal means, and what the shell can complete.

Must not change anything. The one idea: a name goes before what is listened on, and that before nothing; who means
nothing that there is, is told where to look.
"""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from nfportd.client import DEFAULT_SOCKET, Client, Json, NotReachable, Problem
from nfportd.errors import NfportdError


class WrongState(NfportdError):
    """What there is does not allow what was asked for."""


def called(client: Client, which: str) -> Json:
    """The mappings of a name, else those that listen on a port, with connections counted. Raises WrongState."""
    found = client.get("/v1/mappings", name=which, counters=True)
    if not found["mappings"] and (query := _listening(which)):
        listen, _, _ = which.partition("/")
        found = client.get("/v1/mappings", **query, counters=True)
        if ":" in listen or "-" in listen:
            found["mappings"] = [each for each in found["mappings"] if each["listen"] == listen]
    if not found["mappings"]:
        text = "is no mapping's name, nothing that one listens on and no owner; nfportctl list shows all"
        raise WrongState(f"{which!r} {text}")
    return found


def _listening(which: str) -> dict[str, object]:
    """What to ask for where somebody writes a listen: `8080`, `53/udp`, `192.0.2.1:8080`."""
    listen, _, protocol = which.partition("/")
    port = listen.rpartition(":")[2].partition("-")[0]
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        return {}
    return {"port": int(port), "protocol": protocol or None}


def complete_owner(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The owners that the daemon knows, for the shell."""
    try:
        with Client(context.find_root().params.get("socket") or DEFAULT_SOCKET, timeout=1) as client:
            found = client.get("/v1/owners", prefix=incomplete)["owners"]
    except (Problem, NotReachable):
        return []
    return [CompletionItem(each["owner"]) for each in found]


def complete_mapping(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of mappings that the daemon knows, and the owners, for the shell."""
    try:
        with Client(context.find_root().params.get("socket") or DEFAULT_SOCKET, timeout=1) as client:
            # Where there are more, the busiest are enough for a menu.
            found = client.get("/v1/mappings", busiest=1000)["mappings"]
            names = {each["name"] for each in found if each.get("name")}
    except (Problem, NotReachable):
        return []
    named = [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
    return named + complete_owner(context, parameter, incomplete)

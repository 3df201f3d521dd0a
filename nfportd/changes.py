"""The commands of `nfportctl` that publish and withdraw: add, remove, apply.

Must not reach past the API. The one idea: an owner's content is read, changed and written back under its etag, so
that two people at two terminals cannot undo each other's work; whether it may be is the daemon's word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from nfportd import columns, document, printing
from nfportd.client import Client, Json, Problem, wished
from nfportd.document import Node
from nfportd.errors import InvalidInput, Problem as Misplaced
from nfportd.naming import WrongState, complete_owner
from nfportd.notation import parse_listen, parse_source, parse_target

PROTOCOLS = ("tcp", "udp", "sctp")
#: Whose mappings they are that people add by hand, unless they say otherwise.
OWN = "api:nfportctl"

F = TypeVar("F", bound=Callable[..., Any])


def nothing_of(owner: str) -> WrongState:
    """The error where an owner is not known."""
    return WrongState(f"{owner} has no mappings; nfportctl owners lists who has")


def _written(parse: Callable[[object], object]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Reads arguments as the daemon would, and gives them in the form in which it writes them."""

    def read(_: click.Context, __: click.Parameter, value: Any) -> Any:
        try:
            return [str(parse(each)) for each in value] if isinstance(value, tuple) else str(parse(value))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


_owner = click.option(
    "--owner", default=OWN, show_default=True, shell_complete=complete_owner, help="Whose mappings they are."
)
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")


def _lifetime(command: F) -> F:
    """How long an owner's content is kept; counts for all that it has."""
    persistent = click.option("--persistent/--until-reboot", default=None, help="Keep all of the owner across reboots.")
    expires = click.option(
        "--expires-in", type=click.IntRange(1), metavar="SECONDS", help="Withdraw all of the owner after this time."
    )
    return persistent(expires(command))


@dataclass(frozen=True, slots=True)
class _Lifetime:
    """What was asked for; None: as it is."""

    persistent: bool | None
    expires_in: int | None

    def body(self, now: Json | None, mappings: list[Json]) -> Json:
        """An owner's new body: these mappings, kept as long as was asked for, else as long as they were."""
        now = now or {}
        body: Json = {"mappings": mappings, **{name: now[name] for name in ("netns", "pid") if now.get(name)}}
        body["persistent"] = now.get("persistent", False) if self.persistent is None else self.persistent
        if self.expires_in is not None:
            body["expires_in"] = self.expires_in
        elif now.get("expires_at"):
            left = datetime.fromisoformat(now["expires_at"]) - datetime.now(UTC)
            body["expires_in"] = max(1, math.ceil(left.total_seconds()))
        return body


_AS_IT_IS = _Lifetime(None, None)


@click.command()
@click.argument("listen", callback=_written(parse_listen))
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True, callback=_written(parse_target))
@_owner
@click.option(
    "--protocol",
    multiple=True,
    type=click.Choice(PROTOCOLS),
    default=("tcp",),
    show_default=True,
    help="May be repeated.",
)
@click.option("--name", help="Appears in messages, and is what remove takes.")
@click.option("--comment", help="Text for people.")
@click.option(
    "--masquerade",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Hide the client's address from the target: where it must be, always, or only from loopback.",
)
@click.option(
    "--on-change",
    type=click.Choice(["keep", "cut"]),
    default="keep",
    show_default=True,
    help="What becomes of TCP connections when the target changes or goes.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="CIDR",
    callback=_written(parse_source),
    help="Admit clients of this prefix only.",
)
@click.option("--shadow-listener", is_flag=True, help="Take the port also from a process that listens on it.")
@click.option("--reserve", is_flag=True, help="Keep other processes from listening on the port.")
@click.option("--isolate", is_flag=True, help="Drop connections to the target past its mappings, also this host's own.")
@_lifetime
@_dry_run
@click.pass_obj
def add(
    client: Client, /, owner: str, dry_run: bool, persistent: bool | None, expires_in: int | None, **keys: Any
) -> None:
    """Publish LISTEN: forward its connections to TARGET, at most one of each address family.

    LISTEN is 8080, 20000-20099, 192.0.2.1:8080 or '[2001:db8::1]:8080'; TARGET is 10.88.0.11:80 or '[fd88::11]:80'.

    \b
    Examples:
      nfportctl add 8080 10.88.0.11:80 '[fd88::11]:80' --name web
      nfportctl add 127.0.0.1:5432 10.88.0.12:5432 --persistent
      nfportctl add 20000-20099 10.88.0.11:30000-30099 --protocol udp
      nfportctl add 2222 10.88.0.13:22 --source 192.0.2.0/24 --expires-in 3600 --owner api:support

    Exit status: 0 it is in force and stored, 1 the input is wrong, 4 another owner or a process has the port, or
    access is denied; nothing is changed then.
    """
    mapping = {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items() if value}
    mapping["protocol"] = [each for each in PROTOCOLS if each in mapping["protocol"]]
    mapping["targets"].sort(key=lambda target: target.startswith("["))
    lifetime = _Lifetime(persistent, expires_in)
    others: list[Json] = []

    def change(now: Json | None) -> Json:
        nonlocal others
        standing = [wished(each) for each in now["mappings"]] if now else []
        others = [each for each in standing if not _same(each, mapping)]
        _look_at(owner, now, others, mapping, lifetime)
        return lifetime.body(now, [*others, mapping])

    try:
        answer = client.edit(owner, change, dry_run=dry_run)
    except Problem as problem:
        # The caller knows of mappings, not of their places in the body.
        for each in problem.errors:
            each["pointer"] = str(each.get("pointer", "")).removeprefix(f"/mappings/{len(others)}")
            each["detail"] = _named(each["detail"], others)
        raise
    _say(answer, f"{owner}: {printing.titled(mapping)}", dry_run)


def _named(detail: str, others: list[Json]) -> str:
    """A sentence of the daemon in which mappings are called by what they are."""

    def title(found: re.Match[str]) -> str:
        place = int(found[1])
        return printing.titled(others[place]) if place < len(others) else "this mapping"

    return re.sub(r"/mappings/([0-9]+)", title, detail)


def _same(standing: Json, mapping: Json) -> bool:
    return {key: str(value) for key, value in standing.items() if value} == {k: str(v) for k, v in mapping.items()}


def _look_at(owner: str, now: Json | None, others: list[Json], mapping: Json, lifetime: _Lifetime) -> None:
    """Raise WrongState where adding would do more than the caller can mean."""
    name = mapping.get("name")
    for each in others:
        if name and each.get("name") == name:
            raise WrongState(f"{owner} has {printing.titled(each)} already; remove it first, or choose another name")
    if others and now and lifetime.expires_in and not now.get("expires_at"):
        found = f"{owner} has {len(others)} other mappings, which --expires-in would withdraw too"
        raise WrongState(f"{found}; choose another --owner")


@click.command()
@click.argument("which", required=False, metavar="[NAME|LISTEN]")
@_owner
@click.option(
    "--protocol", type=click.Choice(PROTOCOLS), help="Of several with the same LISTEN, the one of this protocol."
)
@click.option("--all", "everything", is_flag=True, help="All that the owner has.")
@_dry_run
@click.pass_obj
def remove(
    client: Client, which: str | None, owner: str, protocol: str | None, everything: bool, dry_run: bool
) -> None:
    """Withdraw the mapping with this NAME or LISTEN, or all of an owner.

    \b
    Examples:
      nfportctl remove web
      nfportctl remove 8080 --protocol udp
      nfportctl remove --all --owner api:ci-1742

    Exit status: 0 it is withdrawn, 1 the owner has no such mapping.
    """
    if (which is None) != everything:
        raise click.UsageError("name one mapping (its name or listen), or say --all")

    def change(now: Json | None) -> Json | None:
        if now is None:
            raise nothing_of(owner)
        left = [] if which is None else _without(owner, now["mappings"], which, protocol)
        return _AS_IT_IS.body(now, [wished(each) for each in left]) if left else None

    _say(client.edit(owner, change, dry_run=dry_run), f"{owner}: {which or 'all mappings'}", dry_run)


def _without(owner: str, mappings: list[Json], which: str, protocol: str | None) -> list[Json]:
    """The mappings but the one that `which` means."""
    try:
        listen = str(parse_listen(which))
    except ValueError:
        listen = which
    found = [each for each in mappings if each.get("name") == which] or [
        each
        for each in mappings
        if str(each["listen"]) == listen and (protocol is None or protocol in each["protocol"])
    ]
    if not found:
        raise WrongState(f"{owner} has no mapping {which!r}; nfportctl show {owner} lists what it has")
    if len(found) > 1:
        listed = "; ".join(map(printing.titled, found))
        raise WrongState(f"{which!r} means {len(found)} mappings of {owner}: {listed}; say which by --protocol or name")
    return [each for each in mappings if each is not found[0]]


@click.command()
@click.option("-f", "--file", "file", required=True, help="A drop-in; - for standard input.")
@click.option("--owner", required=True, shell_complete=complete_owner, help="Whose mappings they are.")
@_lifetime
@_dry_run
@click.pass_obj
def apply(
    client: Client, file: str, owner: str, persistent: bool | None, expires_in: int | None, dry_run: bool
) -> None:
    """Make the mappings of FILE all that an owner has. FILE is written like a drop-in.

    \b
    Examples:
      nfportctl apply -f web.yaml --owner api:web --dry-run
      render web.j2 | nfportctl apply -f - --owner api:web --persistent

    Exit status: 0 all of it is in force, 1 the input is wrong, 4 a port is taken or access is denied; nothing is
    changed then.
    """
    name = "<stdin>" if file == "-" else file
    try:
        with click.open_file(file, "rb") as opened:
            text: bytes = opened.read(document.MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput([Misplaced(name, 0, 0, f"cannot be read: {error.strerror}")]) from None
    root = document.read(text, name) or document.empty()
    content = root.plain()
    if not isinstance(content, dict):
        raise InvalidInput([Misplaced(name, 1, 1, "a drop-in is `mappings:` and a list under it")])
    body: Json = {**content, "mappings": content.get("mappings") or []}
    if persistent is not None:
        body["persistent"] = persistent
    if expires_in is not None:
        body["expires_in"] = expires_in
    try:
        answer = client.put(owner, body, dry_run=dry_run)
    except Problem as problem:
        for each in problem.errors:
            each["detail"] = str(_placed(each, root, name))
            each["pointer"] = ""
        raise
    _say(answer, f"{owner}: {name}", dry_run)


def _placed(error: Json, root: Node, file: str) -> Misplaced:
    """An error of an answer at its place in the file."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in str(error.get("pointer", "")).split("/")[1:]]
    node = root.at(tuple(int(step) if step.isdecimal() else step for step in steps))
    if steps[:1] == ["mappings"] and steps[1:] and steps[1].isdecimal():
        mapping = root.at(("mappings", int(steps[1]))).value
        named = mapping.get("name") if isinstance(mapping, dict) else None
        steps[:2] = [f'mapping "{named.value}"' if named else f"mapping number {int(steps[1]) + 1}"]
    return Misplaced(file, node.line, node.column, ": ".join([*steps, error["detail"]]))


def _say(answer: Json, what: str, dry_run: bool) -> None:
    added, removed = answer["added"], answer["removed"]
    change = f"would add {added}, remove {removed}" if dry_run else f"added {added}, removed {removed}"
    click.echo(f"{columns.printable(what)}: {change}")
    for found in answer["owners"].values():
        for mapping in found["mappings"] if found else ():
            for line in printing.not_in_force(mapping):
                click.echo(line, err=True)

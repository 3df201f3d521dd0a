"""The command `nfportctl`, for people at a terminal: what asks, and how errors end.

Must not reach past the API (but for `check` and `doctor`, which work without the daemon). The one idea: every command
is one question to the daemon and one way to print its answer; errors become sentences and an exit status in one place.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import sys
import syslog
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NoReturn

import click
from click.shell_completion import get_completion_class

from nfportd import changes, columns, naming, oci_hook, printing
from nfportd.client import DEFAULT_SOCKET, Client, Json, NotReachable, Problem
from nfportd.errors import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_WRONG, NfportdError

#: What is not here has EXIT_WRONG.
_EXITS = {"denied": EXIT_REFUSED, "conflict": EXIT_REFUSED, "port-in-use": EXIT_REFUSED, "busy": EXIT_UNREACHABLE}


def _fail(lines: Iterable[str], status: int) -> NoReturn:
    for number, line in enumerate(lines):
        click.echo(line if number else columns.coloured(f"nfportctl: {line}", "red"), err=True)
    sys.exit(status)


#: Commands that are loaded when they are called: the module and its click command. `check` brings all of the daemon.
_LAZY = {
    "check": ("nfportd.__main__", "check_command"),
    "doctor": ("nfportd.doctor.command", "doctor_command"),
    "report": ("nfportd.report.command", "command"),
    "top": ("nfportd.top", "command"),
    "trace": ("nfportd.trace.command", "trace"),
}


class _Commands(click.Group):
    """All commands."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *_LAZY])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in _LAZY:
            module, command = _LAZY[name]
            found: click.Command = getattr(importlib.import_module(module), command)
            return found
        return super().get_command(context, name)

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except Problem as problem:
            _fail(printing.problem(problem), _EXITS.get(problem.name, EXIT_WRONG))
        except NotReachable as error:
            _fail([str(error)], EXIT_UNREACHABLE)
        except NfportdError as error:
            _fail(str(error).splitlines(), EXIT_WRONG)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    envvar="NFPORTD_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    show_envvar=True,
    help="Where the daemon listens.",
)
@click.version_option(package_name="nfportd")
@click.pass_context
def main(context: click.Context, socket: str) -> None:
    """Ask nfportd, and publish ports through it.

    \b
    Examples:
      nfportctl add 8080 10.88.0.11:80 --name web   # in force when it returns
      nfportctl list                                # what is published, to where, by whom, how often used
      nfportctl status                              # what is not in force, and why
      nfportctl top                                 # the busiest mappings, as it happens
      nfportctl doctor web                          # why it does not work
      nfportctl remove web

    Exit status: 0 done, 1 the input or the state is wrong, 2 wrong usage, 3 the daemon does not answer, 4 refused
    (another owner or a process has the port, or access is denied).
    """
    if os.environ.get("NO_COLOR"):
        context.color = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may be of any script, the terminal of any encoding.
        sys.stdout.reconfigure(errors="replace")
    if context.invoked_subcommand == "check":
        from nfportd.__main__ import CONFIG, DROPINS  # noqa: PLC0415

        context.obj = (CONFIG, DROPINS)
    else:
        context.obj = context.with_resource(Client(socket))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _print_json(found: Json) -> None:
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _width() -> int | None:
    """Of the terminal; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


_as_json = click.option("--json", "as_json", is_flag=True, help="The API's answer as it is.")


@main.command("list")
@click.option("--owner", shell_complete=naming.complete_owner, help="Of this owner only.")
@click.option("--port", type=click.IntRange(1, 65535), help="That listen on this port only.")
@click.option("--protocol", type=click.Choice(changes.PROTOCOLS), help="Of this protocol only.")
@_as_json
@click.pass_obj
def list_command(client: Client, owner: str | None, port: int | None, protocol: str | None, as_json: bool) -> None:
    """List the mappings of all owners: state, connections accepted, connections a second, age.

    Connections are counted as long as a mapping leads to the same target, across restarts of the daemon; age is since
    the mapping came or changed, as far as this run of the daemon knows. Where a terminal is too narrow, columns are
    shortened and then left out.

    \b
    Examples:
      nfportctl list --port 8080
      nfportctl list --owner file:web.yaml --json
    """
    found = client.get("/v1/mappings", owner=owner, port=port, protocol=protocol, counters=True)
    if as_json:
        _print_json(found)
        return
    _print(printing.mappings(found["mappings"], datetime.now(UTC), _width()))


@main.command()
@click.argument("which", metavar="MAPPING", shell_complete=naming.complete_mapping)
@_as_json
@click.pass_obj
def show(client: Client, which: str, as_json: bool) -> None:
    """Show all that is known of a mapping, by its name or what it listens on, or an owner and its mappings.

    \b
    Examples:
      nfportctl show web                # the mappings of this name
      nfportctl show 8080               # what listens on this port; 53/udp, 192.0.2.1:8080: on just that
      nfportctl show api:nfportctl      # an owner: what was added by hand
      nfportctl show file:web.yaml      # what /etc/nfportd.d/web.yaml asks for
    """
    found = client.owner(which) or naming.called(client, which)
    if as_json:
        _print_json(found)
    elif "owner" in found:
        found["mappings"] = client.get("/v1/mappings", owner=which, counters=True)["mappings"]
        _print(printing.owner(found, datetime.now(UTC), _width()))
    else:
        minutes = client.get("/v1/traffic")["minutes"]
        for mapping in found["mappings"]:
            _print(printing.details(mapping, minutes, datetime.now(UTC)))


@main.command()
@click.argument("prefix", required=False)
@_as_json
@click.pass_obj
def owners(client: Client, prefix: str | None, as_json: bool) -> None:
    """List the owners whose name begins with PREFIX, or all.

    \b
    Example:
      nfportctl owners cni:             # the containers that a CNI runtime has published
    """
    found = client.get("/v1/owners", prefix=prefix)
    if as_json:
        _print_json(found)
    else:
        _print(printing.owners(found["owners"], datetime.now(UTC)))


@main.command()
@_as_json
@click.pass_obj
def status(client: Client, as_json: bool) -> None:
    """Show what the daemon holds and what is wrong.

    \b
    Example:
      nfportctl status || mail -s "$(hostname): ports are not in force" root </dev/null

    Exit status: 0 all is in force, 1 a mapping is not, a drop-in is broken or others' rules stop connections, 3 the
    daemon does not answer.
    """
    found = client.get("/v1/status")
    if as_json:
        _print_json(found)
    else:
        _print(printing.status(found, datetime.now(UTC)))
    intact = found["table"] == "intact" and not found["repairs"]["fight"]
    intact = intact and not any(each["certain"] for each in found["forwarding"])
    waits = found["conflicts"] or found["refused"] or found.get("port_in_use")
    if not intact or waits or any(found["files"].values()):
        sys.exit(EXIT_WRONG)


@main.command()
@click.option("--since", type=click.IntRange(0), help="Begin after this event; 0: with the oldest that is known.")
@click.option("--last", type=click.IntRange(1, 1000), help="Print so many that happened last, and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as the API sends them.")
@click.pass_obj
def events(client: Client, since: int | None, last: int | None, as_json: bool) -> None:
    """Follow what happens, until interrupted.

    \b
    Examples:
      nfportctl events --since 0        # begin with the oldest that is known
      nfportctl events --last 20        # what happened lately
      nfportctl events --json | jq -r 'select(.kind == "conflict") | .key'

    Exit status: 0 after ctrl-C, 3 when the daemon ends the stream.
    """
    if last and since is not None:
        raise click.UsageError("--last ends with what is known now, --since goes on; say one of them")
    latest: Json = {}
    try:
        for line in client.events(since, last):
            latest = json.loads(line)
            click.echo(line if as_json else printing.event(latest))
    except KeyboardInterrupt:
        return
    if last:
        return
    again = f"; go on with --since {latest['seq']}" if latest else ""
    raise NotReachable(f"{client.path}: the daemon ended the stream{again}")


@main.command()
@_as_json
@click.pass_obj
def reload(client: Client, as_json: bool) -> None:
    """Have the daemon read all drop-ins again. It follows changes by itself; this waits for them.

    \b
    Example:
      cp *.yaml /etc/nfportd.d/ && nfportctl reload

    Exit status: 0 every drop-in is in force as far as it can be, 1 one is broken (its last good content stays).
    """
    found = client.request("POST", "/v1/reload")
    errors: list[object] = found["errors"]
    if as_json:
        _print_json(found)
    elif not errors:
        click.echo("all drop-ins read again: no errors")
    for error in [] if as_json else errors:
        click.echo(columns.printable(error), err=True)
    if errors:
        sys.exit(EXIT_WRONG)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete nfportctl's commands. An installed nfportctl has it already.

    \b
    Example:
      source <(nfportctl completion bash)
    """
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(main, {}, "nfportctl", "_NFPORTCTL_COMPLETE").source())


@main.command("oci-hook")
@click.pass_obj
def oci_hook_command(client: Client) -> None:
    """Publish what a container's annotation asks for; OCI runtimes call this with the container's state on stdin.

    Without the annotation nfportd.ports nothing is done. After any exit status but 0 the runtime does not start the
    container; why is also in the system's log.

    \b
    Examples:
      podman run --annotation 'nfportd.ports=8080:80 127.0.0.1:5353:53/udp' IMAGE
      podman inspect -f '...' NAME | nfportctl oci-hook     # any engine: JSON with id, pid and annotations
    """
    try:
        oci_hook.publish(client, sys.stdin.buffer.read())
    except NfportdError as error:
        # Some runtimes (crun) show nobody what a hook prints.
        syslog.openlog("nfportctl", facility=syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR, columns.printable(f"oci-hook: {error}"))
        raise


for _command in (changes.add, changes.remove, changes.apply):
    main.add_command(_command)

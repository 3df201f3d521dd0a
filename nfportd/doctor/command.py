"""The command `nfportctl doctor`: options, the report as people read it, exit status.

Must not judge. The one idea: what is wrong comes first, each with why it matters and what to run; then what was fine,
so that silence is not taken for health.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from nfportd import columns
from nfportd.client import Client, Json
from nfportd.doctor.asking import Places
from nfportd.doctor.examination import examine
from nfportd.errors import EXIT_WRONG

_PATH = click.Path(path_type=Path)
_DEFAULTS = Places()
_COLOURS = {"error": "red", "warning": "yellow"}
_WIDTH = 100


@click.command("doctor")
@click.argument("mapping", required=False)
@click.option("--config", type=_PATH, default=_DEFAULTS.config, show_default=True, help="The daemon's settings.")
@click.option("--dropins", type=_PATH, default=_DEFAULTS.dropins, show_default=True, help="Its directory of mappings.")
@click.option("--state-dir", type=_PATH, default=_DEFAULTS.state_dir, show_default=True, help="Its state directory.")
@click.option("--json", "as_json", is_flag=True, help="What was found as JSON.")
@click.pass_obj
def doctor_command(
    client: Client, mapping: str | None, config: Path, dropins: Path, state_dir: Path, as_json: bool
) -> None:
    """Look for everything that makes a port not work: of one MAPPING (its name or listen), or of all.

    Says what was found, why it matters and what mends it; then what was looked at and is fine. It connects to each
    target (TCP: and closes; UDP: an empty datagram), and changes nothing. It needs no daemon, then the drop-ins say
    what should be published; not being root it leaves out what only root can see, and says so.

    \b
    Examples:
      nfportctl doctor                  # why does it not work?
      nfportctl doctor web
      nfportctl doctor --json | jq -r '.findings[] | .cause, .commands[]'

    Exit status: 0 nothing is wrong in what could be looked at, 1 something is, also that the daemon does not run, or
    there is no such mapping.
    """
    # What the modules beneath log is in the findings.
    logging.getLogger("nfportd").addHandler(logging.NullHandler())
    report = examine(Places(Path(client.path), config, dropins, state_dir), mapping)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        for line in _lines(report):
            click.echo(line)
    if not report["healthy"]:
        sys.exit(EXIT_WRONG)


def _lines(report: Json) -> Iterator[str]:
    for found in report["findings"]:
        yield from _finding(found)
    counted = [sum(found["severity"] == severity for found in report["findings"]) for severity in _COLOURS]
    by_severity = zip(counted, _COLOURS, strict=True)
    said = ", ".join(f"{number} {name}{'s' if number > 1 else ''}" for number, name in by_severity if number)
    mappings = f"{report['mappings']} mapping{'' if report['mappings'] == 1 else 's'}"
    yield columns.coloured(f"{said or 'nothing wrong'} in {mappings}", "red" if said else "green")
    if report["checked"]:
        yield "checked and fine:"
        yield from _wrapped("; ".join(report["checked"]))
    for each in report["not_checked"]:
        yield from _wrapped(f"not checked: {each['what']}: {each['why']}", "")


def _finding(found: Json) -> Iterator[str]:
    """One finding; names and texts of others are made printable."""
    head = f"{found['severity']}: {found['what']} [{found['cause']}]"
    yield columns.coloured(columns.printable(head), _COLOURS[found["severity"]])
    if found["mappings"]:
        more = f" and {len(found['mappings']) - 5} more" if len(found["mappings"]) > 5 else ""
        yield from _wrapped(f"concerns: {', '.join(found['mappings'][:5])}{more}")
    yield from _wrapped(found["why"])
    for command in found["commands"][:5]:
        yield f"  run: {columns.printable(command)}"
    yield ""


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(columns.printable(text), _WIDTH, initial_indent=indent, subsequent_indent="  ")

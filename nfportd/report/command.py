"""The command `nfportctl report`: asks the daemon, and writes the page.

Must not lay anything out. The one idea: everything is asked first, so that a file is written whole or not at all.
"""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from pathlib import Path

import click

from nfportd.client import Client
from nfportd.doctor.asking import Places
from nfportd.doctor.examination import examine
from nfportd.errors import NfportdError
from nfportd.report.page import Facts, page

#: Events that the page shows.
_EVENTS = 50


class NotWritten(NfportdError):
    """The page cannot be written to where it was wanted."""


@click.command("report")
@click.option("--html", "file", required=True, metavar="FILE", help="Where the page goes; - for standard output.")
@click.pass_obj
def command(client: Client, file: str) -> None:
    """Write a page about everything, for people who would rather look: one file of HTML, with nothing outside.

    It shows mappings, targets, the traffic of the last hour, what is wrong and what mends it, and recent events. It
    runs no script, and can be sent by mail, put on a web server or printed.

    \b
    Examples:
      nfportctl report --html nfportd.html
      ssh gateway nfportctl report --html - > gateway.html

    Exit status: 0 it is written, 1 it cannot be written there, 3 the daemon does not answer.
    """
    written = page(_facts(client))
    try:
        with click.open_file(file, "w", encoding="utf-8", atomic=file != "-") as opened:
            opened.write(written)
    except OSError as error:
        raise NotWritten(f"{file} cannot be written: {error.strerror or error}") from None


def _facts(client: Client) -> Facts:
    status = client.get("/v1/status")
    counted = client.get("/v1/mappings", counters=True)
    examined = examine(Places(socket=Path(client.path)))
    return Facts(
        status=status,
        mappings=counted["mappings"],
        rate=counted["rate"],
        minutes=client.get("/v1/traffic")["minutes"],
        findings=examined["findings"],
        checked=examined["checked"],
        events=[json.loads(line) for line in client.events(last=_EVENTS)],
        host=socket.gethostname(),
        now=datetime.now(UTC).astimezone(),
    )

"""The command `nfportctl`, for people at a terminal.

Must not reach past the programs' own modules. The one idea: it grows with what the daemon answers to.
"""

from __future__ import annotations

import click

from nfportd.__main__ import CONFIG, DROPINS, check_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nfportd")
@click.pass_context
def main(context: click.Context) -> None:
    """Ask and check nfportd."""
    context.obj = (CONFIG, DROPINS)


main.add_command(check_command)

"""The command `nfportd`: the daemon in the foreground, and `nfportd check`.

Must not contain what they do. The one idea: options, log and exit status; nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from nfportd import check, daemon, journal, settings
from nfportd.desired import Desired
from nfportd.errors import EXIT_CRASHED, EXIT_WRONG, InvalidInput, NotPossible

CONFIG = Path("/etc/nfportd/nfportd.yaml")
DROPINS = Path("/etc/nfportd.d")

_PATH = click.Path(path_type=Path)
_LEVELS = ["debug", "info", "warning", "error"]


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=_PATH,
    default=CONFIG,
    show_default=True,
    help="The daemon's settings, see nfportd.yaml(5).",
)
@click.option(
    "--dropins",
    type=_PATH,
    default=DROPINS,
    show_default=True,
    help="Directory of mappings, *.yaml.",
)
@click.option("--run-dir", type=_PATH, default="/run/nfportd", show_default=True, help="What must survive a crash.")
@click.option(
    "--state-dir", type=_PATH, default="/var/lib/nfportd", show_default=True, help="What must survive a reboot."
)
@click.option("--socket", type=_PATH, help="Where the API listens.  [default: nfportd.sock in the run directory]")
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True, help="Log this and above.")
@click.version_option(package_name="nfportd")
@click.pass_context
def main(context: click.Context, /, log_level: str, **places: Path) -> None:
    """Publish host ports: forward them to containers, VMs and LAN hosts by one nftables table.

    Runs in the foreground. SIGHUP reads all drop-ins again; SIGTERM stops and removes what was set, unless the
    settings say `on_stop: keep`; SIGUSR1 ends and leaves everything in force for the next run. Several daemons may
    run in different network namespaces, each with its --run-dir.

    \b
    What to publish is said by files such as /etc/nfportd.d/web.yaml, which are followed as they change:
      mappings:
        - name: web
          listen: 8080
          targets: [10.88.0.11:80, "[fd88::11]:80"]

    \b
    Examples:
      nfportd check                 # say what is wrong in /etc/nfportd.d, and change nothing
      nfportd --log-level debug     # run here, with every change in the log; ctrl-C takes all back

    Exit status: 0 stopped as asked, 1 it cannot run as asked (the log says why), 2 wrong usage, 70 it failed.
    """
    config = places.pop("config")
    places["socket"] = places["socket"] or places["run_dir"] / "nfportd.sock"
    context.obj = (config, places["dropins"])
    if context.invoked_subcommand:
        return
    journal.start(log_level)
    log = logging.getLogger("nfportd")
    try:
        asyncio.run(daemon.serve(daemon.Paths(**places), settings.load(config)))
    except (InvalidInput, NotPossible) as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        sys.exit(EXIT_WRONG)
    except Exception:
        log.critical("nfportd ends; what is in force stays in force for the next run", exc_info=True)
        sys.exit(EXIT_CRASHED)


@main.command("check")
@click.argument("paths", type=_PATH, nargs=-1)
@click.pass_obj
def check_command(options: tuple[Path, Path], paths: tuple[Path, ...]) -> None:
    """Validate drop-ins (files or directories; the --dropins directory by default) without applying them.

    Needs no privileges; with CAP_NET_ADMIN the kernel checks the whole table too.

    \b
    Examples:
      nfportd check
      nfportd check web.yaml.new && mv web.yaml.new /etc/nfportd.d/web.yaml

    Exit status: 0 without errors, 1 with each error as FILE:LINE:COLUMN, what was found and what is right.
    """
    config, dropins = options
    desired = Desired()
    try:
        chosen = settings.load(config)
        found = check.files(paths or [dropins])
        wrong = check.problems(found, desired, trusted=not paths)
    except InvalidInput as error:
        wrong, found = list(error.problems), []
    except OSError as error:
        raise click.ClickException(str(error)) from None
    for problem in wrong:
        click.echo(problem, err=True)
    if wrong:
        sys.exit(EXIT_WRONG)
    try:
        refusal = asyncio.run(check.kernel_refuses(desired, chosen.mark_bit))
    except NotPossible as error:
        asked = f"the kernel was not asked ({error})"
    else:
        if refusal:
            click.echo(f"the kernel refuses these mappings: {refusal}", err=True)
            sys.exit(EXIT_WRONG)
        asked = "the kernel takes them"
    click.echo(f"{len(found)} files, {desired.count()} mappings: no errors; {asked}")


if __name__ == "__main__":
    main()

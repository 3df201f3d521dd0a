"""The manual: what is checked in is what the code says, every option, key and command has its text.

It must not repeat the texts. The one idea: who adds an option, a key or a choice is told which sentence is missing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import pytest
from click.testing import CliRunner

from nfportd import access, cli, model, settings
from nfportd.__main__ import main

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/man").glob("*.[158]"))


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of both programs by what is typed."""
    for name, group in (("nfportd", main), ("nfportctl", cli.main)):
        yield name, group
        context = click.Context(group)
        for each in group.list_commands(context):
            found = group.get_command(context, each)
            assert found is not None
            yield f"{name} {each}", found


COMMANDS = dict(_commands())


def choices(of: type, key: str) -> list[str]:
    """The words that a key may hold, where its type names them."""
    kind: Any = get_type_hints(of)[key]
    return [str(word) for word in get_args(kind)] if get_origin(kind) is Literal else []


def test_the_pages_are_what_the_code_and_the_texts_make() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/manual.py", "--check"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_has_nothing_to_say_about_a_page(page: Path) -> None:
    if not shutil.which("man") or not shutil.which("groff"):
        pytest.skip("man or groff is not installed")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    silent = [each.name for each in COMMANDS[name].params if isinstance(each, click.Option) and not each.help]

    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_how_it_is_used(name: str) -> None:
    program, *command = name.split()
    shown = CliRunner().invoke(COMMANDS[program], [*command, "--help"]).output

    assert re.search(r"Examples?:\n +.*nfport", shown), f"{name} --help has no example"


@pytest.mark.parametrize("of", [model.Mapping, settings.Settings, access.Rule])
def test_every_key_and_each_of_its_choices_is_explained(of: type) -> None:
    page = (ROOT / "docs/man/nfportd.yaml.5.md").read_text()
    table = page.partition(f":{of.__name__} -->")[2].partition("<!-- end -->")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    missing = [key for key in get_type_hints(of) if not rows.get(key)]
    missing += [f"{key}: {word}" for key in rows for word in choices(of, key) if f"`{word}`" not in rows[key]]

    assert missing == []


def test_the_threat_model_names_proofs_that_there_are() -> None:
    text = (ROOT / "docs/security.md").read_text()
    named = set(re.findall(r"`((?:tests|nfportd|systemd|packaging)/[^`]+)`", text))

    assert len(named) > 15
    assert {each for each in named if not (ROOT / each).exists()} == set()

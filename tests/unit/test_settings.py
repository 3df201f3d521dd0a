"""The daemon's own settings: every key has a default, every mistake a line.

It must not start a daemon. The one idea: a file in, settings or the lines of refusal out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nfportd import settings
from nfportd.errors import InvalidInput
from nfportd.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nfportd.yaml"


def test_no_file_means_every_default(file: Path) -> None:
    assert settings.load(file) == Settings(manage_sysctls=True, mark_bit=13, on_stop="remove")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}\n"])
def test_an_empty_file_means_every_default(file: Path, text: str) -> None:
    file.write_text(text)

    assert settings.load(file) == Settings()


def test_the_example_sets_nothing_and_names_every_setting() -> None:
    example = Path(__file__).parents[2] / "etc" / "nfportd.yaml"
    named = {line[1:].partition(":")[0] for line in example.read_text().splitlines() if line.startswith("#")}

    assert (settings.load(example), set(Settings.__dataclass_fields__) - named) == (Settings(), set())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("manage_sysctls: false", Settings(manage_sysctls=False)),
        ("mark_bit: 0", Settings(mark_bit=0)),
        ("mark_bit: 31", Settings(mark_bit=31)),
        ("on_stop: keep", Settings(on_stop="keep")),
        ("open_forward: off", Settings(open_forward="off")),
        ("open_forward: firewalld", Settings(open_forward="firewalld")),
    ],
)
def test_a_setting(file: Path, line: str, expected: Settings) -> None:
    file.write_text(line)

    assert settings.load(file) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mark_bit: x\n", "1:11: mark_bit: found 'x'; write a number"),
        ("mark_bit: '13'\n", "1:11: mark_bit: found '13'; write a number"),
        ("mark_bit: true\n", "1:11: mark_bit: found true; write a number"),
        ("\non_stop: drop\n", "2:10: on_stop: found 'drop'; write remove or keep"),
        ("manage_sysctls: maybe\n", "1:17: manage_sysctls: found 'maybe'; write true or false"),
        ("manage_sysctls: [true]\n", "1:17: manage_sysctls: found a list; write true or false"),
        ("on_stpo: keep\n", "1:1: unknown key 'on_stpo'; did you mean on_stop?"),
        (
            "xyzzy: 1\n",
            "1:1: unknown key 'xyzzy'; known keys are manage_sysctls, mark_bit, on_stop, open_forward, group, access",
        ),
        ("[]\n", "1:1: found a list; write a mapping of keys"),
        (
            "mark_bit: 1\nmark_bit: 2\n",
            "2:1: key 'mark_bit' is written twice (its first value is in line 1); remove one",
        ),
    ],
)
def test_a_mistake(file: Path, text: str, problem: str) -> None:
    file.write_text(text)

    with pytest.raises(InvalidInput) as caught:
        settings.load(file)
    assert str(caught.value) == f"{file}:{problem}"


@pytest.mark.parametrize("bit", [-1, 32])
def test_a_mark_has_32_bits(file: Path, bit: int) -> None:
    file.write_text(f"mark_bit: {bit}\n")

    with pytest.raises(InvalidInput) as caught:
        settings.load(file)
    assert str(caught.value).startswith(f"{file}:1:11: mark_bit: found '{bit}'; ")


def test_all_mistakes_are_said(file: Path) -> None:
    file.write_text("mark_bit: x\non_stop: x\n")

    with pytest.raises(InvalidInput) as caught:
        settings.load(file)
    assert len(caught.value.problems) == 2


def test_a_file_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        settings.load(tmp_path)

"""The command lines: what they print, where, and their exit status.

It must not start the daemon nor ask the kernel of this host. The one idea: click runs them as a shell would.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nfportd import check, cli
from nfportd.__main__ import main
from nfportd.desired import Desired
from nfportd.errors import NotPossible

GOOD = "mappings:\n  - name: web\n    listen: 8080\n    targets: 10.88.0.11:80\n"
BROKEN = "mappings:\n  - name: web\n    listen: 0\n    targets: 10.88.0.11:80\n"


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A kernel that takes everything; how often it was asked, by mark bit."""
    asked: list[int] = []

    async def takes(_: Desired, mark_bit: int) -> str | None:
        asked.append(mark_bit)
        return None

    monkeypatch.setattr(check, "kernel_refuses", takes)
    return asked


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["--config", "/nonexistent/nfportd.yaml", *map(str, arguments)])


def test_a_good_file(directory: Path) -> None:
    (directory / "web.yaml").write_text(GOOD)

    done = run("check", directory / "web.yaml")

    assert (done.exit_code, done.stdout, done.stderr) == (
        0,
        "1 files, 1 mappings: no errors; the kernel takes them\n",
        "",
    )


def test_a_broken_file(directory: Path) -> None:
    file = directory / "web.yaml"
    file.write_text(BROKEN)

    done = run("check", file)

    assert (done.exit_code, done.stdout, done.stderr) == (
        1,
        "",
        f'{file}:3:13: mapping "web": listen: port 0 is out of range; ports are 1 to 65535\n',
    )


def test_all_problems_of_all_files_are_printed(directory: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (directory / name).write_text(BROKEN)

    done = run("check", directory)

    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        str(directory / name) for name in ("a.yaml", "b.yaml")
    ]


@pytest.mark.parametrize("others", [[], ["good.yaml"]])
def test_a_missing_path(directory: Path, others: list[str]) -> None:
    for name in others:
        (directory / name).write_text(GOOD)

    done = run("check", *(directory / name for name in others), directory / "gone.yaml")

    assert (done.exit_code, done.stderr) == (1, f"{directory}/gone.yaml: no such file or directory\n")


def test_a_directory_is_read_as_the_daemon_reads_it(directory: Path) -> None:
    (directory / "web.yaml").write_text(GOOD)
    for name in (".web.yaml", "web.yaml~", "README"):
        (directory / name).write_text(BROKEN)

    done = run("check", directory)

    assert (done.exit_code, done.stdout[:8]) == (0, "1 files,")


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "draft").write_text(BROKEN)

    assert run("check", tmp_path / "draft").exit_code == 1


def test_without_paths_the_directory_of_the_daemon_is_checked(directory: Path) -> None:
    (directory / "web.yaml").write_text(BROKEN)

    assert run("--dropins", directory, "check").exit_code == 1


def test_an_empty_directory_is_right(directory: Path) -> None:
    assert run("check", directory).exit_code == 0


def test_files_that_claim_the_same_key(directory: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (directory / name).write_text(GOOD)

    done = run("check", directory)

    assert (done.exit_code, done.stderr) == (
        1,
        f'{directory}/b.yaml:2:1: mapping "web": 0.0.0.0:8080/tcp is held by mapping "web" '
        f"({directory}/a.yaml line 2); remove one\n",
    )


def test_the_same_file_named_twice_is_one_file(directory: Path) -> None:
    (directory / "web.yaml").write_text(GOOD)

    assert run("check", directory / "web.yaml", directory).exit_code == 0


@pytest.mark.timeout(5)
def test_a_fifo_does_not_hang(directory: Path) -> None:
    os.mkfifo(directory / "web.yaml")

    done = run("check", directory)

    assert (done.exit_code, done.stderr) == (1, f"{directory}/web.yaml: is not a regular file\n")


def test_what_the_kernel_refuses(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*_: object) -> str:
        return "No buffer space available"

    monkeypatch.setattr(check, "kernel_refuses", refuses)
    (directory / "web.yaml").write_text(GOOD)

    done = run("check", directory)

    assert (done.exit_code, done.stderr) == (1, "the kernel refuses these mappings: No buffer space available\n")


def test_without_privileges_the_files_are_checked_all_the_same(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def impossible(*_: object) -> str:
        raise NotPossible("Operation not permitted")

    monkeypatch.setattr(check, "kernel_refuses", impossible)
    (directory / "web.yaml").write_text(GOOD)

    done = run("check", directory)

    assert (done.exit_code, done.stdout) == (
        0,
        "1 files, 1 mappings: no errors; the kernel was not asked (Operation not permitted)\n",
    )


def test_the_kernel_is_not_asked_about_broken_files(directory: Path, kernel: list[int]) -> None:
    (directory / "web.yaml").write_text(BROKEN)
    run("check", directory)

    assert kernel == []


def test_the_settings_count(tmp_path: Path, directory: Path, kernel: list[int]) -> None:
    (tmp_path / "nfportd.yaml").write_text("mark_bit: 20\n")
    run("--config", tmp_path / "nfportd.yaml", "check", directory)

    assert kernel == [20]


def test_broken_settings_are_printed(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "nfportd.yaml").write_text("mark_bit: x\n")

    done = run("--config", tmp_path / "nfportd.yaml", "check", directory)

    assert (done.exit_code, done.stderr) == (1, f"{tmp_path}/nfportd.yaml:1:11: mark_bit: found 'x'; write a number\n")


@pytest.mark.parametrize(
    "arguments",
    [["--no-such-option"], ["no-such-command"], ["check", "--no-such-option"], ["--log-level", "loud"], ["--config"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["check", "--help"], ["--version"]])
def test_help(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_nfportctl_checks_too(directory: Path) -> None:
    (directory / "web.yaml").write_text(BROKEN)

    done = CliRunner().invoke(cli.main, ["check", str(directory)])

    assert (done.exit_code, done.stderr[:8]) == (1, str(directory)[:8])


def test_the_daemon_says_what_is_wrong_with_its_settings(tmp_path: Path) -> None:
    (tmp_path / "nfportd.yaml").write_text("mark_bit: x\n")
    command = [sys.executable, "-m", "nfportd", "--config", str(tmp_path / "nfportd.yaml"), "--run-dir", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)

    assert (done.returncode, done.stderr) == (
        1,
        f"ERROR {tmp_path}/nfportd.yaml:1:11: mark_bit: found 'x'; write a number\n",
    )

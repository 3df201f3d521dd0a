"""What a file was validated to over the daemon's lives: taken where it is surely right, else the file is read.

It must not know how entries are written. The one idea: a start that validates nothing shows that it took an entry.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest

from nfportd import document, validation
from nfportd.model import Mapping
from nfportd.sources import kept
from nfportd.sources.dropins import DropIns, Wishes
from nfportd.sources.kept import FEW, Kept
from tests.unit.reading import mapping, mappings
from tests.unit.test_architecture import MODULES, imports

Live = Callable[[], Wishes]


def many(first: int = 1000, count: int = FEW, comment: str = "") -> str:
    lines = (f"  - {{listen: {port}, targets: '10.88.0.11:{port}'{comment}}}\n" for port in range(first, first + count))
    return "mappings:\n" + "".join(lines)


@pytest.fixture
def live(directory: Path, tmp_path: Path) -> Live:
    """A life of the daemon: what the files wish at its start; what it leaves behind survives it."""

    def life() -> Wishes:
        source = DropIns(directory, tmp_path / "last-good", Kept(tmp_path / "validated"))
        wishes = source.changes(None)
        source.keep()
        return wishes

    return life


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are validated, as they are."""
    names = []
    real = validation.mappings

    def noted(content: bytes, file: str) -> dict[Mapping, int]:
        names.append(Path(file).name)
        return real(content, file)

    monkeypatch.setattr(validation, "mappings", noted)
    return names


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "validated").glob("*"))


def test_a_start_takes_what_has_not_changed(live: Live, directory: Path, validated: list[str]) -> None:
    (directory / "web.yaml").write_text(many())
    (directory / "db.yaml").write_text(many(5000))
    first = live()
    validated.clear()

    assert (repr(live()), validated) == (repr(first), [])


def test_a_file_that_changed_meanwhile_is_validated(live: Live, directory: Path, validated: list[str]) -> None:
    for name in ("web.yaml", "db.yaml"):
        (directory / name).write_text(many(1000 if name == "web.yaml" else 5000))
    live()
    (directory / "web.yaml").write_text(many(2000))
    wished = mappings(many(2000))
    validated.clear()

    assert (live()["file:web.yaml"], validated) == (wished, ["web.yaml"])


def test_a_small_file_leaves_nothing_behind(live: Live, directory: Path, tmp_path: Path) -> None:
    (directory / "web.yaml").write_text(many(count=FEW - 1))
    live()

    assert not (tmp_path / "validated").exists()


def test_only_its_user_may_read_it(live: Live, directory: Path, tmp_path: Path) -> None:
    (directory / "web.yaml").write_text(many())
    live()

    found = [tmp_path / "validated", *entries(tmp_path)]
    assert [oct(path.stat().st_mode & 0o777) for path in found] == ["0o700", "0o600"]


def test_entries_of_files_that_changed_or_went_go(live: Live, directory: Path, tmp_path: Path) -> None:
    (directory / "web.yaml").write_text(many())
    live()
    before = entries(tmp_path)
    (directory / "web.yaml").write_text(many(2000))
    (tmp_path / "validated" / "crashed.new").touch()
    live()
    changed = entries(tmp_path)
    (directory / "web.yaml").unlink()
    live()

    assert (len(before), len(changed), before == changed, entries(tmp_path)) == (1, 1, False, [])


def damaged(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes().replace(b"10.88.0.11", b"10.88.0.12", 1))


def cut(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-100])


def emptied(entry: Path) -> None:
    entry.write_bytes(b"")


def writable(entry: Path) -> None:
    entry.chmod(0o666)


def in_a_writable_directory(entry: Path) -> None:
    entry.parent.chmod(0o777)


def linked(entry: Path) -> None:
    entry.rename(entry.parents[1] / "elsewhere")
    entry.symlink_to(entry.parents[1] / "elsewhere")


def a_pipe(entry: Path) -> None:
    entry.unlink()
    os.mkfifo(entry, 0o600)


def of_somebody_else(entry: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files away needs root")
    os.chown(entry, 65534, 65534)


@pytest.mark.parametrize(
    "spoil", [damaged, cut, emptied, writable, in_a_writable_directory, linked, a_pipe, of_somebody_else]
)
def test_what_is_odd_about_an_entry_has_the_file_read(
    spoil: Callable[[Path], None],
    live: Live,
    directory: Path,
    tmp_path: Path,
    validated: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    (directory / "web.yaml").write_text(many())
    first = live()
    spoil(*entries(tmp_path))
    validated.clear()

    assert (repr(live()), validated) == (repr(first), ["web.yaml"])
    assert [message for message in caplog.messages if "not taken" in message and "the file is read" in message]


def test_an_odd_entry_is_replaced(live: Live, directory: Path, tmp_path: Path, validated: list[str]) -> None:
    (directory / "web.yaml").write_text(many())
    live()
    damaged(*entries(tmp_path))
    live()
    validated.clear()

    assert (len(live()["file:web.yaml"]), validated) == (FEW, [])


def test_an_entry_under_the_name_of_another_is_not_taken(
    live: Live, directory: Path, tmp_path: Path, validated: list[str]
) -> None:
    (directory / "web.yaml").write_text(many())
    live()
    (other,) = entries(tmp_path)
    content = other.read_bytes()
    (directory / "web.yaml").write_text(many(2000))
    live()
    entries(tmp_path)[0].write_bytes(content)

    assert live()["file:web.yaml"] == mappings(many(2000))


@pytest.mark.parametrize(
    ("where", "what"), [(sys, "version"), (document, "READER"), (pydantic, "VERSION"), (kept, "RULES")]
)
def test_another_version_takes_nothing_and_leaves_its_own(
    where: object,
    what: str,
    live: Live,
    directory: Path,
    tmp_path: Path,
    validated: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (directory / "web.yaml").write_text(many())
    live()
    before = entries(tmp_path)
    validated.clear()
    monkeypatch.setattr(where, what, getattr(where, what)[:-1])
    live()

    assert (validated, len(entries(tmp_path)), entries(tmp_path) == before) == (["web.yaml"], 1, False)


def test_a_directory_that_cannot_be_written_is_no_obstacle(
    live: Live, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (directory / "web.yaml").write_text(many())
    (tmp_path / "validated").write_text("in the way")

    assert len(live()["file:web.yaml"]) == len(live()["file:web.yaml"]) == FEW
    assert "the next start validates the file again" in caplog.text


def test_a_text_that_aliases_make_large_is_not_kept(
    live: Live, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text = many(comment=", comment: *long").replace("*long", f"&long '{'x' * (kept.MOST // FEW)}'", 1)
    (directory / "web.yaml").write_text(text)

    assert (len(live()["file:web.yaml"]), entries(tmp_path)) == (FEW, [])
    assert "File too large" in caplog.text


#: A mapping in which no field has its default, and one in which all have.
FULL = mapping(
    "192.0.2.1:8080-8081",
    "10.88.0.11:80-81",
    name="web",
    protocol=["udp", "tcp"],
    masquerade="never",
    on_change="cut",
    comment="für Gäste \\ '\"",
    sources=["192.0.2.0/24", "2001:db8::/32"],
    shadow_listener=True,
    reserve=True,
    isolate=True,
)
PLAIN = mapping(9090, "10.88.0.11:80")


@pytest.mark.parametrize("name", list(Mapping.__dataclass_fields__))
def test_every_field_is_kept(name: str) -> None:
    """A new field must be in FULL, and so is known to be kept."""
    (full, plain) = kept.decode(kept.encode({FULL: 2, PLAIN: 9}))

    assert getattr(FULL, name) != getattr(PLAIN, name)
    assert (repr(getattr(full, name)), repr(getattr(plain, name))) == (
        repr(getattr(FULL, name)),
        repr(getattr(PLAIN, name)),
    )


def test_what_is_kept_depends_on_all_that_validation_is_made_of() -> None:
    needed, new = set[str](), {"nfportd.validation"}
    while new:
        needed |= new
        new = {found for name in new for found in imports(name) & set(MODULES)} - needed

    assert {each.__name__ for each in kept.RULES} == needed | {"nfportd.sources.kept"}

"""The directory of drop-ins over its files' lives: written, broken, mended, gone; and over the daemon's restarts.

It must not watch anything. The one idea: change files, ask what changed, compare wishes as `owner: listens`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nfportd.sources.dropins import DropIns
from nfportd.sources.kept import Kept

BROKEN = "mappings:\n  - listen: 0\n    targets: 10.88.0.11:80\n"


def web(*ports: int) -> str:
    return "mappings:\n" + "".join(f"  - listen: {port}\n    targets: 10.88.0.11:80\n" for port in ports)


@pytest.fixture
def start(directory: Path, tmp_path: Path) -> Callable[[], DropIns]:
    """A life of the daemon; the run directory survives it."""
    return lambda: DropIns(directory, tmp_path / "last-good", Kept(tmp_path / "validated"))


def wishes(source: DropIns, *names: str) -> dict[str, list[str]]:
    """What changed files wish: all, or those named."""
    found = source.changes(names or None)
    return {owner: [str(mapping.listen) for mapping in mappings] for owner, mappings in found.items()}


def test_an_empty_directory_wishes_nothing(start: Callable[[], DropIns]) -> None:
    assert wishes(start()) == {}


def test_a_directory_that_is_not_there_wishes_nothing(start: Callable[[], DropIns], directory: Path) -> None:
    directory.rmdir()

    assert wishes(start()) == {}


def test_each_file_is_an_owner_in_lexical_order(start: Callable[[], DropIns], directory: Path) -> None:
    for name, port in (("b.yaml", 81), ("a.yaml", 80), ("10-c.yaml", 82)):
        (directory / name).write_text(web(port))

    assert list(wishes(start()).items()) == [
        ("file:10-c.yaml", ["82"]),
        ("file:a.yaml", ["80"]),
        ("file:b.yaml", ["81"]),
    ]


@pytest.mark.parametrize(
    "name",
    [
        ".web.yaml",
        ".#web.yaml",
        "#web.yaml#",
        "web.yaml~",
        "web.yaml.swp",
        "web.yaml.dpkg-new",
        "web.yml",
        "README",
        "4913",
    ],
)
def test_other_files_are_not_read(start: Callable[[], DropIns], directory: Path, name: str) -> None:
    (directory / name).write_text(BROKEN)
    source = start()

    assert (wishes(source), wishes(source, name), source.problems) == ({}, {}, {})


def test_a_file_that_is_nearly_a_drop_in_is_mentioned(
    start: Callable[[], DropIns], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "web.yml").write_text(web(80))
    start().changes(None)

    assert caplog.messages == [f"{directory}/web.yml: ignored, only files named *.yaml are read"]


def test_what_has_not_changed_is_not_told_again(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)

    assert (wishes(source), wishes(source, "web.yaml")) == ({}, {})


def test_only_files_that_are_named_are_read(start: Callable[[], DropIns], directory: Path) -> None:
    source = start()
    for name in ("a.yaml", "b.yaml"):
        (directory / name).write_text(web(80))

    assert wishes(source, "b.yaml") == {"file:b.yaml": ["80"]}


def test_a_file_that_vanished_wishes_nothing(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)
    (directory / "web.yaml").unlink()

    assert wishes(source, "web.yaml") == {"file:web.yaml": []}


def test_files_that_vanish_with_their_directory_wish_nothing(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)
    (directory / "web.yaml").unlink()
    directory.rmdir()

    assert wishes(source) == {"file:web.yaml": []}


def test_an_emptied_file_wishes_nothing(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)
    (directory / "web.yaml").write_text("")

    assert wishes(source, "web.yaml") == {"file:web.yaml": []}


def test_a_broken_file_goes_on_wishing_what_it_wished(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)
    (directory / "web.yaml").write_text(BROKEN)

    assert wishes(source, "web.yaml") == {}


def test_a_broken_file_is_told_with_its_place(
    start: Callable[[], DropIns], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "web.yaml").write_text(BROKEN)
    start().changes(None)

    assert caplog.messages[0] == (
        f"{directory}/web.yaml:2:13: mapping number 1: listen: port 0 is out of range; ports are 1 to 65535"
    )


def test_a_broken_file_does_not_hold_up_the_others(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "a.yaml").write_text(BROKEN)
    (directory / "b.yaml").write_text(web(80))

    assert wishes(start()) == {"file:b.yaml": ["80"]}


def test_the_problems_of_a_file_are_known_until_it_is_mended(start: Callable[[], DropIns], directory: Path) -> None:
    source = start()
    (directory / "web.yaml").write_text(BROKEN)
    source.changes(None)
    broken = list(source.problems)
    (directory / "web.yaml").write_text(web(80))
    source.changes(["web.yaml"])

    assert (broken, list(source.problems)) == (["web.yaml"], [])


def test_a_file_mended_back_to_what_it_was_is_no_change(start: Callable[[], DropIns], directory: Path) -> None:
    source = start()
    for content in (web(80), BROKEN, web(80)):
        (directory / "web.yaml").write_text(content)
        told = wishes(source, "web.yaml")

    assert (told, source.problems) == ({}, {})


def test_a_broken_file_that_vanishes_takes_its_last_good_content_along(
    start: Callable[[], DropIns], directory: Path
) -> None:
    source = start()
    for content in (web(80), BROKEN):
        (directory / "web.yaml").write_text(content)
        source.changes(["web.yaml"])
    (directory / "web.yaml").unlink()

    assert (wishes(source, "web.yaml"), wishes(start())) == ({"file:web.yaml": []}, {})


def test_the_last_good_content_survives_a_restart(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    start().changes(None)
    (directory / "web.yaml").write_text(BROKEN)

    assert wishes(start()) == {"file:web.yaml": ["80"]}


def test_the_last_good_content_is_told_once_a_life(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    start().changes(None)
    (directory / "web.yaml").write_text(BROKEN)
    source = start()
    source.changes(None)

    assert wishes(source) == {}


def test_what_replaces_the_last_good_content_after_a_restart_is_told(
    start: Callable[[], DropIns], directory: Path
) -> None:
    (directory / "web.yaml").write_text(web(80))
    start().changes(None)
    (directory / "web.yaml").write_text(BROKEN)
    source = start()
    source.changes(None)
    (directory / "web.yaml").write_text(web(81))

    assert wishes(source) == {"file:web.yaml": ["81"]}


def test_a_file_removed_while_the_daemon_was_away_is_gone(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    start().changes(None)
    (directory / "web.yaml").unlink()
    told = wishes(start())
    (directory / "web.yaml").write_text(BROKEN)

    assert (told, wishes(start())) == ({"file:web.yaml": []}, {})


def test_a_file_that_was_never_good_wishes_nothing(
    start: Callable[[], DropIns], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "web.yaml").write_text(BROKEN)

    assert (wishes(start()), caplog.messages[-1]) == ({}, f"{directory}/web.yaml: nothing of it is in force")


def test_a_run_directory_that_cannot_be_written_is_no_obstacle(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "web.yaml").write_text(web(80))
    (tmp_path / "file").write_text("in the way")

    source = DropIns(directory, tmp_path / "file" / "last-good", Kept(tmp_path / "file" / "validated"))

    assert wishes(source, "web.yaml") == {"file:web.yaml": ["80"]}
    assert "no copy of web.yaml is kept" in caplog.text


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(lambda path: path.mkdir(), "Is a directory", id="directory"),
        pytest.param(os.mkfifo, "is not a regular file", id="fifo"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), "is not a regular file", id="device"),
        pytest.param(lambda path: path.symlink_to(path), "Too many levels of symbolic links", id="loop"),
    ],
)
@pytest.mark.timeout(5)
def test_what_is_no_file_is_broken(
    start: Callable[[], DropIns], directory: Path, make: Callable[[Path], None], why: str
) -> None:
    make(directory / "web.yaml")
    (directory / "z.yaml").write_text(web(80))
    source = start()

    told = wishes(source)
    said = [str(problem) for problem in source.problems["web.yaml"]]

    assert told == {"file:z.yaml": ["80"]}
    assert len(said) == 1
    assert said[0].startswith(f"{directory}/web.yaml: ")
    assert why in said[0] or "is not a regular file" in said[0]


def test_a_file_that_becomes_a_directory_keeps_its_content(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)
    (directory / "web.yaml").unlink()
    (directory / "web.yaml").mkdir()

    assert (wishes(source, "web.yaml"), list(source.problems)) == ({}, ["web.yaml"])


def test_a_link_that_leads_nowhere_wishes_nothing(start: Callable[[], DropIns], directory: Path) -> None:
    (directory / "web.yaml").symlink_to("gone.yaml")

    assert wishes(start()) == {"file:web.yaml": []}


def test_a_link_is_read_through(start: Callable[[], DropIns], directory: Path, tmp_path: Path) -> None:
    (tmp_path / "real").write_text(web(80))
    (directory / "web.yaml").symlink_to(tmp_path / "real")

    assert wishes(start()) == {"file:web.yaml": ["80"]}


def test_links_are_read_again_when_what_they_lead_through_is_switched(
    start: Callable[[], DropIns], directory: Path
) -> None:
    for version, port in (("v1", 80), ("v2", 81)):
        (directory / version).mkdir()
        (directory / version / "web.yaml").write_text(web(port))
    (directory / "..data").symlink_to("v1")
    (directory / "web.yaml").symlink_to("..data/web.yaml")
    source = start()
    before = wishes(source)
    (directory / "next").symlink_to("v2")
    (directory / "next").rename(directory / "..data")

    assert (before, wishes(source, "..data")) == ({"file:web.yaml": ["80"]}, {"file:web.yaml": ["81"]})


def test_a_file_that_cannot_be_read_keeps_its_content(
    start: Callable[[], DropIns], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    assert wishes(source, "web.yaml") == {}
    assert str(source.problems["web.yaml"][0]) == f"{directory}/web.yaml: cannot be read: Permission denied"


def test_a_directory_that_cannot_be_read_keeps_its_files_content(
    start: Callable[[], DropIns], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "web.yaml").write_text(web(80))
    source = start()
    source.changes(None)
    directory.rename(directory.with_name("away"))
    directory.write_text("a file in its place")

    assert wishes(source) == {}
    assert "Not a directory" in caplog.text


@pytest.mark.parametrize("name", ["wéb.yaml", "a b.yaml", "a\nb.yaml", "\udcff.yaml", "-rf.yaml", "$(id).yaml"])
def test_odd_names_are_names(start: Callable[[], DropIns], directory: Path, name: str) -> None:
    (directory / name).write_text(web(80))

    assert wishes(start()) == {f"file:{name}": ["80"]}


def test_a_file_of_a_very_long_name_is_read(start: Callable[[], DropIns], directory: Path) -> None:
    name = "a" * 250 + ".yaml"
    (directory / name).write_text(web(80))

    assert wishes(start()) == {f"file:{name}": ["80"]}

"""What others can write to is refused, with the command that mends it.

It must not start a daemon. The one idea: real files with real owners and modes.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nfportd import settings, trust
from nfportd.errors import InvalidInput, NotPossible
from nfportd.sources.dropins import DropIns
from nfportd.sources.kept import Kept

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
WEB = "mappings:\n  - listen: 8080\n    targets: [10.88.0.11:80]\n"


def file(path: Path, mode: int, text: str = "") -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o755, 0o444])
def test_what_only_we_can_write_to_is_trusted(tmp_path: Path, mode: int) -> None:
    place = file(tmp_path / "a.yaml", mode)

    assert trust.distrust(place, place.stat()) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777, 0o664])
def test_what_others_can_write_to_is_not(tmp_path: Path, mode: int) -> None:
    place = file(tmp_path / "a.yaml", mode)

    assert trust.distrust(place, place.stat()) == (
        f"can be written to by others (mode {mode:04o}); run: chmod go-w {place}"
    )


@root_only
def test_what_belongs_to_another_is_not_either(tmp_path: Path) -> None:
    place = file(tmp_path / "a.yaml", 0o600)
    os.chown(place, 54321, -1)

    assert trust.distrust(place, place.stat()) == (
        f"belongs to uid 54321, who is neither root nor nfportd's user; run: chown root {place}"
    )


def test_state_is_looked_at_file_by_file_but_a_socket_may_be_open_to_a_group(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "nfportd.sock"))
        (tmp_path / "nfportd.sock").chmod(0o660)
        trust.require([tmp_path, tmp_path / "not there"])

        file(tmp_path / "mappings.db", 0o606)
        with pytest.raises(NotPossible, match=r"mappings\.db can be written to by others \(mode 0606\)"):
            trust.require([tmp_path])


def test_settings_that_others_can_write_to_are_refused(tmp_path: Path) -> None:
    place = file(tmp_path / "nfportd.yaml", 0o646, "mark_bit: 12\n")

    with pytest.raises(InvalidInput, match=f"chmod go-w {place}"):
        settings.load(place)


def test_a_directory_that_others_can_write_to_keeps_what_was_good(tmp_path: Path) -> None:
    directory = tmp_path / "dropins"
    directory.mkdir(mode=0o755)
    file(directory / "web.yaml", 0o644, WEB)
    dropins = DropIns(directory, tmp_path / "last-good", Kept(tmp_path / "validated"))
    dropins.changes(None)

    directory.chmod(0o777)
    (directory / "web.yaml").unlink()

    assert dropins.changes(None) == {}
    assert str(dropins.problems["web.yaml"][0]) == (
        f"{directory}: can be written to by others (mode 0777); run: chmod go-w {directory}"
    )
    directory.chmod(0o755)
    assert dropins.changes(None) == {"file:web.yaml": {}}

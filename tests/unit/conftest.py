"""What unit tests of more than one file need.

It must not know what is tested. The one idea: a directory for drop-ins, as a start finds it.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory for drop-ins, without any."""
    made = tmp_path / "nfportd.d"
    made.mkdir()
    return made

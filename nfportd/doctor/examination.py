"""One pass over a host: gather, judge, and the report as JSON-able values.

`examine` is for nfportctl doctor and for the page of nfportctl report. Must not print. The one idea: whoever wants
findings calls one function, and gets the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class Places(NamedTuple):
    """Where the daemon has its things; the defaults are those of nfportd."""

    socket: Path = Path("/run/nfportd/nfportd.sock")
    config: Path = Path("/etc/nfportd/nfportd.yaml")
    dropins: Path = Path("/etc/nfportd.d")
    state_dir: Path = Path("/var/lib/nfportd")


def examine(places: Places, mapping: str | None = None) -> dict[str, Any]:
    """Look at everything that makes a port not work, or what concerns one mapping, by its name or listen.

    Takes up to ten seconds, and needs no daemon. Returns `findings` (each with cause, severity, mappings, what, why,
    commands), `checked` (names of what is fine), `not_checked` (what, why). Raises NfportdError where there is no
    such mapping.
    """
    raise NotImplementedError

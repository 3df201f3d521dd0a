"""The daemon's own settings: /etc/nfportd/nfportd.yaml, where every key has a default.

Must not act on them. The one idea: a type says what is allowed, so that a mistake is said for its line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from nfportd.access import Rule
from nfportd.validation import checked


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Settings:
    """What an admin may choose.

    `manage_sysctls`: set what forwarding needs under net.*, and give it back at stop; false only reports.
    `mark_bit`: the bit of the packet mark (0 to 31) that asks for masquerade.
    `group`: members may do everything over the API; `access`: what others may do.
    `on_stop`: whether a stop removes the table, routes and sysctls, or keeps them in force.
    """

    manage_sysctls: bool = True
    mark_bit: Annotated[int, Field(strict=True, ge=0, le=31)] = 13
    on_stop: Literal["remove", "keep"] = "remove"
    group: str = "nfportd"
    access: tuple[Rule, ...] = ()


def load(path: Path) -> Settings:
    """Read the settings; a file that is not there leaves every default.

    Raises InvalidInput with every mistake, OSError where the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Settings()
    return checked(content, str(path), Settings)

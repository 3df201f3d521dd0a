"""The daemon's own settings: /etc/nfportd/nfportd.yaml, where every key has a default.

Must not act on them. The one idea: a type says what is allowed, so that a mistake is said for its line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from nfportd import trust
from nfportd.access import Rule
from nfportd.document import MAX_BYTES
from nfportd.errors import InvalidInput, Problem
from nfportd.model import Text
from nfportd.validation import checked


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Settings:
    """What an admin may choose. What stands under a key is its text in the manual, `nfportd.yaml(5)`."""

    manage_sysctls: bool = True
    """Set what forwarding needs under `net.*` (`ip_forward`, IPv6 `forwarding`, and `route_localnet` on the interfaces
    of targets), and give it back at stop. `false` only reports what is missing."""
    mark_bit: Annotated[int, Field(strict=True, ge=0, le=31)] = 13
    """The bit, 0 to 31, of the packet mark that asks for masquerade, and of the conntrack mark that forbids it, while a
    new flow passes (13 is 0x2000). Other bits are never touched."""
    on_stop: Literal["remove", "keep"] = "remove"
    """What a stop does with the table, routes and sysctls: `remove` them, or `keep` them in force."""
    open_forward: Literal["off", "firewalld"] = "off"
    """`firewalld`: ask firewalld, where its `StrictForwardPorts=yes` stops mappings, to let them through, until they
    are gone or nfportd stops; it takes a polkit rule (docs/firewalls.md). `off` only reports it."""
    group: Text = "nfportd"
    """Members of this group may do everything over the API, as root may."""
    access: tuple[Rule, ...] = ()
    """What others may do over the API: a list of rules."""


def load(path: Path) -> Settings:
    """Read the settings; a file that is not there leaves every default.

    Raises InvalidInput with every mistake, also where the file cannot be read or others can write to it.
    """
    try:
        with path.open("rb") as file:
            why = trust.distrust(path, os.fstat(file.fileno()))
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    if why:
        raise InvalidInput([Problem(str(path), 0, 0, why)])
    return checked(content, str(path), Settings)

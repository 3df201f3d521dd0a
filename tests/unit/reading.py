"""Drop-ins for the tests: text in, mappings or the lines that a user sees out.

It must not know what is right. The one idea: tests read files as the daemon does, through `validation.mappings`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from nfportd import validation
from nfportd.errors import InvalidInput
from nfportd.model import Key, Mapping, Protocol

FILE = "web.yaml"


def mappings(content: str | bytes) -> dict[Mapping, int]:
    """What a drop-in with this content wishes."""
    return validation.mappings(content.encode() if isinstance(content, str) else content, FILE)


def refused(content: str | bytes) -> list[str]:
    """The lines by which a drop-in is refused."""
    with pytest.raises(InvalidInput) as caught:
        mappings(content)
    return [str(problem) for problem in caught.value.problems]


def mapping(listen: object = 8080, targets: object = "10.88.0.11:80", **more: Any) -> Mapping:
    """One mapping by its keys; JSON is YAML."""
    (made,) = mappings(json.dumps({"mappings": [{"listen": listen, "targets": targets, **more}]}))
    return made


def goes(made: Mapping) -> dict[str, str]:
    """Where each key of a mapping goes, both as they are written."""
    return {str(key): str(endpoint) for key, endpoint in made.endpoints()}


def key(port: int = 8080, address: str | None = None, protocol: str = "tcp", family: int = 4) -> Key:
    """A key, of the address's family where there is one."""
    six = family == 6 or ":" in (address or "")
    return Key(6 if six else 4, address, Protocol(protocol), port)

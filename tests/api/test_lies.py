"""Callers who lie: about namespaces, tags, and names that are written to look like others.

Must not know how a lie is told from the truth. The one idea: it is refused at once, and nothing is opened or left.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nfportd.client import Client
from tests.api.calling import ask, body, mapping, refusal, states
from tests.lab import Daemon


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("fifo", ""),
        ("link", "loop"),
        ("link", "/dev/zero"),
        ("link", "/proc/self/ns/uts"),
        ("link", "/proc/self/ns/net"),
        ("link", "//proc/self/ns/net"),
        ("path", "/dev/ptmx"),
        ("path", "/proc/self/fd/0"),
        ("path", "//proc//self/ns/net"),
        ("path", "/proc/\u0661/ns/net"),  # one, in Arabic: pid 1 to Python, no path to the kernel
        ("path", "/proc/99999999999999999999/ns/net"),
        ("path", "/" + "a/" * 2000),
    ],
)
def test_a_path_that_is_no_namespace(tmp_path: Path, api: Client, kind: str, target: str) -> None:
    place = tmp_path / "loop"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to(target)
    path = target if kind == "path" else str(place)
    began = time.monotonic()

    problem = refusal(api.put, "web", body(mapping(8080), netns=path))

    assert (problem.status, problem.name) == (400, "invalid")
    assert time.monotonic() - began < 5, "nothing waits for the other end of a pipe"
    assert states(api) == {}


@pytest.mark.parametrize("tag", ['"*"', '"**"', '""', "W/*", '"' * 4000, "\u00e9", ",", '"a","*"'])
def test_a_tag_that_only_looks_like_any(daemon: Daemon, api: Client, tag: str) -> None:
    api.put("web", body(mapping(8080)))

    answer = ask(daemon, "PUT", "/v1/owners/web", b'{"mappings": []}', Content_Type="application/json", If_Match=tag)

    assert (answer.status, answer.name) == (412, "precondition-failed")
    assert states(api) == {"web 8080": "active"}

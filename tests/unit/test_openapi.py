"""The API's description: what is checked in is what is served, and every resource is described.

It must not need a daemon. The one idea: the table of routes and the table of resources say the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from nfportd.api import openapi
from nfportd.api.routes import Routes

DOCS = Path(__file__).parents[2] / "docs" / "openapi.json"


def described() -> dict[str, Any]:
    return dict(json.loads(openapi.document()))


def test_every_route_is_described_and_nothing_else() -> None:
    routes = {(r.method.lower(), r.path.replace(":.+", "")) for r in Routes(cast(Any, None)).table()}

    assert {(method, path) for path, methods in described()["paths"].items() for method in methods} == routes


def test_the_checked_in_description_has_the_same_paths_and_types() -> None:
    kept = json.loads(DOCS.read_text())

    assert kept["paths"].keys() == described()["paths"].keys()
    assert kept["components"]["schemas"].keys() == described()["components"]["schemas"].keys()

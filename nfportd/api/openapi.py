"""The API's description: OpenAPI 3.1, made from the types that validate.

Must not be written by hand beside them. The one idea: one table of resources with their types; the schemas come from
pydantic, so what is shown is what is checked.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from nfportd.api import bodies
from nfportd.api.problems import STATUSES, Problem


class _Resource(NamedTuple):
    method: str
    path: str
    summary: str
    parameters: tuple[dict[str, Any], ...] = ()
    body: Any = None
    answer: Any = None
    media: str = "application/json"


def _query(name: str, text: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema or {"type": "string"}}


_BOOLEAN = {"type": "boolean"}
_OWNER = {
    "name": "owner",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "The etag that the owner must have.",
    "schema": {"type": "string"},
}
_VERIFY = _query("verify", "Ask the kernel whether it has them.", _BOOLEAN)
_DRY = _query("dry_run", "Say what would happen, and do nothing.", _BOOLEAN)

_RESOURCES = (
    _Resource("get", "/v1/owners", "List owners", (_query("prefix", "Names begin with it."),), answer=bodies.Owners),
    _Resource("get", "/v1/owners/{owner}", "Show an owner and its mappings", (_OWNER, _VERIFY), answer=bodies.Owner),
    _Resource(
        "put", "/v1/owners/{owner}", "Replace an owner's mappings, all or none", (_OWNER, _DRY, _MATCH),
        bodies.OwnerBody, bodies.Changed,
    ),
    _Resource(
        "delete", "/v1/owners/{owner}", "Take an owner's mappings away", (_OWNER, _DRY, _MATCH), answer=bodies.Changed
    ),
    _Resource(
        "get", "/v1/mappings", "List mappings",
        (
            _query("owner", "Of this owner."), _query("name", "Of this name."),
            _query("port", "That listen on this port.", {"type": "integer", "minimum": 1, "maximum": 65535}),
            _query("protocol", "That take this protocol."), _query("counters", "With connections counted.", _BOOLEAN),
            _query("busiest", "So many of all, those with the most connections lately first.",
                   {"type": "integer", "minimum": 1, "maximum": 1000}),
        ),
        answer=bodies.Mappings,
    ),
    _Resource("get", "/v1/traffic", "The connections of the last hour, minute by minute", answer=bodies.Minutes),
    _Resource(
        "post", "/v1/transactions", "Change several owners at once, all or none", (_DRY,),
        bodies.TransactionBody, bodies.Changed,
    ),
    _Resource("post", "/v1/check", "Say what would happen", (), bodies.CheckBody, bodies.Changed),
    _Resource("post", "/v1/gc", "Take away owners that are not valid any more", (), bodies.GcBody, bodies.Removed),
    _Resource("post", "/v1/reload", "Read all drop-ins again", answer=bodies.Reloaded),
    _Resource("get", "/v1/status", "The daemon's state", answer=dict[str, Any]),
    _Resource(
        "get", "/v1/events", "Follow what happens, a line of JSON each",
        (
            _query("since", "After this number.", {"type": "integer", "minimum": 0}),
            _query("last", "So many that happened last, and no more.",
                   {"type": "integer", "minimum": 1, "maximum": 1000}),
        ),
        media="application/x-ndjson",
    ),
    _Resource("get", "/metrics", "Prometheus' exposition", media="text/plain"),
    _Resource("get", "/openapi.json", "This description", answer=dict[str, Any]),
)  # fmt: skip


@functools.cache
def document() -> bytes:
    """The description as JSON."""
    wanted = {(each, "validation") for r in _RESOURCES if (each := r.body)}
    wanted |= {(each, "serialization") for r in _RESOURCES if (each := r.answer)} | {(Problem, "serialization")}
    ordered = sorted(wanted, key=lambda each: (str(each[0]), each[1]))
    inputs: Any = [(of, mode, TypeAdapter(of)) for of, mode in ordered]
    schemas, definitions = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for resource in _RESOURCES:
        paths.setdefault(resource.path, {})[resource.method] = _operation(resource, schemas)
    described = {
        "openapi": "3.1.0",
        "info": {
            "title": "nfportd",
            "version": importlib.metadata.version("nfportd"),
            "description": "Publishes host ports through one nftables table. Served on a unix socket.",
        },
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }
    return json.dumps(described, indent=1, sort_keys=True).encode() + b"\n"


def _operation(resource: _Resource, schemas: Any) -> dict[str, Any]:
    content: dict[str, Any] = {resource.media: {"schema": {"type": "string"}}}
    if resource.answer:
        content = {resource.media: {"schema": schemas[resource.answer, "serialization"]}}
    problem = {"application/problem+json": {"schema": schemas[Problem, "serialization"]}}
    operation: dict[str, Any] = {
        "summary": resource.summary,
        "operationId": f"{resource.method}{resource.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": list(resource.parameters),
        "responses": {"200": {"description": "Done.", "content": content}}
        | {str(status): {"description": title, "content": problem} for status, title in STATUSES.items()},
    }
    if resource.body:
        schema = schemas[resource.body, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation

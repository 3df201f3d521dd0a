"""Errors as problem+json (RFC 9457): every error that can leave the API, in one table.

Must not know routes. The one idea: a stable type names the kind, the detail is a sentence for people, and what a
program needs to act on stands in members of its own.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from pydantic import ValidationError
from pydantic.dataclasses import dataclass as validated

from nfportd.access import Denied
from nfportd.errors import KernelRefused, Malformed, NfportdError
from nfportd.limits import Exceeded
from nfportd.notation import brief
from nfportd.validation import sentence
from nfportd.wishes import KeyTaken, NotStored, PortInUse, PreconditionFailed, rfc3339

_TITLES = {
    "malformed": (400, "The body is not JSON"),
    "invalid": (400, "The request says something that cannot be"),
    "denied": (403, "The caller may not do this"),
    "not-found": (404, "There is nothing of that name"),
    "method-not-allowed": (405, "The resource has no such method"),
    "conflict": (409, "Another owner holds a key"),
    "port-in-use": (409, "A process of this host listens on a port"),
    "precondition-failed": (412, "The owner has other mappings than you think"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body must be application/json, without an encoding"),
    "kernel-refused": (422, "The kernel refuses a mapping"),
    "too-many-requests": (429, "The caller has too much at work"),
    "internal": (500, "nfportd failed"),
    "overloaded": (503, "There is no room for the connection"),
    "storage": (507, "The mappings could not be stored"),
}

PREFIX = "urn:nfportd:problem:"

#: What each status means in a problem.
STATUSES = dict(sorted(_TITLES.values(), reverse=True))


@validated(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457; members beside these belong to single types."""

    type: str
    title: str
    status: int
    detail: str


def problem(name: str, detail: str, **members: Any) -> web.Response:
    """An answer that is a problem."""
    status, title = _TITLES[name]
    body = {"type": PREFIX + name, "title": title, "status": status, "detail": detail, **members}
    return web.Response(status=status, text=json.dumps(body), content_type="application/problem+json")


def of(error: Exception) -> web.Response:
    """The problem that an error is. Raises the error itself where it is none of ours."""
    if isinstance(error, ValidationError):
        return _invalid(error)
    for kind, name in _NAMES.items():
        if isinstance(error, kind):
            return problem(name, str(error), **_members(error))
    raise error


#: From the special to the general.
_NAMES: dict[type[Exception], str] = {
    KeyTaken: "conflict",
    PortInUse: "port-in-use",
    PreconditionFailed: "precondition-failed",
    NotStored: "storage",
    KernelRefused: "kernel-refused",
    Denied: "denied",
    Exceeded: "too-many-requests",
    Malformed: "malformed",
    NfportdError: "invalid",
}


def _members(error: Exception) -> dict[str, Any]:
    """What a program needs to act on."""
    match error:
        case KeyTaken(holder=holder):
            source = "file" if holder.owner.startswith("file:") else "api"
            found = {"owner": holder.owner, "source": source, "since": rfc3339(error.since), "key": str(error.key)}
            return {"holder": found}
        case PortInUse(process=process):
            return {"key": str(error.key), "process": process and {"pid": process[0], "name": process[1]}}
        case PreconditionFailed(etag=etag):
            return {"etag": etag}
        case Denied(rule=rule):
            return {"rule": rule}
    return {}


def _invalid(error: ValidationError) -> web.Response:
    details = error.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        return problem("malformed", str(details[0].get("ctx", {}).get("error", "not JSON")))
    found = []
    for detail in details[:50]:
        path = (*detail["loc"], *([detail["ctx"]["at"]] if "at" in detail.get("ctx", {}) else []))
        pointer = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)
        found.append({"pointer": pointer, "detail": sentence(detail)})
    where = found[0]["pointer"]
    first = f"{where if where.isprintable() else brief(where)}: {found[0]['detail']}".removeprefix(": ")
    return problem("invalid", first, errors=found)

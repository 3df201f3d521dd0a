"""Documents -> checked values: what the types of a model refuse, said for the place in the file.

Must not read files nor know nftables. The one idea: pydantic finds everything that is wrong at once and names the
path; here a path becomes a line and column, and an error code becomes a sentence with what would be right.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping as AbstractMapping
from itertools import islice
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from nfportd import document
from nfportd.document import Node
from nfportd.errors import MAX_PROBLEMS, InvalidInput, Problem
from nfportd.model import Key, Mapping
from nfportd.notation import describe

T = TypeVar("T")

#: All ports of both families for three protocols and one address more; a file that claims more is a mistake.
MAX_KEYS = 1_000_000
#: A mapping has eight keys; more than this many are not looked at one by one.
_MANY = 32

_MAPPING = TypeAdapter(Mapping)
_MAPPING_KEYS = tuple(Mapping.__dataclass_fields__)
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_WANTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a number",
}


def mappings(content: bytes, file: str) -> dict[Mapping, int]:
    """Read the mappings of one drop-in: each with the line in which it begins, in the order of the file.

    Raises InvalidInput with every problem found: in the YAML, in each mapping, and between mappings.
    """
    root = document.read(content, file)
    if root is None:
        return {}
    items = _items(root, file)
    problems: list[Problem] = []
    found: dict[Mapping, int] = {}
    claimed: dict[Key, Mapping] = {}
    total = 0
    number = 0
    items.reverse()
    while items and len(problems) <= MAX_PROBLEMS:
        # A node goes as soon as it has been read: all of them take more memory than the mappings.
        node, number = items.pop(), number + 1
        prefix = f"mapping {_label(node, number)}: "
        if isinstance(node.value, dict) and len(node.value) > _MANY:
            known = f"known keys are {', '.join(_MAPPING_KEYS)}"
            problems.append(Problem(file, node.line, node.column, f"{prefix}{len(node.value):,} keys; {known}"))
            continue
        try:
            mapping = _MAPPING.validate_python(node.plain())
        except ValidationError as error:
            problems += _problems(error, node, file, prefix, _MAPPING_KEYS)
            continue
        total += mapping.size
        if total > MAX_KEYS:
            problems.append(
                Problem(file, node.line, node.column, f"{prefix}the file claims more than {MAX_KEYS:,} keys")
            )
            break
        found.setdefault(mapping, node.line)
        for holder, keys in _claim(mapping, claimed):
            which = f"{keys[0]} and {len(keys) - 1} more are" if len(keys) > 1 else f"{keys[0]} is"
            text = f"{which} claimed already by mapping {holder} in line {found[holder]}; remove one"
            problems.append(Problem(file, *_listen_place(node), f"mapping {mapping}: {text}"))
    _raise(problems)
    return found


def checked(content: bytes, file: str, wanted: type[T]) -> T:
    """Read one YAML document as a pydantic type; an empty document is one in which every key has its default.

    Raises InvalidInput with every problem found.
    """
    node = document.read(content, file) or document.empty()
    adapter = TypeAdapter(wanted)
    try:
        return adapter.validate_python(node.plain())
    except ValidationError as error:
        problems = _problems(error, node, file, "", tuple(getattr(wanted, "__dataclass_fields__", ())))
        raise InvalidInput(list(islice(problems, MAX_PROBLEMS + 1))) from None


def _items(root: Node, file: str) -> list[Node]:
    """The nodes under `mappings:`."""
    right = "a drop-in is `mappings:` and a list under it"
    if not isinstance(root.value, dict):
        raise InvalidInput([Problem(file, root.line, root.column, f"found {describe(root.value)}; {right}")])
    problems = [
        Problem(file, *(node.key_at or (0, 0)), f"unknown key {describe(key)}; {right}")
        for key, node in root.value.items()
        if key != "mappings"
    ]
    inside = root.value.get("mappings")
    if inside is not None and not isinstance(inside.value, list | None):
        found = describe(inside.value)
        problems.append(
            Problem(
                file,
                inside.line,
                inside.column,
                f"mappings: found {found}; write a list, each item begins with -",
            )
        )
    _raise(problems)
    return inside.value if inside is not None and isinstance(inside.value, list) else []


def _label(node: Node, number: int) -> str:
    name = node.value.get("name") if isinstance(node.value, dict) else None
    if name is None or not isinstance(name.value, str | int):
        return f"number {number}"
    return json.dumps(str(name.value)[:60], ensure_ascii=not str(name.value).isprintable())


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise InvalidInput(problems)


def _claim(mapping: Mapping, claimed: dict[Key, Mapping]) -> Iterable[tuple[Mapping, list[Key]]]:
    """Claim the mapping's keys; the earlier mappings of the file that hold some of them, with those."""
    lost: dict[int, tuple[Mapping, list[Key]]] = {}
    for key in mapping.claimed():
        holder = claimed.setdefault(key, mapping)
        if holder is not mapping:
            lost.setdefault(id(holder), (holder, []))[1].append(key)
    return lost.values()


def _listen_place(node: Node) -> tuple[int, int]:
    place = node.at(("listen",))
    if place.line < node.line:
        place = node  # an alias: what it holds was written elsewhere
    return place.line, place.column


def _problems(error: ValidationError, node: Node, file: str, prefix: str, known: tuple[str, ...]) -> Iterable[Problem]:
    for detail in error.errors(include_url=False):
        path = tuple(detail["loc"])
        if "at" in detail.get("ctx", {}):
            path = (*path, detail["ctx"]["at"])
        line, column = _place(detail, node, path)
        if path and isinstance(path[-1], int) and not isinstance(node.at(path[:-1]).value, list):
            # One value stands for a list of one.
            path = path[:-1]
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
        # The path of an unknown key is the key itself.
        subject = f"{where}: " if where and detail["type"] not in _UNKNOWN else ""
        yield Problem(file, line, column, prefix + subject + sentence(detail, known))


def _place(detail: AbstractMapping[str, Any], node: Node, path: tuple[str | int, ...]) -> tuple[int, int]:
    place = node.at(path)
    if detail["type"] in _UNKNOWN and place.key_at:
        return place.key_at
    return place.line, place.column


def sentence(detail: AbstractMapping[str, Any], known: tuple[str, ...] = ()) -> str:
    """Say one pydantic error (https://docs.pydantic.dev/latest/errors/validation_errors/) the way we say ours.

    `known` are the keys to choose from where one is unknown.
    """
    context: AbstractMapping[str, Any] = detail.get("ctx", {})
    found = describe(detail["input"])
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "family" | "range":
            return str(context["text"])
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"is missing{'; every mapping needs listen and targets' if known else ''}"
        case "extra_forbidden" | "unexpected_keyword_argument":
            key = str(detail["loc"][-1])
            close = difflib.get_close_matches(key, known, 1)
            hint = (
                f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}" if known else "remove it"
            )
            return f"unknown key {describe(key)}; {hint}"
        case "literal_error":
            return f"found {found}; write {context['expected'].replace(chr(39), '')}"
        case "dataclass_type":
            return f"found {found}; write a mapping of keys"
        case code:
            return f"found {found}; {'write ' + _WANTED[code] if code in _WANTED else detail['msg']}"

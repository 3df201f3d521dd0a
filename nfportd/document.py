"""YAML text -> values that know their place, safely.

Must not know what the values mean, nor read files. The one idea: libyaml's events are folded into nodes by a loop
with limits, so that no text, however made, costs more than its own size (aliases are shared, depth is bounded).

Plain scalars follow the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema), since under 1.1 an
unquoted 22:80 is the number 1400 and `no` is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NoReturn

import yaml
from yaml.reader import ReaderError

from nfportd.errors import InvalidInput, Problem
from nfportd.notation import brief, describe

#: A file beyond these is refused: 60,000 separate mappings fit, a bomb does not.
MAX_BYTES = 8 * 1024 * 1024
MAX_VALUES = 1_000_000
MAX_DEPTH = 16
_TOO_MANY = (
    f"more than {MAX_VALUES:,} values, aliases counted as often as they are used; use port ranges or split the file"
)

_TOO_DEEP = f"more than {MAX_DEPTH} levels deep; mappings need four"
#: What a value with one of these tags must be; any other tag has no meaning.
_CORE_TAGS: dict[str, type] = {"null": type(None), "bool": bool, "int": int, "str": str, "seq": list, "map": dict}
#: libyaml compares each %TAG with all before it: 100,000 of them would take a minute.
_MAX_TAG_LINES = 16
#: What ends a line for libyaml, whose places these are (https://yaml.org/spec/1.1/#b-char).
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

Plain = None | bool | int | str | list["Plain"] | dict[str, "Plain"]


@dataclass(slots=True, eq=False)
class Node:
    """A value at a place (from 1). `value` holds nodes where YAML holds collections; `size` counts the values inside,
    `height` the levels; `key_at` is the place of the key whose value this is."""

    value: bool | int | str | list[Node] | dict[str, Node] | None
    line: int
    column: int
    size: int = 1
    height: int = 0
    key_at: tuple[int, int] | None = None

    def plain(self) -> Plain:
        """The same value without places."""
        match self.value:
            case dict():
                return {key: node.plain() for key, node in self.value.items()}
            case list():
                return [node.plain() for node in self.value]
            case _:
                return self.value

    def at(self, path: tuple[str | int, ...]) -> Node:
        """The node at a path, or the nearest one above it."""
        node = self
        for step in path:
            match node.value, step:
                case dict() as inside, str() if step in inside:
                    node = inside[step]
                case list() as items, int() if step < len(items):
                    node = items[step]
        return node


def read(content: bytes, file: str) -> Node | None:
    """Read one YAML document; None where there is none (an empty file, comments only).

    Raises InvalidInput with every duplicate key, or with the first thing that keeps it from being read.
    """
    if len(content) > MAX_BYTES:
        size = len(content) / 1024 / 1024
        raise InvalidInput(
            [Problem(file, 0, 0, f"the file has {size:.1f} MiB, the limit is {MAX_BYTES >> 20} MiB; use ranges")]
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise InvalidInput([Problem(file, *_after(error.object[: error.start].decode()), found)]) from None
    if beyond := next(islice(re.finditer("%TAG", text), _MAX_TAG_LINES, None), None):
        found = f"more than {_MAX_TAG_LINES} times %TAG; tags have no meaning here, remove them"
        raise InvalidInput([Problem(file, *_after(text[: beyond.start()]), found)])
    reading = _Reading(file)
    try:
        # Without the look ahead of yaml.parse, which takes as long as the events.
        return reading.document(iter(yaml.CSafeLoader(text).get_event, None))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = f"not valid YAML: {error.problem or error.context}"
        if error.context and error.problem:
            why += f" ({error.context})"
        # What is missing at the end, libyaml misses in the line after it.
        place = min((mark.line + 1, mark.column + 1), _after(text)) if mark else (0, 0)
        raise InvalidInput([Problem(file, *place, why)]) from None
    except ReaderError as error:
        before = text.encode()[: error.position].decode(errors="ignore")  # libyaml counts bytes
        why = f"character {error.character:#04x} cannot stand in YAML; remove it"
        raise InvalidInput([Problem(file, *_after(before), why)]) from None
    except yaml.YAMLError as error:
        raise InvalidInput([Problem(file, 0, 0, f"not valid YAML: {str(error).splitlines()[0]}")]) from None


def _after(text: str) -> tuple[int, int]:
    """Line and column, from 1, of what comes after this text."""
    lines = _BREAK.split(text)
    return len(lines), len(lines[-1]) + 1


def _place(event: yaml.Event) -> tuple[int, int]:
    """Line and column, from 1."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _scalar(event: yaml.ScalarEvent) -> bool | int | str | None:
    text: str = event.value
    plain = event.implicit[0] or _tag(event) in ("null", "bool", "int")
    if not plain or len(text) > 10:
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    return int(text) if re.fullmatch(r"[-+]?[0-9]+", text, re.ASCII) else text


def _tag(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> str:
    """The name of a tag of YAML's own schema, or the tag itself; empty where there is none."""
    return str(event.tag or "").removeprefix("tag:yaml.org,2002:")


class _Reading:
    """One pass over the events of one file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._anchors: dict[str, Node] = {}
        self._problems: list[Problem] = []
        self._count = 0

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        root = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._fail(event, "a second document begins here; a file holds one, remove the ---")
                root = self._node(next(events), events, 0)
        if self._problems:
            raise InvalidInput(self._problems)
        return None if root is None or root.value is None else root

    def _fail(self, event: yaml.Event, message: str) -> NoReturn:
        raise InvalidInput([*self._problems, Problem(self._file, *_place(event), message)])

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            node = self._anchors.get(str(event.anchor))
            if node is None:
                name = brief(str(event.anchor))
                self._fail(event, f"alias *{name} has no anchor &{name} before it")
            if depth + node.height > MAX_DEPTH:
                self._fail(event, _TOO_DEEP)
            # The same value, at the place where it is used.
            return replace(node, line=_place(event)[0], column=_place(event)[1])
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            self._fail(event, "a value was expected here")
        if depth > MAX_DEPTH:
            self._fail(event, _TOO_DEEP)
        if event.anchor:
            # From here on the name means this value, which does not hold itself.
            self._anchors.pop(event.anchor, None)
        node = Node(None, *_place(event))
        if isinstance(event, yaml.ScalarEvent):
            node.value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._sequence(node, events, depth)
        else:
            self._mapping(node, events, depth)
        self._check_tag(event, node)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _check_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, node: Node) -> None:
        if event.tag and not isinstance(node.value, _CORE_TAGS.get(_tag(event), ())):
            self._fail(event, f"tag {brief(event.tag)} has no meaning here; remove it")

    def _grow(self, node: Node, event: yaml.Event, inside: Node) -> None:
        node.size += inside.size
        node.height = max(node.height, inside.height + 1)
        self._count += 1
        if max(node.size, self._count) > MAX_VALUES:
            self._fail(event, _TOO_MANY)

    def _sequence(self, node: Node, events: Iterator[yaml.Event], depth: int) -> None:
        items: list[Node] = []
        node.value = items
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                return
            items.append(self._node(event, events, depth + 1))
            self._grow(node, event, items[-1])

    def _mapping(self, node: Node, events: Iterator[yaml.Event], depth: int) -> None:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent):
                self._fail(event, "a key must be plain text")
            value = self._node(next(events), events, depth + 1)
            self._grow(node, event, value)
            value.key_at = _place(event)
            if event.value == "<<" and event.implicit[0]:
                self._merge(merged, value, event)
            elif event.value in own:
                self._duplicate(event, own[event.value])
            else:
                own[event.value] = value
        node.value = {**merged, **own}

    def _merge(self, merged: dict[str, Node], value: Node, event: yaml.Event) -> None:
        """Take the keys of `<<: *anchor`; the first of several anchors wins, own keys win over all."""
        for source in value.value if isinstance(value.value, list) else [value]:
            if not isinstance(source.value, dict):
                self._fail(event, "<< takes an alias of a mapping (<<: *defaults)")
            for key, node in source.value.items():
                merged.setdefault(key, node)

    def _duplicate(self, event: yaml.ScalarEvent, first: Node) -> None:
        message = f"key {describe(event.value)} is written twice (its first value is in line {first.line}); remove one"
        self._problems.append(Problem(self._file, *_place(event), message))

"""YAML text -> values that know their place, safely.

Must not know what the values mean, nor read files. The one idea: libyaml's events are folded into nodes by a loop
with limits, so that no text, however made, costs more than its own size (aliases are shared, depth is bounded).

Plain scalars follow the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema), since under 1.1 an
unquoted 22:80 is the number 1400 and `no` is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import yaml
from yaml.reader import ReaderError

from nfportd.errors import InvalidInput, Problem
from nfportd.notation import brief, describe

#: Who finds the values in a text, and their lines.
READER = f"PyYAML {yaml.__version__}, libyaml {yaml._yaml.get_version_string()}"
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
_VALUES = (yaml.ScalarEvent, yaml.CollectionStartEvent)
#: libyaml compares each %TAG with all before it: 100,000 of them would take a minute.
_MAX_TAG_LINES = 16
#: What ends a line for libyaml, whose places these are (https://yaml.org/spec/1.1/#b-char).
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

#: Holds nodes where YAML holds collections.
Value = None | bool | int | str | list["Node"] | dict[str, "Node"]
Plain = None | bool | int | str | list["Plain"] | dict[str, "Plain"]


@dataclass(slots=True, eq=False)
class Node:
    """A value and the mark where it begins; `key` is the mark of the key whose value it is."""

    value: Value
    mark: Any
    key: Any = None

    @property
    def line(self) -> int:
        """From 1."""
        return int(self.mark.line) + 1

    @property
    def column(self) -> int:
        """From 1."""
        return int(self.mark.column) + 1

    @property
    def key_at(self) -> tuple[int, int] | None:
        """Line and column, from 1, of the key."""
        return (self.key.line + 1, self.key.column + 1) if self.key else None

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


def empty() -> Node:
    """What stands for a document that is not there: one without keys."""
    return Node({}, yaml.Mark("", 0, 0, 0, None, 0))


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
    try:
        # Without the look ahead of yaml.parse, which takes as long as the events.
        return _Reading(file, iter(yaml.CSafeLoader(text).get_event, None)).document()
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


#: Plain scalars that are no text, beside numbers.
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER = re.compile(r"[-+]?[0-9]+", re.ASCII)


def _scalar(event: yaml.ScalarEvent) -> bool | int | str | None:
    text: str = event.value
    plain = event.implicit[0] or _tag(event) in ("null", "bool", "int")
    if not plain or len(text) > 10:
        return text
    if text in _WORDS:
        return _WORDS[text]
    return int(text) if _NUMBER.fullmatch(text) else text


def _tag(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> str:
    """The name of a tag of YAML's own schema, or the tag itself; empty where there is none."""
    return str(event.tag or "").removeprefix("tag:yaml.org,2002:")


class _Anchored(NamedTuple):
    """What an alias stands for: a value, how many values it is, and how many levels are inside it."""

    value: Value
    size: int
    height: int


class _Reading:
    """One pass over the events of one file."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self._file = file
        self._events = events
        self._anchors: dict[str | None, _Anchored] = {}
        self._problems: list[Problem] = []
        # Keys are the same few words again and again, and kept once.
        self._keys: dict[str, str] = {}
        # How many values there were, and the deepest level; aliases count as what they stand for.
        self._count = self._deepest = 0

    def document(self) -> Node | None:
        root = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._fail(event, "a second document begins here; a file holds one, remove the ---")
                root = self._node(next(self._events), 0)
        if self._problems:
            raise InvalidInput(self._problems)
        return None if root is None or root.value is None else root

    def _fail(self, event: yaml.Event, message: str) -> NoReturn:
        raise InvalidInput([*self._problems, Problem(self._file, *_place(event), message)])

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        self._grow(event, 1, depth)
        if not isinstance(event, _VALUES):
            self._fail(event, "a value was expected here")
        node = self._anchored(event, depth) if event.anchor else Node(self._value(event, depth), event.start_mark)
        if event.tag and not isinstance(node.value, _CORE_TAGS.get(_tag(event), ())):
            self._fail(event, f"tag {brief(event.tag)} has no meaning here; remove it")
        return node

    def _grow(self, event: yaml.Event, size: int, deepest: int) -> None:
        self._count += size
        if self._count > MAX_VALUES:
            self._fail(event, _TOO_MANY)
        if deepest > self._deepest:
            self._deepest = deepest
            if deepest > MAX_DEPTH:
                self._fail(event, _TOO_DEEP)

    def _alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        """The same value, at the place where it is used."""
        found = self._anchors.get(event.anchor)
        if found is None:
            name = brief(str(event.anchor))
            self._fail(event, f"alias *{name} has no anchor &{name} before it")
        self._grow(event, found.size, depth + found.height)
        return Node(found.value, event.start_mark)

    def _anchored(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, depth: int) -> Node:
        # From here on the name means this value, which does not hold itself.
        self._anchors.pop(event.anchor, None)
        count, deepest, self._deepest = self._count, self._deepest, depth
        value = self._value(event, depth)
        self._anchors[event.anchor] = _Anchored(value, self._count - count + 1, self._deepest - depth)
        self._deepest = max(self._deepest, deepest)
        return Node(value, event.start_mark)

    def _value(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, depth: int) -> Value:
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth + 1)
        return self._sequence(depth + 1)

    def _sequence(self, depth: int) -> list[Node]:
        items: list[Node] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, depth))
        return items

    def _mapping(self, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent):
                self._fail(event, "a key must be plain text")
            node = self._node(next(self._events), depth)
            node.key = event.start_mark
            key = self._keys.setdefault(event.value, event.value)
            if key == "<<" and event.implicit[0]:
                self._merge(merged, node, event)
            elif key in own:
                self._duplicate(event, own[key])
            else:
                own[key] = node
        return merged | own if merged else own

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

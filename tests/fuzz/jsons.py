"""JSON as clients, runtimes and attackers write it: valid values, and the damage that they and their text can take.

It must not know what is right. The one idea: damage to the value first, then to its text, so that most of what comes
out is JSON that is nearly right.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

Json = Any

#: What may stand in place of any value.
ODD: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 80, 65536, 2**31, 2**63, 2**64, 10**30, 1.0, 0.5, 1e308, -0.0, "", " ", "0", "80"),
    *([], {}, [[]], [None], {"": 0}, {"a": {"b": []}}, "\0", "\x1b[31m", "\n", "é", "😀", "\u2028", "\ufeff", "tcp"),
    *("~"),
    *("a" * 5000, "9" * 5000, "80/" + "x" * 5000, "80/\n", "9" * 5000 + ":80", "*:" + "a" * 5000),
    *("9" + "\n" * 5000 + "-8", "\uff18\uff10", "80-90", "90-80", "10.0.0.1:80", "[::1]:80", "10.88.0.11/24", "::/0"),
    *("../../x"),
    *([1] * 300, ["tcp", "tcp"], "nan", "null", "[", "%s%n", "$(id)", "/proc/self/ns/net", "file:web.yaml"),
)  # fmt: skip
#: What may be put between any two characters of the text.
_SPARKS = ("\0", "\x01", "\ufeff", "é", ",", ":", '"', "'", "{", "}", "[", "]", "\\", "\\u0000", "\\ud800", "\\udc00x",
           "NaN", "-", "1", "e400", "9" * 5000, "//x", "\n", " ", "\t", "null", "[" * 500, '{"a":' * 3000)  # fmt: skip


def places(value: Json, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside, from the outside in."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for step, below in inside for each in places(below, (*path, step)))]


def at(value: Json, path: tuple[Any, ...]) -> Json:
    for step in path:
        value = value[step]
    return value


@st.composite
def damaged(draw: st.DrawFn, values: st.SearchStrategy[Json], most: int = 2) -> Json:
    """A value with up to so many things wrong in it."""
    value = {"": copy.deepcopy(draw(values))}
    for _ in range(draw(st.integers(0, most))):
        path = draw(st.sampled_from(places(value)[1:] or [("",)]))
        holder, step = at(value, path[:-1]), path[-1]
        match draw(st.sampled_from(["odd", "odd", "delete", "rename", "wrap", "other", "double"])):
            case "delete" if len(path) > 1:
                del holder[step]
            case "rename" if isinstance(step, str) and len(path) > 1:
                holder[draw(st.sampled_from(["", "x", step.upper(), f"{step} ", "é", "a" * 300]))] = holder.pop(step)
            case "wrap":
                for _ in range(draw(st.sampled_from([1, 2, 50, 250]))):
                    holder[step] = [holder[step]]
            case "other":
                holder[step] = copy.deepcopy(at(value, draw(st.sampled_from(places(value)[1:] or [("",)]))))
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[step]))
            case _:
                holder[step] = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not value:
            return None
    return value[""]


@st.composite
def written(draw: st.DrawFn, values: st.SearchStrategy[Json], most: int = 1) -> bytes:
    """The text of a value, in the encodings and with the mistakes that there are."""
    value = draw(values)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(text)))
        match draw(st.sampled_from(["none", "none", "insert", "delete", "cut", "double"])):
            case "insert":
                text = text[:start] + draw(st.sampled_from(_SPARKS)) + text[start:]
            case "delete":
                text = text[:start] + text[start + draw(st.integers(1, 10)) :]
            case "cut":
                text = text[:start]
            case "double" if isinstance(value, dict) and value:
                name = draw(st.sampled_from(sorted(value)))
                text = text.replace("{", f"{{{json.dumps(name)}: {json.dumps(draw(st.sampled_from(ODD)))}, ", 1)
    how = draw(st.sampled_from(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-32-le", "latin-1"]))
    return text.encode(how, "surrogatepass" if how.startswith("utf") else "replace")


def contents(values: st.SearchStrategy[Json]) -> st.SearchStrategy[bytes]:
    """Texts of these values, damaged or not, and what is none at all."""
    return st.one_of(
        written(values), *[written(damaged(values))] * 4, written(damaged(values), most=0), st.binary(max_size=100)
    )

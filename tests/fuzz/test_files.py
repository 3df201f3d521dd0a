"""Drop-ins and settings: taken whole and as they are written, or refused for a place that exists; never slowly.

It must not know how files are read. The one idea: what must hold for every input is asked of every input.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, example, given, strategies as st

from nfportd import desired, ruleset, settings, validation
from nfportd.access import Rule
from nfportd.api.bodies import OwnerBody, adapter
from nfportd.desired import Desired
from nfportd.document import MAX_BYTES
from nfportd.errors import InvalidInput, Problem
from nfportd.model import Mapping
from tests.fuzz import second_reader, texts
from tests.fuzz.budget import LONG, tries, uncollected, within
from tests.lab import Lab
from tests.netns import Namespace
from tests.unit.test_hostile_files import read_with_limits

FILE = "web.yaml"
#: What YAML ends lines with; more than Python's "\n" (https://yaml.org/spec/1.1/#b-char).
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


def read(content: bytes) -> tuple[dict[Mapping, int], tuple[Problem, ...]]:
    """Mappings with their lines, or problems."""
    with within(2):
        try:
            return validation.mappings(content, FILE), ()
        except InvalidInput as error:
            return {}, error.problems


def assert_places(content: bytes, problems: Iterable[Problem]) -> None:
    """Problems stand in the text and can be shown on one line of a terminal."""
    lines = _BREAK.split(content.decode("utf-8", "replace"))
    for problem in problems:
        assert len(problem.message) < 1000, problem
        assert problem.message.isprintable(), problem
        if problem.line:
            assert 1 <= problem.line <= len(lines), problem
            assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1, problem
        else:
            assert problem.message == "has more problems than these" or not content, problem


def again(mappings: Iterable[Mapping]) -> bytes:
    """The mappings as they say themselves."""
    return json.dumps({"mappings": [mapping.written() for mapping in mappings]}, ensure_ascii=False).encode()


@tries(250)
@given(texts.files())
@example(b"mappings: [\xc3\xa9\xc3\xa9\xff")
@example("# é\nmappings: [\x01]".encode())
@example(b"a: b\rb: \x01")
@example(b"!<%0a%1b> x")
@example(b"? " + b"a" * 5000 + b"\n: 1\n? " + b"a" * 5000 + b"\n: 1\n")
@example(b"*" + b"a" * 5000)
def test_a_file_is_taken_as_it_is_written_or_refused_for_a_place(content: bytes) -> None:
    found, problems = read(content)

    assert_places(content, problems)
    text = content.decode("utf-8-sig", "replace")
    items = second_reader.items(text) if not problems else None
    if items is not None:
        assert len(items) == len(found)
        for item, mapping in zip(items, found, strict=True):
            second_reader.assert_seen(item, mapping)
    if found:
        assert list(read(again(found))[0]) == list(found)
        assert adapter(OwnerBody).validate_json(again(found)).mappings == tuple(found)


@tries(60)
@given(texts.encoded(texts.dropins(harm=0)), st.data())
def test_an_unknown_key_is_named_where_it_stands(content: bytes, data: st.DataObject) -> None:
    text = content.decode("utf-8", "replace")
    assume(read(text.encode())[0])
    keys = [key for item in second_reader.items(text.removeprefix("\ufeff")) or [] for key in item.keys]
    keys = [key for key in keys if key.text != "<<"]
    assume(keys)
    key = data.draw(st.sampled_from(keys))
    start = key.start + text.startswith("\ufeff")
    changed = text[:start] + "zz" + text[start:]

    _, problems = read(changed.encode())

    places = [
        (problem.line, problem.column) for problem in problems if f"unknown key 'zz{key.text}'" in problem.message
    ]
    assert (key.line, key.column) in places, (changed, problems)


@tries(120)
@given(texts.settings_files() | texts.dropins())
@example('group: "a\\0b"')
@example("access: [{uid: true, write: true}]")
@example("access: [{uid: 1000, write: true, targets: []}]")
@example("access: [{gid: -1, write: true}]")
def test_settings_are_taken_as_they_are_written_or_refused_for_a_place(text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    try:
        with within(2):
            found = validation.checked(content, FILE, settings.Settings)
    except InvalidInput as error:
        assert_places(content, error.problems)
        return
    assert "\0" not in found.group
    for rule in found.access:
        who = rule.uid if rule.uid is not None else rule.gid
        assert re.search(rf"[ug]id: \+?0*{who}\b", text), (rule, text)
        for name in ("ports", "protocols", "listen", "targets", "owners"):
            given_ = re.search(rf"\b{name}:", text)
            assert given_ or getattr(rule, name) in ((), "", *_DEFAULTS), (rule, text)
            # An empty list must not mean everything.
            assert not re.fullmatch(rf"(?s).*\b{name}: \[\].*", text) or name in ("ports", "protocols")


_DEFAULTS = (Rule(uid=0).ports, Rule(uid=0).protocols)


def _seconds(content: bytes, reading: type[settings.Settings] | None) -> float:
    began = time.process_time()
    with uncollected(), suppress(InvalidInput):
        if reading:
            validation.checked(content, FILE, reading)
        else:
            validation.mappings(content, FILE)
    return time.process_time() - began


_SEEDS = (
    *("- ", "? ", "[", "{", "a: ", "'", '"', "&a ", "*a ", "!!str ", "!a ", "#", "\n", " ", "\n  ", "|\n", ">\n", "x"),
    *("a: 1\n", "- {}\n", "- *a\n", "[], ", "a: 1, ", "%TAG !a! b\n", "%YAML 1.1\n", "---\n", "...\n", "\r", "\t"),
    *("9", "listen", ":", ",", "<<: *a\n", "- {<<: *a}\n", "&N ", "N: ", "%TAG !N! x\n", "? N\n", "  - {listen: N}\n"),
)  # fmt: skip


@pytest.mark.alone
@tries(12)
@given(
    st.sampled_from(["", "mappings:\n", "mappings: [", "mappings: &a {a: 1}\n", "access:\n", "- &a {listen: 80}\n"]),
    st.lists(st.sampled_from(_SEEDS), min_size=1, max_size=4).map("".join),
    st.sampled_from(["", "\n---\nmappings: []\n", "]", "'"]),
    st.sampled_from([None, settings.Settings]),
)
@example("", "%TAG !N! x\n", "---\nmappings: []\n", None)
@example("", "N: ", "", settings.Settings)
@example("", "N: 1\n", "", settings.Settings)
def test_four_times_the_text_takes_four_times_the_time(
    head: str, pattern: str, tail: str, reading: type[settings.Settings] | None
) -> None:
    def of(size: int) -> bytes:
        count = size // len(pattern)
        body = "".join(pattern.replace("N", f"n{n}") for n in range(count)) if "N" in pattern else pattern * count
        return (head + body + tail).encode()

    size = 50_000
    one = four = float("inf")
    # The least of each counts: others on the processor only add.
    for _ in range(5):
        one, four = min(one, _seconds(of(size), reading)), min(four, _seconds(of(4 * size), reading))
        if four < 9 * max(one, 0.01):
            break
    else:
        raise AssertionError(f"{4 * size} characters: {four:.3f} s, a fourth of them: {one:.3f} s")
    if LONG:
        # A million values, which no pattern above has in so few characters as these.
        read_with_limits(of(MAX_BYTES), seconds=30, mebibytes=1024)


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    """A network namespace in which nft checks what it is asked to."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as lab:
        yield lab.space("host")


@tries(20)
@given(content=texts.encoded(texts.dropins(harm=1)))
def test_the_elements_of_what_is_taken_are_taken_by_nft(space: Namespace, content: bytes) -> None:
    found, _ = read(content)
    assume(found)
    wishes = Desired()
    wishes.replace("file:web.yaml", found)
    elements = ruleset.text(desired.delta({}, wishes.wanted_of_all()))

    done = space.run(["nft", "-c", "-f", "-"], text=ruleset.skeleton(13) + elements, check=False)

    assert done.returncode == 0, done.stderr[:2000]


def test_a_file_of_settings_is_read_no_further_than_it_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "nfportd.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(InvalidInput, match="the limit is 8 MiB"):
        settings.load(path)

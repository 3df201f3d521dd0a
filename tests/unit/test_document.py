"""YAML as users and their editors write it: what a drop-in's text means before anybody asks for mappings.

It must not know mappings. The one idea: text beside the plain value that it is, or the line that refuses it.
"""

from __future__ import annotations

import pytest

from nfportd import document
from nfportd.errors import InvalidInput


def plain(text: str | bytes) -> object:
    node = document.read(text.encode() if isinstance(text, str) else text, "web.yaml")
    return None if node is None else node.plain()


def refused(text: str | bytes) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        plain(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# only a comment\n",
        "---\n",
        "---\n# nothing\n...\n",
        "\ufeff",
        "\ufeff# a comment\n",
        "null\n",
        "~\n",
    ],
)
def test_nothing(text: str) -> None:
    assert plain(text) is None


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8080", 8080),
        ("-1", -1),
        ("022", 22),
        ("22:80", "22:80"),
        ("1_000", "1_000"),
        ("0x50", "0x50"),
        ("1.5", "1.5"),
        ("1e3", "1e3"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'8080'", "8080"),
        ('"true"', "true"),
        ("!!str 8080", "8080"),
        ("2026-01-02", "2026-01-02"),
        ("99999999999999999999", "99999999999999999999"),
        ("|\n  two\n  lines", "two\nlines\n"),
    ],
)
def test_a_plain_value_follows_yaml_1_2(written: str, value: object) -> None:
    found = plain(f"key: {written}\n")

    assert (found, repr(found)) == ({"key": value}, repr({"key": value}))


@pytest.mark.parametrize("text", ["a: 1\r\nb: [2,\r\n 3]\r\n", "\ufeffa: 1\nb: [2, 3]\n", "a: 1\rb: [2, 3]\r"])
def test_line_ends_and_a_byte_order_mark_make_no_difference(text: str) -> None:
    assert plain(text) == {"a": 1, "b": [2, 3]}


def test_places_count_from_one_in_lines_and_characters() -> None:
    node = document.read("größe:\n  - wéb: x\n".encode(), "web.yaml")

    assert node is not None
    found = node.at(("größe", 0, "wéb"))
    assert (found.line, found.column) == (2, 10)


def test_the_place_of_what_is_not_there_is_the_nearest_above() -> None:
    node = document.read(b"mappings:\n  - listen: 80\n", "web.yaml")

    assert node is not None
    found = node.at(("mappings", 0, "targets", 7))
    assert (found.line, found.column) == (2, 5)


def test_an_alias_is_the_value_of_its_anchor() -> None:
    assert plain("a: &x {b: 1}\nc: *x\n") == {"a": {"b": 1}, "c": {"b": 1}}


def test_an_anchor_may_be_defined_anew() -> None:
    assert plain("a: &x 1\nb: *x\nc: &x 2\nd: *x\n") == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_the_place_of_an_alias_is_where_it_stands() -> None:
    node = document.read(b"- &x [1]\n- *x\n", "web.yaml")

    assert node is not None
    assert (node.at((0,)).line, node.at((1,)).line) == (1, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("{<<: *one, own: 2}", {"name": "one", "port": 1, "own": 2}, id="keys are added"),
        pytest.param("{<<: *one, port: 2}", {"name": "one", "port": 2}, id="own keys win"),
        pytest.param("{port: 2, <<: *one}", {"name": "one", "port": 2}, id="own keys win, wherever they stand"),
        pytest.param("{<<: [*one, *two]}", {"name": "one", "port": 1, "more": 2}, id="the first of several wins"),
        pytest.param("{<<: {port: 3}}", {"port": 3}, id="a mapping instead of an alias"),
        pytest.param('{"<<": 1}', {"<<": 1}, id="quoted it is a key like others"),
    ],
)
def test_merge_keys(text: str, value: object) -> None:
    found = plain(f"one: &one {{name: one, port: 1}}\ntwo: &two {{name: two, more: 2}}\nthree: {text}\n")

    assert isinstance(found, dict)
    assert found["three"] == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: *x\n", "1:4: alias *x has no anchor &x before it"),
        ("a: *x\nb: &x 1\n", "1:4: alias *x has no anchor &x before it"),
        ("a: &x [*x]\n", "1:8: alias *x has no anchor &x before it"),
        ("a:\n  <<: 5\n", "2:3: << takes an alias of a mapping (<<: *defaults)"),
        ("a:\n  <<: [5]\n", "2:3: << takes an alias of a mapping (<<: *defaults)"),
        ("? [a]\n: b\n", "1:3: a key must be plain text"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document begins here; a file holds one, remove the ---"),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "1:4: tag tag:yaml.org,2002:python/object/apply:os.system has no",
        ),
        ("a: !!binary aGk=\n", "1:4: tag tag:yaml.org,2002:binary has no"),
        ("a: !!timestamp 2026-01-02\n", "1:4: tag tag:yaml.org,2002:timestamp has no"),
        ("a: !secret b\n", "1:4: tag !secret has no meaning here; remove it"),
        ("a: b: c\n", "1:5: not valid YAML: mapping values are not allowed in this context"),
        ("a:\n\t- b\n", "2:1: not valid YAML: found character that cannot start any token"),
        ("a: [1,\n", "2:1: not valid YAML: did not find expected node content"),
        ('a: "b\n', "2:1: not valid YAML: found unexpected end of stream"),
        ("a: @b\n", "1:4: not valid YAML: found character that cannot start any token"),
        ("%YAML 3.0\n---\na: 1\n", "1:1: not valid YAML: found incompatible YAML document"),
        ("a: 1\nb: \0\n", "2:4: character 0x00 cannot stand in YAML; remove it"),
        ("a: 1\n\x1b: 2\n", "2:1: character 0x1b cannot stand in YAML; remove it"),
    ],
)
def test_what_cannot_be_read(text: str, line: str) -> None:
    (found,) = refused(text)

    assert found.startswith(f"web.yaml:{line}")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a: 1\nb: caf\xe9\n", "2:7: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), "1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a: \xed\xa0\x80\n", "1:4: byte 0xed is not UTF-8; save the file as UTF-8"),
    ],
)
def test_what_is_not_utf_8(content: bytes, line: str) -> None:
    assert refused(content) == [f"web.yaml:{line}"]


def test_each_duplicate_key_is_said_with_both_places() -> None:
    assert refused("a: 1\nb: {c: 1, c: 2}\na: 3\n") == [
        "web.yaml:2:11: key 'c' is written twice (its first value is in line 2); remove one",
        "web.yaml:3:1: key 'a' is written twice (its first value is in line 1); remove one",
    ]


def test_the_same_key_in_two_mappings_is_no_duplicate() -> None:
    assert plain("- {a: 1}\n- {a: 2}\n") == [{"a": 1}, {"a": 2}]


def test_sixteen_levels_are_enough_for_anybody_and_seventeen_are_refused() -> None:
    assert plain("[" * 16 + "]" * 16)
    assert refused("[" * 18 + "]" * 18) == ["web.yaml:1:18: more than 16 levels deep; mappings need four"]


def test_levels_count_through_aliases() -> None:
    chain = "- &a0 [x]\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 40))

    (line,) = refused(chain)
    assert line.endswith("more than 16 levels deep; mappings need four")


def test_a_file_of_ten_megabytes_is_not_read() -> None:
    assert refused(b"#" * (10 << 20)) == ["web.yaml: the file has 10.0 MiB, the limit is 8 MiB; use ranges"]

"""Two mappings of one file that claim the same key: refused, with both places.

It must not know how keys are compared. The one idea: what clashes and what does not, side by side.
"""

from __future__ import annotations

import pytest

from tests.unit.reading import mappings, refused

TWO = """\
mappings:
  - name: one
    listen: {}
    targets: {}
    protocol: {}
  - name: two
    protocol: {}
    listen: {}
    targets: {}
"""


def two(one: tuple[str, str, str], other: tuple[str, str, str]) -> str:
    (listen, targets, protocol), (listen_too, targets_too, protocol_too) = one, other
    return TWO.format(listen, targets, protocol, protocol_too, listen_too, targets_too)


FOUR, SIX = "10.88.0.11:80", "'[fd88::11]:80'"
RANGE = "10.88.0.11:8000-8009"


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        pytest.param(("8080", FOUR, "tcp"), ("8080", FOUR, "tcp"), "0.0.0.0:8080/tcp is", id="equal"),
        pytest.param(("8080", FOUR, "tcp"), ("0.0.0.0:8080", FOUR, "tcp"), "0.0.0.0:8080/tcp is", id="0.0.0.0"),
        pytest.param(("8080", SIX, "tcp"), ("'[::]:8080'", SIX, "tcp"), "[::]:8080/tcp is", id="[::]"),
        pytest.param(
            ("'[2001:db8::1]:80'", SIX, "tcp"),
            ("'[2001:DB8:0::1]:80'", SIX, "tcp"),
            "[2001:db8::1]:80/tcp is",
            id="one address in two spellings",
        ),
        pytest.param(
            ("8080", FOUR, "[tcp, udp]"), ("8080", FOUR, "[sctp, udp]"), "0.0.0.0:8080/udp is", id="one protocol"
        ),
        pytest.param(("8000-8009", RANGE, "tcp"), ("8009", FOUR, "tcp"), "0.0.0.0:8009/tcp is", id="in a range"),
        pytest.param(("8000", FOUR, "tcp"), ("8000-8009", RANGE, "tcp"), "0.0.0.0:8000/tcp is", id="range over it"),
    ],
)
def test_one_key_claimed_twice(one: tuple[str, str, str], other: tuple[str, str, str], keys: str) -> None:
    assert refused(two(one, other)) == [
        f'web.yaml:8:13: mapping "two": {keys} claimed already by mapping "one" in line 2; remove one'
    ]


def test_ranges_that_overlap_are_counted() -> None:
    (line,) = refused(two(("8000-8009", RANGE, "tcp"), ("8005-8014", RANGE, "tcp")))

    assert line.startswith('web.yaml:8:13: mapping "two": 0.0.0.0:8005/tcp and 4 more ')
    assert line.endswith('claimed already by mapping "one" in line 2; remove one')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("8080", FOUR, "tcp"), ("8080", FOUR, "udp"), id="protocols"),
        pytest.param(("8080", FOUR, "tcp"), ("8080", SIX, "tcp"), id="families"),
        pytest.param(("0.0.0.0:8080", FOUR, "tcp"), ("'[::]:8080'", SIX, "tcp"), id="wildcards of both families"),
        pytest.param(("8080", FOUR, "tcp"), ("192.0.2.1:8080", FOUR, "tcp"), id="a wildcard and an address"),
        pytest.param(("192.0.2.1:8080", FOUR, "tcp"), ("192.0.2.2:8080", FOUR, "tcp"), id="addresses"),
        pytest.param(("8000-8009", RANGE, "tcp"), ("8010-8019", RANGE, "tcp"), id="ranges that touch"),
    ],
)
def test_keys_that_differ_stand_beside_each_other(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert len(mappings(two(one, other))) == 2


def test_a_clash_with_two_mappings_names_both() -> None:
    lines = refused("""\
mappings:
  - {name: one, listen: 8000, targets: 10.88.0.11:80}
  - {name: two, listen: 8001, targets: 10.88.0.11:80}
  - {name: both, listen: 8000-8001, targets: 10.88.0.11:80-81}
""")

    assert ['mapping "one" in line 2' in lines[0], 'mapping "two" in line 3' in lines[1]] == [True, True]


def test_a_clash_with_two_mappings_of_one_line_names_both() -> None:
    lines = refused(
        "mappings: [{name: one, listen: 8000, targets: 10.88.0.11:80},"
        " {name: two, listen: 8001, targets: 10.88.0.11:80},"
        " {name: both, listen: 8000-8001, targets: 10.88.0.11:80-81}]"
    )

    assert ['by mapping "one"' in lines[0], 'by mapping "two"' in lines[-1]] == [True, True]


def test_a_mapping_repeated_by_an_alias_is_found_where_the_alias_stands() -> None:
    (line,) = refused("mappings:\n  - &web {name: web, listen: 80, targets: 10.88.0.11:80}\n  - *web\n")

    assert line.startswith('web.yaml:3:5: mapping "web": 0.0.0.0:80/tcp is claimed already by mapping "web" in line 2')

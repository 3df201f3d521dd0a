"""Tables in a width, numbers as people read them, letters as charts.

It must not need a terminal. The one idea: values and a width in, lines out.
"""

from __future__ import annotations

import pytest

from nfportd.columns import Column, chart, count, rate, shortened, table, width_of

COLUMNS = (
    Column("LISTEN"),
    Column("TARGET", least=10),
    Column("OWNER", least=6, leaves=1),
    Column("N", number=True, leaves=2),
)
ROWS = [
    ("8080/tcp", "10.88.0.11:80 [fd88::11]:80", "file:web.yaml", "1,204"),
    ("53/udp", "10.88.0.12:53", "api:データ", "7"),
]


def plain(width: int | None) -> list[str]:
    return [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in table(COLUMNS, ROWS, {}, width)]


def test_a_table_is_as_wide_as_its_cells() -> None:
    assert plain(None) == [
        "LISTEN    TARGET                       OWNER              N",
        "8080/tcp  10.88.0.11:80 [fd88::11]:80  file:web.yaml  1,204",
        "53/udp    10.88.0.12:53                api:データ         7",
    ]


def test_it_is_shortened_where_it_is_too_wide() -> None:
    assert plain(50) == [
        "LISTEN    TARGET              OWNER              N",
        "8080/tcp  10.88.0.11:80 [fd…  file:web.yaml  1,204",
        "53/udp    10.88.0.12:53       api:データ         7",
    ]


def test_and_then_columns_leave() -> None:
    assert plain(30) == [
        "LISTEN    TARGET             N",
        "8080/tcp  10.88.0.11:8…  1,204",
        "53/udp    10.88.0.12:53      7",
    ]
    assert plain(20) == ["LISTEN    TARGET", "8080/tcp  10.88.0.1…", "53/udp    10.88.0.1…"]


@pytest.mark.parametrize("width", range(20, 70))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(width_of, plain(width))) <= width


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    lines = list(table((Column("A"),), [("\x1b[2Jx\n",)], {}))

    assert lines[1] == "?[2Jx?"


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("データ", 6, "データ"), ("データ", 5, "デー…"), ("データ", 4, "デ…")],
)
def test_a_text_is_shortened_by_the_cells_that_it_takes(text: str, width: int, shown: str) -> None:
    assert shortened(text, width) == shown


@pytest.mark.parametrize(
    ("number", "text"), [(None, "-"), (0, "0"), (1204, "1,204"), (9_999_999, "9,999,999"), (12_345_678, "12.3M")]
)
def test_a_count(number: int | None, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("a_second", "text"),
    [(None, "-"), (0.0, "0"), (0.02, "<0.1"), (3.14159, "3.1"), (999.94, "999.9"), (4321.5, "4,322")],
)
def test_a_rate(a_second: float | None, text: str) -> None:
    assert rate(a_second) == text


@pytest.mark.parametrize(
    ("values", "letters"),
    [([], ""), ([0, 0], "  "), ([5], "█"), ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"), ([0, 1, 1000], " ▁█")],
)
def test_a_chart(values: list[float], letters: str) -> None:
    assert chart(values) == letters

"""docs/performance.md: from rows to tables, goals and pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import page
from bench.results import TOGETHER, Row, row

MACHINE = {
    "kernel": "6.1",
    "cores": 2,
    "cpu": "Some CPU",
    "nft": "1.0.6",
    "python": "3.11.2",
    "load": 1.5,
    "date": "2026-01-02",
}


def sample() -> dict[str, dict[str, Any]]:
    rows: list[Row] = []
    for size, theirs in ((0, 40.0), (100, 80.0), (10_000, 900.0)):
        rows.append(row("One container", size, "nfportd, CNI", [18.0, 20.0, 22.0], "ms", goal=15.0 + size / 100))
        rows.append(row("One container", size, "portmap nftables", [theirs], "ms"))
    rows.append(row("Many clients", 0, "nfportd", [3500.0], "mappings/s", "more", 3000))
    profile = [row("One PUT", 0, who, [value], "ms") for who, value in (("kernel", 0.25), (TOGETHER, 1.0))]
    profile.insert(1, row("One PUT", 0, "libnftables", [0.75], "ms"))
    return {
        "control": {"what": "Calls, timed.", "machine": MACHINE, "rows": rows},
        "profile": {"what": "Phases.", "machine": MACHINE, "rows": profile},
    }


def test_a_table_has_a_line_for_each_program_and_a_factor_for_each_peer() -> None:
    lines = page.table(sample()["control"]["rows"][:6]).splitlines()

    assert lines == [
        "| ms | 0 | 100 | 10,000 |",
        "| --- | ---: | ---: | ---: |",
        "| **nfportd, CNI** | **20** (18.4 to 21.6) | **20** (18.4 to 21.6) | **20** (18.4 to 21.6) |",
        "| portmap nftables | 40 2 x | 80 4 x | 900 45 x |",
    ]


def test_goals_are_told_first_with_what_missed_them() -> None:
    text = page.text(sample())

    assert "2 of 4 are met." in text
    assert "| One container (nfportd, CNI) | 0 | 20 ms | at most 15 ms | **missed by 33%** |" in text
    assert "| Many clients | 0 | 3,500 mappings/s | at least 3,000 mappings/s | met |" in text
    assert text.index("## Goals") < text.index("## Control path")


def test_rows_with_the_same_goal_are_one_line_with_the_worst_of_them() -> None:
    rows = [row("PUT", size, "nfportd", [value], "ms", goal=1.0) for size, value in ((0, 0.5), (100, 1.5), (1000, 1.2))]

    text = page.text({"control": {"what": "PUTs.", "machine": MACHINE, "rows": rows}})

    assert "| PUT | 0 to 1,000 | 0.5 to 1.5 ms | at most 1 ms | **missed by 50%** at 100 |" in text


def test_the_page_names_machine_and_date_and_what_was_not_measured() -> None:
    text = page.text(sample())

    assert "*2026-01-02: Some CPU, 2 cores, Linux 6.1, nft 1.0.6, load average 1.5, Python 3.11.2.*" in text
    assert "Not measured yet: `make bench-scale`." in text


def test_a_picture_has_an_alternative_text_and_both_its_files() -> None:
    alternative = (
        "One container: nfportd, CNI 20 ms with 0 mappings and 20 ms with 10,000; portmap nftables 40 ms with 0"
    )
    picture = "performance/control-one-container"

    assert f"[![{alternative}" in page.text(sample())
    assert f"]({picture}.svg)]({picture}.png)" in page.text(sample())


def test_no_figure_is_typed_in() -> None:
    frame = page.text({}) + "".join(section.text for section in page.SECTIONS.values())

    assert re.findall(r"\d", frame) == []


def test_the_page_is_what_the_files_say() -> None:
    found = {name: content for name, content in page.read().items() if name in page.SECTIONS}
    text = page.PAGE.read_text()

    assert text == page.text(found), "run: make bench-page"
    for picture in re.findall(r"\((performance/[^)]+)\)", text):
        assert (page.PAGE.parent / picture).stat().st_size > 0


def test_pictures_name_all_programs_and_their_units(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures take python3-matplotlib, which make bench installs")
    from bench import plots  # noqa: PLC0415

    (tmp_path / "of-a-bench-that-is-gone.svg").touch()
    plots.draw(sample(), tmp_path)

    names = {"control-one-container", "profile-one-put"}
    assert {file.name for file in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("svg", "png")}
    words = " ".join(ElementTree.parse(tmp_path / "control-one-container.svg").getroot().itertext())
    for word in ("nfportd, CNI", "portmap nftables", "ms (logarithmic, less is better)", "mappings present", "10,000"):
        assert word in words


def test_pictures_of_the_same_rows_are_the_same_and_a_program_keeps_its_looks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures take python3-matplotlib, which make bench installs")
    from bench import plots  # noqa: PLC0415

    for name in ("one", "other"):
        plots.draw(sample(), tmp_path / name)

    one, other = ((tmp_path / name / "control-one-container.svg").read_bytes() for name in ("one", "other"))
    assert one == other
    looks = plots.styles(["nfportd", "portmap nftables", "netavark"])
    assert len({(look.colour, look.marker, str(look.dash)) for look in looks.values()}) == 3
    assert max(looks, key=lambda name: looks[name].width) == "nfportd"

"""The page of nfportctl report in a real browser: on a phone, at a desk, in the dark and on paper.

It must not know how the page is written. The one idea: what the browser shows is asked of the browser.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nfportd.report.page import Facts, page
from tests import browser
from tests.unit.reporting import EVENTS, HOSTILE, MAPPINGS, QUOTING, STATUS, facts, mapping, minutes

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here (package chromium-headless-shell)")


def written(to: Path, shown: Facts) -> Path:
    path = to / "report.html"
    path.write_text(page(shown), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_has_to_be_scrolled_sideways(tmp_path: Path, width: int) -> None:
    found = browser.seen(written(tmp_path, facts()), width)

    assert (found["wide"], found["room"]) == (width, width)


@pytest.mark.parametrize("width", [390, 1280])
def test_everything_is_there(tmp_path: Path, width: int) -> None:
    found = browser.seen(written(tmp_path, facts()), width)

    for each in MAPPINGS:
        for text in (each["name"] or "no name", f"{each['listen']}/", *each["targets"], each["owner"]):
            assert text in found["text"]
    for said in (
        "No space left on device",
        "no route leads to 203.0.113.9",
        "0.0.0.0:8080/tcp is held by file:web.yaml",
    ):
        assert said in found["text"]
    assert "nft insert rule inet filter forward ct status dnat accept" in found["text"]
    assert "unknown key 'protocl'" in found["text"]
    assert found["tables"] == [len(MAPPINGS), 8, len(EVENTS)]
    headings = [each for each in found["headings"] if each.startswith(("H1", "H2"))]
    assert headings == [
        "H1 nfportd on gateway.example",
        "H2 Traffic in the last hour",
        "H2 Health",
        "H2 Mappings",
        "H2 Targets",
        "H2 Events, the latest first",
    ]
    assert found["named"] is True


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    status = {**STATUS, "files": {f"{HOSTILE}.yaml": [QUOTING]}}
    found = browser.seen(written(tmp_path, facts(host=QUOTING, status=status, checked=(HOSTILE,))), 1280)

    assert (found["title"], found["scripts"], found["images"]) == (f"nfportd on {QUOTING}", 0, 0)
    assert HOSTILE in found["text"]
    assert QUOTING in found["text"]


def test_an_empty_host(tmp_path: Path) -> None:
    idle = {**STATUS, "forwarding": [], "refused": [], "conflicts": [], "files": {}, "unreached": []}
    shown = facts(status=idle, mappings=[], rate=None, minutes=[], findings=[], checked=(), events=[])

    text = browser.seen(written(tmp_path, shown), 390)["text"]

    for said in ("All mappings are in force", "Nothing is published", "less than a minute", "Nothing was found"):
        assert said in text


def test_a_minute_is_enough_for_a_chart(tmp_path: Path) -> None:
    assert "the last 1 minute:" in browser.seen(written(tmp_path, facts(minutes=minutes(1))), 390)["text"]


def test_two_thousand_mappings_are_all_there(tmp_path: Path) -> None:
    many = [mapping("api:ci", f"job-{number}", str(10000 + number), "10.88.0.11:80") for number in range(2000)]

    found = browser.seen(written(tmp_path, facts(mappings=many, minutes=[])), 1280)

    assert found["tables"][0] == 2000
    assert "and 1,988 more" in found["text"]


def test_the_dark_is_dark_and_paper_is_pages(tmp_path: Path) -> None:
    shown = written(tmp_path, facts())
    light = browser.picture(shown, tmp_path / "light.png", 1280)
    dark = browser.picture(shown, tmp_path / "dark.png", 1280, dark=True)
    phone = browser.picture(shown, tmp_path / "phone.png", 390)
    paper = browser.printed(shown, tmp_path / "paper.pdf")

    assert all(each.startswith(b"\x89PNG") for each in (light, dark, phone))
    assert light != dark
    assert paper.startswith(b"%PDF")
    # A page object each; an hour of traffic, nine mappings and their health take three or four.
    assert 2 <= paper.count(b"/Type /Page\n") <= 6


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = page(facts())

    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert " style=" not in text

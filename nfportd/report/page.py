"""The page: what is published, how it is used, what is wrong and what happened, in one file without anything outside.

Must not ask anybody nor know the time: everything is in `Facts`. The one idea: the answer to "is all well?" comes
first, then what the eye looks for, then the tables.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from nfportd import columns, printing
from nfportd.client import Json
from nfportd.report.markup import Markup, Part, bars, joined, tag
from nfportd.report.style import STYLE

_STATES = {"in force": "good", "waiting: conflict": "wait", "waiting: no route": "wait"}
_SEVERITIES = {"error": "bad", "warning": "wait"}
#: Minutes that a chart has room for.
_HOUR = 60
#: Nothing but the style sheet above may be loaded or run, whatever stands in a name.
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{}'"


class Facts(NamedTuple):
    """What the page is made of: the API's answers, findings as `health` gives them, what was looked at besides (by
    name), the host, and when that was."""

    status: Json
    mappings: Sequence[Json]
    rate: float | None
    minutes: Sequence[Json]
    findings: Sequence[Json]
    checked: Sequence[str]
    events: Sequence[Json]
    host: str
    now: datetime


def page(facts: Facts) -> str:
    """The page as HTML."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    title = f"nfportd on {facts.host}"
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(digest)}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    sections = (_traffic, _health, _mappings, _targets, _events)
    body = tag("body", _header(facts, title), tag("main", [make(facts) for make in sections]), _footer(facts))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _header(facts: Facts, title: str) -> Markup:
    status = facts.status
    when = tag("time", facts.now.strftime("%Y-%m-%d %H:%M:%S %Z"), datetime=facts.now.isoformat(timespec="seconds"))
    up = f", nfportd {status['version']}, running for {printing.age(status['since'], facts.now)}"
    in_force = sum(printing.state(mapping) == "in force" for mapping in facts.mappings)
    tiles = {
        "Mappings": f"{len(facts.mappings):,}",
        "In force": f"{in_force:,}",
        "Connections a second": columns.rate(facts.rate),
        "Connections, last hour": columns.count(status["connections"]["last_hour"]),
    }
    shown = tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles.items()], class_="tiles")
    return tag("header", tag("h1", title), tag("p", when, up, class_="quiet"), _verdict(facts, in_force), shown)


def _verdict(facts: Facts, in_force: int) -> Markup:
    missing = len(facts.mappings) - in_force
    errors = sum(finding["severity"] == "error" for finding in facts.findings)
    warnings = len(facts.findings) - errors
    told = [f"{_many(missing, 'mapping')} not in force"] if missing else []
    told += [_many(errors, "error")] if errors else []
    told += [_many(warnings, "warning")] if warnings else []
    kind = "bad" if errors else "wait" if told else "good"
    said = ", ".join(told) if told else "All mappings are in force, and nothing was found to be wrong."
    return tag("p", said, class_=f"verdict {kind}")


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _section(title: str, *parts: Part | Iterable[Part]) -> Markup:
    name = title.partition(" ")[0].lower()
    return tag("section", tag("h2", title, id=name), *parts, aria_labelledby=name)


def _traffic(facts: Facts) -> Markup:
    counts = [int(minute["connections"]) for minute in facts.minutes]
    if not counts:
        told = "nfportd has counted for less than a minute; the last hour is kept minute by minute."
        return _section("Traffic", tag("p", told, class_="card quiet"))
    most = _round(max(counts))
    said = f"Connections in each of the last {_many(len(counts), 'minute')}: {sum(counts):,} together, "
    said += f"{max(counts):,} in the busiest minute, {counts[-1]:,} in the last."
    scale = tag(
        "div", [tag("span", f"{value:,}") for value in (most, most // 2, 0)], class_="scale", aria_hidden="true"
    )
    picture = bars(counts, most, _HOUR, lines=2, role="img", aria_label=said)
    # The chart is an hour wide, however long it was counted.
    last = datetime.fromisoformat(facts.minutes[-1]["began"]).astimezone(facts.now.tzinfo)
    times = [(last - timedelta(minutes=ago)).strftime("%H:%M") for ago in (_HOUR - 1, _HOUR // 2, 0)]
    shown = tag("div", [tag("span", time) for time in times], class_="times", aria_hidden="true")
    figure = tag("figure", tag("div", scale, picture, shown, class_="plot"), tag("figcaption", said, class_="quiet"))
    return _section("Traffic in the last hour", tag("div", figure, class_="card"))


def _round(number: int) -> int:
    """The next of 2, 4, 10, 20, 40, 100 and so on: the top of a scale whose half is a whole number."""
    step = 1
    while True:
        for top in (2 * step, 4 * step, 10 * step):
            if number <= top:
                return top
        step *= 10


def _health(facts: Facts) -> Markup:
    # A sort keeps the order of equals.
    worst_first = sorted(facts.findings, key=lambda finding: bool(finding["severity"] != "error"))
    found = [_finding(finding) for finding in worst_first]
    checked = tag("p", f"Looked at, and fine: {', '.join(facts.checked)}.", class_="quiet") if facts.checked else None
    return _section("Health", found or tag("p", "Nothing was found to be wrong.", class_="card good"), checked)


def _finding(finding: Json) -> Markup:
    kind = _SEVERITIES.get(str(finding["severity"]), "wait")
    named = ", ".join(map(str, finding["mappings"]))
    return tag(
        "article",
        tag("span", str(finding["severity"]), class_=f"badge {kind}"),
        tag("h3", str(finding["what"])),
        tag("p", str(finding["why"])) if finding["why"] else None,
        tag("p", f"Concerns: {named}", class_="quiet") if named else None,
        tag("pre", tag("code", "\n".join(map(_line, finding["commands"])))) if finding["commands"] else None,
        class_="card finding",
    )


def _line(command: object) -> str:
    return columns.printable(command)


class _Cell(NamedTuple):
    """A column of a table: its title, its class, and what stands in it for an item."""

    title: str
    kind: str | None
    shows: Callable[[Json], Part | Iterable[Part]]


def _table(cells: Sequence[_Cell], items: Iterable[Json], caption: str) -> Markup:
    """A table, which on a phone is a list of cards; the roles keep it a table for who hears it."""
    head = [tag("th", cell.title, class_=cell.kind, scope="col", role="columnheader") for cell in cells]
    rows = (
        tag(
            "tr",
            (tag("td", cell.shows(item), class_=cell.kind, data_label=cell.title, role="cell") for cell in cells),
            role="row",
        )
        for item in items
    )
    inside = tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", tag("tr", head, role="row"), role="rowgroup"),
        tag("tbody", rows, role="rowgroup"),
        class_="cards",
        role="table",
    )
    return tag("div", inside, class_="scroll")


def _mappings(facts: Facts) -> Markup:
    if not facts.mappings:
        return _section("Mappings", tag("p", "Nothing is published.", class_="card quiet"))
    hours = _hours(facts.minutes)

    def hour(mapping: Json) -> Part:
        if values := hours.get(_identity(mapping)):
            return bars(values, max(values), _HOUR, class_="spark", role="img", aria_label=_in_words(values))
        return "-"

    cells = (
        _Cell("Mapping", "who", _who),
        _Cell("Listens on", "mono", printing.way),
        _Cell("Leads to", "mono", lambda m: _lines(m["targets"])),
        _Cell("State", None, _state),
        _Cell("Connections", "number", _connections),
        _Cell("Last hour", "whole", hour),
        _Cell("Age", "number", lambda m: printing.age(m.get("changed") or m.get("since"), facts.now)),
    )
    told = "Connections are counted as long as a mapping leads to the same target, across restarts of nfportd."
    ordered = sorted(facts.mappings, key=lambda m: (printing.state(m) == "in force", printing.by_port(m)))
    return _section("Mappings", _table(cells, ordered, "Mappings"), tag("p", told, class_="quiet"))


def _who(mapping: Json) -> Iterator[Part]:
    name, owner = mapping.get("name"), tag("bdi", mapping["owner"])
    yield tag("bdi", tag("strong", name)) if name else tag("span", "no name", class_="quiet")
    yield tag("span", owner, class_="reason")


def _connections(mapping: Json) -> Iterator[Part]:
    yield tag("strong", columns.count(mapping.get("connections")))
    if mapping.get("rate"):
        yield tag("span", f"{columns.rate(mapping['rate'])} a second", class_="reason")


def _lines(values: Iterable[str]) -> Markup:
    return joined([joined(Markup("<br>") if number else None, value) for number, value in enumerate(values)])


def _state(mapping: Json) -> Iterator[Part]:
    state = printing.state(mapping)
    yield tag("span", state, class_=f"state {_STATES.get(state, 'bad')}")
    for reason in printing.why_not(mapping):
        yield tag("span", reason, class_="reason")


def _identity(mapping: Json) -> tuple[str, str, str]:
    return str(mapping["owner"]), str(mapping["listen"]), ",".join(mapping["protocol"])


def _hours(minutes: Sequence[Json]) -> dict[tuple[str, str, str], list[int]]:
    """The connections of each mapping that had any, minute by minute."""
    hours: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0] * len(minutes))
    for number, minute in enumerate(minutes):
        for share in minute["busiest"]:
            hours[_identity(share)][number] += share["connections"]
    return hours


def _in_words(values: Sequence[int]) -> str:
    return f"{sum(values):,} connections, {max(values):,} in the busiest minute"


def _targets(facts: Facts) -> Markup:
    found: dict[str, list[Json]] = defaultdict(list)
    for mapping in facts.mappings:
        for address in {target.rpartition(":")[0].strip("[]") for target in mapping["targets"]}:
            found[address].append(mapping)
    if not found:
        return Markup()
    unreached = set(facts.status["unreached"])
    items = [{"address": address, "mappings": mappings} for address, mappings in sorted(found.items(), key=_by_use)]
    cells = (
        _Cell("Target", "mono", lambda t: t["address"]),
        _Cell("State", None, lambda t: _reached(t["address"] in unreached)),
        _Cell("Mappings", None, lambda t: tag("bdi", _named(t["mappings"]))),
    )
    return _section("Targets", _table(cells, items, "Targets"))


def _by_use(item: tuple[str, list[Json]]) -> tuple[int, str]:
    return -sum(mapping.get("connections") or 0 for mapping in item[1]), item[0]


def _reached(missing: bool) -> Markup:
    state, kind = ("no route", "wait") if missing else ("routed", "good")
    return tag("span", state, class_=f"state {kind}")


def _named(mappings: Sequence[Json]) -> str:
    names = [str(mapping.get("name") or printing.way(mapping)) for mapping in mappings]
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more:,} more" if more > 0 else "")


#: Mappings of one target that are named.
_NAMES = 12


def _events(facts: Facts) -> Markup:
    if not facts.events:
        return _section("Events", tag("p", "Nothing has happened since nfportd runs.", class_="card quiet"))
    cells = (
        _Cell("Time", "whole", lambda e: _when(e["time"], facts.now)),
        _Cell("What", "whole", lambda e: e["kind"]),
        _Cell("Owner", None, lambda e: tag("bdi", e["owner"])),
        _Cell("Key and target", "mono", lambda e: " to ".join(e[part] for part in ("key", "target") if e.get(part))),
        _Cell("Detail", None, lambda e: tag("bdi", e["detail"]) if e.get("detail") else None),
    )
    latest = list(reversed(facts.events))
    return _section("Events, the latest first", _table(cells, latest, "Events"))


def _when(time: str, now: datetime) -> Markup:
    local = datetime.fromisoformat(time).astimezone(now.tzinfo)
    return tag("time", local.strftime("%Y-%m-%d %H:%M:%S"), datetime=local.isoformat(timespec="seconds"))


def _footer(facts: Facts) -> Markup:
    told = (
        "A connection is counted in the kernel when its first packet is led to a target: a TCP connection, a UDP or "
        "SCTP flow. Of each minute the hundred busiest keys are kept, so beside very busy mappings one with little "
        "traffic may show none in the last hour."
    )
    return tag("footer", tag("p", told), tag("p", f"Written by nfportctl report, nfportd {facts.status['version']}."))

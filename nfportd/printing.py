"""The API's answers as people read them: tables, sentences, colours.

Must not ask the daemon nor know the command line. The one idea: an answer in, lines out; the terminal's escapes in
them are ours alone (who prints takes them out where there is no terminal), text of others is made printable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping as AbstractMapping
from datetime import UTC, datetime

from nfportd.client import Json, Problem

_COLOURS = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}
_STATES = {"active": "green", "conflict": "yellow", "refused": "red", "port-in-use": "red"}
_KINDS = {"added": "green", "removed": "yellow", "conflict": "yellow", "refused": "red", "lost": "red"}
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))


def coloured(text: str, colour: str | None) -> str:
    """Text between escapes for a terminal."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour else text


def printable(value: object) -> str:
    """What others wrote, without anything that a terminal would obey (a process may call itself what it likes)."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def age(since: str | None, now: datetime) -> str:
    """How long ago a time of the API was, in its largest unit: `3h`."""
    if not since:
        return "-"
    seconds = int((now - datetime.fromisoformat(since)).total_seconds())
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"


def table(
    header: tuple[str, ...], rows: Iterable[tuple[str, ...]], colours: AbstractMapping[str, str]
) -> Iterator[str]:
    """Rows under a header, in columns; cells that are named in `colours` are coloured."""
    cells = [header, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = row[-1]
        shown = (coloured(text, "bold" if not number else colours.get(text.strip())) for text in padded)
        yield "  ".join(shown).rstrip()


def mappings(found: Iterable[Json], now: datetime) -> Iterator[str]:
    """The table of mappings, and below it why some are not in force."""
    found = sorted(found, key=_by_port)
    header = ("LISTEN", "PROTOCOL", "TARGET", "OWNER", "NAME", "STATE", "[::1]", "CONNECTIONS", "AGE")
    yield from table(header, (_row(each, now) for each in found), _STATES)
    for each in found:
        yield from not_in_force(each)


def _by_port(mapping: Json) -> tuple[int, str, str]:
    listen = str(mapping["listen"])
    port = listen.rpartition(":")[2].partition("-")[0]
    return int(port) if port.isdecimal() else 0, listen, str(mapping["protocol"])


def _row(mapping: Json, now: datetime) -> tuple[str, ...]:
    connections = mapping.get("connections")
    return (
        str(mapping["listen"]),
        _listed(mapping["protocol"]),
        _listed(mapping["targets"]),
        str(mapping.get("owner", "-")),
        str(mapping.get("name") or "-"),
        str(mapping["state"]),
        str(mapping.get("loopback6", "-")),
        "-" if connections is None else str(connections),
        age(mapping.get("since"), now),
    )


def _listed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def titled(mapping: Json) -> str:
    """A mapping in a sentence."""
    name = f'"{mapping["name"]}" ' if mapping.get("name") else ""
    way = f"{mapping['listen']}/{_listed(mapping['protocol'])} to {_listed(mapping['targets'])}"
    return printable(f"{name}{way}")


def not_in_force(mapping: Json) -> Iterator[str]:
    """Why a mapping is not in force, or not wholly; nothing where it is."""
    state = mapping.get("state", "active")
    if state == "active":
        return
    owner = f" ({mapping['owner']})" if mapping.get("owner") else ""
    title = f"{titled(mapping)}{printable(owner)}"
    conflicts: list[Json] = mapping.get("conflicts") or []
    if not conflicts:
        yield coloured(f"{state}: {title}: {printable(mapping.get('reason') or 'no reason given')}", _STATES.get(state))
    for each in conflicts:
        holder = f"{each['key']} is held by {each['owner']} since {each['since']}"
        yield coloured(f"{state}: {title}: {printable(holder)}", _STATES.get(state))


def owner(found: Json, now: datetime) -> Iterator[str]:
    """One owner and its mappings."""
    yield f"{coloured(printable(found['owner']), 'bold')} ({found['source']}), for {age(found['since'], now)}"
    if found["source"] == "api":
        yield f"  kept {'across reboots' if found.get('persistent') else 'until the next reboot'}"
    for name, text in (
        ("expires_at", "until"),
        ("netns", "as long as network namespace"),
        ("pid", "as long as process"),
    ):
        if found.get(name):
            yield f"  kept {text} {printable(found[name])}"
    yield ""
    yield from mappings(found["mappings"], now)


def owners(found: Iterable[Json], now: datetime) -> Iterator[str]:
    """The table of owners."""
    rows = (
        (
            str(each["owner"]),
            str(each["source"]),
            str(each["mappings"]),
            "yes" if each.get("persistent") else "no",
            str(each.get("expires_at") or "-"),
            age(each["since"], now),
        )
        for each in found
    )
    return table(("OWNER", "SOURCE", "MAPPINGS", "PERSISTENT", "EXPIRES", "AGE"), rows, {})


def status(found: Json, now: datetime) -> Iterator[str]:
    """What the daemon is, holds and misses."""
    yield f"nfportd {found['version']}, pid {found['pid']}, for {age(found['since'], now)}"
    yield f"{found['mappings']} mappings of {found['owners']} owners"
    elements = ", ".join(f"{name} {count}" for name, count in found["elements"].items() if count)
    yield f"elements: {elements or 'none'}"
    count, last = found["repairs"]["count"], found["repairs"]["last"]
    yield f"repairs: {count}, the last: {printable(last)}" if count else "repairs: none"
    yield "features: " + ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in found["features"].items())
    yield from troubles(found)


def troubles(found: Json) -> Iterator[str]:
    """What in a status keeps something from being in force, and what the host lacks."""
    if found["table"] != "intact":
        yield coloured(f"table inet nfportd is {found['table']} and is about to be repaired", "red")
    if found["repairs"]["fight"]:
        text = f"another program undoes again and again what nfportd repairs: {printable(found['repairs']['last'])}"
        yield coloured(text, "red")
    for each in (*found["conflicts"], *found["refused"]):
        yield from not_in_force(each)
    for errors in found["files"].values():
        yield from (coloured(printable(error), "red") for error in errors)
    for address in found["unreached"]:
        yield coloured(f"no route leads to target {printable(address)}; connections to it fail", "yellow")
    for each in found["forwarding"]:
        yield from _stopped(each)
    for sysctl in found["sysctls"]:
        yield f"sysctl: {printable(sysctl)}"


def _stopped(found: Json) -> Iterator[str]:
    targets = ", ".join(found["targets"][:3]) + (" and others" if len(found["targets"]) > 3 else "")
    verb = "stops" if found["certain"] else "may stop"
    text = f"chain {found['chain']} ({found['firewall']}) {verb} what is forwarded to {targets}"
    yield coloured(printable(text), "red" if found["certain"] else "yellow")
    yield from (f"  {printable(place)}" for place in found["why"][:3])
    yield from (f"  run: {printable(command)}" for command in found["commands"])


def event(found: Json) -> str:
    """One event as a line: local time, kind, owner, what."""
    when = datetime.fromisoformat(found["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    key, target = found.get("key"), found.get("target")
    what = f"{key} to {target}" if key and target else key or target or ""
    told = "  ".join(printable(text) for text in (found["owner"], what, found.get("detail")) if text)
    return f"{when}  {coloured(found['kind'].ljust(8), _KINDS.get(found['kind']))}  {told}"


def problem(said: Problem) -> Iterator[str]:
    """What the daemon refused, with all that helps to put it right; nothing twice."""
    kind = said.name.replace("-", " ") or "refused"
    yield printable(f"{kind}: {said.title if said.errors else said.detail}")
    for each in said.errors:
        pointer = str(each.get("pointer", "")).lstrip("/").replace("/", ".")
        yield printable(f"  {pointer}: {each['detail']}" if pointer else f"  {each['detail']}")
    if said.holder:
        yield printable(f"  {_held(said.holder)}")
    if said.process and str(said.process.get("pid")) not in said.detail:
        yield printable(f"  {said.process.get('name') or 'a process'} (pid {said.process.get('pid')}) listens there")
    if said.rule and str(said.rule) not in said.detail:
        yield printable(f"  the access list lacks: {said.rule}")


def _held(holder: Json) -> str:
    since = f" for {age(holder['since'], datetime.now(UTC))}" if holder.get("since") else ""
    owner = holder["owner"]
    return f"{owner} ({holder.get('source', '?')}) has had it{since}; nfportctl show {owner} tells more"

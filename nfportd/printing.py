"""The API's answers as people read them: tables, sentences, colours.

Must not ask the daemon nor know the command line. The one idea: an answer in, lines out; the terminal's escapes in
them are ours alone (who prints takes them out where there is no terminal), text of others is made printable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from nfportd import columns
from nfportd.client import Json, Problem
from nfportd.columns import Column, chart, coloured, count, printable

#: The API's states in words; the colour of each word.
_WORDS = {
    "active": "in force",
    "conflict": "waiting: conflict",
    "port-in-use": "waiting: port in use",
    "refused": "refused",
    "drift": "changed by others",
}
_NO_ROUTE = "waiting: no route"
_STATES = {
    "in force": "green",
    "waiting: conflict": "yellow",
    "waiting: port in use": "red",
    _NO_ROUTE: "yellow",
    "refused": "red",
    "changed by others": "red",
}
_KINDS = {"added": "green", "removed": "yellow", "conflict": "yellow", "refused": "red", "lost": "red"}
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))
_MAPPINGS = (
    Column("LISTEN"),
    Column("TARGET", least=14),
    Column("NAME", least=8, leaves=4),
    Column("OWNER", least=10, leaves=2),
    Column("STATE"),
    Column("[::1]", leaves=1),
    Column("CONNS", number=True),
    Column("/S", number=True),
    Column("AGE", number=True, leaves=3),
)


def age(since: str | None, now: datetime) -> str:
    """How long ago a time of the API was, in its largest unit: `3h`."""
    if not since:
        return "-"
    seconds = int((now - datetime.fromisoformat(since)).total_seconds())
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"


def state(mapping: Json) -> str:
    """Whether a mapping is in force, in words."""
    found = str(mapping.get("state", "active"))
    if found == "active" and mapping.get("unreached"):
        return _NO_ROUTE
    return _WORDS.get(found, found)


def mappings(found: Iterable[Json], now: datetime, width: int | None = None) -> Iterator[str]:
    """The table of mappings, and below it why some are not in force. `width`: of the terminal, if it is one."""
    found = sorted(found, key=by_port)
    yield from columns.table(_MAPPINGS, (_row(each, now) for each in found), _STATES, width)
    reasons = [line for each in found for line in not_in_force(each)]
    yield from ["", *reasons] if reasons else []


def busiest(found: Iterable[Json], now: datetime, width: int | None = None) -> Iterator[str]:
    """The table of mappings by connections a second."""
    found = sorted(found, key=lambda each: (-(each.get("rate") or 0), -(each.get("connections") or 0), by_port(each)))
    return columns.table(_MAPPINGS, (_row(each, now) for each in found), _STATES, width)


def by_port(mapping: Json) -> tuple[int, str, str]:
    """By this mappings are in order."""
    listen = str(mapping["listen"])
    port = listen.rpartition(":")[2].partition("-")[0]
    return int(port) if port.isdecimal() else 0, listen, str(mapping["protocol"])


def _row(mapping: Json, now: datetime) -> tuple[str, ...]:
    return (
        way(mapping),
        " ".join(mapping["targets"]),
        str(mapping.get("name") or "-"),
        str(mapping.get("owner", "-")),
        state(mapping),
        str(mapping.get("loopback6", "-")),
        count(mapping.get("connections")),
        columns.rate(mapping.get("rate")),
        age(mapping.get("changed") or mapping.get("since"), now),
    )


def way(mapping: Json) -> str:
    """What a mapping listens on: `8080/tcp`."""
    return f"{mapping['listen']}/{_listed(mapping['protocol'])}"


def _listed(value: object) -> str:
    if value is True:
        return "yes"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def titled(mapping: Json) -> str:
    """A mapping in a sentence."""
    name = f'"{mapping["name"]}" ' if mapping.get("name") else ""
    return printable(f"{name}{way(mapping)} to {_listed(mapping['targets'])}")


def not_in_force(mapping: Json) -> Iterator[str]:
    """Why a mapping is not in force, or not wholly; nothing where it is."""
    found = state(mapping)
    owner = f" ({mapping['owner']})" if mapping.get("owner") else ""
    for reason in why_not(mapping):
        yield coloured(f"{found}: {titled(mapping)}{printable(owner)}: {reason}", _STATES.get(found))


def why_not(mapping: Json) -> Iterator[str]:
    """Why a mapping is not in force, without its name."""
    conflicts: list[Json] = mapping.get("conflicts") or []
    for each in conflicts:
        yield printable(f"{each['key']} is held by {each['owner']} since {_local(each['since'])}")
    if mapping.get("state", "active") != "active" and not conflicts:
        yield printable(mapping.get("reason") or "no reason given")
    for address in mapping.get("unreached") or ():
        yield printable(f"no route leads to {address}")


def details(mapping: Json, minutes: Sequence[Json], now: datetime) -> Iterator[str]:
    """All that is known of one mapping."""
    found = state(mapping)
    yield coloured(printable(mapping.get("name") or way(mapping)), "bold")
    since = mapping.get("changed") or mapping["since"]
    lines = [
        ("state", coloured(found, _STATES.get(found))),
        *(("", reason) for reason in why_not(mapping)),
        ("listens on", printable(way(mapping)) + _where(str(mapping["listen"]))),
        *((("on [::1]", _LOOPBACK[mapping["loopback6"]]),) if mapping.get("loopback6") in _LOOPBACK else ()),
        ("leads to", printable(" ".join(mapping["targets"]))),
        ("owner", printable(f"{mapping['owner']}, for {age(mapping['since'], now)}")),
        ("as it is", f"for {age(since, now)} ({_local(since)})"),
        (
            "connections",
            f"{count(mapping.get('connections'))} to this target, {columns.rate(mapping.get('rate'))} a second",
        ),
        *(("last hour", each) for each in _hour(_of(mapping, minutes))),
        *((key.replace("_", " "), printable(_listed(mapping[key]))) for key in _OPTIONS if _unusual(mapping, key)),
    ]
    for title, text in lines:
        yield f"  {title.ljust(13)}{text}".rstrip()


#: By which way connections of this host to [::1] get there.
_LOOPBACK = {"kernel": "by the kernel", "relay": "by the relay", "no": "not served"}


def _where(listen: str) -> str:
    return "" if ":" in listen else ", on every address of this host"


#: Keys that are shown where they are not as usual.
_USUAL = {"masquerade": "auto", "on_change": "keep"}
_OPTIONS = ("masquerade", "on_change", "sources", "shadow_listener", "reserve", "isolate", "comment")


def _unusual(mapping: Json, key: str) -> bool:
    return bool(mapping.get(key)) and mapping[key] != _USUAL.get(key)


def _of(mapping: Json, minutes: Sequence[Json]) -> list[int]:
    """A mapping's connections in each minute."""
    who = [mapping[key] for key in ("owner", "listen", "protocol")]
    return [
        sum(
            each["connections"]
            for each in minute["busiest"]
            if [each[k] for k in ("owner", "listen", "protocol")] == who
        )
        for minute in minutes
    ]


def _hour(connections: Sequence[int]) -> Iterator[str]:
    if connections:
        most = max(connections)
        yield f"{chart(connections)}  {sum(connections):,}, at most {most:,} a minute"


def _local(time: str) -> str:
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def owner(found: Json, now: datetime, width: int | None = None) -> Iterator[str]:
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
    yield from mappings(found["mappings"], now, width)


_OWNERS = tuple(map(Column, ("OWNER", "SOURCE", "MAPPINGS", "PERSISTENT", "EXPIRES", "AGE")))


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
    return columns.table(_OWNERS, rows, {})


def status(found: Json, now: datetime) -> Iterator[str]:
    """What the daemon is, holds and misses."""
    yield coloured(f"nfportd {found['version']}, pid {found['pid']}, for {age(found['since'], now)}", "bold")
    owned = "no other program can change it" if found["features"]["owner_persist"] else "changes by others are undone"
    repairs, elements = found["repairs"], found["elements"].items()
    times = "once" if repairs["count"] == 1 else f"{repairs['count']:,} times"
    lines = {
        "table": f"{found['table']}; {owned}",
        "mappings": f"{found['mappings']:,} of {_counted(found['owners'], 'owner')}; {_standing(found)}",
        "elements": ", ".join(f"{name} {number:,}" for name, number in elements if number) or "none",
        "connections": _recent(found.get("connections") or {}),
        "repairs": f"{times}, the last: {printable(repairs['last'])}" if repairs["count"] else "none",
        "parameters": f"{', '.join(map(printable, found['sysctls']))}; taken back at a stop"
        if found["sysctls"]
        else "",
    }
    yield from (f"  {title.ljust(13)}{text}" for title, text in lines.items() if text)
    told = list(troubles(found))
    yield from ["", *told] if told else []


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _standing(found: Json) -> str:
    """How many mappings are not in force, by why."""
    kinds = {"conflicts": "waiting: conflict", "port_in_use": "waiting: port in use", "refused": "refused"}
    told = [f"{len(found[kind])} {text}" for kind, text in kinds.items() if found.get(kind)]
    return ", ".join(told) or "all in force"


def _recent(found: Json) -> str:
    if found.get("rate") is None:
        return "not counted yet"
    return f"{columns.rate(found['rate'])} a second, {found['last_hour']:,} in the last hour"


def troubles(found: Json) -> Iterator[str]:
    """What in a status keeps something from being in force."""
    if found["table"] != "intact":
        yield coloured(f"table inet nfportd is {found['table']} and is about to be repaired", "red")
    if found["repairs"]["fight"]:
        text = f"another program undoes again and again what nfportd repairs: {printable(found['repairs']['last'])}"
        yield coloured(text, "red")
    for each in (*found["conflicts"], *found.get("port_in_use", ()), *found["refused"]):
        yield from not_in_force(each)
    for errors in found["files"].values():
        yield from (coloured(printable(error), "red") for error in errors)
    for address in found["unreached"]:
        yield coloured(f"no route leads to target {printable(address)}; connections to it fail", "yellow")
    for each in found["forwarding"]:
        yield from _stopped(each)


def _stopped(found: Json) -> Iterator[str]:
    targets = ", ".join(found["targets"][:3]) + (" and others" if len(found["targets"]) > 3 else "")
    verb = "stops" if found["certain"] else "may stop"
    text = f"chain {found['chain']} ({found['firewall']}) {verb} what is forwarded to {targets}"
    yield coloured(printable(text), "red" if found["certain"] else "yellow")
    yield from (f"  {printable(place)}" for place in found["why"][:3])
    yield from (f"  run: {printable(command)}" for command in found["commands"])


def event(found: Json) -> str:
    """One event as a line: local time, kind, owner, what."""
    when = _local(found["time"])
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

"""The API's resources: each a few lines from a request to a wish or a view.

Must not know nft, files or access rules' contents. The one idea: writing is a wish that the reconciler fulfils or
refuses; reading never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping as AbstractMapping
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from nfportd.access import Access, Caller
from nfportd.api.bodies import (
    Changed,
    CheckBody,
    GcBody,
    Mappings,
    MappingState,
    Minutes,
    Owner,
    OwnerBody,
    OwnerName,
    Owners,
    TransactionBody,
    adapter,
    read,
)
from nfportd.api.door import Connection
from nfportd.api.problems import problem
from nfportd.api.server import CALLER, LIMITS, Refused, body
from nfportd.api.views import Views, Wanted
from nfportd.counts import Counts
from nfportd.events import Events
from nfportd.limits import Kind
from nfportd.messages import Message, about
from nfportd.metrics import CONTENT_TYPE
from nfportd.model import Mapping
from nfportd.notation import describe
from nfportd.reconciler import Reconciler
from nfportd.wishes import Content, Outcome, PreconditionFailed, Wish

_log = logging.getLogger(__name__)

#: Where /v1/status lists mappings that are not in force, by their state.
_LISTS = {"conflict": "conflicts", "refused": "refused", "port-in-use": "port_in_use", "active": "active"}

#: What is asked for by number is read by people.
_MOST_BUSIEST, _MOST_EVENTS = 1_000, 1_000

#: Seconds for which one event waits for a slow reader, before the connection ends.
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Services:
    """What the resources use. The callables are the daemon's own acts."""

    reconciler: Reconciler
    views: Views
    access: Access
    events: Events
    traffic: Counts
    status: Callable[[], Awaitable[dict[str, Any]]]
    drift: Callable[[str], Awaitable[AbstractMapping[Mapping, str]]]
    reload: Callable[[], Awaitable[list[str]]]
    follow: Callable[[str, Content], None]
    incarnation: Callable[[Content], str]
    metrics: Callable[[], Awaitable[bytes]]
    openapi: Callable[[], bytes]


def json(of: Any, value: Any, **headers: str) -> web.Response:
    """An answer of a type."""
    written = adapter(of).dump_json(value)
    return web.Response(body=written, content_type="application/json", headers=headers)


_Resource = Callable[["Routes", web.Request], Awaitable[web.Response]]


def _in_turn(resource: _Resource) -> _Resource:
    """An answer that costs as much as there are mappings."""

    @functools.wraps(resource)
    async def in_turn(self: Routes, request: web.Request) -> web.Response:
        async with request.app[LIMITS].turn(request[CALLER].uid):
            return await resource(self, request)

    return in_turn


class Routes:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._at = services

    def table(self) -> list[web.RouteDef]:
        """Every resource and its methods."""
        return [
            web.get("/v1/owners", self.owners),
            web.get("/v1/owners/{owner:.+}", self.owner),
            web.put("/v1/owners/{owner:.+}", self.put),
            web.delete("/v1/owners/{owner:.+}", self.delete),
            web.get("/v1/mappings", self.mappings),
            web.get("/v1/traffic", self.traffic),
            web.post("/v1/transactions", self.transact),
            web.post("/v1/check", self.check),
            web.post("/v1/gc", self.gc),
            web.post("/v1/reload", self.reload),
            web.get("/v1/status", self.status),
            web.get("/v1/events", self.events),
            web.get("/metrics", self.metrics),
            web.get("/openapi.json", self.openapi),
        ]

    @_in_turn
    async def owners(self, request: web.Request) -> web.Response:
        """List the owners."""
        found = self._at.views.owners(_query(request, "prefix").get("prefix", ""))
        return json(Owners, Owners(owners=list(found)))

    async def owner(self, request: web.Request) -> web.Response:
        """Show an owner and its mappings; if asked to verify, what the kernel has of them."""
        owner = request.match_info["owner"]
        drift = await self._at.drift(owner) if _flag(_query(request, "verify"), "verify") else {}
        found = self._at.views.owner(owner, drift)
        if found is None:
            return _unknown(request)
        return json(Owner, found, ETag=f'"{found.etag}"')

    async def put(self, request: web.Request) -> web.Response:
        """Replace an owner's mappings, all or none."""
        owner = _name(request)
        wished: OwnerBody = read(OwnerBody, await body(request))
        return await self._change(request, {owner: wished.content(time.time())}, _matches(request, owner))

    async def delete(self, request: web.Request) -> web.Response:
        """Take an owner's mappings away."""
        owner = _name(request, recovered=True)
        if owner not in self._at.reconciler.register.held:
            return _unknown(request)
        return await self._change(request, {owner: None}, _matches(request, owner))

    async def transact(self, request: web.Request) -> web.Response:
        """Change several owners at once, all or none."""
        wished: TransactionBody = read(TransactionBody, await body(request))
        now = time.time()
        contents = {owner: each.content(now) if each else None for owner, each in wished.owners.items()}
        return await self._change(request, contents, {})

    async def check(self, request: web.Request) -> web.Response:
        """Say what would happen."""
        wished: CheckBody = read(CheckBody, await body(request))
        content = Content(mappings=dict.fromkeys(wished.mappings, 0))
        return await self._change(request, {wished.owner: content}, {}, dry_run=True)

    async def _change(
        self,
        request: web.Request,
        contents: AbstractMapping[str, Content | None],
        matches: AbstractMapping[str, frozenset[str]],
        *,
        dry_run: bool = False,
    ) -> web.Response:
        dry_run = dry_run or _flag(_query(request, "dry_run"), "dry_run")
        contents = {owner: content and self._bound(content) for owner, content in contents.items()}
        for owner, content in contents.items():
            # What the owner has now is taken away or changed, so it must be the caller's to take.
            wanted = {*self._held(owner), *(content.mappings if content else ())}
            self._at.access.write(request[CALLER], owner, wanted)
        matches = self._pinned(request[CALLER], contents, matches)
        wish = Wish(owners=contents, promised=True, dry_run=dry_run, matches=matches)
        outcome = await self._at.reconciler.fulfil(wish)
        changed = Changed(
            added=outcome.added,
            removed=outcome.removed,
            owners={owner: self._at.views.of(owner, held) if held else None for owner, held in outcome.held.items()},
            dry_run=dry_run,
        )
        if not dry_run:
            _tell(request[CALLER], contents, outcome)
            for owner, content in contents.items():
                self._at.follow(owner, content or Content(mappings={}))
        first = next(iter(changed.owners.values()))
        return json(Changed, changed, **({"ETag": f'"{first.etag}"'} if first and len(contents) == 1 else {}))

    def _bound(self, content: Content) -> Content:
        """The content bound to its process or namespace, which is refused if it has gone or never was one."""
        try:
            return replace(content, bound_to=self._at.incarnation(content))
        except (ValueError, OSError) as error:
            raise Refused(problem("invalid", f"{error}; the mappings would go at once")) from None

    def _pinned(
        self, caller: Caller, owners: Iterable[str], matches: AbstractMapping[str, frozenset[str]]
    ) -> AbstractMapping[str, frozenset[str]]:
        """The tags to match; for a caller of the access list also those that its rights were just held against."""
        if self._at.access.trusts(caller):
            return matches
        pinned = {}
        for owner in owners:
            held = self._at.reconciler.register.held.get(owner)
            etag = held.content.etag if held else ""
            wanted = matches.get(owner, frozenset([etag]))
            if etag not in wanted and not ("*" in wanted and etag):
                raise PreconditionFailed(owner, etag or None)
            pinned[owner] = frozenset([etag])
        return pinned

    def _held(self, owner: str) -> Any:
        held = self._at.reconciler.register.held.get(owner)
        return held.content.mappings if held else ()

    async def gc(self, request: web.Request) -> web.Response:
        """Take away the owners under a prefix that are not valid any more."""
        wished: GcBody = read(GcBody, await body(request))
        valid = set(wished.valid)
        gone = [o.owner for o in self._at.views.owners(wished.prefix) if o.owner not in valid and o.source == "api"]
        for owner in gone:
            self._at.access.write(request[CALLER], owner, self._held(owner))
        if gone:
            matches = self._pinned(request[CALLER], gone, {})
            outcome = await self._at.reconciler.fulfil(Wish(owners=dict.fromkeys(gone), promised=True, matches=matches))
            _tell(request[CALLER], gone, outcome)
            for owner in gone:
                self._at.follow(owner, Content(mappings={}))
        return web.json_response({"removed": gone})

    @_in_turn
    async def mappings(self, request: web.Request) -> web.Response:
        """List mappings."""
        query = _query(request, "owner", "name", "port", "protocol", "counters", "busiest")
        port = _number(query, "port", 65535, "a port")
        busiest = _number(query, "busiest", _MOST_BUSIEST, "a number of mappings")
        if busiest and len(query) - ("counters" in query) > 1:
            return problem("invalid", "busiest looks at all mappings, and goes with counters only")
        wanted = Wanted(query.get("owner"), query.get("name"), port, query.get("protocol"))
        if not (busiest or _flag(query, "counters")):
            return json(Mappings, Mappings(mappings=list(self._at.views.mappings(wanted))))
        traffic, views = await self._at.traffic.now(), self._at.views
        found = views.busiest(busiest, traffic) if busiest else views.mappings(wanted, traffic)
        seconds = traffic.seconds and round(traffic.seconds, 3)
        return json(
            Mappings, Mappings(mappings=list(found), total=views.count(), rate=traffic.rate, rate_seconds=seconds)
        )

    @_in_turn
    async def traffic(self, request: web.Request) -> web.Response:
        """The connections of the last hour, minute by minute."""
        _query(request)
        return json(Minutes, Minutes(minutes=list(self._at.views.minutes(self._at.traffic.traffic))))

    async def reload(self, request: web.Request) -> web.Response:
        """Read all drop-ins again."""
        self._at.access.manage(request[CALLER])
        return web.json_response({"errors": await self._at.reload()})

    @_in_turn
    async def status(self, _request: web.Request) -> web.Response:
        """The daemon's state."""
        found = await self._at.status()
        for kind in ("conflict", "refused", "port-in-use"):
            found[_LISTS[kind]] = []
        for mapping in self._at.views.in_trouble():
            found[_LISTS[mapping.state]].append(adapter(MappingState).dump_python(mapping))
        return web.json_response(found)

    @_in_turn
    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus' exposition."""
        written = await self._at.metrics()
        return web.Response(body=written, headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _request: web.Request) -> web.Response:
        """This API."""
        return web.Response(body=self._at.openapi(), content_type="application/json")

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Follow what happens, a line of JSON each; or say what happened last."""
        query = _query(request, "since", "last")
        since = query.get("since", "")
        if since and not (since.isascii() and since.isdecimal() and len(since) <= 19):
            return problem("invalid", f"since={since[:20]} is not a sequence number")
        if last := _number(query, "last", _MOST_EVENTS, "a number of events"):
            if since:
                return problem("invalid", "last ends with what is known now, since goes on; ask for one of them")
            lines = [f"{event.json()}\n" for event in self._at.events.since(0).events[-last:]]
            return web.Response(text="".join(lines), content_type="application/x-ndjson")
        with request.app[LIMITS].taken(Kind.FOLLOWERS, request[CALLER].uid):
            return await self._follow(request, int(since) if since else None)

    async def _follow(self, request: web.Request, since: int | None) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.end_with_me()
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async for event in self._at.events.follow(since):
                async with asyncio.timeout(_PATIENCE):
                    await response.write(event.json().encode() + b"\n")
        return response


def _tell(caller: Caller, owners: Collection[str], outcome: Outcome) -> None:
    """A line in the log for a request that has changed something, however many owners it names."""
    if outcome.added or outcome.removed:
        owner = next(iter(owners)) if len(owners) == 1 else ""
        what, told = owner or f"{len(owners)} owners", about(Message.APPLIED, owner)
        text = "%s: +%d -%d mappings by uid %d (pid %d)"
        _log.info(text, what, outcome.added, outcome.removed, caller.uid, caller.pid, extra=told)


def _query(request: web.Request, *known: str) -> dict[str, str]:
    """The query. An unknown parameter is refused: a mistyped dry_run must not act."""
    unknown = sorted(set(request.query) - set(known))
    if unknown:
        right = f"known parameters are {', '.join(known)}"
        raise Refused(problem("invalid", f"unknown parameter {describe(unknown[0])}; {right}"))
    return {name: request.query[name] for name in request.query}


def _flag(query: AbstractMapping[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in ("true", "false", "1", "0"):
        raise Refused(problem("invalid", f"{name}={value[:20]!r} is neither true nor false"))
    return value in ("true", "1")


def _number(query: AbstractMapping[str, str], name: str, most: int, what: str) -> int | None:
    """A parameter that counts from 1, if it is there."""
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and 0 < int(text) <= most):
        raise Refused(problem("invalid", f"{name}={text[:20]} is not {what}; it is 1 to {most}"))
    return int(text)


def _name(request: web.Request, *, recovered: bool = False) -> str:
    owner = request.match_info["owner"]
    if recovered and owner == "recovered:store":
        return owner
    try:
        return str(adapter(OwnerName).validate_python(owner))
    except ValidationError:
        right = "up to 255 of letters, digits and ._:/@+- and does not begin with file:"
        raise Refused(problem("invalid", f"{owner[:80]!r} names no owner of the API; a name is {right}")) from None


def _matches(request: web.Request, owner: str) -> dict[str, frozenset[str]]:
    """RFC 9110, 13.1.1 and 13.1.2."""
    if (wanted := request.headers.get("If-Match")) is not None:
        tags = (tag.strip() for tag in wanted.split(","))
        # A quoted star is a tag, which no owner has.
        return {owner: frozenset("*" if tag == "*" else tag.strip('"').replace("*", "-") or "-" for tag in tags)}
    return {owner: frozenset([""])} if request.headers.get("If-None-Match", "").strip() == "*" else {}


def _unknown(request: web.Request) -> web.Response:
    return problem("not-found", f"{request.match_info['owner'][:255]} has no mappings")

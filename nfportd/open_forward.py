"""Asks firewalld to let mappings through where it runs with StrictForwardPorts=yes, by its D-Bus interface.

Must not judge rules: findings say whether firewalld stops something. The one idea: what we asked for is recognized in
firewalld itself, so nothing is remembered, and a reload, a crash or a restart of either side needs no care of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from nfportd.firewalls import RICH_RULES, Connection, Finding, Firewall, rich_rule

_log = logging.getLogger(__name__)

_NAME, _PATH = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
#: Errors that say that no firewalld runs, so that there is nothing to open.
_ABSENT = {"org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.ServiceUnknown"}
_DENIED = "org.fedoraproject.FirewallD1.NotAuthorizedException"
#: Seconds for all that is asked at once; firewalld answers nothing while it reloads.
_PATIENCE = 20.0
#: So many are asked for: firewalld takes 25 ms for each, also at a stop.
_MOST = 300


class OpenForward:
    """Our rules in firewalld's default zone, as they are at run time."""

    def __init__(self) -> None:
        # None: not known.
        self._open: set[str] | None = None
        self._trouble = ""

    async def follow(self, mapped: Iterator[Connection], found: Iterable[Finding]) -> bool:
        """Where firewalld stops some, open what is mapped, and close what no longer is. False: to be tried again."""
        rules = {rich_rule(connection) for connection in islice(mapped, _MOST)}
        stops = any(each.firewall is Firewall.FIREWALLD and each.certain for each in found)
        if stops or self._open is None or (self._open and self._open != rules):
            if stops and next(mapped, None):
                _log.warning("firewalld is asked for the first %d mappings only", _MOST)
            await self._set(rules, stops)
        return not self._trouble

    async def close(self) -> None:
        """Take all of ours back."""
        await self._set(set(), stops=False)

    async def _set(self, rules: set[str], stops: bool) -> None:
        self._open, trouble = None, ""
        try:
            async with asyncio.timeout(_PATIENCE):
                self._open = await _change(rules, stops)
        except Exception as error:  # what a bus or firewalld answers must not end a daemon that forwards
            if not stops and (isinstance(error, FileNotFoundError) or getattr(error, "name", "") in _ABSENT):
                self._open = set()  # no bus, or nobody on it: there is nothing of ours
            else:
                trouble = _said(error)
        if trouble and trouble != self._trouble:
            _log.warning("firewalld cannot be asked to let mappings through (open_forward): %s", trouble)
        self._trouble = trouble


async def _change(rules: set[str], stops: bool) -> set[str]:
    """Where firewalld stops something or has rules of ours, see that it has these; return which of ours it has then."""
    from jeepney import DBusErrorResponse  # noqa: PLC0415 not loaded where the setting is off
    from jeepney.io.asyncio import open_dbus_router  # noqa: PLC0415

    async with open_dbus_router("SYSTEM") as router:
        (listed,) = await _call(router, "getRichRules", "s", "")
        present = {rule for rule in listed if rule.startswith(tuple(RICH_RULES.values()))}
        wanted = rules if stops or present else set()
        refusals = []
        for rule in sorted(wanted ^ present):
            method, signature, more = ("removeRichRule", "ss", ()) if rule in present else ("addRichRule", "ssi", (0,))
            try:
                await _call(router, method, signature, "", rule, *more)
            except DBusErrorResponse as error:
                refusals.append(error)  # the others may be taken all the same
        if refusals:
            raise refusals[0]
    if wanted != present:
        _log.info("firewalld lets mappings through: +%d -%d rules", len(wanted - present), len(present - wanted))
    return wanted


async def _call(router: Any, method: str, signature: str, *arguments: object) -> Any:
    """Call a method of firewalld's zones; an empty name is the default zone. Raises DBusErrorResponse."""
    from jeepney import DBusAddress, MessageFlag, new_method_call  # noqa: PLC0415
    from jeepney.wrappers import unwrap_msg  # noqa: PLC0415

    call = new_method_call(DBusAddress(_PATH, _NAME, f"{_NAME}.zone"), method, signature, arguments)
    # A firewalld that does not run is not to be started by us.
    call.header.flags |= MessageFlag.no_auto_start
    return unwrap_msg(await router.send_and_get_reply(call))


def _said(error: Exception) -> str:
    """What went wrong and, where an admin can mend it, how. Of a DBusErrorResponse the text is in its data."""
    text = str((getattr(error, "data", None) or (error,))[0]) or type(error).__name__
    return f"{text}; the polkit rule in docs/firewalls.md allows it" if getattr(error, "name", "") == _DENIED else text

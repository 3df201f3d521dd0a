"""Who may do what over the API: rules from the settings, and what they say of a caller.

Must not know sockets or HTTP. The one idea: a rule grants, nothing forbids; a caller may do what one single rule
grants as a whole, and a refusal names the part of the nearest rule that was missing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.dataclasses import dataclass as validated

from nfportd.errors import NfportdError
from nfportd.model import Mapping, Protocol
from nfportd.notation import Ports, describe, parse_ports, parse_source


class Denied(NfportdError):
    """The caller may not do this; `rule` is what was missing."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        super().__init__(rule)


class Caller(NamedTuple):
    """The process at the other end of the socket, as the kernel knows it (SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    gids: frozenset[int]

    def __str__(self) -> str:
        return f"uid {self.uid}, gids {', '.join(map(str, sorted(self.gids)))} (pid {self.pid})"


def _ports(value: object) -> Ports:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"found {describe(value)}; write 8000-8999")
    return parse_ports(value)


_PortsField = Annotated[Ports, PlainValidator(_ports), WithJsonSchema({"type": ["string", "integer"]})]
_Id = Annotated[int, Field(strict=True, ge=0, lt=2**32 - 1)]
_Prefix = Annotated[str, PlainValidator(parse_source), WithJsonSchema({"type": "string"})]


def _some(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    if not prefixes:
        raise ValueError("the list is empty, which would grant any; leave the key out for that")
    return prefixes


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Rule:
    """What callers with a uid or gid may do. Keys that are left out do not restrict."""

    uid: _Id | None = None
    """Of this user's processes."""
    gid: _Id | None = None
    """Of the processes with this group, primary or supplementary."""
    write: bool = False
    """`true`: may publish and withdraw; `false`: may only look."""
    owners: str = ""
    """Names of owners begin with this."""
    ports: tuple[_PortsField, ...] = (Ports(1, 65535),)
    """Listen ports: a list of ports and ranges."""
    protocols: tuple[Protocol, ...] = tuple(Protocol)
    """A list of `tcp`, `udp` and `sctp`."""
    listen: Annotated[tuple[_Prefix, ...], AfterValidator(_some)] = ()
    """Prefixes that hold the listen address; with them, a port on every address is refused. Left out: any."""
    targets: Annotated[tuple[_Prefix, ...], AfterValidator(_some)] = ()
    """Prefixes that hold each target. Left out: any, but none may be isolated."""

    @model_validator(mode="after")
    def _names_somebody(self) -> Rule:
        if (self.uid is None) == (self.gid is None):
            raise ValueError("a rule names either a uid or a gid")
        return self

    def covers(self, caller: Caller) -> bool:
        """Whether the rule is about this caller."""
        return caller.uid == self.uid or self.gid in caller.gids

    def lacks(self, owner: str, mappings: Iterable[Mapping]) -> str | None:
        """What the rule does not grant of a write; None where it grants all."""
        if not self.write:
            return "grants no write"
        if not owner.startswith(self.owners):
            return f"grants owners that begin with {self.owners}, not {owner}"
        for mapping in mappings:
            if lacking := self._lacks_of(mapping):
                return f"{lacking} (mapping {mapping})"
        return None

    def _lacks_of(self, mapping: Mapping) -> str | None:
        wanted = mapping.listen.ports
        if not any(granted.first <= wanted.first and wanted.last <= granted.last for granted in self.ports):
            return f"grants ports {', '.join(map(str, self.ports))}, not {wanted}"
        if missing := [p for p in mapping.protocol if p not in self.protocols]:
            return f"grants protocols {', '.join(self.protocols)}, not {missing[0]}"
        if self.listen and not _inside(mapping.listen.address, self.listen):
            return f"grants listen addresses in {', '.join(self.listen)}, not {mapping.listen}"
        if mapping.isolate and not self.targets:
            # Else whoever may publish could cut others off from any address.
            return "names no targets, and so grants no isolate"
        if self.targets:
            for target in mapping.targets:
                if not _inside(target.address, self.targets):
                    return f"grants targets in {', '.join(self.targets)}, not {target}"
        return None


def _inside(address: str | None, prefixes: Sequence[str]) -> bool:
    return address is not None and any(
        ipaddress.ip_address(address) in ipaddress.ip_network(prefix) for prefix in prefixes
    )


class Access:
    """The rules in force. `trusted` uids and gids may do everything."""

    def __init__(self, rules: Sequence[Rule], trusted_uids: frozenset[int], trusted_gids: frozenset[int]) -> None:
        self._rules = rules
        self._trusted_uids = trusted_uids
        self._trusted_gids = trusted_gids

    def trusts(self, caller: Caller) -> bool:
        """Whether a caller may do everything."""
        return caller.uid in self._trusted_uids or bool(caller.gids & self._trusted_gids)

    def read(self, caller: Caller) -> None:
        """Raises Denied where the caller may not even look."""
        if not self.trusts(caller) and not any(rule.covers(caller) for rule in self._rules):
            raise Denied(f"no rule names {caller}; the group nfportd and the list access: in the settings do")

    def manage(self, caller: Caller) -> None:
        """Raises Denied where the caller may not act on the daemon as a whole."""
        if not self.trusts(caller):
            raise Denied(f"only root and members of the group nfportd may do this, not {caller}")

    def write(self, caller: Caller, owner: str, mappings: Iterable[Mapping]) -> None:
        """Raises Denied where the caller may not give the owner these mappings, with what the last rule lacks."""
        if self.trusts(caller):
            return
        self.read(caller)
        wanted = list(mappings)
        lacking = ""
        for number, rule in enumerate(self._rules, start=1):
            if rule.covers(caller):
                lack = rule.lacks(owner, wanted)
                if lack is None:
                    return
                lacking = f"access rule {number} {lack}"
        raise Denied(lacking)

"""Mappings as values: listen -> target, and the keys that they claim.

Must not know files, YAML, nftables or sockets. The one idea: a mapping that exists is valid, and it can say what each
of its keys leads to; nothing else about it needs to be kept.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic.dataclasses import dataclass as validated
from pydantic_core import PydanticCustomError

from nfportd.notation import (
    FAMILIES,
    Family,
    Listen,
    Ports,
    Target,
    describe,
    join_port,
    parse_listen,
    parse_source,
    parse_target,
)


class Protocol(StrEnum):
    """Transport protocols whose ports can be mapped."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class Key(NamedTuple):
    """What can be held once: a listen address (None: every local one of the family), a protocol and a port."""

    family: Family
    address: str | None
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        wildcard = "0.0.0.0" if self.family == 4 else "::"
        return f"{join_port(self.address or wildcard, str(self.port))}/{self.protocol}"


def takes_loopback(listen: str | None) -> bool:
    """Whether connections to 127.0.0.0/8 or ::1 can reach a key with this listen address."""
    return listen is None or ipaddress.ip_address(listen).is_loopback


#: The address on which a process of this host listens, and, where known, its pid and name.
Blocker = tuple[str, tuple[int, str] | None]


def listens(process: tuple[int, str] | None) -> str:
    """Who listens, in words; None: a process that cannot be seen."""
    return f"{process[1]} (pid {process[0]}) listens" if process else "a process of this host listens"


class Endpoint(NamedTuple):
    """Where one key's connections go."""

    address: str
    port: int

    def __str__(self) -> str:
        return join_port(self.address, str(self.port))


def _one_or_list(value: object) -> object:
    if not isinstance(value, _LISTS):
        return (value,)
    if len(value) > _LONGEST:
        raise ValueError(f"found {len(value):,} items; there are three protocols, and at most one target a family")
    return tuple(value)


def _parse_protocol(value: object) -> Protocol:
    try:
        return Protocol(str(value))
    except ValueError:
        raise ValueError(f"found {describe(value)}; protocols are tcp, udp and sctp") from None


@lru_cache
def _distinct(protocols: tuple[Protocol, ...]) -> tuple[Protocol, ...]:
    if not protocols:
        raise ValueError("the list is empty; leave the key out for tcp")
    for protocol in Protocol:
        if protocols.count(protocol) > 1:
            raise ValueError(f"{protocol} is named twice")
    return tuple(p for p in Protocol if p in protocols)


def _one_a_family(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    if len(targets) == 1:
        return targets
    if not targets:
        raise ValueError("the list is empty; a mapping needs at least one target")
    for family in FAMILIES:
        if sum(t.family == family for t in targets) > 1:
            raise ValueError(f"more than one IPv{family} target; a mapping has at most one a family")
    return tuple(sorted(targets, key=lambda t: t.family))


def _sources(value: object) -> object:
    if value is None or value == ():
        return ()
    if not isinstance(value, _LISTS):
        return (value,)
    if not value:
        raise ValueError("the list is empty, nobody could connect; leave the key out for everybody")
    if len(value) > _MOST_SOURCES:
        raise ValueError(f"found {len(value):,} prefixes, the limit is {_MOST_SOURCES}")
    return tuple(value)


def _distinct_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    nets = [ipaddress.ip_network(source) for source in sources]
    collapsed = [*_collapsed(nets, 4), *_collapsed(nets, 6)]
    return tuple(map(str, collapsed))


def _collapsed(nets: list[ipaddress.IPv4Network | ipaddress.IPv6Network], version: int) -> Iterator[object]:
    """Without prefixes inside others, which an interval set refuses."""
    return ipaddress.collapse_addresses(net for net in nets if net.version == version)  # type: ignore[type-var]


def _readable(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(f"found {describe(text)}; write printable characters on one line")
    return text


_LISTS = (list, tuple)
#: Lists longer than this are not looked at item by item.
_LONGEST = 8

#: Elements of one mapping's allow-list: the kernel's interval sets take time by the square of what a change removes.
_MOST_ALLOWED = 4096
#: Prefixes of one mapping's sources.
_MOST_SOURCES = 256

_LISTEN_SCHEMA = {
    "type": ["string", "integer"],
    "description": "A port, a range, or an address with either.",
    "examples": [8080, "20000-20099", "192.0.2.1:8080", "[2001:db8::1]:8080", "0.0.0.0:8080", "[::]:8080"],
}
_TARGET_SCHEMA = {
    "type": "string",
    "description": "An address with a port or a range of as many ports as listen has.",
    "examples": ["10.88.0.11:80", "[fd88::11]:80", "10.88.0.11:8000-8099"],
}
_SOURCE_SCHEMA = {
    "type": "string",
    "description": "A prefix of clients.",
    "examples": ["192.0.2.0/24", "2001:db8::/32"],
}
_ListenField = Annotated[Listen, PlainValidator(parse_listen), WithJsonSchema(_LISTEN_SCHEMA)]
_TargetField = Annotated[Target, PlainValidator(parse_target), WithJsonSchema(_TARGET_SCHEMA)]
_ProtocolField = Annotated[Protocol, PlainValidator(_parse_protocol), WithJsonSchema({"enum": list(Protocol)})]
_SourceField = Annotated[str, PlainValidator(parse_source), WithJsonSchema(_SOURCE_SCHEMA)]
#: One line for people.
Text = Annotated[str, AfterValidator(_readable)]


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))
class Mapping:
    """Listen -> target for one or more protocols. Values that exist are valid; made by `validation.mapping`.

    What stands under a key is its text in the manual, `nfportd.yaml(5)`.
    """

    name: Text | None = None
    """By this name messages call the mapping, and `nfportctl remove` takes it."""
    listen: _ListenField
    """A port (`8080`) or a range (`20000-20099`) on every address of this host, or on one: `192.0.2.1:8080`,
    `[2001:db8::1]:8080`; `0.0.0.0:8080` is every IPv4 address, `[::]:8080` every IPv6 address."""
    protocol: Annotated[tuple[_ProtocolField, ...], BeforeValidator(_one_or_list), AfterValidator(_distinct)] = (
        Protocol.TCP,
    )
    """`tcp`, `udp`, `sctp`, or a list of them."""
    targets: Annotated[tuple[_TargetField, ...], BeforeValidator(_one_or_list), AfterValidator(_one_a_family)]
    """An address with a port, or a list of one for each family: `[10.88.0.11:80, "[fd88::11]:80"]`. A range maps port
    by port, to equal (`10.88.0.11:20000-20099`) or shifted ports (`10.88.0.11:30000-30099`)."""
    masquerade: Literal["auto", "always", "never"] = "auto"
    """Which address the target sees. `auto`: the client's, wherever answers come back through this host by themselves,
    else this host's (connections from loopback, from the target itself and its neighbours). `always`: this host's.
    `never`: the client's; hairpin works only where the target's answers pass this host all the same, loopback does."""
    on_change: Literal["keep", "cut"] = "keep"
    """What becomes of running TCP connections when the target changes or goes: `keep` them, or `cut` them."""
    comment: Text | None = None
    """Text for people."""
    sources: Annotated[tuple[_SourceField, ...], BeforeValidator(_sources), AfterValidator(_distinct_sources)] = ()
    """Prefixes of the clients that may connect from elsewhere; others are dropped and counted. Left out: everybody."""
    shadow_listener: Annotated[bool, Field(strict=True)] = False
    """Take the port although a process of this host listens on it."""
    reserve: Annotated[bool, Field(strict=True)] = False
    """Hold the port with a socket, so that no process can take it and `ss` shows it."""
    isolate: Annotated[bool, Field(strict=True)] = False
    """Drop new connections to the target's address, protocol and port that come past every mapping: from clients that
    have a route to it, and from this host's own processes, health checks and proxies included; count them. Those that
    run go on. It lasts as long as one mapping that leads there says so. Neighbours of the target on its link do not
    pass this host and are not stopped."""

    @model_validator(mode="after")
    def _fits_together(self) -> Mapping:
        if self.sources:
            self._sources_are_few()
        self._targets_fit_listen()
        return self

    def _sources_are_few(self) -> None:
        elements = self.size * len(self.sources)
        if elements > _MOST_ALLOWED:
            found = f"{self.size:,} keys for {len(self.sources)} prefixes each are {elements:,} elements"
            text = f"{found}, the limit is {_MOST_ALLOWED:,}; use fewer prefixes or ports"
            raise PydanticCustomError("range", "{text}", {"at": "sources", "text": text})

    def _targets_fit_listen(self) -> None:
        ports, family = self.listen.ports, self.listen.family
        for target in self.targets:
            if family not in (None, target.family):
                found = f"target {target} is IPv{target.family}, listen {self.listen} is IPv{family}"
                text = f"{found}; name an IPv{family} target"
                raise PydanticCustomError("family", "{text}", {"at": "targets", "text": text})
            if target.ports is not ports and target.ports.count != ports.count:
                raise PydanticCustomError("range", "{text}", {"at": "targets", "text": self._lengths(target)})

    def _lengths(self, target: Target) -> str:
        count = self.listen.ports.count
        first = min(target.ports.first, 65536 - count)
        right = join_port(target.address, str(Ports(first, first + count - 1)))
        return (
            f"listen {self.listen} has {_ports(self.listen.ports)} and target {target} has {_ports(target.ports)}; "
            f"a range maps 1:1, write {right}"
        )

    def __hash__(self) -> int:
        # Few mappings of an owner listen on the same address and port, and every field would take ten times as long.
        return hash((self.listen.address, self.listen.ports.first))

    def __str__(self) -> str:
        if self.name:
            return f'"{self.name if len(self.name) <= 120 else self.name[:117] + "..."}"'
        return f"{self.listen} to {', '.join(map(str, self.targets))}"

    def written(self) -> dict[str, Any]:
        """The mapping in the words in which it is read, with every key."""
        plain = {name: getattr(self, name) for name in Mapping.__dataclass_fields__}
        return plain | {
            "listen": str(self.listen),
            "targets": [str(target) for target in self.targets],
            "protocol": [str(protocol) for protocol in self.protocol],
            "sources": list(self.sources) or None,
        }

    @property
    def size(self) -> int:
        """How many keys it claims."""
        return len(self.targets) * len(self.protocol) * self.listen.ports.count

    def claimed(self) -> Iterator[Key]:
        """Every key that this mapping claims."""
        address, first, count = self.listen.address, self.listen.ports.first, self.listen.ports.count
        for target in self.targets:
            for protocol in self.protocol:
                # Of a single port the number is kept once.
                yield Key(target.family, address, protocol, first)
                for port in range(first + 1, first + count):
                    yield Key(target.family, address, protocol, port)

    def endpoints(self) -> Iterator[tuple[Key, Endpoint]]:
        """Every key that this mapping claims, with where it goes; ranges map 1:1."""
        return ((key, self.endpoint(key)) for key in self.claimed())

    def endpoint(self, key: Key) -> Endpoint:
        """Where one of this mapping's own keys goes."""
        target = self.targets[0] if self.targets[0].family == key.family else self.targets[-1]
        offset = key.port - self.listen.ports.first
        return Endpoint(target.address, target.ports.first + offset if offset else target.ports.first)


def _ports(ports: Ports) -> str:
    return "1 port" if ports.count == 1 else f"{ports.count} ports"

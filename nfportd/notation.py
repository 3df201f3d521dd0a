"""Addresses and ports in writing: what `192.0.2.1:8080`, `[::]:443` or `20000-20099` mean, as values.

Must not know mappings or where a text comes from. The one idea: a value that exists is valid; what is wrong is said
by the functions that read it, in words that tell what was found and what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Family = Literal[4, 6]
FAMILIES: tuple[Family, Family] = (4, 6)

#: Listen addresses and targets are compared and stored in the form that `str(ipaddress.ip_address(...))` gives.
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
#: RFC 1122, 3.2.1.3: no host has an address of it.
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
#: Addresses that are remembered with what they are good for: many mappings lead to the same ones.
_REMEMBERED = 4096

_PORTS = re.compile(r"([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?", re.ASCII)
_BRACKETED = re.compile(r"\[([^\]]*)\](?::(.*))?")


@dataclass(frozen=True, slots=True)
class Ports:
    """A range of ports, both ends included; a single port is a range of one."""

    first: int
    last: int

    @property
    def count(self) -> int:
        """How many ports."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where connections are taken: one address, every address of one family, or (family None) every address."""

    address: str | None
    family: Family | None
    ports: Ports

    def __str__(self) -> str:
        if self.address is None and self.family is None:
            return str(self.ports)
        wildcard = "0.0.0.0" if self.family == 4 else "::"
        return join_port(self.address or wildcard, str(self.ports))


@dataclass(frozen=True, slots=True)
class Target:
    """Where connections are sent: one address and as many ports as the mapping listens on."""

    address: str
    family: Family
    ports: Ports

    def __str__(self) -> str:
        return join_port(self.address, str(self.ports))


def join_port(address: str, ports: str) -> str:
    """Write an address and ports the way they are read: `192.0.2.1:80`, `[2001:db8::1]:80`."""
    return f"[{address}]:{ports}" if ":" in address else f"{address}:{ports}"


def _plain_text(value: object, example: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"found {describe(value)}; write {example}")
    return value.strip()


def describe(value: object) -> str:
    """Name a value in a message, shortly, whatever its size."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping of keys"
        case list() | tuple():
            return "a list"
        case _:
            text = str(value)
            return repr(text if len(text) <= 60 else text[:57] + "...")


def brief(text: str) -> str:
    """A text to be repeated in a message, shortly and on one line."""
    return describe(text)[1:-1]


# Listen and target mostly have the same ports: then it is one value.
@lru_cache(16)
def parse_ports(text: str) -> Ports:
    """Read `80` or `8000-8099`; ValueError names what is wrong."""
    if len(text) <= 5 and text.isdecimal() and text.isascii() and 0 < (port := int(text)) < 65536:
        return Ports(port, port)
    match = _PORTS.fullmatch(text)
    if not match:
        raise ValueError(f"{describe(text)} is not a port or a range; write 80 or 8000-8099")
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    for port in (first, last):
        if not 1 <= port <= 65535:
            raise ValueError(f"port {port} is out of range; ports are 1 to 65535")
    if first > last:
        raise ValueError(f"range {first}-{last} runs backwards; write {last}-{first}")
    return Ports(first, last)


@lru_cache(_REMEMBERED)
def _parse_address(text: str, role: str) -> _Address:
    if "%" in text:
        raise ValueError(f"{describe(text)} names an interface; a {role} is a plain address, without a zone")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if re.fullmatch(r"[0-9.]+", text, re.ASCII):
            raise ValueError(f"{describe(text)} is not an IPv4 address; write four numbers from 0 to 255") from None
        if ":" in text:
            raise ValueError(f"{describe(text)} is not an IPv6 address; write it like [2001:db8::1]:80") from None
        raise ValueError(f"{describe(text)} is not an address; host names are not looked up") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise ValueError(f"{text} is an IPv4 address in IPv6 clothes; write {address.ipv4_mapped}")
    return address


def _split(text: str, role: str) -> tuple[str, str]:
    """Cut `address:ports` or `[address]:ports` into its parts, neither of them empty."""
    if "://" in text:
        raise ValueError(f"{describe(text)} is a URL; a {role} is an address and port like 10.88.0.11:80")
    bracketed = _BRACKETED.fullmatch(text) if text.startswith("[") else None
    if bracketed:
        host, ports = bracketed[1], bracketed[2]
        if ":" not in host:
            raise ValueError(f"{describe(text)}: brackets are for IPv6 addresses, like [2001:db8::1]:80")
    elif text.count(":") == 2 and "." in text:
        raise ValueError(f"{describe(text)} has two ports; a {role} has one, the other end has its own key")
    elif text.count(":") > 1 or text.startswith("["):
        raise ValueError(f"{describe(text)}: an IPv6 {role} stands in brackets; write it like [2001:db8::1]:80")
    else:
        host, _, ports = text.partition(":")
    if not ports:
        _parse_address(host, role)  # what is wrong with that matters more
        raise ValueError(f"{describe(text)} has no port; write it like {join_port(host, '80')}")
    return host, ports


def parse_listen(value: object) -> Listen:
    """Read `8080`, `20000-20099`, `192.0.2.1:8080`, `[2001:db8::1]:8080`, `0.0.0.0:8080` or `[::]:8080`.

    Raises ValueError with what was found and what is right.
    """
    if isinstance(value, Listen):
        return value
    text = _plain_text(value, "a port (8080), a range (20000-20099) or an address and port")
    if "/" in text and "://" not in text:
        raise ValueError(
            f"{describe(text)}: the protocol has a key of its own, write protocol: {brief(text.split('/')[1])}"
        )
    if ":" not in text and "." not in text:
        return Listen(None, None, parse_ports(text))
    host, _, after = text.partition(":")
    if host.isdecimal() and after.isdecimal():
        raise ValueError(
            f"{describe(text)}: listen takes this host's port, {brief(host)}; the target's port goes in targets"
        )
    if host in ("", "*"):
        raise ValueError(f"{describe(text)}: for every address write the port alone, {brief(after)}")
    host, ports_text = _split(text, "listen address")
    address, ports = _parse_address(host, "listen address"), parse_ports(ports_text)
    family: Family = 4 if address.version == 4 else 6
    if address.is_unspecified:
        return Listen(None, family, ports)
    kind = _kind(address)
    if kind in ("multicast", "broadcast", "reserved"):
        raise ValueError(f"{address} is a {kind} address; only addresses of one host can be forwarded")
    if family == 6 and address.is_link_local:
        raise ValueError(f"{address} is link-local; IPv6 does not forward between links, listen on a global address")
    return Listen(str(address), family, ports)


def parse_target(value: object) -> Target:
    """Read `10.88.0.11:80`, `[fd88::11]:80` or, for a range, `10.88.0.11:8000-8099`.

    Raises ValueError with what was found and what is right.
    """
    if isinstance(value, Target):
        return value
    text = _plain_text(value, "an address and port like 10.88.0.11:80")
    if text.isascii() and text.isdecimal():
        port = brief(text)
        raise ValueError(f"found only the port {port}; write the target's address too, like 10.88.0.11:{port}")
    host, ports = _split(text, "target")
    return Target(*_one_host(host), parse_ports(ports))


@lru_cache(_REMEMBERED)
def _one_host(text: str) -> tuple[str, Family]:
    """A target's address as it is kept, and its family. Raises ValueError where it cannot be one."""
    address = _parse_address(text, "target")
    kind = _kind(address)
    if kind:
        article = "an" if kind == "unspecified" else "a"
        raise ValueError(
            f"{address} is {article} {kind} address; a target is the address of one other host or container"
        )
    return str(address), 4 if address.version == 4 else 6


def parse_source(value: object) -> str:
    """Read a prefix or an address of clients, `192.0.2.0/24` or `2001:db8::1`; returns it in its canonical form.

    Raises ValueError with what was found and what is right.
    """
    text = _plain_text(value, "a prefix like 192.0.2.0/24")
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        whole = ipaddress.ip_interface(text).network
    except ValueError:
        raise ValueError(f"{describe(text)} is not a prefix; write it like 192.0.2.0/24 or 2001:db8::/32") from None
    raise ValueError(f"{describe(text)} has bits set behind its length; write {whole}")


def _kind(address: _Address) -> str | None:
    """What makes an address unfit as a target, or None."""
    if address == _BROADCAST:
        return "broadcast"
    for kind in ("loopback", "multicast", "unspecified", "link_local"):
        if getattr(address, f"is_{kind}"):
            return kind.replace("_", "-")
    return "reserved" if address in _THIS_NETWORK else None

"""Reserved ports: nobody else can bind them, `ss` shows them, and a client that reaches them hears nothing.

It must not know mappings. The one idea: reserve in a namespace, then act as another process there and as a client.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfportd.kernel import reservations as module
from nfportd.kernel.listeners import Listeners
from nfportd.kernel.reservations import Reservations
from nfportd.model import Key, Protocol
from nfportd.notation import Family
from tests.lab import Lab
from tests.netns import Namespace

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
PORT = 8080
OWN: dict[Family, str] = {4: "192.0.2.1", 6: "2001:db8::1"}
ABSENT: dict[Family, str] = {4: "198.51.100.77", 6: "2001:db8:77::1"}
FAMILIES: tuple[Family, Family] = (4, 6)


@pytest.fixture(scope="module")
def spaces() -> Iterator[Lab]:
    """A host and a client on a link."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as lab:
        host, client = lab.space("host"), lab.space("client")
        lab.link(host, "eth0", client, "eth0")
        host.batch("addr add 192.0.2.1/24 dev eth0\naddr add 2001:db8::1/64 dev eth0 nodad\n")
        client.batch("addr add 192.0.2.10/24 dev eth0\naddr add 2001:db8::10/64 dev eth0 nodad\n")
        yield lab


@pytest.fixture
def host(spaces: Lab) -> Namespace:
    return spaces.host


@pytest.fixture
def reserved(host: Namespace) -> Iterator[Reservations]:
    """The reservations of one test; the test's thread is in the host meanwhile, as a daemon would be."""
    with host.entered(), contextlib.closing(Reservations()) as made:
        yield made


def key(family: Family, address: str | None = None, protocol: Protocol = TCP, port: int = PORT) -> Key:
    return Key(family, address, protocol, port)


def bound(address: str, protocol: Protocol, port: int = PORT, *, shared: bool = False) -> socket.socket:
    """A socket of another program, which shares its port with whoever allows it, if it may."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM if protocol is TCP else socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT) if shared else ():
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind((address, port))
        if protocol is TCP:
            made.listen()
    except BaseException:
        made.close()
        raise
    return made


def is_free(address: str, protocol: Protocol, port: int = PORT) -> bool:
    """Whether another program gets the port, by all means that it has."""
    for shared in (False, True):
        try:
            bound(address, protocol, port, shared=shared).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return True
    return False


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_on_any_address_is_kept_from_others(reserved: Reservations, family: Family, protocol: Protocol) -> None:
    any_address, loopback = ("0.0.0.0", "127.0.0.1") if family == 4 else ("::", "::1")
    addresses = (any_address, loopback, OWN[family])
    before = [is_free(address, protocol) for address in addresses]

    refused = reserved.hold([key(family, None, protocol)])

    assert (refused, before) == ({}, [True] * 3)
    assert [is_free(address, protocol) for address in addresses] == [False] * 3
    other: Family = 6 if family == 4 else 4
    assert is_free(OWN[other], protocol), "the other family's port is not held"
    reserved.release([key(family, None, protocol)])
    assert [is_free(address, protocol) for address in addresses] == [True] * 3


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_on_one_address_is_kept_from_others(reserved: Reservations, family: Family, protocol: Protocol) -> None:
    assert reserved.hold([key(family, OWN[family], protocol)]) == {}

    loopback = "127.0.0.1" if family == 4 else "::1"
    assert (is_free(OWN[family], protocol), is_free(loopback, protocol)) == (False, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_address_that_comes_later_is_reserved_before(
    reserved: Reservations, host: Namespace, family: Family
) -> None:
    assert reserved.hold([key(family, ABSENT[family], protocol) for protocol in (TCP, UDP)]) == {}
    nodad = ["nodad"] if family == 6 else []
    host.ip("addr", "add", ABSENT[family], "dev", "lo", *nodad)
    free = [is_free(ABSENT[family], protocol) for protocol in (TCP, UDP)]
    host.ip("addr", "del", ABSENT[family], "dev", "lo")

    assert free == [False, False]


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_clients_hear_nothing_from_a_reserved_port(
    reserved: Reservations, spaces: Lab, family: Family, proto: str
) -> None:
    def outcomes() -> list[str]:
        return [
            space.ask(address, PORT, proto, timeout=0.4).outcome
            for space, address in ((spaces.client, OWN[family]), (spaces.host, OWN[family]))
        ]

    before = outcomes()
    reserved.hold([key(family, None, Protocol(proto))])

    assert (before, outcomes()) == (["refused", "refused"], ["timeout", "timeout"])


def test_ss_shows_what_is_reserved(reserved: Reservations, host: Namespace) -> None:
    reserved.hold([key(4), key(6, None, UDP), key(4, "192.0.2.1", UDP, 53)])

    shown = {line.split()[4] for line in host.run(["ss", "-Hltnu"]).stdout.splitlines()}

    assert shown == {f"0.0.0.0:{PORT}", f"[::]:{PORT}", "192.0.2.1:53"}


def test_holding_again_changes_nothing(reserved: Reservations) -> None:
    reserved.hold([key(4), key(6)])
    before = reserved.inodes

    assert (reserved.hold([key(6), key(4)]), reserved.inodes) == ({}, before)
    assert (key(4) in reserved, key(4, None, UDP) in reserved) == (True, False)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("any_first", [True, False])
def test_any_address_and_one_address_do_not_stand_in_each_others_way(
    reserved: Reservations, any_first: bool, protocol: Protocol
) -> None:
    one, everywhere = key(4, OWN[4], protocol), key(4, None, protocol)
    refused = [reserved.hold([each]) for each in ((everywhere, one) if any_first else (one, everywhere))]

    assert (refused, len(reserved.inodes)) == ([{}, {}], 1)
    reserved.release([everywhere])
    assert [is_free(address, protocol) for address in (OWN[4], "127.0.0.1")] == [False, True]
    assert reserved.hold([everywhere]) == {}
    reserved.release([one])
    assert [is_free(address, protocol) for address in (OWN[4], "127.0.0.1")] == [False, False]
    reserved.release([everywhere, one])
    assert [is_free(address, protocol) for address in (OWN[4], "127.0.0.1")] == [True, True]


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_port_in_use_is_refused_and_the_rest_is_held(reserved: Reservations, protocol: Protocol) -> None:
    wanted = [key(4, None, protocol), key(4, OWN[4], protocol), key(6, None, protocol)]
    with bound("127.0.0.1", protocol):
        refused = reserved.hold(wanted)

    assert {each: error.errno for each, error in refused.items()} == {wanted[0]: errno.EADDRINUSE}
    assert str(refused[wanted[0]].strerror) == f"{wanted[0]}: another process has the port"
    assert [each in reserved for each in wanted] == [False, True, True]
    assert (is_free(OWN[4], protocol), is_free("127.0.0.1", protocol)) == (False, True)


def test_one_address_stays_held_when_any_address_is_refused(reserved: Reservations) -> None:
    reserved.hold([key(4, OWN[4])])
    with bound("127.0.0.1", TCP):
        refused = reserved.hold([key(4)])

    assert (list(refused), is_free(OWN[4], TCP), reserved.hold([key(4)])) == ([key(4)], False, {})


def test_what_another_took_meanwhile_is_no_longer_reserved(
    reserved: Reservations, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reserved.hold([key(4), key(4, OWN[4])])

    def taken(each: Key) -> socket.socket:
        raise OSError(errno.EADDRINUSE, f"{each}: another process has the port")

    monkeypatch.setattr(module, "_open", taken)
    with caplog.at_level(logging.WARNING):
        reserved.release([key(4)])

    assert (key(4, OWN[4]) in reserved, len(caplog.records)) == (False, 1)


def test_sctp_cannot_be_reserved(reserved: Reservations) -> None:
    refused = reserved.hold([key(4, None, SCTP), key(4)])

    assert {each: error.errno for each, error in refused.items()} == {key(4, None, SCTP): errno.EPROTONOSUPPORT}


@contextlib.contextmanager
def without_capability(number: int) -> Iterator[None]:
    """This thread lacks a capability for the body (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << number)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] |= 1 << number
        assert libc.capset(header, sets) == 0


@pytest.mark.parametrize(("number", "name", "port"), [(10, "CAP_NET_BIND_SERVICE", 80), (12, "CAP_NET_ADMIN", PORT)])
def test_the_capability_that_lacks_is_named(reserved: Reservations, number: int, name: str, port: int) -> None:
    with without_capability(number):
        refused = reserved.hold([key(4, None, TCP, port)])

    if number == 12 and not refused:
        pytest.skip("this kernel lets everybody attach filters")
    assert name in str(refused[key(4, None, TCP, port)].strerror)


def test_there_is_a_limit(reserved: Reservations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)

    refused = reserved.hold([key(4, None, TCP, port) for port in range(9000, 9005)])
    [first, _] = refused.values()

    assert (len(refused), first.errno, "3 ports are reserved" in str(first.strerror)) == (2, errno.EMFILE, True)
    kept = next(each for each in range(9000, 9005) if key(4, None, TCP, each) in reserved)
    assert reserved.hold([key(4, OWN[4], TCP, kept)]) == {}, "held by the socket on any address"
    reserved.release([key(4, None, TCP, port) for port in range(9000, 9005)])
    assert reserved.hold([key(6, None, TCP, port) for port in range(9000, 9002)]) == {}


def test_half_of_the_open_files_are_left_for_clients(reserved: Reservations) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        refused = reserved.hold([key(4, None, TCP, port) for port in range(9000, 9150)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert len(refused) == 50


def test_close_lets_everything_go(reserved: Reservations) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    reserved.hold([key(family, None, protocol) for family in FAMILIES for protocol in (TCP, UDP)])
    reserved.hold([key(4, None, SCTP)])
    with bound("127.0.0.1", TCP, 9000):
        reserved.hold([key(4, None, TCP, 9000)])
    reserved.close()

    assert (open_files(), reserved.inodes, is_free("0.0.0.0", TCP)) == (before, frozenset(), True)


def test_a_look_for_listeners_can_tell_our_own(reserved: Reservations) -> None:
    keys = [key(4), key(6), key(4, None, UDP)]
    reserved.hold(keys)

    with contextlib.closing(Listeners()) as listeners:
        found = {each.inode for each in listeners.on(keys)}

    assert found == reserved.inodes

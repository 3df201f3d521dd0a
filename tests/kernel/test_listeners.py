"""Local sockets that wait on what a mapping would take, found by sock_diag in a namespace of the test.

It must not know mappings. The one idea: open a real socket, ask for a key, and see whether the two clash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfportd.kernel import listeners as module
from nfportd.kernel.listeners import Listener, Listeners, process, processes
from nfportd.model import Key, Protocol
from nfportd.notation import Family
from tests.lab import Lab
from tests.netns import Namespace

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
ANY = {4: "0.0.0.0", 6: "::"}
PORT = 8080

Bind = Callable[..., socket.socket]


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as lab:
        space = lab.space("host")
        space.ip("addr", "add", "192.0.2.1/32", "dev", "lo")
        space.ip("addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
        yield space


@pytest.fixture
def listeners(host: Namespace) -> Iterator[Listeners]:
    with host.entered():
        made = Listeners()
    with contextlib.closing(made):
        yield made


@pytest.fixture
def bind(host: Namespace) -> Iterator[Bind]:
    """Open sockets for one test: `bind(address, protocol)`; TCP listens."""
    opened: list[socket.socket] = []

    def opening(
        address: str, protocol: Protocol = TCP, *, port: int = PORT, v6only: bool = False, number: int = 0
    ) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = host.socket(family, socket.SOCK_STREAM if protocol is TCP else socket.SOCK_DGRAM, number)
        opened.append(made)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        made.bind((address, port))
        if protocol is TCP:
            made.listen()
        return made

    yield opening
    for each in opened:
        each.close()


def key(family: Family, address: str | None = None, protocol: Protocol = TCP, port: int = PORT) -> Key:
    return Key(family, address, protocol, port)


def inode(opened: socket.socket) -> int:
    return os.fstat(opened.fileno()).st_ino


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize(
    ("address", "v6only", "clashes", "passes"),
    [
        ("0.0.0.0", False, [(4, None), (4, "192.0.2.1")], [(6, None), (6, "2001:db8::1")]),
        ("127.0.0.1", False, [(4, None), (4, "127.0.0.1")], [(4, "192.0.2.1"), (6, None), (6, "::1")]),
        ("192.0.2.1", False, [(4, None), (4, "192.0.2.1")], [(4, "192.0.2.2"), (6, None)]),
        ("::", False, [(4, None), (4, "192.0.2.1"), (6, None), (6, "2001:db8::1")], []),
        ("::", True, [(6, None), (6, "2001:db8::1")], [(4, None), (4, "192.0.2.1")]),
        ("2001:db8::1", False, [(6, None), (6, "2001:db8::1")], [(6, "2001:db8::2"), (4, None)]),
        ("::1", False, [(6, None), (6, "::1")], [(6, "2001:db8::1"), (4, None), (4, "127.0.0.1")]),
        ("::ffff:192.0.2.1", False, [(4, None), (4, "192.0.2.1")], [(4, "192.0.2.2"), (6, None)]),
        ("::ffff:0.0.0.0", False, [(4, None), (4, "192.0.2.1")], [(6, None)]),
    ],
)
def test_what_clashes_with_a_listening_socket(
    listeners: Listeners,
    bind: Bind,
    address: str,
    v6only: bool,
    clashes: list[tuple[Family, str | None]],
    passes: list[tuple[Family, str | None]],
    protocol: Protocol,
) -> None:
    bind(address, protocol, v6only=v6only)

    asked = {(family, listen): listeners.on([key(family, listen, protocol)]) for family, listen in clashes + passes}

    assert [each for each, found in asked.items() if found] == clashes


def test_a_listener_is_named_with_its_address_inode_and_user(listeners: Listeners, bind: Bind) -> None:
    opened = bind("127.0.0.1")
    os.fchown(opened.fileno(), 1234, -1)

    assert listeners.on([key(4)]) == [Listener(key(4), "127.0.0.1", inode(opened), 1234)]


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_only_the_port_and_the_protocol_asked_for(listeners: Listeners, bind: Bind, protocol: Protocol) -> None:
    bind("::", protocol)
    other = UDP if protocol is TCP else TCP

    assert listeners.on([key(4, None, other), key(6, None, other), key(4, None, protocol, PORT + 1)]) == []


def test_many_keys_at_once_each_get_their_own(listeners: Listeners, bind: Bind) -> None:
    web, dns = bind("::", port=80), bind("127.0.0.1", UDP, port=53)
    keys = [key(family, None, protocol, port) for family in (4, 6) for protocol in Protocol for port in range(1, 100)]

    found = {(str(each.key), each.inode) for each in listeners.on(keys)}

    assert found == {("0.0.0.0:80/tcp", inode(web)), ("[::]:80/tcp", inode(web)), ("0.0.0.0:53/udp", inode(dns))}


def test_sockets_that_share_a_port_are_all_found(listeners: Listeners, host: Namespace) -> None:
    workers = [host.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(3)]
    for each in workers:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        each.bind(("0.0.0.0", PORT))
        each.listen()

    found = {each.inode for each in listeners.on([key(4)])}
    inodes = {inode(each) for each in workers}
    for each in workers:
        each.close()

    assert (found, listeners.on([key(4)])) == (inodes, [])


def test_sockets_that_do_not_wait_are_no_listeners(listeners: Listeners, host: Namespace, bind: Bind) -> None:
    connected = bind("192.0.2.1", UDP)
    connected.connect(("192.0.2.1", 9))
    with (
        host.socket(socket.AF_INET, socket.SOCK_STREAM) as bound,
        host.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        bound.bind(("127.0.0.1", PORT))
        server = bind("127.0.0.1", port=9)
        client.bind(("127.0.0.1", PORT + 1))
        client.connect(server.getsockname())

        assert listeners.on([key(4), key(4, None, UDP), key(4, None, TCP, PORT + 1)]) == []


def test_sctp_is_passed_over(listeners: Listeners) -> None:
    assert listeners.on([key(4, None, SCTP), key(6, None, SCTP)]) == []


def test_nothing_is_asked_for_no_keys(listeners: Listeners) -> None:
    assert listeners.on([]) == []


def test_only_the_namespace_in_which_it_was_made(listeners: Listeners, bind: Bind) -> None:
    bind("0.0.0.0")
    with contextlib.closing(Listeners()) as elsewhere:
        seen_elsewhere = [each for each in elsewhere.on([key(4)]) if each in listeners.on([key(4)])]

    assert (len(listeners.on([key(4)])), seen_elsewhere) == (1, [])


def test_a_thousand_listeners_come_in_several_messages(listeners: Listeners, bind: Bind) -> None:
    for port in range(20000, 21000):
        bind("::", port=port)

    found = listeners.on([key(4, None, TCP, port) for port in range(20000, 21000)])

    assert sorted(each.key.port for each in found) == list(range(20000, 21000))


def test_the_kernels_own_sockets_have_no_process(listeners: Listeners, host: Namespace) -> None:
    host.ip("link", "add", "vx0", "type", "vxlan", "id", "5", "dstport", "4789", "local", "192.0.2.1", "dev", "lo")
    host.ip("link", "set", "vx0", "up")

    [found] = listeners.on([key(4, None, UDP, 4789)])
    host.ip("link", "del", "vx0")

    assert process(found.inode) is None


def test_a_multipath_listener_leads_to_its_process(listeners: Listeners, bind: Bind) -> None:
    """Go's net/http listens with MPTCP since 1.24."""
    try:
        opened = bind("127.0.0.1", number=262)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error}")

    [found] = listeners.on([key(4)])

    assert (found.inode, process(found.inode)) == (inode(opened), (os.getpid(), own_name()))


def own_name() -> str:
    return Path("/proc/self/comm").read_text().strip()


def test_the_process_that_listens_is_named(listeners: Listeners, host: Namespace) -> None:
    script = f"import socket; s = socket.create_server(('127.0.0.1', {PORT})); print('up', flush=True); input()"
    server = host.popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()

    [found] = listeners.on([key(4)])
    named = process(found.inode)
    server.communicate("\n", timeout=10)

    assert (named and named[0], process(found.inode)) == (server.pid, None)
    assert named is not None
    assert named[1].startswith("python")


def test_many_sockets_are_named_by_one_look(bind: Bind) -> None:
    inodes = [inode(bind("127.0.0.1", port=port)) for port in (80, 81)]

    assert processes([*inodes, 1]) == dict.fromkeys(inodes, (os.getpid(), own_name()))


def test_a_kernel_without_sock_diag_is_logged_once(
    listeners: Listeners, bind: Bind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bind("0.0.0.0")
    monkeypatch.setattr(module, "_BY_FAMILY", 99)
    with caplog.at_level(logging.WARNING):
        blind = [listeners.on([key(4), key(4, None, UDP)]), listeners.on([key(4)])]
    monkeypatch.undo()

    assert (blind, len(caplog.records), len(listeners.on([key(4)]))) == ([[], []], 1, 1)


@pytest.mark.alone
def test_asking_costs_far_less_than_half_a_millisecond(listeners: Listeners, bind: Bind) -> None:
    for port in range(30000, 30025):
        bind("::", port=port)
        bind("127.0.0.1", UDP, port=port)
    keys = [key(4), key(6), key(4, None, UDP), key(6, None, UDP)]

    def seconds() -> float:
        before = time.perf_counter()
        listeners.on(keys)
        return time.perf_counter() - before

    assert min(seconds() for _ in range(50)) < 0.0005

"""Reading the counters of map elements past libnftables: every map, what others leave there, changes meanwhile.

It must not know how the daemon uses them. The one idea: nft writes elements with counters, the kernel tells them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from nfportd import ruleset
from nfportd.kernel.counters import Counters
from nfportd.traffic import unpacked
from tests.lab import Lab
from tests.netns import Namespace

T1 = "10.88.0.11 . 80"


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as lab:
        yield lab.space("counters")


@pytest.fixture
def counters(space: Namespace) -> Iterator[Counters]:
    """A reader whose socket is in the namespace, in which our table is new."""
    space.nft(f"table inet nfportd\ndelete table inet nfportd\n{ruleset.skeleton(13)}")
    made = Counters()
    with space.entered():
        made.read()
    yield made
    made.close()


def counts(counters: Counters) -> dict[str, int]:
    return {str(unpacked(key)): count for key, count in counters.read().connections.items()}


def test_each_map_is_read(space: Namespace, counters: Counters) -> None:
    space.nft("""
add element inet nfportd any4 { tcp . 80 counter packets 3 bytes 9 : 10.0.0.1 . 80, udp . 53 : 10.0.0.1 . 53 }
add element inet nfportd any6 { sctp . 80 counter packets 4 bytes 9 : fd00::1 . 80 }
add element inet nfportd addr4 { 192.0.2.1 . tcp . 80 counter packets 5 bytes 9 : 10.0.0.1 . 80 }
add element inet nfportd addr6 { 2001:db8::1 . udp . 80 counter packets 4294967296 bytes 9 : fd00::1 . 80 }
""")

    assert counts(counters) == {
        "0.0.0.0:80/tcp": 3,
        "[::]:80/sctp": 4,
        "192.0.2.1:80/tcp": 5,
        "[2001:db8::1]:80/udp": 1 << 32,
    }


def test_what_others_leave_in_our_maps_is_no_obstacle(space: Namespace, counters: Counters) -> None:
    comment = 'comment "\\x0c counter of somebody"'
    space.nft(f"add element inet nfportd any4 {{ tcp . 80 counter packets 3 bytes 9 {comment} : {T1} }}\n")
    space.nft(f"add element inet nfportd any4 {{ icmp . 7 counter packets 2 bytes 9 : {T1} }}\n")
    space.nft(f"add element inet nfportd any4 {{ * counter packets 8 bytes 9 : {T1} }}\n")
    space.nft(f"add element inet nfportd any4 {{ tcp . 81 counter packets 4 bytes 9 : {T1} }}\n")

    assert counts(counters) == {"0.0.0.0:80/tcp": 3, "0.0.0.0:81/tcp": 4, "None": 2}


def test_without_a_table_there_is_nothing(space: Namespace, counters: Counters) -> None:
    space.nft("delete table inet nfportd")

    assert counters.read() == ({}, True)


def test_more_than_one_datagram(space: Namespace, counters: Counters) -> None:
    elements = ", ".join(f"tcp . {port} counter packets {port} bytes 1 : {T1}" for port in range(1, 5001))
    space.nft(f"add element inet nfportd any4 {{ {elements} }}\n")

    assert counts(counters) == {f"0.0.0.0:{port}/tcp": port for port in range(1, 5001)}


def test_a_reading_that_was_interrupted_says_so(space: Namespace, counters: Counters) -> None:
    elements = ", ".join(f"tcp . {port} counter packets 1 bytes 1 : {T1}" for port in range(1, 20001))
    space.nft(f"add element inet nfportd any4 {{ {elements} }}\n")
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            space.nft(
                "add element inet nfportd always_any4 { tcp . 1 }\n"
                "delete element inet nfportd always_any4 { tcp . 1 }\n"
            )

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        readings = [counters.read() for _ in range(20)]
    finally:
        over.set()
        disturber.join()
    quiet = counters.read()

    assert False in {each.complete for each in readings}
    assert (quiet.complete, len(quiet.connections)) == (True, 20_000)

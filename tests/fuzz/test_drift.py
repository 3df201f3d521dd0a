"""Netlink notifications of nf_tables: real ones say what nft then lists; whatever else comes is lost, never a crash.

It must not know how they are read. The one idea: a socket in a namespace records what nft does there; the recording
is the truth to hold the reader against, and the stock from which lies are made.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, strategies as st

from nfportd import desired, ruleset
from nfportd.desired import Absent, Elements
from nfportd.drift import Drift, Reader
from nfportd.listing import parse
from tests.api.calling import ADD_MEMBERSHIP, GROUP, NETLINK_NETFILTER, SOL_NETLINK
from tests.fuzz.budget import tries, within
from tests.lab import Lab
from tests.netns import Namespace
from tests.properties.strategies import elements

#: What nft does in the recording beside elements: everything that has a message of its own.
_ACTS = (
    "add rule inet nfportd prerouting tcp dport 22 counter drop",
    "add chain inet nfportd extra; add rule inet nfportd prerouting tcp dport vmap { 80 : jump extra }",
    "add map inet nfportd m { type inet_service : verdict; }; delete map inet nfportd m",
    "add quota inet nfportd q { over 10 bytes }; delete quota inet nfportd q",
    "add element inet nfportd any4 { * : 203.0.113.1 . 1 }; delete element inet nfportd any4 { * }",
    "add element inet nfportd onlink4 { 10.0.0.1-10.0.0.9 . \"br*\" }; flush set inet nfportd onlink4",
    "add table ip nfportd; add chain ip nfportd c { type filter hook input priority 0; }; delete table ip nfportd",
    "add table inet other; add set inet other s { type ipv4_addr; flags timeout; }; "
    "add element inet other s { 1.2.3.4 timeout 1h }; delete table inet other",
)  # fmt: skip


class Recorder:
    """A namespace in which nft works, and what the kernel tells of it."""

    def __init__(self, space: Namespace) -> None:
        self.space = space
        self._socket = space.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP)
        self._socket.setblocking(False)

    def after(self, text: str) -> list[bytes]:
        """Let nft do this; the datagrams by which the kernel tells it."""
        self.space.nft(text)
        found = []
        while True:
            try:
                found.append(self._socket.recv(1 << 18))
            except BlockingIOError:
                return found

    def listed(self) -> Elements:
        done = self.space.run(["nft", "-j", "list", "table", "inet", "nfportd"])
        found = parse(json.loads(done.stdout))
        assert found
        return found.elements

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as lab:
        made = Recorder(lab.space("host"))
        yield made
        made.close()


class Recording(NamedTuple):
    """Datagrams of everything that nft can do to our table."""

    datagrams: list[bytes]
    end: bytes


_ELEMENTS = """\
add element inet nfportd any4 { tcp . 8080 : 10.88.0.11 . 80, udp . 53 : 10.88.0.12 . 53 }
add element inet nfportd addr6 { 2001:db8::1 . sctp . 80 : fd88::11 . 80 }
add element inet nfportd onlink4 { 10.88.0.0/24 . "br0" }
add element inet nfportd allowed_addr4 { 192.0.2.0/24 . 192.0.2.1 . tcp . 80 }
delete element inet nfportd any4 { udp . 53 }
"""


@pytest.fixture(scope="module")
def recording(recorder: Recorder) -> Recording:
    found: list[bytes] = []
    for act in (ruleset.skeleton(13), _ELEMENTS, *_ACTS, "delete table inet nfportd"):
        found += recorder.after(act)
    return Recording(found, recorder.after("add table ip x; delete table ip x")[-1])


def follow(mirror: Elements, drift: Drift) -> None:
    for name in drift.emptied:
        mirror[name] = {}
    for slot, value in drift.elements.items():
        if isinstance(value, Absent):
            mirror[slot.set].pop(slot.key, None)
        else:
            mirror[slot.set][slot.key] = value


@tries(5)
@given(one=elements(), other=elements())
def test_what_is_told_is_what_is_listed(recorder: Recorder, one: Elements, other: Elements) -> None:
    recorder.after("add table inet nfportd; delete table inet nfportd\n" + ruleset.skeleton(13))
    mirror: Elements = {name: {} for name in ruleset.ELEMENT_SETS}
    reader = Reader()
    gone: dict[desired.Slot, Any] = dict.fromkeys((slot for slot in desired.all_slots(one)), desired.ABSENT) | {
        slot: other[slot.set][slot.key] for slot in desired.all_slots(other)
    }
    first = {slot: one[slot.set][slot.key] for slot in desired.all_slots(one)}
    for change in (desired.delta({}, first), desired.delta(one, gone)):
        if not change:
            continue
        for datagram in recorder.after(ruleset.text(change)):
            reader.feed(datagram)
        assert reader.ready
        drift = reader.take()
        follow(mirror, drift)
        assert mirror == recorder.listed()
        assert (drift.lost, drift.skeleton, [author.name for author in drift.authors]) == (False, False, ["nft"])


def test_everything_that_nft_does_to_the_table_is_told(recorder: Recorder) -> None:
    recorder.after(ruleset.skeleton(13))
    told = []
    for act in _ACTS:
        reader = Reader()
        for datagram in recorder.after(act):
            reader.feed(datagram)
        told.append(bool(reader.take()))
    recorder.after("delete table inet nfportd")

    assert told == [" inet nfportd " in act for act in _ACTS]


@st.composite
def lies(draw: st.DrawFn, datagrams: list[bytes]) -> bytes:
    """A datagram with wrong bytes, lengths, types, or an end too early."""
    told = bytearray(draw(st.sampled_from(datagrams)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(told) // 4 - 1))) * 4
        match draw(st.sampled_from(["length", "type", "byte", "cut", "double", "insert", "family", "header"])):
            case "length" if len(told) >= at + 4:
                told[at : at + 2] = struct.pack("=H", draw(st.sampled_from([0, 1, 3, 4, 5, 8, 0x7FFF, 0xFFFF])))
            case "type" if len(told) >= at + 4:
                told[at + 2 : at + 4] = struct.pack("=H", draw(st.integers(0, 40) | st.integers(0, 0xFFFF)))
            case "byte" if told:
                told[draw(st.integers(0, len(told) - 1))] = draw(st.integers(0, 255))
            case "cut":
                del told[draw(st.integers(0, len(told))) :]
            case "double":
                told += draw(st.sampled_from(datagrams))
            case "insert":
                told[at:at] = draw(st.binary(max_size=20))
            case "family" if len(told) > 16:
                told[16] = draw(st.integers(0, 20))
            case "header" if len(told) >= 6:
                told[4:6] = struct.pack("=H", draw(st.sampled_from([0, 1, 2, 3, 0xA00, 0xA0C, 0xA0F, 0xAFF, 0xFFFF])))
    return bytes(told)


@tries(150)
@given(data=st.data())
def test_whatever_comes_is_taken_without_harm(recording: Recording, data: st.DataObject) -> None:
    reader = Reader()
    sources = st.binary(max_size=300) | lies(recording.datagrams) | st.sampled_from(recording.datagrams)
    for datagram in data.draw(st.lists(sources, min_size=1, max_size=5)):
        with within(1):
            reader.feed(datagram)
    # The end of the next transaction brings out whatever there was, also what was lost in the middle of one.
    reader.feed(recording.end)
    drift = reader.take()

    assert str(drift).isprintable(), str(drift)
    assert len(str(drift)) < 1000
    assert drift.emptied <= ruleset.ELEMENT_SETS
    assert all(slot.set in ruleset.ELEMENT_SETS for slot in drift.elements)
    # What it says can be written: by nft's grammar all of it can be taken out again.
    ruleset.text(desired.Delta(dict.fromkeys(drift.elements), {}))
    assert not reader.take()


@tries(100)
@given(data=st.data())
def test_a_lie_inside_a_message_is_noticed(recording: Recording, data: st.DataObject) -> None:
    """A message of our table that is cut, or one of whose attributes is longer than it, counts as lost."""
    ours = [each for each in recording.datagrams if b"nfportd\0" in each and each[16] == 1 and each[4] != 0x0F]
    told = bytearray(data.draw(st.sampled_from(ours)))
    if data.draw(st.booleans()):
        del told[data.draw(st.integers(1, struct.unpack_from("=I", told)[0] - 1)) :]
    else:
        told[20:22] = struct.pack("=H", data.draw(st.sampled_from([0, 1, 3, 0xFFFF])))
    reader = Reader()
    reader.feed(bytes(told))
    reader.feed(recording.end)

    assert reader.take().lost

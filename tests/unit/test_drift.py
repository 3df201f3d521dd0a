"""What the kernel's notifications say of others' transactions, from bytes as it writes them.

It must not talk to the kernel: tests/kernel/test_drift.py does. The one idea: messages are built field by field as the
headers say, and taken apart by the reader.
"""

from __future__ import annotations

import ipaddress
import struct

import pytest

from nfportd import ruleset
from nfportd.desired import ABSENT, Slot
from nfportd.drift import Author, Reader

NEW_TABLE, DEL_TABLE, NEW_CHAIN, NEW_RULE, DEL_SET, NEW_ELEMENT, DEL_ELEMENT, NEW_GEN = 0, 2, 3, 6, 11, 12, 14, 15


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, *attributes: bytes, family: int = 1) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 10 << 8 | kind, 0, 7, 4242) + body


def end(name: str = "nft", pid: int = 99) -> bytes:
    said = attribute(1, struct.pack(">I", 5)), attribute(2, struct.pack(">I", pid)), text(3, name)
    return message(NEW_GEN, *said, family=0)


def fields(*values: str | int) -> bytes:
    """A concatenated key: addresses, then a protocol in a byte, a port in two; each padded to four."""
    found = b""
    for value in values:
        raw = ipaddress.ip_address(value).packed if isinstance(value, str) else struct.pack(">H", value)
        found += raw + bytes(-len(raw) % 4)
    return found


def number(protocol: int) -> bytes:
    return bytes([protocol, 0, 0, 0])


def element(kind: int, name: str, key: bytes, data: bytes = b"", last: bytes = b"", flags: int = 0) -> bytes:
    inside = attribute(1, attribute(1, key))
    inside += attribute(2, attribute(1, data)) if data else b""
    inside += attribute(10, attribute(1, last)) if last else b""
    inside += attribute(3, struct.pack(">I", flags)) if flags else b""
    return message(kind, text(1, "nfportd"), text(2, name), attribute(0x8003, attribute(0x8001, inside)))


def read(*datagrams: bytes) -> Reader:
    reader = Reader()
    for datagram in datagrams:
        reader.feed(datagram)
    return reader


WEB = number(6) + fields(8080)


def test_an_element_is_followed_with_its_value_and_its_author() -> None:
    drift = read(element(NEW_ELEMENT, "any4", WEB, fields("10.88.0.11", 80)) + end()).take()
    assert drift.elements == {Slot("any4", ("tcp", 8080)): ("10.88.0.11", 80)}
    assert (list(drift.authors), drift.lost, drift.skeleton) == ([Author("nft", 99)], False, False)
    assert str(drift) == "1 element was changed by nft (pid 99)"


def test_the_last_word_on_an_element_counts() -> None:
    said = element(DEL_ELEMENT, "any4", WEB), element(NEW_ELEMENT, "any4", WEB, fields("10.0.0.1", 1))
    assert read(*said, end()).take().elements == {Slot("any4", ("tcp", 8080)): ("10.0.0.1", 1)}
    assert read(*reversed(said), end()).take().elements == {Slot("any4", ("tcp", 8080)): ABSENT}


@pytest.mark.parametrize(
    ("name", "key", "last", "slot"),
    [
        ("addr6", fields("2001:db8::1") + number(17) + fields(53), b"", ("2001:db8::1", "udp", 53)),
        ("always_any6", number(33) + fields(1), b"", (33, 1)),
        ("onlink4", fields("10.88.0.0") + b"br0".ljust(16, b"\0"), fields("10.88.0.255") + b"br0".ljust(16, b"\0"),
         ("10.88.0.0/24", "br0")),
        ("onlink4", fields("10.88.0.1") + b"br0".ljust(16, b"\0"), fields("10.88.0.3") + b"br0".ljust(16, b"\0"),
         ("10.88.0.1-10.88.0.3", "br0")),
        ("allowed_any4", fields("192.0.2.7") + WEB, b"", ("192.0.2.7/32", "tcp", 8080)),
    ],
)  # fmt: skip
def test_keys_are_read_as_nft_lists_them(name: str, key: bytes, last: bytes, slot: tuple[str | int, ...]) -> None:
    data = fields("fd88::11", 80) if name == "addr6" else b""
    assert list(read(element(NEW_ELEMENT, name, key, data, last), end()).take().elements) == [Slot(name, slot)]


def test_a_table_that_went_takes_everything_along() -> None:
    gone = message(DEL_TABLE, text(1, "nfportd"))
    drift = read(element(NEW_ELEMENT, "any4", WEB, fields("10.0.0.1", 1)), gone, end()).take()
    assert (drift.elements, drift.emptied, drift.skeleton) == ({}, set(ruleset.ELEMENT_SETS), True)
    assert str(drift) == "the table was deleted by nft (pid 99)"


def test_a_set_that_went_takes_its_elements_along() -> None:
    before = element(NEW_ELEMENT, "always_any4", WEB)
    gone, after = message(DEL_SET, text(1, "nfportd"), text(2, "always_any4")), element(NEW_ELEMENT, "always_any6", WEB)
    drift = read(before, gone, after, end()).take()
    assert list(drift.elements) == [Slot("always_any6", ("tcp", 8080))]
    assert (drift.emptied, drift.skeleton) == ({"always_any4"}, True)


@pytest.mark.parametrize("kind", [NEW_TABLE, NEW_CHAIN, NEW_RULE])
def test_of_chains_and_rules_it_is_enough_that_they_were_touched(kind: int) -> None:
    drift = read(message(kind, text(1, "nfportd"), text(2, "x")), end()).take()
    assert (drift.skeleton, drift.elements, drift.emptied, drift.lost) == (True, {}, set(), False)


@pytest.mark.parametrize("other", [message(NEW_CHAIN, text(1, "nfportd"), family=2), message(NEW_CHAIN, text(1, "x"))])
def test_tables_of_others_are_their_own(other: bytes) -> None:
    reader = read(other, end())
    assert (reader.ready, reader.transactions) == (False, 1)


def test_a_transaction_is_told_when_it_has_ended() -> None:
    reader = read(message(NEW_RULE, text(1, "nfportd"), text(2, "dispatch")))
    assert not reader.ready
    assert not reader.take()
    reader.feed(end("firewalld", 7))
    assert list(reader.take().authors) == [Author("firewalld", 7)]
    assert not reader.ready


@pytest.mark.parametrize(
    "strange",
    [
        element(NEW_ELEMENT, "fingerprint", bytes(4)),
        element(NEW_ELEMENT, "always_any4", WEB, flags=2),
        element(NEW_ELEMENT, "always_any4", WEB[:5]),
        element(NEW_ELEMENT, "onlink4", fields("10.0.0.0") + b"eth".ljust(16, b"\0"),
                last=fields("10.0.0.255") + b"eth".ljust(16, b"\xff")),
        element(NEW_ELEMENT, "any4", WEB, fields("10.0.0.1", 1))[:-20],
        message(NEW_ELEMENT, text(1, "nfportd")),
        message(DEL_SET, text(1, "nfportd")),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_counts_as_lost(strange: bytes) -> None:
    reader = read(strange, end())
    assert reader.ready
    assert reader.take().lost


def test_lost_notifications_do_not_wait_for_an_end() -> None:
    reader = read(message(NEW_RULE, text(1, "nfportd"), text(2, "dispatch")))
    reader.lose()
    assert reader.take().lost

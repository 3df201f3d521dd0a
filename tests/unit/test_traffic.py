"""Counting connections from readings: growth, rates, minutes, and counters that begin anew.

It must not read a kernel. The one idea: readings with their times in, counts out.
"""

from __future__ import annotations

import pytest

from nfportd.model import Key, Protocol
from nfportd.traffic import BUSIEST, MINUTES, Packed, Traffic, packed, unpacked

WEB, DNS = b"4web", b"4dns"


def counted(*readings: tuple[float, dict[Packed, int]]) -> Traffic:
    """What is known after readings at these seconds."""
    traffic = Traffic()
    for now, connections in readings:
        traffic.note(connections, complete=True, now=now, date=1000 + now)
    return traffic


@pytest.mark.parametrize(
    ("key", "in_the_kernel"),
    [
        (Key(4, None, Protocol.TCP, 8080), "06000000 1f900000"),
        (Key(6, None, Protocol.SCTP, 1), "84000000 00010000"),
        (Key(4, "192.0.2.1", Protocol.UDP, 53), "c0000201 11000000 00350000"),
        (Key(6, "2001:db8::1", Protocol.TCP, 443), "20010db8000000000000000000000001 06000000 01bb0000"),
    ],
)
def test_a_key_as_the_kernel_has_it(key: Key, in_the_kernel: str) -> None:
    assert packed(key) == str(key.family).encode() + bytes.fromhex(in_the_kernel)
    assert unpacked(packed(key)) == key


def test_a_protocol_without_ports_is_no_key() -> None:
    assert unpacked(b"4" + bytes.fromhex("01000000 00350000")) is None


def test_before_any_reading_nothing_is_known() -> None:
    traffic = Traffic()
    traffic.end_minute(60, 60)

    assert (traffic.connections(WEB), traffic.seconds, traffic.rate, traffic.grown(), list(traffic.minutes)) == (
        (0, None, None, {}, [])
    )


def test_a_count_is_what_the_counter_says() -> None:
    assert counted((0, {WEB: 5}), (9, {WEB: 7})).connections(WEB) == 7


def test_a_rate_is_growth_over_the_time_between_two_readings() -> None:
    traffic = counted((0, {WEB: 100}), (4, {WEB: 110, DNS: 2}))

    assert (traffic.growth(WEB), traffic.growth(DNS), traffic.seconds, traffic.rate) == (10, 2, 4, 3)
    assert traffic.grown() == {WEB: 10, DNS: 2}


def test_readings_within_a_second_leave_no_rate_over_less() -> None:
    traffic = counted((0, {}), (0.2, {WEB: 1}))
    assert traffic.seconds is None

    traffic = counted((0, {}), *((tick / 10, {WEB: tick}) for tick in range(1, 30)))
    assert traffic.seconds is not None
    assert 1 <= traffic.seconds <= 2
    assert traffic.rate == pytest.approx(10)


def test_an_element_made_anew_takes_nothing_back() -> None:
    traffic = counted((0, {WEB: 100}), (10, {WEB: 4}))

    assert (traffic.growth(WEB), traffic.grown(), traffic.connections(WEB)) == (4, {WEB: 4}, 4)


def test_keys_that_an_interrupted_reading_missed_are_not_counted_twice() -> None:
    traffic = counted((0, {WEB: 100, DNS: 1}))
    traffic.note({DNS: 2}, complete=False, now=10, date=1010)
    assert traffic.connections(WEB) == 100
    traffic.note({WEB: 101, DNS: 2}, complete=True, now=20, date=1020)
    traffic.end_minute(20, 1020)

    assert (traffic.growth(WEB), traffic.minutes[-1].connections) == (1, 2)


def test_a_minute_has_its_sum_and_its_busiest_keys() -> None:
    many = {b"4%d" % number: number for number in range(1, BUSIEST + 11)}
    traffic = counted((0, {}), (60, many))
    traffic.end_minute(61, 1061)

    minute = traffic.minutes[0]
    assert (minute.began, minute.seconds, minute.connections) == (1000, 61, sum(many.values()))
    assert sorted(minute.busiest.values()) == list(range(11, BUSIEST + 11))


def test_what_was_there_before_the_first_reading_is_in_no_minute() -> None:
    traffic = counted((0, {WEB: 1000}), (60, {WEB: 1001}))
    traffic.end_minute(60, 1060)

    assert traffic.minutes[0].connections == 1


def test_an_hour_is_kept() -> None:
    traffic = counted((0, {}))
    for minute in range(1, 100):
        traffic.note({WEB: minute}, complete=True, now=60 * minute, date=60 * minute)
        traffic.end_minute(60 * minute, 60 * minute)

    assert (len(traffic.minutes), traffic.minutes[0].began) == (MINUTES, 60 * (99 - MINUTES))

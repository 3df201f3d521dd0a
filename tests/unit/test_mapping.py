"""What a mapping may look like, and where each of its keys then goes.

It must not know how text is checked. The one idea: every accepted form beside the keys that it claims.
"""

from __future__ import annotations

import pytest

from nfportd.model import Mapping, takes_loopback
from tests.unit.reading import goes, mapping, mappings

FOUR, SIX = "10.88.0.11:80", "[fd88::11]:80"


@pytest.mark.parametrize(
    ("listen", "targets", "expected"),
    [
        pytest.param(8080, FOUR, {"0.0.0.0:8080/tcp": FOUR}, id="number"),
        pytest.param("8080", FOUR, {"0.0.0.0:8080/tcp": FOUR}, id="text"),
        pytest.param(" 8080 ", FOUR, {"0.0.0.0:8080/tcp": FOUR}, id="spaces"),
        pytest.param(8080, SIX, {"[::]:8080/tcp": SIX}, id="a port alone is of the target's family"),
        pytest.param("0.0.0.0:8080", FOUR, {"0.0.0.0:8080/tcp": FOUR}, id="every IPv4 address"),
        pytest.param("[::]:8080", SIX, {"[::]:8080/tcp": SIX}, id="every IPv6 address"),
        pytest.param("192.0.2.1:8080", FOUR, {"192.0.2.1:8080/tcp": FOUR}, id="one IPv4 address"),
        pytest.param("[2001:db8::1]:8080", SIX, {"[2001:db8::1]:8080/tcp": SIX}, id="one IPv6 address"),
        pytest.param("[2001:DB8:0:0::1]:8080", SIX, {"[2001:db8::1]:8080/tcp": SIX}, id="the canonical form counts"),
        pytest.param("127.0.0.1:8080", FOUR, {"127.0.0.1:8080/tcp": FOUR}, id="IPv4 loopback"),
        pytest.param("[::1]:8080", SIX, {"[::1]:8080/tcp": SIX}, id="IPv6 loopback"),
        pytest.param(1, FOUR, {"0.0.0.0:1/tcp": FOUR}, id="first port"),
        pytest.param(65535, FOUR, {"0.0.0.0:65535/tcp": FOUR}, id="last port"),
        pytest.param("8080-8080", FOUR, {"0.0.0.0:8080/tcp": FOUR}, id="range of one"),
        pytest.param(
            "5000-5002",
            "10.88.0.11:5000-5002",
            {f"0.0.0.0:{port}/tcp": f"10.88.0.11:{port}" for port in (5000, 5001, 5002)},
            id="equal range",
        ),
        pytest.param(
            "192.0.2.1:5000-5002",
            "10.88.0.11:6000-6002",
            {f"192.0.2.1:{port}/tcp": f"10.88.0.11:{port + 1000}" for port in (5000, 5001, 5002)},
            id="shifted range",
        ),
        pytest.param(
            "5000 - 5001",
            "10.88.0.11:6000 - 6001",
            {"0.0.0.0:5000/tcp": "10.88.0.11:6000", "0.0.0.0:5001/tcp": "10.88.0.11:6001"},
            id="range with spaces",
        ),
        pytest.param(8080, [FOUR], {"0.0.0.0:8080/tcp": FOUR}, id="list of one target"),
        pytest.param(8080, [SIX, FOUR], {"0.0.0.0:8080/tcp": FOUR, "[::]:8080/tcp": SIX}, id="dual stack"),
    ],
)
def test_listen_and_targets(listen: object, targets: object, expected: dict[str, str]) -> None:
    assert goes(mapping(listen, targets)) == expected


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("tcp", ["tcp"]),
        ("udp", ["udp"]),
        ("sctp", ["sctp"]),
        (["udp", "tcp"], ["tcp", "udp"]),
        (["sctp", "udp", "tcp"], ["tcp", "udp", "sctp"]),
    ],
)
def test_protocols(protocol: object, expected: list[str]) -> None:
    assert list(goes(mapping(protocol=protocol))) == [f"0.0.0.0:8080/{each}" for each in expected]


def test_the_whole_range_of_ports_of_both_families_and_all_protocols() -> None:
    made = mapping("1-65535", ["10.88.0.11:1-65535", "[fd88::11]:1-65535"], protocol=["tcp", "udp", "sctp"])

    assert len(dict(made.endpoints())) == 2 * 3 * 65535


def test_what_is_left_out_has_a_default() -> None:
    made = mapping()

    assert (made.name, made.masquerade, made.on_change, made.comment) == (None, "auto", "keep", None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("masquerade", "auto"),
        ("masquerade", "always"),
        ("on_change", "keep"),
        ("on_change", "cut"),
        ("name", "wéb — 1"),
        ("comment", "who asked: the web team, ticket #12"),
    ],
)
def test_a_choice_is_kept(name: str, value: str) -> None:
    assert getattr(mapping(**{name: value}), name) == value


def test_a_name_may_be_a_number() -> None:
    assert mapping(name=8080).name == "8080"


def test_the_same_mapping_in_other_words_is_equal() -> None:
    plain = mapping(8080, [FOUR, SIX], protocol=["tcp", "udp"])

    assert mapping("8080", [SIX, FOUR], protocol=["udp", "tcp"], masquerade="auto") == plain


def test_every_mapping_knows_the_line_in_which_it_begins() -> None:
    found = mappings(
        "mappings:\n"
        "  - listen: 80\n"
        "    targets: 10.88.0.11:80\n"
        "\n"
        "  # a comment\n"
        "  - targets: 10.88.0.11:80\n"
        "    listen: 81\n"
    )

    assert list(found.values()) == [2, 6]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (mapping(name="web"), '"web"'),
        (mapping(), "8080 to 10.88.0.11:80"),
        (mapping("[::]:8080", SIX), "[::]:8080 to [fd88::11]:80"),
        (mapping("0.0.0.0:8080"), "0.0.0.0:8080 to 10.88.0.11:80"),
        (mapping("5000-5001", ["10.88.0.11:1-2", "[fd88::11]:3-4"]), "5000-5001 to 10.88.0.11:1-2, [fd88::11]:3-4"),
    ],
)
def test_what_a_mapping_is_called(made: Mapping, expected: str) -> None:
    assert str(made) == expected


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        (8080, True),
        ("0.0.0.0:8080", True),
        ("127.0.0.1:8080", True),
        ("127.1.2.3:8080", True),
        ("192.0.2.1:8080", False),
    ],
)
def test_which_keys_connections_of_the_host_to_its_loopback_can_reach(listen: object, expected: bool) -> None:
    assert [takes_loopback(key.address) for key in mapping(listen).claimed()] == [expected]

"""What nft lists of our table, also after others have been in it: read, or refused by one error; and mended for real.

It must not know how listings are read. The one idea: complete listings take damage as JSON does; and what nft can be
made to put into our table is put there, once before a start and once while the daemon runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from nfportd import desired, origins, ruleset
from nfportd.listing import parse
from nfportd.sources import recovery
from tests.api.calling import eventually
from tests.fuzz import jsons
from tests.fuzz.budget import tries, within
from tests.lab import Daemon, Lab
from tests.unit.listings import concat, counted, prefix, table

_ELEMENTS: dict[str, list[Any]] = {
    "any4": [[counted(concat("tcp", 8080), 3), concat("10.88.0.11", 80)], ["*", concat("10.88.0.11", 80)]],
    "addr6": [[counted(concat("2001:db8::1", 17, 8080)), concat("fd88::11", 80)]],
    "always_any4": [concat("tcp", 8080), "*"],
    "onlink4": [concat(prefix("10.88.0.0", 24), "br0"), concat({"range": ["10.0.0.1", "10.0.0.9"]}, "br*")],
    "guarded_any4": [concat("tcp", 8080)],
    "allowed_any4": [concat(prefix("192.0.2.0", 24), "tcp", {"range": [80, 90]}), concat("192.0.2.1", "tcp", 8080)],
}
_listings = st.sampled_from(["1.0.6", "1.1.3"]).map(lambda version: table(version, "abc", **_ELEMENTS))


@tries(60)
@given(jsons.damaged(_listings, most=3))
def test_a_listing_is_read_or_refused_by_one_error(listing: Any) -> None:
    try:
        with within(2):
            found = parse(listing)
    except ValueError:
        return
    if found is not None:
        # What was read can be worked with.
        ruleset.refill(found, 13, found.flags)
        ruleset.fingerprint(13, found)
        origins.sources_in(found.elements)
        for slot in desired.all_slots(found.elements):
            assert desired.key_of(slot) is None or slot.set in ruleset.ELEMENT_SETS
        ruleset.text(desired.delta(found.elements, dict.fromkeys(desired.all_slots(found.elements), desired.ABSENT)))
        recovery.from_elements(found.elements)


#: What another program may put into our table, in nft's words.
ODD = (
    "add element inet nfportd any4 { * : 203.0.113.1 . 1 }",
    "add element inet nfportd addr6 { * : 2001:db8::9 . 1 }",
    "add element inet nfportd always_any4 { * }; add element inet nfportd allowed_any4 { * }",
    "add element inet nfportd onlink4 { * }",
    'add element inet nfportd onlink4 { 203.0.113.0/24 . "br*", 203.0.113.0/24 . "b r" }',
    'add element inet nfportd onlink6 { 2001:db8::1-2001:db8::9 . "br0" }',
    "add element inet nfportd allowed_any4 { 203.0.113.0/24 . tcp . 80-90 }",
    "add element inet nfportd allowed_any4 { 0.0.0.0/0 . 0-255 . 0-65535 }",
    'add element inet nfportd allowed_addr6 { ::/0 . 2001:db8::/32 . tcp . 80 comment "hi" }',
    'add element inet nfportd any4 { tcp . 80 counter packets 5 bytes 7 comment "hi" : 203.0.113.1 . 1 }',
    "add element inet nfportd any4 { 0 . 0 : 0.0.0.0 . 0, 253 . 80 : 224.0.0.1 . 5, tcp . 81 : 127.0.0.1 . 0 }",
    "add element inet nfportd any6 { tcp . 80 : ::ffff:1.2.3.4 . 5, tcp . 81 : fe80::1 . 5 }",
    "add element inet nfportd addr4 { 224.0.0.1 . tcp . 80 : 10.0.0.1 . 5 }",
    'add element inet nfportd fingerprint { 0x2 comment "x", 0x3 }',
    "add map inet nfportd m { type inet_service : verdict; }; add chain inet nfportd c; "
    "add element inet nfportd m { 80 : jump c, 81 : jump dispatch }; add rule inet nfportd c tcp dport vmap @m",
    "add counter inet nfportd c; add map inet nfportd m { type inet_service : counter; }; "
    'add element inet nfportd m { 80 : "c" }',
    "add set inet nfportd s { type ipv4_addr; flags timeout, dynamic; timeout 1m; size 10; }; "
    "add element inet nfportd s { 1.2.3.4 timeout 5s }; add rule inet nfportd prerouting add @s { ip saddr }",
    "add chain inet nfportd in { type filter hook ingress device lo priority 0; policy drop; }",
    'add rule inet nfportd prerouting tcp dport vmap { 80 : jump dispatch } comment "\u00e9"',
    "add rule inet nfportd prerouting numgen inc mod 2 vmap { 0 : accept, 1 : drop }",
    "add rule inet nfportd prerouting @th,0,16 22 counter quota 5 bytes drop",
    "add rule inet nfportd prerouting meter m { ip saddr limit rate 5/second }",
)
#: With all rules that come on demand, which a start also writes for elements of others.
_DROPIN = """\
mappings:
  - {listen: 8080, targets: [10.88.0.11:80], sources: 192.0.2.0/24, masquerade: always}
  - {listen: 127.0.0.1:8081, targets: [10.88.0.11:80], masquerade: always}
"""


@pytest.fixture(scope="module")
def room() -> Iterator[Lab]:
    """A host alone."""
    with Lab(build=False) as lab:
        lab.space("host")
        yield lab


@pytest.fixture
def daemon(room: Lab) -> Iterator[Daemon]:
    """The daemon with two mappings, and a table that nobody else has touched."""
    made = Daemon(room)
    made.write("web.yaml", _DROPIN, wait=False)
    made.start()
    yield made
    if made.process:
        made.stop()
    room.host.run(["nft", "flush", "ruleset"])


def listed(daemon: Daemon) -> list[str]:
    """The table's lines in any order, without the owner that only a table made anew can have, and the fingerprint."""
    lines = daemon.space.run(["nft", "-s", "list", "table", "inet", "nfportd"]).stdout.splitlines()
    return sorted(line for line in lines if line and not line.startswith("table ") and "flags owner" not in line)


def test_what_others_put_into_our_table_is_mended_while_it_is_ours(daemon: Daemon) -> None:
    if "made table inet nfportd, owned" in daemon.log:
        pytest.skip("here nobody else can change a table that has an owner")
    sound = listed(daemon)
    for odd in ODD:
        daemon.space.nft(odd)
        eventually(lambda: listed(daemon) == sound, True)

    assert ("Traceback" in daemon.log, daemon.stop()) == (False, 0)


def test_what_others_put_into_our_table_is_mended_by_a_start(daemon: Daemon) -> None:
    sound = listed(daemon)
    for odds in (ODD[0::3], ODD[1::3], ODD[2::3]):
        daemon.kill9()
        for odd in odds:
            daemon.space.nft(odd, check=False)  # what one has taken, another cannot
        assert listed(daemon) != sound
        daemon.start()
        eventually(lambda: listed(daemon) == sound, True)

    assert ("Traceback" in daemon.log, daemon.stop()) == (False, 0)


def test_what_others_put_into_our_table_is_no_obstacle_when_the_store_is_lost(daemon: Daemon) -> None:
    daemon.kill9()
    for odd in ODD:
        daemon.space.nft(odd, check=False)
    for place in ("run", "state"):
        (daemon.dir / place / "mappings.db").write_bytes(b"garbage" * 1000)

    daemon.start()

    assert "is corrupt" in daemon.log
    assert ("Traceback" in daemon.log, daemon.stop()) == (False, 0)

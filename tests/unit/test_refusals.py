"""What a user reads when a mapping is wrong: the place, what was found, and what would be right.

It must not know which module says it. The one idea: each refusal in full, as it stands in the log.
"""

from __future__ import annotations

import json

import pytest

from tests.unit.reading import refused

DROPIN = """\
mappings:
  - name: web
    listen: {listen}
    targets: {targets}
"""
HERE = 'mapping "web": '
LISTEN = f"web.yaml:3:13: {HERE}listen: "
TARGETS = f"web.yaml:4:14: {HERE}targets: "
EXAMPLES = "write a port (8080), a range (20000-20099) or an address and port"
ONE_HOST = "only addresses of one host can be forwarded"
OTHER_HOST = "a target is the address of one other host or container"


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("0", "port 0 is out of range; ports are 1 to 65535"),
        ("65536", "port 65536 is out of range; ports are 1 to 65535"),
        ("192.0.2.1:0", "port 0 is out of range; ports are 1 to 65535"),
        ("65000-65536", "port 65536 is out of range; ports are 1 to 65535"),
        ("-1", "'-1' is not a port or a range; write 80 or 8000-8099"),
        ("99999999999", "'99999999999' is not a port or a range; write 80 or 8000-8099"),
        ("0x50", "'0x50' is not a port or a range; write 80 or 8000-8099"),
        ("80,90", "'80,90' is not a port or a range; write 80 or 8000-8099"),
        ("80-", "'80-' is not a port or a range; write 80 or 8000-8099"),
        ("٨٠", "'٨٠' is not a port or a range; write 80 or 8000-8099"),
        ("http", "'http' is not a port or a range; write 80 or 8000-8099"),
        ("192.0.2.1:http", "'http' is not a port or a range; write 80 or 8000-8099"),
        ("8080-8070", "range 8080-8070 runs backwards; write 8070-8080"),
        ("22:80", "'22:80': listen takes this host's port, 22; the target's port goes in targets"),
        ("80/tcp", "'80/tcp': the protocol has a key of its own, write protocol: tcp"),
        ("192.0.2.1", "'192.0.2.1' has no port; write it like 192.0.2.1:80"),
        ("'[2001:db8::1]'", "'[2001:db8::1]' has no port; write it like [2001:db8::1]:80"),
        ("':80'", "':80': for every address write the port alone, 80"),
        ("'*:80'", "'*:80': for every address write the port alone, 80"),
        (
            "'192.0.2.1:8080:80'",
            "'192.0.2.1:8080:80' has two ports; a listen address has one, the other end has its own key",
        ),
        ("80.5", "'80.5' is not an IPv4 address; write four numbers from 0 to 255"),
        ("localhost:80", "'localhost' is not an address; host names are not looked up"),
        ("example.com", "'example.com' is not an address; host names are not looked up"),
        ("example.com:80", "'example.com' is not an address; host names are not looked up"),
        ("192.0.2.300:80", "'192.0.2.300' is not an IPv4 address; write four numbers from 0 to 255"),
        ("192.0.2:80", "'192.0.2' is not an IPv4 address; write four numbers from 0 to 255"),
        ("192.0.02.1:80", "'192.0.02.1' is not an IPv4 address; write four numbers from 0 to 255"),
        ("'[2001:db8::g]:80'", "'2001:db8::g' is not an IPv6 address; write it like [2001:db8::1]:80"),
        (
            "2001:db8::1:80",
            "'2001:db8::1:80': an IPv6 listen address stands in brackets; write it like [2001:db8::1]:80",
        ),
        ("'[192.0.2.1]:80'", "'[192.0.2.1]:80': brackets are for IPv6 addresses, like [2001:db8::1]:80"),
        (
            "'[fe80::1%eth0]:80'",
            "'fe80::1%eth0' names an interface; a listen address is a plain address, without a zone",
        ),
        ("'[::ffff:192.0.2.1]:80'", "::ffff:192.0.2.1 is an IPv4 address in IPv6 clothes; write 192.0.2.1"),
        ("224.0.0.1:80", f"224.0.0.1 is a multicast address; {ONE_HOST}"),
        ("'[ff02::1]:80'", f"ff02::1 is a multicast address; {ONE_HOST}"),
        ("255.255.255.255:80", f"255.255.255.255 is a broadcast address; {ONE_HOST}"),
        (
            "'[fe80::1]:80'",
            "fe80::1 is link-local; IPv6 does not forward between links, listen on a global address",
        ),
        ("true", f"found true; {EXAMPLES}"),
        ("null", f"found nothing; {EXAMPLES}"),
        ("[80]", f"found a list; {EXAMPLES}"),
        ("{port: 80}", f"found a mapping of keys; {EXAMPLES}"),
        (
            "a" * 100,
            f"'{'a' * 57}...' is not a port or a range; write 80 or 8000-8099",
        ),
    ],
)
def test_listen(listen: str, message: str) -> None:
    assert refused(DROPIN.format(listen=listen, targets="10.88.0.11:80")) == [LISTEN + message]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("80", "found only the port 80; write the target's address too, like 10.88.0.11:80"),
        ("10.88.0.11", "'10.88.0.11' has no port; write it like 10.88.0.11:80"),
        ("'[fd88::11]'", "'[fd88::11]' has no port; write it like [fd88::11]:80"),
        ("10.88.0.11:0", "port 0 is out of range; ports are 1 to 65535"),
        ("10.88.0.11:65536", "port 65536 is out of range; ports are 1 to 65535"),
        ("10.88.0.11:81-80", "range 81-80 runs backwards; write 80-81"),
        ("127.0.0.1:80", f"127.0.0.1 is a loopback address; {OTHER_HOST}"),
        ("'[::1]:80'", f"::1 is a loopback address; {OTHER_HOST}"),
        ("224.0.0.1:80", f"224.0.0.1 is a multicast address; {OTHER_HOST}"),
        ("'[ff02::1]:80'", f"ff02::1 is a multicast address; {OTHER_HOST}"),
        ("0.0.0.0:80", f"0.0.0.0 is an unspecified address; {OTHER_HOST}"),
        ("'[::]:80'", f":: is an unspecified address; {OTHER_HOST}"),
        ("255.255.255.255:80", f"255.255.255.255 is a broadcast address; {OTHER_HOST}"),
        ("169.254.1.1:80", f"169.254.1.1 is a link-local address; {OTHER_HOST}"),
        ("'[fe80::1]:80'", f"fe80::1 is a link-local address; {OTHER_HOST}"),
        ("'[fe80::1%eth0]:80'", "'fe80::1%eth0' names an interface; a target is a plain address, without a zone"),
        ("'[::ffff:10.88.0.11]:80'", "::ffff:10.88.0.11 is an IPv4 address in IPv6 clothes; write 10.88.0.11"),
        ("0.1.2.3:80", f"0.1.2.3 is a reserved address; {OTHER_HOST}"),
        ("http://10.88.0.11:80", "'http://10.88.0.11:80' is a URL; a target is an address and port like 10.88.0.11:80"),
        ("web:80", "'web' is not an address; host names are not looked up"),
        ("web.example:80", "'web.example' is not an address; host names are not looked up"),
        ("10.88.0.256:80", "'10.88.0.256' is not an IPv4 address; write four numbers from 0 to 255"),
        ("'fd88::11:80'", "'fd88::11:80': an IPv6 target stands in brackets; write it like [2001:db8::1]:80"),
        ("null", "found nothing; write an address and port like 10.88.0.11:80"),
        ("true", "found true; write an address and port like 10.88.0.11:80"),
        ("{address: 10.88.0.11}", "found a mapping of keys; write an address and port like 10.88.0.11:80"),
    ],
)
def test_target(targets: str, message: str) -> None:
    assert refused(DROPIN.format(listen=8080, targets=targets)) == [TARGETS + message]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("[]", "the list is empty; a mapping needs at least one target"),
        ("[10.88.0.11:80, 10.88.0.12:80]", "more than one IPv4 target; a mapping has at most one a family"),
        ("['[fd88::11]:80', '[fd88::11]:80']", "more than one IPv6 target; a mapping has at most one a family"),
    ],
)
def test_targets(targets: str, message: str) -> None:
    assert refused(DROPIN.format(listen=8080, targets=targets)) == [TARGETS + message]


def test_the_second_target_of_a_list_has_a_place_of_its_own() -> None:
    assert refused(DROPIN.format(listen=8080, targets="[10.88.0.11:80, '[::1]:80']")) == [
        f"web.yaml:4:30: {HERE}targets[1]: ::1 is a loopback address; {OTHER_HOST}"
    ]


@pytest.mark.parametrize(
    ("listen", "targets", "message"),
    [
        (
            "8000-8009",
            "10.88.0.11:8000",
            "listen 8000-8009 has 10 ports and target 10.88.0.11:8000 has 1 port; "
            "a range maps 1:1, write 10.88.0.11:8000-8009",
        ),
        (
            "8000",
            "10.88.0.11:8000-8009",
            "listen 8000 has 1 port and target 10.88.0.11:8000-8009 has 10 ports; "
            "a range maps 1:1, write 10.88.0.11:8000",
        ),
        (
            "8000-8009",
            "10.88.0.11:65530-65535",
            "listen 8000-8009 has 10 ports and target 10.88.0.11:65530-65535 has 6 ports; "
            "a range maps 1:1, write 10.88.0.11:65526-65535",
        ),
        (
            "'[::]:80-81'",
            "'[fd88::11]:80'",
            "listen [::]:80-81 has 2 ports and target [fd88::11]:80 has 1 port; "
            "a range maps 1:1, write [fd88::11]:80-81",
        ),
    ],
)
def test_ranges_of_different_length(listen: str, targets: str, message: str) -> None:
    assert refused(DROPIN.format(listen=listen, targets=targets)) == [TARGETS + message]


@pytest.mark.parametrize(
    ("listen", "targets", "message"),
    [
        (
            "192.0.2.1:80",
            "'[fd88::11]:80'",
            "target [fd88::11]:80 is IPv6, listen 192.0.2.1:80 is IPv4; name an IPv4 target",
        ),
        (
            "0.0.0.0:80",
            "[10.88.0.11:80, '[fd88::11]:80']",
            "target [fd88::11]:80 is IPv6, listen 0.0.0.0:80 is IPv4; name an IPv4 target",
        ),
        ("'[::]:80'", "10.88.0.11:80", "target 10.88.0.11:80 is IPv4, listen [::]:80 is IPv6; name an IPv6 target"),
    ],
)
def test_families_that_do_not_fit(listen: str, targets: str, message: str) -> None:
    assert refused(DROPIN.format(listen=listen, targets=targets)) == [TARGETS + message]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("protocol: [tcp, icmp]", "4:21: {}protocol[1]: found 'icmp'; protocols are tcp, udp and sctp"),
        ("protocol: [TCP]", "4:16: {}protocol[0]: found 'TCP'; protocols are tcp, udp and sctp"),
        ("protocol: [6]", "4:16: {}protocol[0]: found '6'; protocols are tcp, udp and sctp"),
        ("protocol: [tcp, tcp]", "4:15: {}protocol: tcp is named twice"),
        ("protocol: []", "4:15: {}protocol: the list is empty; leave the key out for tcp"),
        ("masquerade: often", "4:17: {}masquerade: found 'often'; write auto, always or never"),
        ("masquerade: no", "4:17: {}masquerade: found 'no'; write auto, always or never"),
        ("masquerade: true", "4:17: {}masquerade: found true; write auto, always or never"),
        ("on_change: drop", "4:16: {}on_change: found 'drop'; write keep or cut"),
        ("comment: ''", "4:14: {}comment: found ''; write printable characters on one line"),
        ("comment: [x]", "4:14: {}comment: found a list; write text"),
        ('comment: "a\\nb"', "4:14: {}comment: found 'a\\nb'; write printable characters on one line"),
        ('comment: "a\\eb"', "4:14: {}comment: found 'a\\x1bb'; write printable characters on one line"),
        ("name: [x]", "4:11: {}name: found a list; write text"),
    ],
)
def test_other_keys(line: str, problem: str) -> None:
    text = f"mappings:\n  - listen: 8080\n    targets: 10.88.0.11:80\n    {line}\n"

    assert refused(text) == ["web.yaml:" + problem.format("mapping number 1: ")]


@pytest.mark.parametrize(
    ("protocol", "found"),
    [("icmp", "'icmp'"), ("TCP", "'TCP'"), ("null", "nothing"), ("6", "'6'"), ("{tcp: 80}", "a mapping of keys")],
)
def test_a_protocol_that_is_none(protocol: str, found: str) -> None:
    text = f"mappings:\n  - listen: 8080\n    targets: 10.88.0.11:80\n    protocol: {protocol}\n"

    assert refused(text) == [
        f"web.yaml:4:15: mapping number 1: protocol: found {found}; protocols are tcp, udp and sctp"
    ]


KNOWN = (
    "known keys are name, listen, protocol, targets, masquerade, on_change, comment, sources, shadow_listener, "
    "reserve, isolate"
)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("target", "did you mean targets?"),
        ("lisen", "did you mean listen?"),
        ("protocols", "did you mean protocol?"),
        ("on-change", "did you mean on_change?"),
        ("masqerade", "did you mean masquerade?"),
        ("hostPort", KNOWN),
        ("x", KNOWN),
    ],
)
def test_an_unknown_key(name: str, hint: str) -> None:
    text = f"mappings:\n  - listen: 8080\n    targets: 10.88.0.11:80\n    {name}: 5\n"

    assert refused(text) == [f"web.yaml:4:5: mapping number 1: unknown key {name!r}; {hint}"]


def test_an_unknown_key_is_found_at_the_key_though_its_value_is_lines_below() -> None:
    text = "mappings:\n  - listen: 8080\n    targets: 10.88.0.11:80\n    xyzzy:\n\n      - 192.0.2.0/24\n"

    assert refused(text) == [f"web.yaml:4:5: mapping number 1: unknown key 'xyzzy'; {KNOWN}"]


def test_an_unknown_key_beside_the_mappings() -> None:
    assert refused("mapping:\n  - listen: 80\n") == [
        "web.yaml:1:1: unknown key 'mapping'; a drop-in is `mappings:` and a list under it"
    ]


def test_missing_keys_are_all_named() -> None:
    assert refused("mappings:\n  - name: web\n") == [
        'web.yaml:2:5: mapping "web": listen: is missing; every mapping needs listen and targets',
        'web.yaml:2:5: mapping "web": targets: is missing; every mapping needs listen and targets',
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("8080\n", "1:1: found '8080'; a drop-in is `mappings:` and a list under it"),
        ("- listen: 8080\n", "1:1: found a list; a drop-in is `mappings:` and a list under it"),
        ("mappings: {}\n", "1:11: mappings: found a mapping of keys; write a list, each item begins with -"),
        ("mappings: 8080\n", "1:11: mappings: found '8080'; write a list, each item begins with -"),
        ("mappings:\n- 8080\n", "2:3: mapping number 1: found '8080'; write a mapping of keys"),
        ("mappings:\n- [8080]\n", "2:3: mapping number 1: found a list; write a mapping of keys"),
        ("mappings:\n-\n", "2:2: mapping number 1: found nothing; write a mapping of keys"),
    ],
)
def test_a_file_of_another_shape(text: str, line: str) -> None:
    assert refused(text) == [f"web.yaml:{line}"]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    text = """\
mappings:
  - name: one
    listen: 0
    targets: 127.0.0.1:80
    lisen: 80
  - name: two
    listen: 8080
    targets: 10.88.0.11:80
  - name: three
    listen: 8080
    targets: 10.88.0.12:80
"""

    assert [line.partition(": ")[0] for line in refused(text)] == [
        "web.yaml:3:13",
        "web.yaml:4:14",
        "web.yaml:5:5",
        "web.yaml:10:13",
    ]


def test_of_very_many_problems_fifty_are_said() -> None:
    lines = refused("mappings:\n" + "- {listen: 0, targets: 10.88.0.11:80}\n" * 1234)

    assert (len(lines), lines[-1]) == (51, "web.yaml: has more problems than these")


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\x1b[31m", "\x7f", "\x9b31m", "\u2028", "a" * 100_000])
def test_a_name_cannot_break_the_line_in_which_it_is_named(name: str) -> None:
    content = json.dumps({"mappings": [{"name": name, "listen": 0, "targets": "10.88.0.11:80"}]})

    assert [line for line in refused(content) if not line.isprintable() or len(line) > 300] == []

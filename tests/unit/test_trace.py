"""What a trace reads and judges, without a kernel.

It must not ask anybody. The one idea: facts in, steps out; bytes in, the way of a packet out.
"""

from __future__ import annotations

import random
import re
import struct
from typing import Any

import pytest
from click.testing import CliRunner

from nfportd import cli
from nfportd.forwarding import Chain, Question, Ruleset
from nfportd.trace import near, seen, watch
from nfportd.trace.facts import Asked, Flow, Known, Neighbour, Others, Parameter, Route, Rules, Way, parse
from nfportd.trace.story import explain
from nfportd.trace.watch import Event
from nfportd.translation import Order

OURS = frozenset({"prerouting", "output", "postrouting", "loopback_guard"})
NOBODY = Others(Ruleset((), {}, {}), Order((), (), ()))
WEB: dict[str, Any] = {
    "name": "web", "listen": "8000-8099", "protocol": ["tcp"], "targets": ["10.88.0.11:100-199", "[fd88::11]:100-199"],
    "owner": "file:web.yaml", "state": "active",
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "to", "flow"),
    [
        ("198.51.100.7", ":8080/tcp", Flow(4, "tcp", "198.51.100.7", None, 8080)),
        ("198.51.100.7", "8080", Flow(4, "tcp", "198.51.100.7", None, 8080)),
        ("127.0.0.1", "127.0.0.1:53/udp", Flow(4, "udp", "127.0.0.1", "127.0.0.1", 53)),
        ("::1", "[::1]:8080/udp", Flow(6, "udp", "::1", "::1", 8080)),
        ("[2001:DB8::7]", "[2001:db8:0::1]:80/sctp", Flow(6, "sctp", "2001:db8::7", "2001:db8::1", 80)),
        ("fe80::1%eth0", ":80", Flow(6, "tcp", "fe80::1", None, 80, "eth0")),
    ],
)
def test_what_is_asked(source: str, to: str, flow: Flow) -> None:
    assert parse(source, to) == flow


@pytest.mark.parametrize(
    ("source", "to", "error"),
    [
        ("web", ":80", "FROM 'web' is no address; write one like 198.51.100.7 or 2001:db8::7"),
        ("198.51.100.7", "10.0.0.1", "is no address and port; write :8080/tcp"),
        ("198.51.100.7", "::1:80", "is no address and port"),
        ("198.51.100.7", ":0", "port 0 is out of range"),
        ("198.51.100.7", ":80/icmp", "the protocol is one of tcp, udp, sctp"),
        ("198.51.100.7", "[::1]:80", "198.51.100.7 and ::1 are of different families"),
    ],
)
def test_what_cannot_be_asked(source: str, to: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        parse(source, to)


def test_what_cannot_be_asked_is_wrong_usage() -> None:
    done = CliRunner().invoke(cli.main, ["trace", "web", ":80"])

    assert (done.exit_code, "Error: FROM 'web' is no address" in done.output) == (2, True)


def told(flow: Flow, answers: dict[Any, Any], elements: dict[str, Any] | None = None) -> Any:
    """An explanation; what is not answered is as on a host without other programs, elements by their sets."""
    known = Known([WEB], OURS, dict(answers))
    while True:
        try:
            return explain(flow, known)
        except Asked as asked:
            for fact in asked.facts:
                match fact:
                    case Question(set=name):
                        known.answers[fact] = (elements or {}).get(name, False)
                    case Rules():
                        known.answers[fact] = NOBODY
                    case Parameter() | Neighbour():
                        known.answers[fact] = "1" if isinstance(fact, Parameter) else "REACHABLE"
                    case _:
                        raise


def test_the_relay_takes_loopback_where_an_element_leads_to_it() -> None:
    answers = {
        Route("::1"): Way("local", "lo", source="::1"),
        Route("::1", "::1"): Way("local", "lo"),
        Route("fd88::11"): Way("unicast", "br0", source="fd88::1"),
    }
    element = bytes(15) + b"\1" + (40000).to_bytes(2, "big") + bytes(2)

    found = told(parse("::1", "[::1]:8080"), answers, {"addr6": element})

    assert [step.at for step in found.steps] == ["start", "lookup", "relay", "route", "neighbour"]
    assert (found.arrives, found.target, found.seen_as) == (True, "[fd88::11]:180", "fd88::1")
    assert 'mapping "web" of file:web.yaml, range 8000-8099' in found.steps[1].text


def test_link_local_clients_are_left_to_the_host() -> None:
    found = told(parse("fe80::7%eth0", "[2001:db8::1]:8080"), {Route("fe80::7"): Way("unicast", "eth1")})

    assert (found.arrives, found.steps[0].more, found.steps[-1].verdict) == (False, {"link": "eth0"}, "stops")
    assert "IPv6 does not forward link-local sources" in found.steps[-1].text


def test_a_way_that_is_a_blackhole() -> None:
    found = told(parse("192.0.2.7", "192.0.2.1:8080"), {Route("192.0.2.7"): Way("blackhole")})

    assert found.steps[-1].text.startswith("no way leads to 192.0.2.7 (the route to it is of type blackhole)")
    assert found.steps[-1].commands == ("ip -4 route get 192.0.2.7",)


def test_what_is_near() -> None:
    flow = parse("192.0.2.7", "192.0.2.1:8080/udp")
    mapping = WEB | {"protocol": ["udp"]}

    assert list(near.beside(None, flow)) == ["the daemon does not answer, so what waits or is refused is not known"]
    assert list(near.beside([WEB], flow)) == [
        'mapping "web" of file:web.yaml, range 8000-8099 has this port by tcp, not by udp'
    ]
    assert "listens on 192.0.2.9:8080, not on" in next(near.beside([mapping | {"listen": "192.0.2.9:8080"}], flow))
    assert "should be in force, but the kernel has no element" in next(near.beside([mapping], flow))
    assert "has no target of IPv4" in next(near.beside([mapping | {"targets": ["[fd88::11]:80"]}], flow))
    assert "(conflict: it is taken)" in next(
        near.beside([mapping | {"state": "conflict", "reason": "it is taken"}], flow)
    )


HOOKS = {Chain("inet", "f", "pre"): "prerouting", Chain("inet", "f", "fwd"): "forward"}


def event(
    table: str, chain: str, verdict: str, handle: int = 1, kind: str = "rule", id_: int = 1, link: int = 2
) -> Event:
    return Event(id_, Chain("inet", table, chain), kind, verdict, handle, "1.1.1.1:1 to 2.2.2.2:2", "SYN", link, 0)


def test_packets_that_others_mark_are_left_out() -> None:
    theirs = [event("f", "pre", "drop", id_=9)]

    assert seen.outcome(seen.passages(theirs), HOOKS).how == "nothing"


def test_a_packet_that_ends_between_the_hooks() -> None:
    events = [event(watch.NAME, "sent_in", "continue"), event("f", "pre", "accept", 0, "policy")]

    assert seen.outcome(seen.passages(events), HOOKS).how == "lost"
    (passage,) = seen.passages(events)
    assert list(seen.lines(passage, HOOKS))[1:] == ["  prerouting  inet f pre: policy accept"]


def test_a_drop_in_a_chain_that_was_jumped_to() -> None:
    events = [
        event(watch.NAME, "sent_in", "continue"),
        event("f", "fwd", "jump deep"),
        event("f", "deep", "continue", 0),
        event("f", "deep", "drop", 7),
    ]

    end = seen.outcome(seen.passages(events), HOOKS)

    assert (end.how, str(end.visit)) == ("dropped", "rule 7 of chain deep: drop")


def test_what_the_kernel_sends_is_read_or_left_out() -> None:
    """Bytes that no kernel sends must not end a watch in another way than by ValueError."""
    dice = random.Random(8)
    for _ in range(2000):
        body = dice.randbytes(dice.randrange(60))
        datagram = struct.pack("=IHHIIBBH", 20 + len(body), 10 << 8 | 17, 0, 0, 0, 1, 0, 0) + body
        datagram = datagram[: dice.randrange(len(datagram) + 1)]
        try:
            list(watch.read(datagram))
        except ValueError:
            continue

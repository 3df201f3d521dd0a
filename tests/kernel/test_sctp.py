"""SCTP: a crafted INIT is rewritten to the target; neither side needs SCTP sockets for it.

It must not know the ruleset. The one idea: the INIT's tag is the same on both sides of the NAT.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from tests import frames
from tests.conftest import dropin, mapping
from tests.frames import Wire
from tests.lab import Daemon, Lab, address, endpoint

Start = Callable[..., Daemon]
OWN = {4: "192.0.2.1", 6: "2001:db8::1"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("target", ["t1", "t3"])
def test_an_init_reaches_the_target(lab: Lab, start: Start, target: str, family: int) -> None:
    web = mapping("diameter", 3868, endpoint(address(target, family), 13868), protocol="sctp")
    start({"sctp.yaml": dropin(web)})
    mine, tag = address("outside", family), secrets.randbelow(1 << 31)
    sport = 40000 + secrets.randbelow(20000)  # an association of its own
    with Wire(lab.outside) as wire, Wire(lab.spaces[target]) as link:
        init = frames.packet(mine, OWN[family], "sctp", frames.sctp_init(sport, 3868, tag))
        wire.send(lab.host.mac("out0"), init)
        seen = link.see(lambda seen: seen.proto == frames.PROTO["sctp"] and seen.init_tag == tag)
    assert seen is not None
    assert (seen.source, seen.sport) == (mine, sport)
    assert (seen.destination, seen.dport) == (address(target, family), 13868)
    assert frames.sctp_checksum_is_right(seen.segment)


def test_tcp_and_udp_on_the_same_port_are_other_keys(lab: Lab, start: Start) -> None:
    start({"sctp.yaml": dropin(mapping("diameter", 3868, endpoint(address("t1", 4), 80), protocol="sctp"))})
    for proto in ("tcp", "udp"):
        assert lab.outside.ask(OWN[4], 3868, proto).outcome == "refused"

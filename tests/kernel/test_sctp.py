"""SCTP: a crafted INIT is rewritten to the target; neither side needs SCTP sockets for it.

It must not know the ruleset. The one idea: the INIT's tag is the same on both sides of the NAT.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import frames
from tests.conftest import dropin, mapping
from tests.frames import sent_init
from tests.lab import Daemon, Lab, address, endpoint

Start = Callable[..., Daemon]
OWN = {4: "192.0.2.1", 6: "2001:db8::1"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("target", ["t1", "t3"])
def test_an_init_reaches_the_target(lab: Lab, start: Start, target: str, family: int) -> None:
    web = mapping("diameter", 3868, endpoint(address(target, family), 13868), protocol="sctp")
    start({"sctp.yaml": dropin(web)})
    seen = sent_init(
        lab.outside, lab.host.mac("out0"), address("outside", family), OWN[family], 3868, lab.spaces[target]
    )
    assert seen is not None
    assert seen.source == address("outside", family)
    assert (seen.destination, seen.dport) == (address(target, family), 13868)
    assert frames.sctp_checksum_is_right(seen.segment)


def test_tcp_and_udp_on_the_same_port_are_other_keys(lab: Lab, start: Start) -> None:
    start({"sctp.yaml": dropin(mapping("diameter", 3868, endpoint(address("t1", 4), 80), protocol="sctp"))})
    for proto in ("tcp", "udp"):
        assert lab.outside.ask(OWN[4], 3868, proto).outcome == "refused"

"""What doctor makes of facts: order, what was not looked at, and what no test can break for real.

It must not read a host: tests/doctor does. The one idea: a healthy host as a value, and one thing in it changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfportd.doctor import host
from nfportd.doctor.facts import Conntrack, Contact, Daemon, Door, Facts, Interface, Nftables, Outcome, Published, Way
from nfportd.doctor.findings import Cause
from nfportd.doctor.judgement import CHECKS, judge
from nfportd.notation import Ports, Target
from nfportd.topology import Link, Network, Route
from tests.unit.test_firewalls import mapping

WEB = Published(
    mapping({"name": "web", "listen": "8080", "targets": ["10.88.0.11:80", "[fd88::11]:80"]}), "file:web.yaml", "active"
)
DOOR, DOOR6 = WEB.doors()
STATUS: dict[str, Any] = {"table": "intact", "repairs": {"fight": False, "last": None}, "files": {}, "forwarding": []}
LINKS = (Link(1, "lo"), Link(2, "eth0"), Link(3, "br0"))
ROUTES = (Route(4, "0.0.0.0/0", 2, 100, on_link=False), Route(4, "10.88.0.0/16", 3, 0, on_link=True))
HEALTHY = Facts(
    now=1_000_000.0,
    daemon=Daemon("/run/nfportd/nfportd.sock", Contact.ANSWERS, STATUS),
    published=(WEB,),
    nftables=Nftables(version="1.0.6", flags=()),
    sysctls={
        **dict.fromkeys(host.parameters(iter(["eth0", "br0"])), "0"),
        **dict.fromkeys(["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/br0/route_localnet"], "1"),
        **dict.fromkeys(["ipv4/conf/br0/forwarding", "ipv4/conf/eth0/forwarding"], "1"),
    },
    network=Network(LINKS, ROUTES),
    interfaces={name: Interface(name, True, True, "bridge" if name == "br0" else "") for name in ("lo", "eth0", "br0")},
    loopback_links=frozenset({"br0"}),
    ways={"10.88.0.11": Way("br0"), "fd88::11": Way("br0")},
    doors={DOOR: Outcome.ANSWERS, DOOR6: Outcome.ANSWERS},
    conntrack=Conntrack(10, 1000),
)


def causes(facts: Facts) -> list[Cause]:
    return [found.cause for found in judge(facts).findings]


def test_a_healthy_host() -> None:
    report = judge(HEALTHY)

    assert (report.findings, report.checked, report.not_checked) == ((), tuple(check.name for check in CHECKS), ())


def test_errors_come_first_and_what_is_fine_last() -> None:
    ill = replace(HEALTHY, sysctls={**HEALTHY.sysctls, host.IP6TABLES: "1"}, doors={DOOR: Outcome.REFUSED})

    report = judge(ill)

    assert [(found.severity, found.cause) for found in report.findings] == [
        ("error", Cause.TARGET_REFUSES),
        ("warning", Cause.BRIDGE_NETFILTER),
    ]
    assert len(report.checked) == len(CHECKS) - 2
    assert [why for _, why in report.not_checked] == [
        "[fd88::11]:80/tcp could not be tried (SCTP, more than are tried in one pass, or rules of this host)"
    ]


def test_what_was_not_read_is_not_fine() -> None:
    blind = replace(
        HEALTHY, daemon=Daemon("/sock", Contact.DENIED, None, "no"), nftables=None, conntrack=None, doors={}
    )

    report = judge(blind)

    assert [found.cause for found in report.findings] == [Cause.SOCKET_DENIED]
    assert {what for what, _ in report.not_checked} == {
        "mappings are in force",
        "nftables and the kernel's netfilter",
        "table inet nfportd",
        "translations of other programs for the same ports",
        "forward chains of other programs",
        "connection tracking table",
        "targets answer a short connection",
    }


@pytest.mark.parametrize(
    ("entries", "severity"), [(899, None), (900, "warning"), (989, "warning"), (990, "error"), (1001, "error")]
)
def test_a_connection_tracking_table_fills(entries: int, severity: str | None) -> None:
    found = judge(replace(HEALTHY, conntrack=Conntrack(entries, 1000))).findings

    assert [each.severity for each in found] == ([severity] if severity else [])


def test_a_kernel_without_ipv6_is_said_once() -> None:
    without = {name: None if name.startswith("ipv6") else value for name, value in HEALTHY.sysctls.items()}
    ill = replace(
        HEALTHY,
        sysctls=without,
        ways={"10.88.0.11": Way("br0"), "fd88::11": Way(trouble="no route")},
        doors={DOOR: Outcome.ANSWERS},
        loopback_links=frozenset(),
    )

    (found,) = judge(ill).findings

    assert (found.cause, found.commands) == (Cause.IPV6_DISABLED, ())
    assert "ipv6.disable=1" in found.what


@pytest.mark.parametrize(
    ("own", "everywhere", "strict"), [("0", "1", True), ("1", "0", True), ("2", "1", False), ("0", "2", False)]
)
def test_the_greater_reverse_path_filter_holds(own: str, everywhere: str, strict: bool) -> None:
    values = {"ipv4/conf/br0/rp_filter": own, "ipv4/conf/all/rp_filter": everywhere, "ipv4/conf/eth0/rp_filter": "2"}
    ill = replace(
        HEALTHY,
        sysctls={**HEALTHY.sysctls, **values},
        doors={DOOR: Outcome.SILENT, DOOR6: Outcome.ANSWERS},
        reverse_path_drops=3,
    )

    assert causes(ill) == [Cause.RP_FILTER if strict else Cause.TARGET_SILENT]


def test_a_relay_serves_what_a_bridge_keeps_the_kernel_from() -> None:
    called = replace(HEALTHY, sysctls={**HEALTHY.sysctls, host.IP6TABLES: "1"}, loopback_links=frozenset())

    assert causes(called) == [Cause.BRIDGE_NETFILTER]
    assert causes(replace(called, published=(WEB._replace(relayed=True),))) == []


def test_a_link_whose_name_has_dots_is_written_with_slashes() -> None:
    assert host.setting("ipv4/conf/br0.5/route_localnet", 1) == "sysctl -w net/ipv4/conf/br0.5/route_localnet=1"


def test_what_a_stop_has_given_back_is_no_finding_of_its_own() -> None:
    stopped = replace(
        HEALTHY,
        daemon=Daemon("/sock", Contact.NO_SOCKET),
        nftables=Nftables(version="1.0.6", flags=None),
        sysctls=dict.fromkeys(HEALTHY.sysctls, "0"),
        loopback_links=frozenset(),
    )
    crashed = replace(stopped, nftables=Nftables(version="1.0.6", flags=()))

    assert causes(stopped) == [Cause.DAEMON_NOT_RUNNING]
    assert Cause.FORWARDING_OFF in causes(crashed)


def test_others_rules_as_the_daemon_tells_of_them_where_only_it_may_look() -> None:
    said = {
        "chain": "ip filter FORWARD",
        "firewall": "iptables",
        "certain": True,
        "why": ["policy drop of chain ip filter FORWARD"],
        "targets": ["10.88.0.11:80/tcp"],
        "commands": ["iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"],
    }
    status = {**STATUS, "forwarding": [said, {**said, "targets": ["10.88.0.99:80/tcp"]}]}
    member = replace(HEALTHY, nftables=None, daemon=HEALTHY.daemon._replace(status=status))

    (found,) = judge(member).findings

    assert (found.cause, found.mappings, found.commands) == (
        Cause.STOPPED_BY_OTHERS,
        ("web",),
        ("iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT",),
    )


def test_a_gateway_that_does_not_answer_is_named() -> None:
    ill = replace(
        HEALTHY,
        ways={"10.88.0.11": Way("eth0", "192.0.2.254"), "fd88::11": Way("br0")},
        doors={DOOR: Outcome.REJECTED, DOOR6: Outcome.ANSWERS},
        neighbours={("192.0.2.254", "eth0"): "FAILED"},
        sysctls={**HEALTHY.sysctls, "ipv4/conf/eth0/route_localnet": "1"},
    )

    (found,) = judge(ill).findings

    assert found.what == "gateway 192.0.2.254 does not answer on eth0 (its neighbour entry is FAILED)"
    assert "by which 10.88.0.11:80/tcp is reached" in found.why


@pytest.mark.parametrize(("version", "old"), [("1.0.5", True), ("1.0.6", False), ("1.1.3", False), ("", False)])
def test_versions_of_nft(version: str, old: bool) -> None:
    assert causes(replace(HEALTHY, nftables=Nftables(version=version, flags=()))) == ([Cause.NFT_OLD] if old else [])


def test_findings_are_plain_values() -> None:
    plain = judge(replace(HEALTHY, doors={DOOR: Outcome.SILENT, DOOR6: Outcome.ANSWERS})).json()

    assert set(plain) == {"findings", "checked", "not_checked"}
    assert plain["findings"][0]["cause"] == "target-silent"
    assert all(type(value) in (str, list) for value in plain["findings"][0].values())


def test_doors_are_called_as_others_call_them() -> None:
    assert str(Door(Target("fd88::11", 6, Ports(80, 89)), "udp")) == "[fd88::11]:80-89/udp"

"""Each thing that can end a connection: the trace names it, and on the wire it ends.

It must not know how a trace is made. The one idea: break one thing, ask the trace, ask the wire; mend it with the
command that the trace names where there is one, and ask both again.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.coexistence import others
from tests.coexistence.test_firewalls import STRICT_OPENED
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab, address, endpoint
from tests.trace.asking import Tracer, last, tracer

T1 = ("10.88.0.11:80", "[fd88::11]:80")
OUTSIDE = {4: "198.51.100.10", 6: "2001:db8:1::10"}
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FIRST = dropin(
    mapping("web", 8080, *T1, protocol="[tcp, udp]"),
    mapping("guarded", 8090, *T1, sources="[192.0.2.0/24, '2001:db8::/64']"),
    mapping("one", "192.0.2.1:8070", *T1[:1]),
    mapping("one6", "[2001:db8::1]:8070", *T1[1:]),
    mapping("gone", 8091, "10.88.0.99:80", "[fd88::99]:80"),
    mapping("nowhere", 8093, "203.0.113.9:80", "[2001:db8:ffff::9]:80"),
    mapping("alone", 8092, "10.88.0.12:80", "[fd88::12]:80", isolate="true"),
    mapping("range", "20000-20009", "10.88.0.11:76-85", "[fd88::11]:76-85"),
    mapping("ssh", 8095, *T1),
    mapping("four", 8096, *T1[:1]),
)
SECOND = dropin(mapping("late", 8080, "10.88.0.12:80", "[fd88::12]:80"), mapping("free", 8097, *T1, protocol="sctp"))
V4, V6 = 4, 6
NOT_ALLOWED = 'is not in the `sources` (192.0.2.0/24, 2001:db8::/64) of mapping "guarded"'


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    lab.bridge_netfilter(on=False)
    lab.host.nft("table ip older { chain pre { type nat hook prerouting priority dstnat; policy accept;\n}\n}")
    lab.host.serve([8095], ["tcp"], name="sshd")
    begun = Daemon(lab)
    (begun.dropins / "a.yaml").write_text(FIRST)
    (begun.dropins / "b.yaml").write_text(SECOND)
    begun.start()
    yield begun
    if begun.process:
        assert begun.stop() == 0


@pytest.fixture(scope="module")
def explain(lab: Lab, daemon: Daemon) -> Iterator[Tracer]:
    with tracer(lab, daemon) as made:
        yield made


class Case(NamedTuple):
    """From whom, to which port and protocol of which address of the host; what the trace says, and what the wire."""

    client: str
    to: str
    port: int
    proto: str
    told: str
    seen: str


def cases() -> Iterator[object]:
    for family in (V4, V6):
        host, other = HOST[family], {4: "192.0.2.2", 6: "2001:db8::2"}[family]
        t2 = address("t2", family)
        for case in (
            Case("outside", host, 8079, "tcp", "no process of this host listens there", "refused"),
            Case("outside", host, 8079, "udp", "no mapping", "refused"),
            Case("host", LOOPBACK[family], 8079, "tcp", "no process of this host listens there", "refused"),
            Case("outside", host, 8090, "udp", '"guarded" of file:a.yaml has this port by tcp, not by udp', "refused"),
            Case("outside", host, 8097, "tcp", '"free" of file:b.yaml has this port by sctp, not by tcp', "refused"),
            Case("outside", other, 8070, "tcp", f"listens on {endpoint(host, 8070)}, not on {other}", "refused"),
            Case("outside", host, 8095, "tcp", '"ssh" of file:a.yaml is there, but not in force (port-in-use', "sshd"),
            Case("outside", host, 8090, "tcp", NOT_ALLOWED, "timeout"),
            Case("client", host, 8090, "tcp", "", "t1"),
            Case("host", LOOPBACK[family], 8090, "tcp", "", "t1"),
            Case("client", host, 8070, "tcp", "", "t1"),
            Case("outside", host, 20004, "tcp", "", "t1"),
            Case("outside", t2, 80, "tcp", "chain isolation_forward drops it", "timeout"),
            Case("host", t2, 80, "tcp", "chain isolation_output drops it", "timeout"),
            Case("outside", host, 8092, "tcp", "", "t2"),
            Case("outside", host, 8091, "tcp", "does not answer on br0", "timeout"),
            Case("outside", host, 8093, "tcp", "no route leads to target", "unreachable"),
            Case("host", host, 8093, "tcp", "no route leads to target", "unreachable"),
            Case("outside", address("t3", family), 80, "tcp", "is no address of this host", "t3"),
        ):  # fmt: skip
            yield pytest.param(case, id=f"{case.client}-{endpoint(case.to, case.port)}-{case.proto}")
    yield pytest.param(Case("outside", HOST[6], 8096, "tcp", "has no target of IPv6", "refused"), id="one-family")


def source_of(client: str, to: str) -> str:
    family = 6 if ":" in to else 4
    if client != "host":
        return address(client, family)
    loopback = to in LOOPBACK.values()
    return to if loopback or to == HOST[family] else {4: "10.88.0.1", 6: "fd88::1"}[family]


@pytest.mark.parametrize("case", list(cases()))
def test_what_ends_a_connection(lab: Lab, explain: Tracer, case: Case) -> None:
    source = source_of(case.client, case.to)

    told = explain(source, f"{endpoint(case.to, case.port)}/{case.proto}")
    timeout = 0.4 if case.seen == "timeout" else 3
    seen = lab.spaces[case.client].ask(case.to, case.port, case.proto, source=source, timeout=timeout)

    doubts = "; ".join(step.text for step in told.steps if step.verdict != "passes")
    assert case.told in doubts
    assert (told.arrives, bool(doubts)) == (not case.told, bool(case.told)), doubts
    assert seen.target or (seen.outcome in (case.seen, "timeout") and not told.arrives)
    if seen:
        assert seen.target == case.seen
        assert told.arrives == (case.seen not in ("sshd", "t3"))


def test_the_range_and_the_holder_are_named(explain: Tracer) -> None:
    told = explain(OUTSIDE[4], f"{HOST[4]}:20004")
    waits = explain(OUTSIDE[4], f"{HOST[4]}:8080")

    assert any('mapping "range" of file:a.yaml, range 20000-20009' in step.text for step in told.steps)
    assert next(step.more for step in waits.steps if step.at == "lookup") == {
        "key": "*:8080/tcp", "target": "10.88.0.11:80", "owner": "file:a.yaml", "mapping": "web",
    }  # fmt: skip


FIREWALLS = {
    "ufw-0.36.2": "ufw",
    "docker-28": "docker",
    "docker-29.nft": "docker with nftables",
    "plain": "nftables",
    "firewalld-2.3.1-strict.nft": "firewalld",
}


@pytest.mark.parametrize("ruleset", FIREWALLS)
def test_a_forward_chain_that_drops_is_named_with_what_opens_it(
    lab: Lab, explain: Tracer, ruleset: str, tmp_path: Path
) -> None:
    if not ruleset.endswith(".nft") and not shutil.which("ufw" if "ufw" in ruleset else "iptables-nft"):
        pytest.skip("not installed")
    for family in (V4, V6):
        with others.loaded(lab.host, ruleset):
            to = endpoint(HOST[family], 8080)
            told = explain(OUTSIDE[family], to)
            assert not told.arrives
            assert told.steps[-1].more["firewall"] == FIREWALLS[ruleset]
            assert not lab.outside.ask(HOST[family], 8080, timeout=0.4)
            assert_the_host_itself_is_told_right(lab, explain, family)

            (command,) = told.steps[-1].commands
            if command.startswith("ufw "):
                others.ufw(lab.host, tmp_path, command)
            else:
                lab.host.run(shlex.split(STRICT_OPENED if command.startswith("firewall-cmd") else command))
            assert explain(OUTSIDE[family], to).arrives
            assert lab.outside.ask(HOST[family], 8080).target == "t1"
        lab.host.run(["conntrack", "-F"])


def assert_the_host_itself_is_told_right(lab: Lab, explain: Tracer, family: int) -> None:
    """Its connections meet no forward hook, but perhaps others' output and input hooks."""
    told = explain(LOOPBACK[family], endpoint(LOOPBACK[family], 8080))
    assert told.arrives == bool(lab.host.ask(LOOPBACK[family], 8080, timeout=0.4)), last(told)


@pytest.mark.parametrize("family", [V4, V6])
@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("type filter hook prerouting priority raw; policy accept;\n th dport 8080 drop", "others' prerouting"),
        ("type filter hook prerouting priority mangle;\n fib daddr type local drop", "others' prerouting"),
        ("type nat hook prerouting priority -105; policy accept;\n th dport 8080 drop", "others' nat"),
        ("type nat hook prerouting priority -105; policy accept;\n tcp dport 8080 redirect to :9", "others' nat"),
        ("type nat hook prerouting priority dstnat; policy accept;\n tcp dport 8080 redirect to :9", "others' nat"),
        ("type filter hook postrouting priority 0; policy accept;\n tcp dport 80 drop", "others' postrouting"),
        ("type filter hook forward priority 0; policy accept;\n ct direction reply drop", "others' forward"),
        ("type filter hook forward priority 0; policy accept;\n tcp sport 80 drop", "others' forward"),
        ("type filter hook prerouting priority raw; policy accept;\n iifname br0 drop", "others' prerouting"),
    ],
)  # fmt: skip
def test_rules_of_others_on_other_hooks(lab: Lab, explain: Tracer, family: int, rules: str, told: str) -> None:
    lab.host.nft(f"table inet theirs {{ chain c {{ {rules}\n}}\n}}")
    try:
        found = explain(OUTSIDE[family], endpoint(HOST[family], 8080))
        seen = lab.outside.ask(HOST[family], 8080, timeout=0.4)
    finally:
        lab.host.nft("delete table inet theirs")
        lab.host.run(["conntrack", "-F"])

    assert (found.arrives, bool(seen)) == (False, False)
    assert last(found).startswith(told)


@pytest.mark.parametrize("family", [V4, V6])
@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("type filter hook output priority 0; policy accept;\n oifname lo th dport 80 drop", "others' output"),
        ("type filter hook output priority mangle; policy accept;\n th dport 8080 drop", "others' output"),
        ("type nat hook output priority -105; policy accept;\n tcp dport 8080 redirect to :9", "others' nat"),
        ("type filter hook input priority 0; policy drop;\n icmpv6 type nd-neighbor-advert accept", "others' input"),
    ],
)
def test_rules_of_others_on_the_way_from_this_host(
    lab: Lab, explain: Tracer, family: int, rules: str, told: str
) -> None:
    lab.host.nft(f"table inet theirs {{ chain c {{ {rules}\n}}\n}}")
    try:
        found = explain(LOOPBACK[family], endpoint(LOOPBACK[family], 8080))
        seen = lab.host.ask(LOOPBACK[family], 8080, timeout=0.4)
    finally:
        lab.host.nft("delete table inet theirs")
        lab.host.run(["conntrack", "-F"])

    assert (found.arrives, bool(seen)) == (False, False)
    assert last(found).startswith(told)


@pytest.mark.parametrize(
    ("rules", "arrives"),
    [
        ("type nat hook prerouting priority -90; policy accept;\n tcp dport 8080 redirect to :9", True),
        ("type nat hook prerouting priority -105; policy accept;\n tcp dport 8081 redirect to :9", True),
        ("type nat hook output priority -105; policy accept;\n tcp dport 8080 redirect to :9", True),
        ("type filter hook input priority 0; policy drop;", True),
        ("type filter hook forward priority 0; policy drop;\n ct status dnat accept", True),
        ("type nat hook postrouting priority srcnat; policy accept;\n oifname br0 masquerade", True),
    ],
)  # fmt: skip
def test_rules_of_others_that_do_no_harm(lab: Lab, explain: Tracer, rules: str, arrives: bool) -> None:
    lab.host.nft(f"table inet theirs {{ chain c {{ {rules}\n}}\n}}")
    try:
        found = explain(OUTSIDE[V4], endpoint(HOST[V4], 8080))
        seen = lab.outside.ask(HOST[V4], 8080, timeout=0.4)
    finally:
        lab.host.nft("delete table inet theirs")
        lab.host.run(["conntrack", "-F"])

    assert (found.arrives, bool(seen)) == (arrives, arrives), last(found)
    assert found.seen_as in (seen.source, None)


def test_a_translation_of_iptables_before_ours(lab: Lab, explain: Tracer) -> None:
    if not shutil.which("iptables-nft"):
        pytest.skip("iptables is not installed")
    dnat = "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 8080 -j DNAT --to-destination 10.88.1.2:80"
    lab.host.run(["iptables-nft", *dnat.split()])
    try:
        found = explain(OUTSIDE[V4], endpoint(HOST[V4], 8080))
        seen = lab.outside.ask(HOST[V4], 8080)
    finally:
        lab.host.nft("delete table ip nat")
        lab.host.run(["conntrack", "-F"])

    assert (found.arrives, seen.target) == (False, "t3")
    assert "chain ip nat PREROUTING (dnat to 10.88.1.2:80) (iptables), before ours" in last(found)


def test_what_was_made_before_ours_at_its_priority_comes_after_it(lab: Lab, daemon: Daemon, explain: Tracer) -> None:
    """A new daemon makes its table after theirs."""
    assert daemon.stop() == 0
    rule = "chain pre { type nat hook prerouting priority dstnat; policy accept;\n tcp dport 8080 redirect to :9\n}"
    lab.host.nft(f"table ip theirs {{ {rule}\n}}")
    daemon.start()
    try:
        found = explain(OUTSIDE[V4], endpoint(HOST[V4], 8080))

        assert (found.arrives, lab.outside.ask(HOST[V4], 8080).target) == (True, "t1")
        assert "it has our priority and comes first if it was made after ours" in last(found)
    finally:
        lab.host.nft("delete table ip theirs")


@pytest.mark.parametrize(
    ("broken", "client", "to", "told"),
    [
        ({"net/ipv4/ip_forward": 0}, "outside", HOST[4], "does not forward IPv4"),
        ({"net/ipv6/conf/all/forwarding": 0}, "outside", HOST[6], "does not forward IPv6"),
        ({"net/ipv4/conf/br0/route_localnet": 0}, "host", "127.0.0.1", "route_localnet is 0"),
        ({"net/ipv4/conf/out0/rp_filter": 1}, "outside", HOST[4], ""),
        ({"net/bridge/bridge-nf-call-ip6tables": 1}, "host", "::1", "undoes the translation of answers"),
    ],
)
def test_what_the_kernel_lacks_while_nobody_looks_after_it(
    lab: Lab, daemon: Daemon, explain: Tracer, broken: dict[str, int], client: str, to: str, told: str
) -> None:
    """The daemon sets them again at once, so it is stopped for this; what it published stays in force."""
    if daemon.process:
        daemon.kill9()
    before = {key: lab.host.sysctl(key) for key in broken}
    for key, wrong in broken.items():
        lab.host.sysctl(key, wrong)
    try:
        found = explain.alone(source_of(client, to), endpoint(to, 8080))
        seen = lab.spaces[client].ask(to, 8080, timeout=0.4)
        assert (found.arrives, bool(seen)) == (not told, not told), last(found)
        assert told in last(found)
        if told:
            (command,) = found.steps[-1].commands
            lab.host.run(command.split())
            assert explain.alone(source_of(client, to), endpoint(to, 8080)).arrives
            assert lab.spaces[client].ask(to, 8080).target == "t1"
    finally:
        for key, value in before.items():
            lab.host.sysctl(key, value)


def test_without_a_table_there_is_no_mapping(lab: Lab, daemon: Daemon, explain: Tracer) -> None:
    if daemon.process:
        daemon.kill9()
    lab.host.nft("delete table inet nfportd")

    found = explain.alone(OUTSIDE[4], endpoint(HOST[4], 8080))

    assert (found.arrives, bool(lab.outside.ask(HOST[4], 8080))) == (False, False)
    assert any("there is no table inet nfportd" in step.text for step in found.steps)

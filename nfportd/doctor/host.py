"""What the host itself must allow, judged: forwarding, loopback, reverse path, IPv6, connection tracking.

Must not read the host. The one idea: a parameter matters only where a mapping needs it, so each is judged by the
mappings that would not work.

What the parameters do: ip-sysctl.rst and nf_conntrack-sysctl.rst in the kernel's Documentation/networking.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfportd import topology
from nfportd.doctor.facts import Facts, Outcome, Published, titles
from nfportd.doctor.findings import Cause, Check, Finding, Unseen
from nfportd.notation import FAMILIES, Family

_FORWARD: dict[Family, str] = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
IP6TABLES = "bridge/bridge-nf-call-ip6tables"
#: Shares of the table from which on it is nearly full, and full.
_NEARLY, _FULL = 0.9, 0.99
_MANAGED = Unseen("nfportd sets it when it starts")
_LASTS = "To keep it over a reboot, write it to a file in /etc/sysctl.d."

Findings = Iterator[Finding | Unseen]


def setting(name: str, value: int) -> str:
    """The command that sets a parameter (`ipv4/ip_forward`); sysctl(8) takes slashes where a link's name has dots."""
    return f"sysctl -w {'net/' + name if '.' in name else 'net.' + name.replace('/', '.')}={value}"


def per_link(family: Family, link: str, name: str) -> str:
    """A parameter of one link."""
    return f"ipv{family}/conf/{link}/{name}"


def parameters(links: Iterator[str]) -> set[str]:
    """Every parameter that is judged, with those of these links."""
    found = {*_FORWARD.values(), IP6TABLES}
    for link in (*links, "all"):
        found |= {per_link(4, link, name) for name in ("forwarding", "rp_filter", "route_localnet")}
        found |= {per_link(6, link, name) for name in ("disable_ipv6", "accept_ra")}
    return found


def _forwarding(facts: Facts) -> Findings:
    if facts.withdrawn and facts.files.manage_sysctls:
        yield _MANAGED
        return
    for family in FAMILIES:
        users, name = facts.of_family(family), _FORWARD[family]
        if not users:
            continue
        if facts.sysctls.get(name) == "0":
            yield Finding(
                Cause.FORWARDING_OFF,
                "error",
                titles(users),
                f"IPv{family} forwarding is off",
                f"The kernel drops what is to go on to a target. nfportd turns it on by itself, unless its settings "
                f"say manage_sysctls: false. {_LASTS}",
                (setting(name, 1),),
            )
        elif family == 4:
            yield from _of_links(facts, users)


def _of_links(facts: Facts, users: list[Published]) -> Findings:
    """In IPv4 the link by which a packet comes decides (ip_route_input_slow in net/ipv4/route.c)."""
    by_link: dict[str, list[Published]] = {}
    uplink = set(filter(None, [facts.uplink(4)]))
    for each in users:
        for link in facts.links_of(each, 4) | uplink:
            by_link.setdefault(link, []).append(each)
    for link, those in sorted(by_link.items()):
        if facts.sysctls.get(per_link(4, link, "forwarding")) == "0":
            yield Finding(
                Cause.LINK_FORWARDING_OFF,
                "error",
                titles(those),
                f"IPv4 forwarding is off for what comes in by {link}",
                "Clients, or the targets' answers, come in by this link, and the kernel forwards nothing of that. "
                f"{_LASTS}",
                (setting(per_link(4, link, "forwarding"), 1),),
            )


def _loopback(facts: Facts) -> Findings:
    if facts.withdrawn and facts.files.manage_sysctls:
        yield _MANAGED
        return
    users = [each for each in facts.published if each.wanted and each.takes_loopback()]
    for link, those in _by_link(facts, users, 4).items():
        # Either is enough (IN_DEV_ROUTE_LOCALNET).
        if all(facts.sysctls.get(per_link(4, each, "route_localnet")) == "0" for each in (link, "all")):
            yield Finding(
                Cause.ROUTE_LOCALNET_OFF,
                "error",
                titles(those),
                f"{link} does not take answers to 127.0.0.1",
                "Connections of this host to 127.0.0.1 time out; others work. nfportd sets it by itself, unless its "
                "settings say manage_sysctls: false, and keeps others from reaching 127.0.0.0/8 by it.",
                (setting(per_link(4, link, "route_localnet"), 1),),
            )
    bridged = facts.sysctls.get(IP6TABLES) == "1"
    with_ipv6 = [each for each in users if not each.relayed and not lacks_ipv6(facts, each)]
    for link, those in _by_link(facts, with_ipv6, 6).items():
        interface = facts.interfaces.get(link)
        if bridged and interface and interface.kind == "bridge":
            yield Finding(
                Cause.BRIDGE_NETFILTER,
                "warning",
                titles(those),
                f"bridge {link} hands IPv6 packets to ip6tables (net.bridge.bridge-nf-call-ip6tables=1)",
                "It undoes the translation of answers before IPv6 looks at them, so connections of this host to [::1] "
                "time out; 127.0.0.1 and all others work. Docker and Kubernetes set it, and may need it; under "
                "systemd the drop-in relay.conf lets nfportd relay them instead (docs/service.md).",
                (setting(IP6TABLES, 0),),
            )
        elif link not in facts.loopback_links:
            yield _no_loopback_route(facts, link, those)


def _by_link(facts: Facts, users: list[Published], family: Family) -> dict[str, list[Published]]:
    found: dict[str, list[Published]] = {}
    for each in users:
        for link in sorted(facts.links_of(each, family)):
            found.setdefault(link, []).append(each)
    return found


def _no_loopback_route(facts: Facts, link: str, those: list[Published]) -> Finding:
    index = next((each.index for each in facts.network.links if each.name == link), 0)
    # As kernel/network.py writes it, so that nfportd knows it for its own.
    route = f"local ::1 dev {link} table local metric {4096 + index} proto 110"
    return Finding(
        Cause.LOOPBACK_ROUTE_MISSING,
        "error",
        titles(those),
        f"{link} does not take answers to ::1",
        "Connections of this host to [::1] time out; others work. nfportd adds this route and puts it back, while it "
        "runs.",
        (f"ip -6 route add {route}",),
    )


def _reverse_path(facts: Facts) -> Findings:
    users = facts.of_family(4)
    if not users:
        return
    strict = _strict(facts)
    silent = [each for each in users if any(facts.doors.get(door) is Outcome.SILENT for door in each.doors())]
    if silent and drops_answers(facts):
        yield Finding(
            Cause.RP_FILTER,
            "error",
            titles(silent),
            f"the kernel drops the targets' answers: they come by another link than the one that leads to them "
            f"({facts.reverse_path_drops} packets while the targets were tried)",
            "Reverse path filtering is strict (rp_filter=1) on these links: what comes by a link that the kernel would "
            "not use for its source is dropped. 2 (loose) takes it from every link.",
            tuple(setting(per_link(4, link, "rp_filter"), 2) for link in strict),
        )
        return
    lost = sorted(set(_worse_defaults(facts)) & set(strict))
    if lost:
        yield Finding(
            Cause.RP_FILTER,
            "warning",
            titles(users),
            f"the kernel drops clients from afar that come by {', '.join(lost)}",
            f"Its default route has a higher metric than that of {facts.uplink(4)}, and reverse path filtering is "
            "strict there (rp_filter=1): what comes by a link that the kernel would not use for its source is dropped. "
            "2 (loose) takes it from every link.",
            tuple(setting(per_link(4, link, "rp_filter"), 2) for link in lost),
        )


def drops_answers(facts: Facts) -> bool:
    """Whether the reverse path filter dropped something while targets were tried."""
    return bool(facts.reverse_path_drops and _strict(facts))


def _strict(facts: Facts) -> list[str]:
    """Links with a strict filter; the greater of its own value and that of `all` holds."""

    def value(link: str) -> str:
        return facts.sysctls.get(per_link(4, link, "rp_filter")) or "0"

    return sorted(link for link in facts.interfaces if link != "lo" and max(value(link), value("all")) == "1")


def _worse_defaults(facts: Facts) -> Iterator[str]:
    """Links whose IPv4 default route is not the best one."""
    names = {link.index: link.name for link in facts.network.links}
    found = [route for route in facts.network.routes if route.prefix == "0.0.0.0/0"]
    best = {route.interface for route in found if route.metric == min(each.metric for each in found)}
    yield from (names[route.interface] for route in found if route.interface in names.keys() - best)


def _ipv6(facts: Facts) -> Findings:
    users = [each for each in facts.published if each.wanted and any(t.family == 6 for t in each.mapping.targets)]
    if not users:
        return
    everywhere = facts.sysctls.get(per_link(6, "all", "disable_ipv6"))
    links = {link for each in users for link in facts.links_of(each, 4) | facts.links_of(each, 6)}
    off = ["all"] if everywhere == "1" else sorted(link for link in links if _is_off(facts, link))
    if everywhere is None:
        yield Finding(
            Cause.IPV6_DISABLED,
            "error",
            titles(users),
            "this kernel has no IPv6 (the module is missing, or it was started with ipv6.disable=1)",
            "IPv6 targets cannot be reached. Take ipv6.disable=1 from the kernel's command line, or the IPv6 targets "
            "from the mappings.",
        )
    for link in off:
        yield Finding(
            Cause.IPV6_DISABLED,
            "error",
            titles(users),
            f"IPv6 is disabled {'on this host' if link == 'all' else f'on {link}'}",
            "IPv6 targets cannot be reached, and there are no IPv6 addresses for clients to connect to. Addresses that "
            "were lost with it must be given again afterwards.",
            (setting(per_link(6, link, "disable_ipv6"), 0),),
        )
    if facts.sysctls.get(_FORWARD[6]) == "1":
        yield from _advertised(facts, users)


def _is_off(facts: Facts, link: str) -> bool:
    return facts.sysctls.get(per_link(6, link, "disable_ipv6")) == "1"


def lacks_ipv6(facts: Facts, each: Published) -> bool:
    """Whether a mapping's IPv6 targets cannot work for want of IPv6, so that nothing more need be said of them."""
    everywhere = facts.sysctls.get(per_link(6, "all", "disable_ipv6"), "0") in ("1", None)
    return everywhere or any(_is_off(facts, link) for link in facts.links_of(each, 4))


def _advertised(facts: Facts, users: list[Published]) -> Findings:
    for link in sorted(topology.advertised_links(facts.network)):
        if facts.sysctls.get(per_link(6, link, "accept_ra")) == "1":
            yield Finding(
                Cause.ADVERTISED_ROUTES_END,
                "warning",
                titles(users),
                f"IPv6 routes that {link} has from router advertisements will end",
                "IPv6 forwarding is on, and a host that forwards ignores advertisements (accept_ra=1): in up to half "
                "an hour IPv6 clients from afar get no answers. 2 takes them all the same.",
                (setting(per_link(6, link, "accept_ra"), 2),),
            )


def _tracking(facts: Facts) -> Findings:
    table = facts.conntrack
    if table is None:
        yield Unseen("this kernel does not tell (no nf_conntrack yet)")
        return
    if table.limit and table.entries >= _NEARLY * table.limit:
        full = table.entries >= _FULL * table.limit
        yield Finding(
            Cause.CONNTRACK_FULL,
            "error" if full else "warning",
            (),
            f"the connection tracking table is {'full' if full else 'nearly full'}: {table.entries:,} of "
            f"{table.limit:,} entries",
            "When it is full the kernel drops new connections (`nf_conntrack: table full, dropping packet` in its "
            "log). An entry takes about 400 bytes. `conntrack -L` shows whose they are.",
            (f"sysctl -w net.netfilter.nf_conntrack_max={2 * table.limit}",),
        )


CHECKS = (
    Check("forwarding (ip_forward, IPv6 forwarding, forwarding of each link)", _forwarding),
    Check("loopback (route_localnet, the route for ::1, bridge-nf-call-ip6tables)", _loopback),
    Check("reverse path filter", _reverse_path),
    Check("IPv6", _ipv6),
    Check("connection tracking table", _tracking),
)

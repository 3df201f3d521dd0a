"""nftables, judged: whether it works, our table, and what others' rules do to connections through mappings.

Must not ask nft. The one idea: what the kernel would do is known from rules as they stand; who wrote them is known by
their names, and that gives the command.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfportd.doctor.facts import Contact, Facts, Nftables, Published, Translated, titles
from nfportd.doctor.findings import Cause, Check, Finding, Unseen
from nfportd.firewalls import Finding as Stopped

Findings = Iterator[Finding | Unseen]

_OLDEST = (1, 0, 6)
_ROOT = Unseen("it takes root (CAP_NET_ADMIN)")
_TABLE = "table inet nfportd"
#: All that the table's rules are made of, and what deletes stale flows.
_MODULES = "nf_tables nft_chain_nat nft_nat nft_masq nft_ct nft_fib_inet nf_conntrack nf_conntrack_netlink"
#: By what a chain's or table's name begins with: who publishes ports by it, and how it tells which.
_PUBLISHERS = {
    "DOCKER": ("Docker", "docker ps --filter publish={port}"),
    "docker": ("Docker", "docker ps --filter publish={port}"),
    "CNI-": ("the CNI plugin portmap", None),
    "cni_hostport": ("the CNI plugin portmap", None),
    "NETAVARK": ("podman (netavark)", "podman port --all"),
    "netavark": ("podman (netavark)", "podman port --all"),
    "KUBE-": ("kube-proxy", "kubectl get services --all-namespaces"),
    "kube-proxy": ("kube-proxy", "kubectl get services --all-namespaces"),
    "firewalld": ("firewalld", "firewall-cmd --list-forward-ports"),
    "LIBVIRT": ("libvirt", None),
}


def _works(facts: Facts) -> Findings:
    nft = facts.nftables
    if nft is None:
        yield _ROOT
    elif nft.unusable:
        yield Finding(
            Cause.NFT_UNUSABLE,
            "error",
            (),
            f"libnftables cannot be used: {nft.unusable}",
            "nfportd cannot write its table: it takes these packages, and a kernel with nf_tables.",
            ("apt-get install nftables python3-nftables",),
        )
    else:
        yield from _versions(nft)


def _versions(nft: Nftables) -> Findings:
    numbers = tuple(int(part) for part in nft.version.split(".") if part.isdecimal())
    if numbers and numbers < _OLDEST:
        yield Finding(
            Cause.NFT_OLD,
            "error",
            (),
            f"nftables is version {nft.version}; nfportd needs {'.'.join(map(str, _OLDEST))}",
            "Older ones cannot write or list what nfportd's table is made of. Debian 12 has 1.0.6.",
            ("apt-get install nftables python3-nftables libnftables1",),
        )
    elif nft.refused:
        yield Finding(
            Cause.KERNEL_LACKS,
            "error",
            (),
            f"the kernel would not take nfportd's table: {nft.refused}",
            "Modules of netfilter are missing. Where they cannot be loaded, the kernel was built without them, or the "
            "package with them (linux-modules-extra, linux-image) is not that of the kernel that runs.",
            (f"modprobe -a {_MODULES}",),
        )


def _table(facts: Facts) -> Findings:
    nft, status = facts.nftables, facts.daemon.status
    if nft and nft.unusable:
        yield Unseen("libnftables cannot be used")
    elif status is not None:
        yield from _told(str(status["table"]), bool(status["repairs"]["fight"]), str(status["repairs"]["last"]))
    elif nft is None:
        yield _ROOT
    elif nft.flags is None:
        yield Unseen("no nfportd runs, and there is none") if facts.daemon.gone else _missing()
    elif "dormant" in nft.flags:
        yield Finding(
            Cause.TABLE_ASLEEP,
            "error",
            (),
            f"{_TABLE} is dormant: nothing of it is in force",
            "Somebody has put it to sleep, and no nfportd wakes it up.",
            ("nft add table inet nfportd",),
        )
    elif "owner" in nft.flags and facts.daemon.gone:
        yield Finding(
            Cause.TABLE_OWNED,
            "error",
            (),
            f"{_TABLE} belongs to another process (flags {', '.join(nft.flags)})",
            "nfportd cannot start before that process ends, or deletes it. Is another nfportd or an `nft -i` running?",
            ("pgrep -af 'nfportd|nft'",),
        )
    elif not nft.ours:
        yield _changed("nobody repairs it", ("systemctl restart nfportd.service",))
    else:
        yield from _lacking(facts, nft)


def _told(state: str, fight: bool, last: str) -> Findings:
    """What the daemon says of the table; it has repaired what could be repaired first."""
    if fight:
        yield Finding(
            Cause.TABLE_FIGHT,
            "error",
            (),
            f"another program undoes again and again what nfportd repairs; the last: {last}",
            "Between its change and the repair connections fail. Find what starts that program (a timer, a firewall's "
            "reload, a script) and have it leave table inet nfportd alone.",
            ("journalctl -u nfportd.service -g repaired",),
        )
    elif state == "missing":
        yield _missing()
    elif state == "changed":
        yield _changed("nfportd could not repair it", ("journalctl -u nfportd.service -n 20",))


def _missing() -> Finding:
    why = "No port is forwarded. nfportd makes it anew when it is restarted."
    return Finding(
        Cause.TABLE_MISSING, "error", (), f"{_TABLE} is missing", why, ("systemctl restart nfportd.service",)
    )


def _changed(but: str, commands: tuple[str, ...]) -> Finding:
    what = f"{_TABLE} is not as nfportd wrote it, and {but}"
    why = "Chains, rules or sets of it were changed or removed; what it does now nobody can tell."
    return Finding(Cause.TABLE_CHANGED, "error", (), what, why, commands)


def _lacking(facts: Facts, nft: Nftables) -> Findings:
    if nft.lacking:
        yield Finding(
            Cause.MAPPING_NOT_IN_TABLE,
            "error",
            nft.lacking,
            f"{_TABLE} does not have {', '.join(nft.lacking[:3])}{' and others' if len(nft.lacking) > 3 else ''}",
            "They were added, changed or lost after nfportd ended, and only nfportd brings them into force.",
            ("systemctl restart nfportd.service",),
        )
    elif facts.daemon.contact is Contact.DENIED:
        yield Unseen("only the daemon can tell whether it is as it was written")


def _translated(facts: Facts) -> Findings:
    nft = facts.nftables
    if nft is None:
        yield _ROOT
        return
    if nft.unusable or nft.unread:
        yield Unseen(f"others' rules cannot be read: {nft.unusable or nft.unread}")
        return
    by_place: dict[str, list[Translated]] = {}
    for each in nft.translated:
        by_place.setdefault(str(each.place), []).append(each)
    for place, those in by_place.items():
        yield _taken(place, those)


def _taken(place: str, those: list[Translated]) -> Finding:
    first = those[0]
    chain, handle = first.place.chain, first.place.handle
    beginnings = ((name, told) for name, told in _PUBLISHERS.items() if f" {chain}".find(f" {name}") >= 0)
    _, (who, look) = next(beginnings, ("", ("another program", None)))
    keys = ", ".join(dict.fromkeys(str(each.key) for each in those[:3]))
    certain = any(each.certain for each in those)
    commands = [look.format(port=first.key.port)] if look else []
    if handle is not None:
        commands.append(f"nft delete rule {chain} handle {handle}")
    return Finding(
        Cause.TRANSLATED_BY_OTHERS,
        "error" if certain else "warning",
        tuple(dict.fromkeys(each.title for each in those)),
        f"{place} of {who} {'takes' if certain else 'may take'} {keys} before nfportd does",
        "The first translation wins, and nfportd's comes after it: such connections go where that rule says. Withdraw "
        "the port there, or publish this one elsewhere; the rule itself comes back when that program writes it anew.",
        tuple(commands),
    )


def _stopped(facts: Facts) -> Findings:
    nft, status = facts.nftables, facts.daemon.status
    if nft and (nft.unusable or nft.unread):
        yield Unseen(f"others' rules cannot be read: {nft.unusable or nft.unread}")
    elif nft:
        for each in nft.stopped:
            yield from _stopping(facts, each)
    elif status is not None:
        for said in status["forwarding"]:
            lists = {name: tuple(value) for name, value in said.items() if isinstance(value, list)}
            yield from _stopping(facts, Stopped(**{**said, **lists}))
    else:
        yield _ROOT


def _stopping(facts: Facts, found: Stopped) -> Findings:
    those = [each for each in facts.published if _meets(each, found)]
    if not those:
        return
    verb = "stops" if found.certain else "may stop"
    targets = ", ".join(found.targets[:3]) + (" and others" if len(found.targets) > 3 else "")
    yield Finding(
        Cause.STOPPED_BY_OTHERS,
        "error" if found.certain else "warning",
        titles(those),
        f"chain {found.chain} ({found.firewall}) {verb} what is forwarded to {targets}: {'; '.join(found.why[:3])}",
        "Every table has a say in what is forwarded, and a drop is for good: an accept of nfportd could not help. The "
        "command lasts as long as that program says; docs/firewalls.md tells where each keeps its rules.",
        found.commands,
    )


def _meets(each: Published, found: Stopped) -> bool:
    return found.targets == ("any target",) or any(str(door) in found.targets for door in each.doors())


CHECKS = (
    Check("nftables and the kernel's netfilter", _works),
    Check(_TABLE, _table),
    Check("translations of other programs for the same ports", _translated),
    Check("forward chains of other programs", _stopped),
)

"""What nfportctl doctor says: findings, and what it has looked at.

Must not judge. The one idea: silence would be taken for health, so a report says what was fine and what could not be
looked at as well as what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from nfportd.doctor.facts import Facts


class Cause(StrEnum):
    """Every cause that doctor knows; docs/doctor.md says of each what it means."""

    # the daemon
    DAEMON_NOT_RUNNING = "daemon-not-running"
    DAEMON_NOT_ANSWERING = "daemon-not-answering"
    SOCKET_DENIED = "socket-denied"
    SETTINGS_BROKEN = "settings-broken"
    CLOCK_BEHIND = "clock-behind"
    STORE_UNREADABLE = "store-unreadable"
    STORE_RECOVERED = "store-recovered"
    STATE_NOT_TRUSTED = "state-not-trusted"
    FILE_BROKEN = "file-broken"
    FILE_IGNORED = "file-ignored"
    # its mappings
    MAPPING_WAITS = "mapping-waits"
    MAPPING_REFUSED = "mapping-refused"
    MAPPING_NOT_IN_TABLE = "mapping-not-in-table"
    PORT_IN_USE = "port-in-use"
    LISTENER_SHADOWED = "listener-shadowed"
    LISTEN_ADDRESS_ABSENT = "listen-address-absent"
    # nftables
    NFT_UNUSABLE = "nft-unusable"
    NFT_OLD = "nft-old"
    KERNEL_LACKS = "kernel-lacks"
    TABLE_MISSING = "table-missing"
    TABLE_ASLEEP = "table-asleep"
    TABLE_CHANGED = "table-changed"
    TABLE_OWNED = "table-owned"
    TABLE_FIGHT = "table-fight"
    TRANSLATED_BY_OTHERS = "translated-by-others"
    STOPPED_BY_OTHERS = "stopped-by-others"
    # the host
    FORWARDING_OFF = "forwarding-off"
    LINK_FORWARDING_OFF = "link-forwarding-off"
    ROUTE_LOCALNET_OFF = "route-localnet-off"
    LOOPBACK_ROUTE_MISSING = "loopback-route-missing"
    BRIDGE_NETFILTER = "bridge-netfilter"
    RP_FILTER = "rp-filter"
    ADVERTISED_ROUTES_END = "advertised-routes-end"
    IPV6_DISABLED = "ipv6-disabled"
    CONNTRACK_FULL = "conntrack-full"
    # targets
    TARGET_NO_ROUTE = "target-no-route"
    TARGET_NO_NEIGHBOUR = "target-no-neighbour"
    TARGET_REFUSES = "target-refuses"
    TARGET_REJECTS = "target-rejects"
    TARGET_SILENT = "target-silent"
    ANSWERS_GO_ELSEWHERE = "answers-go-elsewhere"


#: error: connections fail now. warning: some of them do, or soon will, or nfportd cannot tell.
Severity = Literal["error", "warning"]


class Finding(NamedTuple):
    """One thing that is wrong. `mappings`: those that it concerns; none: all of them. `commands` mend or show it."""

    cause: Cause
    severity: Severity
    mappings: tuple[str, ...]
    what: str
    why: str
    commands: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """As values of JSON."""
        plain = self._asdict() | {"cause": str(self.cause)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


class Unseen(NamedTuple):
    """Something could not be looked at: why."""

    why: str


class Check(NamedTuple):
    """One thing that is looked at, by its name for people."""

    name: str
    judge: Callable[[Facts], Iterable[Finding | Unseen]]


class Report(NamedTuple):
    """What was found; the names of what was looked at and is fine; what could not be looked at, with why."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    not_checked: tuple[tuple[str, str], ...]

    def json(self) -> dict[str, Any]:
        """As values of JSON."""
        return {
            "findings": [finding.json() for finding in self.findings],
            "checked": list(self.checked),
            "not_checked": [{"what": what, "why": why} for what, why in self.not_checked],
        }

"""The daemon and what it was asked for, judged: its socket, files, clock and store, its mappings, local listeners.

Must not ask it. The one idea: a daemon that does not answer is a finding like any other, and the rest is judged all the
same.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from nfportd.desired import RECOVERED
from nfportd.doctor.facts import Contact, Facts, Published, titles
from nfportd.doctor.findings import Cause, Check, Finding, Unseen
from nfportd.model import Key, listens

Findings = Iterator[Finding | Unseen]

_START, _LOG = "systemctl start nfportd.service", "journalctl -u nfportd.service -n 20"
#: Seconds by which two clocks of one host may differ for a reader.
_LEEWAY = 60.0


def _contact(facts: Facts) -> Findings:
    path, contact, _, detail = facts.daemon
    if facts.daemon.gone:
        yield _gone(facts)
    elif contact is Contact.DENIED:
        yield Finding(
            Cause.SOCKET_DENIED,
            "error",
            (),
            f"nfportd does not talk to you: {detail}",
            "Whoever is neither root nor a member of the group nfportd, and has no access rule in the settings, may "
            "not ask. A new member must log in again.",
            ("sudo nfportctl doctor", 'usermod -aG nfportd "$USER"'),
        )
    elif contact is Contact.SILENT:
        yield Finding(
            Cause.DAEMON_NOT_ANSWERING,
            "error",
            (),
            f"nfportd does not answer on {path}: {detail}",
            "What is in force still forwards, but nothing is changed or repaired. A restart leaves it in force. Where "
            "systemd holds the socket and nfportd fails to start, its log says why.",
            (_LOG, "systemctl restart nfportd.service"),
        )


def _gone(facts: Facts) -> Finding:
    found = f"nfportd does not run ({facts.daemon.contact} at {facts.daemon.socket})"
    nft = facts.nftables
    if nft and nft.flags is not None:
        why = (
            "What it has left in force still forwards; but nothing follows changes of mappings, routes or targets, and "
        )
        why += "nothing is repaired."
    elif nft:
        why = "No port is forwarded: its table is not there."
    else:
        why = "No port is forwarded, but for what a crash has left in force."
    why += " Where it does not start, its log says why."
    return Finding(Cause.DAEMON_NOT_RUNNING, "error", (), found, why, (_START, _LOG))


def _files(facts: Facts) -> Findings:
    for text in facts.files.settings:
        yield Finding(
            Cause.SETTINGS_BROKEN,
            "error" if facts.daemon.gone else "warning",
            (),
            text,
            "nfportd does not start with settings that it cannot read; one that runs has read them before.",
            ("nfportd check",),
        )
    for text in facts.files.dropins:
        yield Finding(
            Cause.FILE_BROKEN,
            "error",
            (),
            text,
            "What this file said when it was right last stays in force, if it ever was; nothing new of it is. nfportd "
            "takes it as soon as it is right.",
            ("nfportd check",),
        )
    for path in facts.files.ignored:
        yield Finding(
            Cause.FILE_IGNORED,
            "warning",
            (),
            f"{path} is not read",
            "Only files named *.yaml are drop-ins.",
            (f"mv {path} {path.rpartition('.')[0]}.yaml",),
        )


def _state(facts: Facts) -> Findings:
    if ahead := [each for each in facts.published if (each.since or 0) > facts.now + _LEEWAY]:
        newest = datetime.fromtimestamp(max(each.since or 0 for each in ahead), UTC)
        yield Finding(
            Cause.CLOCK_BEHIND,
            "warning",
            titles(ahead),
            f"mappings are from the future (since {newest:%Y-%m-%d %H:%M} UTC): the clock is behind what it was",
            "Mappings with a deadline (`expires_in`) last longer than they should, by as much. A host without a clock "
            "that runs while it is off starts like this until it has asked a time server.",
            ("timedatectl set-ntp true",),
        )
    for each in facts.files.distrusted:
        yield Finding(
            Cause.STATE_NOT_TRUSTED,
            "error" if facts.daemon.gone else "warning",
            (),
            f"{each.path} {each.what.partition('; run: ')[0]}",
            "Whoever can write there could forward any port, so nfportd does not start (again) with it.",
            (each.what.partition("; run: ")[2],),
        )
    for each in facts.files.unreadable:
        yield Finding(
            Cause.STORE_UNREADABLE,
            "error",
            (),
            f"the store {each.path} cannot be read: {each.what}",
            "It holds what was published over the API. At its next start nfportd sets it aside and goes on with what "
            "the kernel holds, whose owners nobody knows any more; what should be kept there meanwhile may be refused.",
            (f"sqlite3 {each.path} 'pragma integrity_check'", "systemctl restart nfportd.service"),
        )
    if orphans := [each for each in facts.published if each.owner == RECOVERED and each.wanted]:
        yield Finding(
            Cause.STORE_RECOVERED,
            "warning",
            titles(orphans),
            f"the store was lost: {len(orphans)} mappings found in the kernel serve on, of which no owner is known",
            "They stay until their owners publish them again, which takes the keys over, or until they are removed. "
            "The broken store lies beside the new one as mappings.db.corrupt-TIME.",
            (f"nfportctl show {RECOVERED}", f"nfportctl remove --owner {RECOVERED} --all"),
        )


def _mappings(facts: Facts) -> Findings:
    if facts.daemon.status is None:
        yield Unseen("only the daemon can tell which are in force")
    for each in facts.published:
        # What was found without an owner gives way to whoever knows better.
        if each.state == "conflict" and each.owner != RECOVERED:
            yield Finding(
                Cause.MAPPING_WAITS,
                "error",
                (each.title,),
                f"{each.mapping} ({each.owner}) is not in force: {each.reason}",
                "A key (listen address, protocol, port) has one holder. This mapping takes over by itself when that "
                "one lets go; or give it another port.",
                _remove(each.reason.rpartition(" held by ")[2]),
            )
        elif each.state == "refused":
            yield Finding(
                Cause.MAPPING_REFUSED,
                "error",
                (each.title,),
                f"{each.mapping} ({each.owner}) is not in force, the kernel refuses it: {each.reason}",
                "nfportd tries it again every ten seconds.",
                (_LOG,),
            )


def _remove(owner: str) -> tuple[str, ...]:
    """How the holder of a key is looked at, and made to let go."""
    if owner.startswith("file:"):
        return (f"nfportctl show {owner}",)
    return (f"nfportctl show {owner}", f"nfportctl remove --owner {owner} --all")


def _listeners(facts: Facts) -> Findings:
    for each in facts.published:
        if each.mapping.shadow_listener:
            continue
        found = {key: facts.listeners[key] for key in each.mapping.claimed() if key in facts.listeners}
        if each.state == "port-in-use":
            yield _in_use(each, next(iter(found.items()), None))
        elif found and each.wanted:
            yield _shadowed(each, *next(iter(found.items())))


def _in_use(each: Published, found: tuple[Key, tuple[str, tuple[int, str] | None]] | None) -> Finding:
    process = found[1][1] if found else None
    return Finding(
        Cause.PORT_IN_USE,
        "error",
        (each.title,),
        f"{each.mapping} ({each.owner}) is not in force: {each.reason}",
        "Connections go to that process. Stop it, and nfportd takes the port within ten seconds; or say "
        "`shadow_listener: true` in the mapping to take the port although it is used.",
        _end(process, each),
    )


def _shadowed(each: Published, key: Key, blocker: tuple[str, tuple[int, str] | None]) -> Finding:
    address, process = blocker
    return Finding(
        Cause.LISTENER_SHADOWED,
        "warning",
        (each.title,),
        f"{key} goes to the target of {each.mapping}, though {listens(process)} on {address}",
        "That process gets no connections by this port. If it should, remove the mapping or give it another port; if "
        "not, stop the process, or say `shadow_listener: true` in the mapping.",
        _end(process, each),
    )


def _end(process: tuple[int, str] | None, each: Published) -> tuple[str, ...]:
    return (f"kill {process[0]}",) if process else (f"ss -lntup 'sport = :{each.mapping.listen.ports.first}'",)


def _addresses(facts: Facts) -> Findings:
    for each in facts.published:
        address, family = each.mapping.listen.address, each.mapping.listen.family
        if address and each.wanted and not facts.way(address).local:
            link = (family and facts.uplink(family)) or "LINK"
            yield Finding(
                Cause.LISTEN_ADDRESS_ABSENT,
                "error",
                (each.title,),
                f"{each.mapping} listens on {address}, which is not an address of this host",
                "nfportd forwards what is for this host itself. The mapping works as soon as the address is there; or "
                "listen on one that is, or on every address.",
                (f"ip address add {address}/{32 if family == 4 else 128} dev {link}",),
            )


CHECKS = (
    Check("the daemon answers", _contact),
    Check("settings and drop-ins", _files),
    Check("clock and store", _state),
    Check("mappings are in force", _mappings),
    Check("listen addresses", _addresses),
    Check("processes of this host on the same ports", _listeners),
)

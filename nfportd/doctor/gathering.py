"""What the kernel says, gathered for doctor: routes, parameters, listeners, doors, rules.

Must not judge, nor change anything. The one idea: whatever cannot be read is left out, and the rest is read all the
same; all of it is bounded in number and in time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from nfportd import desired, firewalls, ruleset
from nfportd.desired import Desired
from nfportd.doctor import host
from nfportd.doctor.asking import Said
from nfportd.doctor.facts import Conntrack, Door, Facts, Interface, Nftables, Published, Translated, Way
from nfportd.errors import KernelRefused, NotPossible
from nfportd.kernel import doors, others, sysctl
from nfportd.kernel.doors import Knock
from nfportd.kernel.listeners import Listeners, processes
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.nft import Nft
from nfportd.kernel.nft_flags import Flags
from nfportd.kernel.reach import Reach
from nfportd.matches import Packet
from nfportd.model import Blocker, Key, Mapping
from nfportd.notation import FAMILIES
from nfportd.topology import Network, Topology

#: So many targets are tried, keys looked up among others' translations, connections followed through their rules.
_DOORS, _KEYS, _CONNECTIONS = 256, 500, 200
#: This host's addresses at which a key on every address is looked up.
_ADDRESSES = 4
_SCRATCH = "nfportd_doctor"
_NETSTAT = Path("/proc/net/netstat")
_CONNTRACK = ("netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max")


async def gather(said: Said) -> Facts:
    """All facts about what was said and this host."""
    published = said.published
    network, loopback_links = await _network()
    nftables = await _nftables(said, published, network)
    reach = Reach()
    try:
        interfaces = await reach.interfaces()
        ways = await reach.ways(dict.fromkeys(_addresses(published)))
        before = _reverse_path_drops()
        near, far = _knocks(said, interfaces, ways, in_force=_in_force(said, nftables))
        answers = await doors.knock([*near, *far])
        drops = _reverse_path_drops() - before
        neighbours = await reach.neighbours()
    finally:
        reach.close()
    names = host.parameters(iter(interfaces))
    return Facts(
        now=time.time(),
        daemon=said.daemon,
        published=published,
        files=said.files,
        nftables=nftables,
        sysctls={name: sysctl.read(name) for name in names},
        network=network,
        interfaces=interfaces,
        loopback_links=loopback_links,
        ways=ways,
        neighbours=neighbours,
        doors={knock.door: answers[knock] for knock in near},
        doors_from_afar={knock.door: (answers[knock], knock.source) for knock in far},
        reverse_path_drops=drops,
        listeners=_listeners(said, published),
        conntrack=_conntrack(),
    )


async def _network() -> tuple[Network, frozenset[str]]:
    watch = NetworkWatch(lambda: None)
    try:
        return await watch.snapshot(), frozenset(link.name for link in watch.loopback_links())
    finally:
        watch.close()


def _addresses(published: Iterable[Published]) -> Iterator[str]:
    """The addresses to which ways are asked for: of targets and of listens."""
    for each in islice(published, _DOORS):
        yield from (target.address for target in each.mapping.targets)
        if each.mapping.listen.address:
            yield each.mapping.listen.address


def _in_force(said: Said, nftables: Nftables | None) -> bool | None:
    """Whether our table is; None: nobody can tell."""
    if nftables:
        return nftables.flags is not None
    return True if said.daemon.status is not None else None


def _knocks(
    said: Said, interfaces: dict[str, Interface], ways: dict[str, Way], *, in_force: bool | None
) -> tuple[list[Knock], list[Knock]]:
    """Where to knock: as the kernel goes, and by TCP also from a source that is no neighbour of the target's."""
    near: dict[Door, Knock] = {}
    far: dict[Door, Knock] = {}
    for each in said.published:
        for door in each.doors():
            way = ways.get(door.target.address, Way(trouble="not asked"))
            if way.trouble or not each.wanted or door.protocol == "sctp" or door in near or len(near) >= _DOORS:
                continue
            # Our own table drops what goes past the mapping of an isolated target.
            isolated = door in said.isolated and in_force is not False
            at = _mapped(each, door, interfaces) if isolated else (door.target.address, door.target.ports.first)
            if at and not (isolated and in_force is None):
                near[door] = Knock(door, *at)
            source = _afar(door, way, interfaces)
            if source and door.protocol == "tcp" and not isolated:
                far[door] = Knock(door, door.target.address, door.target.ports.first, source)
    return list(near.values()), list(far.values())


def _mapped(each: Published, door: Door, interfaces: dict[str, Interface]) -> tuple[str, int] | None:
    """An address and port of this host that lead to a door."""
    listen = each.mapping.listen
    address = listen.address or next(_own(door.target.family, interfaces), None)
    return (address, listen.ports.first) if address else None


def _afar(door: Door, way: Way, interfaces: dict[str, Interface]) -> str | None:
    """An address of this host that a target answers by way of a gateway only."""
    here = interfaces.get(way.link)
    if here is None or way.local:
        return None
    others = {name: each for name, each in interfaces.items() if name != way.link}
    return next((each for each in _own(door.target.family, others) if not here.covers(each)), None)


def _own(family: int, interfaces: dict[str, Interface]) -> Iterator[str]:
    """This host's addresses that others can reach."""
    for each in interfaces.values():
        for written in each.addresses if each.up else ():
            address = ipaddress.ip_interface(written).ip
            if address.version == family and not address.is_link_local and not address.is_loopback:
                yield str(address)


def _reverse_path_drops() -> int:
    """Packets that the reverse path filter has dropped (LINUX_MIB_IPRPFILTER)."""
    try:
        lines = [line.split() for line in _NETSTAT.read_text().splitlines() if line.startswith("TcpExt:")]
        return int(dict(zip(*lines, strict=False)).get("IPReversePathFilter", 0))
    except (OSError, ValueError, TypeError):
        return 0


def _listeners(said: Said, published: Iterable[Published]) -> dict[Key, Blocker]:
    """Who listens on the keys of mappings. What nfportd reserves is its own; who it is, only root can see."""
    listeners = Listeners()
    try:
        keys = [key for each in published if not each.mapping.reserve for key in each.mapping.claimed()]
        found = listeners.on(keys)
    finally:
        listeners.close()
    if not found:
        return {}
    known, pid = processes(each.inode for each in found), said.daemon.status["pid"] if said.daemon.status else None
    with contextlib.suppress(FileNotFoundError):
        # A process that cannot be seen, and is of the daemon's user, is taken for the daemon.
        user = Path(f"/proc/{pid}").stat().st_uid
        found = [each for each in found if each.inode in known or each.uid != user]
    blockers = {each.key: (each.address, known.get(each.inode)) for each in found}
    return {key: blocker for key, blocker in blockers.items() if blocker[1] is None or blocker[1][0] != pid}


def _conntrack() -> Conntrack | None:
    entries, limit = map(sysctl.read, _CONNTRACK)
    return Conntrack(int(entries), int(limit)) if entries and limit else None


async def _nftables(said: Said, published: Sequence[Published], network: Network) -> Nftables | None:
    """nftables, where this user may ask."""
    flags = Flags()
    try:
        flags.of_tables()
    except PermissionError:
        return None
    except OSError as error:
        return Nftables(unusable=f"the kernel does not answer: {error.strerror or error}")
    finally:
        flags.close()
    nft = Nft()
    try:
        listing = await nft.listed("list chains")
        version = next((item["metainfo"]["version"] for item in listing["nftables"] if "metainfo" in item), "")
        # Dormant: the dry run then registers no hooks, not even for a moment.
        refused = await nft.allows(ruleset.skeleton(said.mark_bit, ("dormant",), _SCRATCH))
        found = Nftables(version=version, refused=refused, flags=nft.flags())
        # A table that has an owner, or sleeps, says enough by that; over one flag nft 1.0.6 crashes (nft_flags.py).
        listed = found.flags is not None and not {"owner", "dormant"} & set(found.flags) and len(found.flags) != 1
        if listed and not refused and said.daemon.status is None:
            found = await _table(nft, found, said.mark_bit, published)
        return await _of_others(nft, found, published, Topology(network))
    except (NotPossible, KernelRefused) as error:
        return Nftables(unusable=str(error))
    finally:
        nft.close()


async def _table(nft: Nft, found: Nftables, mark_bit: int, published: Iterable[Published]) -> Nftables:
    """Our table as an earlier run of the daemon left it."""
    listed = await nft.list_table()
    if listed is None:
        return found
    ours = not ruleset.has_others(listed) and listed.fingerprint == ruleset.fingerprint(mark_bit, listed)
    wished, by_owner = Desired(), dict[str, dict[Mapping, int]]()
    for each in published:
        by_owner.setdefault(each.owner, {})[each.mapping] = 0
    for owner, mappings in by_owner.items():
        wished.replace(owner, mappings)
    lacking = [
        each.title
        for each in published
        if any(
            desired.endpoint_in(listed.elements, key) != endpoint
            for key, endpoint in each.mapping.endpoints()
            if (holder := wished.holder(key)) and holder.mapping == each.mapping
        )
    ]
    return found._replace(ours=ours, lacking=tuple(lacking))


async def _of_others(nft: Nft, found: Nftables, published: Sequence[Published], topology: Topology) -> Nftables:
    """What the rules of other programs do to connections through mappings."""
    wanted = [each for each in published if each.wanted]
    asked = (connection for each in wanted for connection in firewalls.connections(each.mapping, topology))
    try:
        stopped = await others.stops(nft, list(islice(asked, _CONNECTIONS)))
        translated = [
            each for hook in ("prerouting", "output") for each in await _translated(nft, hook, wanted, topology)
        ]
    except Exception as error:  # others write what they like, and nft lists it as its version likes
        return found._replace(unread=str(error) or repr(error))
    return found._replace(stopped=tuple(stopped), translated=tuple(dict.fromkeys(translated)))


async def _translated(nft: Nft, hook: str, published: Iterable[Published], topology: Topology) -> list[Translated]:
    """Whose rules translate the first packet to each key before ours do."""
    asked = list(islice(_packets(hook, published, topology), _KEYS))
    found = await others.translates(nft, hook, [packet for _, _, packet in asked])
    return [
        Translated(each.title, key, translation.place, translation.certain)
        for (each, key, _), translations in zip(asked, found, strict=False)
        for translation in translations
        if translation.place.verdict in ("dnat", "redirect")
    ]


def _packets(hook: str, published: Iterable[Published], topology: Topology) -> Iterator[tuple[Published, Key, Packet]]:
    own = {
        family: sorted(
            address
            for version, address in topology.network.addresses
            if version == family
            and not ipaddress.ip_address(address).is_loopback
            and not ipaddress.ip_address(address).is_link_local
        )[:_ADDRESSES]
        for family in FAMILIES
    }
    for each in published:
        for key in each.mapping.claimed():
            iif, oif = (topology.uplink(key.family), "") if hook == "prerouting" else ("", "lo")
            for address in [key.address] if key.address else own[key.family]:
                yield (
                    each,
                    key,
                    Packet(
                        key.family,
                        str(key.protocol),
                        None,
                        None,
                        address,
                        key.port,
                        iif,
                        oif,
                        translated=False,
                        local=True,
                    ),
                )

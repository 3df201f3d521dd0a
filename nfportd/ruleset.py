"""The table: its whole text on one page, and elements, deltas and what makes an older table ours as nft input.

Must not run anything: values in, text out. The one idea: the skeleton is written once and stays; mappings are elements
only, so the number of rules is constant and a change is a delta.

nft 1.0.6 reads elements as text twice as fast as as JSON and with half the memory (docs/architecture.md), and prints
rules differently from how they were written. Hence text is written, JSON is read (listing.py), and the chains are
compared by a fingerprint of what nft listed right after they were written, kept in the table itself.
"""

from __future__ import annotations

import hashlib
import re
from string import Template
from typing import NamedTuple

from nfportd.desired import Delta, Elements, Parts, Slot
from nfportd.notation import FAMILIES

TABLE = "nfportd"

#: What a reader can paste into nft, after putting a number for $bit and $others (all bits but that one).
SKELETON = Template("""\
table inet $table {$flags
  # Keys on every local address, and on one address; each element counts the connections it accepted.
  map any4 { type inet_proto . inet_service : ipv4_addr . inet_service; counter; }
  map any6 { type inet_proto . inet_service : ipv6_addr . inet_service; counter; }
  map addr4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; counter; }
  map addr6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; counter; }

  # Keys whose mapping says `masquerade: always`.
  set always_any4 { type inet_proto . inet_service; }
  set always_any6 { type inet_proto . inet_service; }
  set always_addr4 { type ipv4_addr . inet_proto . inet_service; }
  set always_addr6 { type ipv6_addr . inet_proto . inet_service; }

  # Keys whose mapping says `masquerade: never`.
  set never_any4 { type inet_proto . inet_service; }
  set never_any6 { type inet_proto . inet_service; }
  set never_addr4 { type ipv4_addr . inet_proto . inet_service; }
  set never_addr6 { type ipv6_addr . inet_proto . inet_service; }

  # Prefixes that are on-link at the interface by which targets are reached: their answers would not pass us.
  set onlink4 { type ipv4_addr . ifname; flags interval; }
  set onlink6 { type ipv6_addr . ifname; flags interval; }

  # Keys whose mapping has `sources:`, the sources that may connect, and the listen addresses that are open to all.
  set guarded_any4 { type inet_proto . inet_service; }
  set guarded_any6 { type inet_proto . inet_service; }
  set guarded_addr4 { type ipv4_addr . inet_proto . inet_service; }
  set guarded_addr6 { type ipv6_addr . inet_proto . inet_service; }
  set open_addr4 { type ipv4_addr . inet_proto . inet_service; }
  set open_addr6 { type ipv6_addr . inet_proto . inet_service; }
  set allowed_any4 { type ipv4_addr . inet_proto . inet_service; flags interval; }
  set allowed_any6 { type ipv6_addr . inet_proto . inet_service; flags interval; }
  set allowed_addr4 { type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval; }
  set allowed_addr6 { type ipv6_addr . ipv6_addr . inet_proto . inet_service; flags interval; }
  counter blocked4 { }
  counter blocked6 { }

  # Targets whose mapping says `isolate: true`, and what was dropped on its way past the mappings.
  set isolated4 { type ipv4_addr . inet_proto . inet_service; }
  set isolated6 { type ipv6_addr . inet_proto . inet_service; }
  counter bypassed4 { }
  counter bypassed6 { }

  set fingerprint { type mark; }

  # A listen address of its own goes before the wildcard; dnat ends the chain.
  # Without `meta nfproto` a packet of the other family would not be translated but counted.
  chain dispatch {
    jump dispatch_addr
    jump masquerade_any
    meta nfproto ipv4 dnat ip addr . port to meta l4proto . th dport map @any4
    meta nfproto ipv6 dnat ip6 addr . port to meta l4proto . th dport map @any6
  }

  chain dispatch_addr {
    jump masquerade_addr
    dnat ip addr . port to ip daddr . meta l4proto . th dport map @addr4
    dnat ip6 addr . port to ip6 daddr . meta l4proto . th dport map @addr6
  }

  # The bit says here what postrouting cannot know any more: in meta mark `always`, in ct mark `never`.
  chain masquerade_addr {
    ip daddr . meta l4proto . th dport @always_addr4 meta mark set meta mark | $bit
    ip daddr . meta l4proto . th dport @never_addr4 ct mark set ct mark | $bit
    ip6 daddr . meta l4proto . th dport @always_addr6 meta mark set meta mark | $bit
    ip6 daddr . meta l4proto . th dport @never_addr6 ct mark set ct mark | $bit
  }

  chain masquerade_any {
    meta nfproto ipv4 meta l4proto . th dport @always_any4 meta mark set meta mark | $bit
    meta nfproto ipv4 meta l4proto . th dport @never_any4 ct mark set ct mark | $bit
    meta nfproto ipv6 meta l4proto . th dport @always_any6 meta mark set meta mark | $bit
    meta nfproto ipv6 meta l4proto . th dport @never_any6 ct mark set ct mark | $bit
  }

  # Before dstnat, while the destination is the listen address. The host's own connections take the output hook. The
  # route is asked last, for it costs as much as three lookups, and most keys are not guarded.
  chain admission {
    type filter hook prerouting priority -110; policy accept;
    ct state != new return
    iifname "lo" return
    ip6 saddr fe80::/10 return
    ip daddr . meta l4proto . th dport @guarded_addr4 fib daddr type local goto admit_addr4
    ip6 daddr . meta l4proto . th dport @guarded_addr6 fib daddr type local goto admit_addr6
    meta nfproto ipv4 meta l4proto . th dport @guarded_any4 ip daddr . meta l4proto . th dport != @open_addr4 \
      fib daddr type local goto admit_any4
    meta nfproto ipv6 meta l4proto . th dport @guarded_any6 ip6 daddr . meta l4proto . th dport != @open_addr6 \
      fib daddr type local goto admit_any6
  }

  chain admit_addr4 {
    ip saddr . ip daddr . meta l4proto . th dport @allowed_addr4 return
    counter name blocked4 drop
  }

  chain admit_addr6 {
    ip6 saddr . ip6 daddr . meta l4proto . th dport @allowed_addr6 return
    counter name blocked6 drop
  }

  chain admit_any4 {
    ip saddr . meta l4proto . th dport @allowed_any4 return
    counter name blocked4 drop
  }

  chain admit_any6 {
    ip6 saddr . meta l4proto . th dport @allowed_any6 return
    counter name blocked6 drop
  }

  # Loopback is served by the output hook alone, here it is forged; bridge-nf-call-ip6tables lets ::1 come so far. IPv6
  # does not forward link-local sources (RFC 4291, 2.5.6).
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr 127.0.0.0/8 return
    ip saddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    ip6 saddr ::1 return
    ip6 saddr fe80::/10 return
    fib daddr type local jump dispatch
  }

  # nft 1.0.6 refuses the name dstnat on this hook.
  chain output {
    type nat hook output priority -100; policy accept;
    fib daddr type local jump dispatch
  }

  # Before srcnat, so that a bridge's own masquerade does not come first.
  chain postrouting {
    type nat hook postrouting priority 99; policy accept;
    ct status & dnat == 0 return
    ip saddr 127.0.0.0/8 meta mark set meta mark | $bit
    ip6 saddr ::1 meta mark set meta mark | $bit
    ip saddr . oifname @onlink4 ct mark & $bit == 0 meta mark set meta mark | $bit
    ip6 saddr . oifname @onlink6 ct mark & $bit == 0 meta mark set meta mark | $bit
    ct mark & $bit != 0 ct mark set ct mark & $others
    meta mark & $bit != 0 goto masquerading
  }

  chain masquerading {
    meta mark set meta mark & $others
    masquerade
  }

  # After every DNAT, ours and that of others, on each way to a target: through this host, from it, and to itself.
  chain isolation_forward {
    type filter hook forward priority filter; policy accept;
    ct state new,untracked jump isolation
  }

  # What the relay of [::1] sends came through a mapping; its sockets bear the bit.
  chain isolation_output {
    type filter hook output priority filter; policy accept;
    meta mark & $bit != 0 return
    ct state new,untracked jump isolation
  }

  chain isolation_input {
    type filter hook input priority filter; policy accept;
    ct state new,untracked jump isolation
  }

  # An untracked packet has no status, so it does not return here.
  chain isolation {
    ct status & dnat != 0 return
    ip daddr . meta l4proto . th dport @isolated4 counter name bypassed4 drop
    ip6 daddr . meta l4proto . th dport @isolated6 counter name bypassed6 drop
  }

  # route_localnet would open 127.0.0.0/8 of this host to its neighbours (CVE-2020-8558). At input, where nothing comes
  # that is forwarded: a hook costs each packet more than most rules.
  chain loopback_guard {
    type filter hook input priority raw; policy accept;
    iifname "lo" return
    ip daddr 127.0.0.0/8 goto from_elsewhere
    ip saddr 127.0.0.0/8 goto from_elsewhere
    ip6 daddr ::1 goto from_elsewhere
    ip6 saddr ::1 goto from_elsewhere
  }

  # Answers have their loopback address back by now. Who begins with such a source has forged it, in a running flow too.
  # An untracked packet has neither direction nor status, so it does not return here.
  chain from_elsewhere {
    ip saddr 127.0.0.0/8 ct direction original counter drop
    ip6 saddr ::1 ct direction original counter drop
    ct status & (snat | dnat) != 0 return
    counter drop
  }
}
""")

#: Base chains as nft lists them: type, hook, priority, policy. They cannot be changed in place, only made anew.
_BASE_CHAINS: dict[str, tuple[str | int | None, ...]] = {
    "admission": ("filter", "prerouting", -110, "accept"),
    "prerouting": ("nat", "prerouting", -100, "accept"),
    "output": ("nat", "output", -100, "accept"),
    "postrouting": ("nat", "postrouting", 99, "accept"),
    "isolation_forward": ("filter", "forward", 0, "accept"),
    "isolation_output": ("filter", "output", 0, "accept"),
    "isolation_input": ("filter", "input", 0, "accept"),
    "loopback_guard": ("filter", "input", -300, "accept"),
}
_BLOCK = re.compile(r"(?:  #.*\n)*  chain (\w+) {\n(?:    type (.*)\n)?((?:    .*\n)+)  }\n\n?")
_PLAIN_CHAIN = (None, None, None, None)
_CHAINS = dict.fromkeys((block[1] for block in _BLOCK.finditer(SKELETON.template)), _PLAIN_CHAIN) | _BASE_CHAINS

#: Chains whose rules come with the first element of a set whose name begins so; base chains come themselves then. Each
#: costs every connection, a base chain every packet of the host, and most hosts have no use for them. They stay as long
#: as the table.
_ON_DEMAND: dict[str, tuple[str, ...]] = {
    "dispatch_addr": ("addr",),
    "masquerade_addr": ("always_addr", "never_addr"),
    "masquerade_any": ("always_any", "never_any"),
    "admission": ("guarded_",),
    "isolation_forward": ("isolated",),
    "isolation_output": ("isolated",),
    "isolation_input": ("isolated",),
}
_HOOKED_ON_DEMAND = _ON_DEMAND.keys() & _BASE_CHAINS.keys()


def _without_what_comes_later(block: re.Match[str]) -> str:
    name = block[1]
    if name in _HOOKED_ON_DEMAND:
        return ""
    return f"  chain {name} {{ }}\n\n" if name in _ON_DEMAND else block[0]


_CORE = Template(_BLOCK.sub(_without_what_comes_later, SKELETON.template))

#: Type of the key, of the value, flags of a set or map.
Shape = tuple[tuple[str, ...], str | None, tuple[str, ...]]

#: Sets and maps as nft lists them.
_SETS: dict[str, Shape] = {"fingerprint": (("mark",), None, ())}
_WILDCARD = ("inet_proto", "inet_service")
for _f in FAMILIES:
    _address = f"ipv{_f}_addr"
    for _name, _key in (f"any{_f}", _WILDCARD), (f"addr{_f}", (_address, *_WILDCARD)):
        _SETS |= {
            _name: (_key, f"{_address} . inet_service", ()),
            f"always_{_name}": (_key, None, ()),
            f"never_{_name}": (_key, None, ()),
            f"guarded_{_name}": (_key, None, ()),
            f"allowed_{_name}": ((_address, *_key), None, ("interval",)),
        }
    _SETS[f"open_addr{_f}"] = (_SETS[f"addr{_f}"][0], None, ())
    _SETS[f"isolated{_f}"] = (_SETS[f"addr{_f}"][0], None, ())
    _SETS[f"onlink{_f}"] = ((_address, "ifname"), None, ("interval",))

#: Counters that stand by themselves: packets whose source is not allowed, and such past the mappings of their target.
BLOCKED: dict[int, str] = {4: "blocked4", 6: "blocked6"}
BYPASSED: dict[int, str] = {4: "bypassed4", 6: "bypassed6"}
_COUNTERS = frozenset([*BLOCKED.values(), *BYPASSED.values()])

#: The element for every key that has none: never ours, but anybody can add one.
OTHERS: Parts = ("*",)

#: Sets and maps whose elements follow from mappings and routes.
ELEMENT_SETS = frozenset(_SETS) - {"fingerprint"}


#: Flags of a table, as nft writes them.
Flags = tuple[str, ...]

#: With these only we can change the table, `nft flush ruleset` included, and it outlives our process.
OWNED: Flags = ("owner", "persist")


class Skeleton(NamedTuple):
    """Chains (type, hook, priority, policy), sets, rules, and the names of counters that stand by themselves."""

    chains: dict[str, tuple[str | int | None, ...]]
    sets: dict[str, Shape]
    rules: str
    counters: frozenset[str]


class Listed(NamedTuple):
    """Our table as it was found in the kernel."""

    elements: Elements
    chains: dict[str, tuple[str | int | None, ...]]
    sets: dict[str, Shape]
    rules: str
    fingerprint: str | None
    flags: Flags
    #: Names of the counters that stand by themselves.
    named_counters: frozenset[str]
    #: Packets dropped because their source is not allowed.
    blocked: dict[int, int]
    #: Packets dropped because they went past the mappings of an isolated target.
    bypassed: dict[int, int]

    @property
    def skeleton(self) -> Skeleton:
        """What stays while elements come and go."""
        return Skeleton(self.chains, self.sets, self.rules, self.named_counters)


def skeleton(mark_bit: int, flags: Flags = (), table: str = TABLE) -> str:
    """The table with its sets, chains and rules and no element, for a mark bit from 0 to 31; no chain on demand."""
    return _filled(_CORE, mark_bit, flags, table)


def _filled(template: Template, mark_bit: int, flags: Flags = (), table: str = TABLE) -> str:
    bit = 1 << mark_bit
    line = f"\n  flags {', '.join(flags)};" if flags else ""
    return template.substitute(table=table, flags=line, bit=f"{bit:#x}", others=f"{0xFFFFFFFF ^ bit:#x}")


def needed(elements: Elements) -> set[str]:
    """The chains on demand for which there are elements."""
    names = tuple(name for name, inside in elements.items() if inside)
    return {chain for chain, prefixes in _ON_DEMAND.items() if any(name.startswith(prefixes) for name in names)}


def chains(names: set[str], mark_bit: int, table: str = TABLE) -> str:
    """nft input that makes these chains on demand, or makes them again; then a new fingerprint is due."""
    if not names:
        return ""
    lines = [f"flush set inet {table} fingerprint"]
    for name, hook, rules in _BLOCK.findall(_filled(SKELETON, mark_bit)):
        if name in names:
            lines.append(f"add chain inet {table} {name}" + (f" {{ type {hook} }}" if hook else ""))
            lines.append(f"flush chain inet {table} {name}")
            lines += [f"add rule inet {table} {name} {' '.join(rule.split())}" for rule in rules.splitlines()]
    return "\n".join(lines) + "\n"


def empty_table(flags: Flags, table: str = TABLE) -> str:
    """A table and nothing in it. With the flags owner and persist (Linux 6.9, nft 1.1.0) this also takes over a table
    whose owner has gone."""
    body = f" {{ flags {', '.join(flags)}; }}" if flags else ""
    return f"add table inet {table}{body}\n"


def refill(found: Listed, mark_bit: int, flags: Flags) -> str:
    """Turn a table that another version wrote into ours. Chains that stay are flushed and filled in one transaction.

    What this version does not know is deleted, so that no stale rule is left; a set or base chain whose definition
    differs is made anew, for the kernel changes neither in place.
    """
    lines = [f"flush chain inet {TABLE} {chain}" for chain in found.chains]
    # Before the chains, to which a foreign map may jump.
    for name in sets_to_replace(found):
        kind = "map" if found.sets[name][1] else "set"
        lines.append(f"delete {kind} inet {TABLE} {name}")
    for chain, definition in found.chains.items():
        # A policy can be set in place, which keeps the hook.
        if _CHAINS.get(chain, (None,))[:3] != definition[:3]:
            lines.append(f"delete chain inet {TABLE} {chain}")
    unknown = found.named_counters - _COUNTERS
    lines += [f"delete counter inet {TABLE} {name}" for name in sorted(unknown)]
    if "fingerprint" in found.sets:
        lines.append(f"flush set inet {TABLE} fingerprint")
    return "\n".join([*lines, skeleton(mark_bit, flags) + chains(on_demand(found), mark_bit)])


def on_demand(found: Listed) -> set[str]:
    """The chains on demand of a table that is refilled: those that are needed, and base chains that are there."""
    return needed(found.elements) | (found.chains.keys() & _HOOKED_ON_DEMAND)


def shape(name: str) -> Shape:
    """How one of the sets whose elements are ours is defined. Raises KeyError for another one."""
    if name not in ELEMENT_SETS:
        raise KeyError(name)
    return _SETS[name]


def has_others(found: Listed) -> bool:
    """Whether chains, sets or counters are more, less or other than this version's, whatever the rules."""
    spared = _HOOKED_ON_DEMAND - found.chains.keys() - needed(found.elements)
    wanted = {name: definition for name, definition in _CHAINS.items() if name not in spared}
    return (found.chains, found.sets, found.named_counters) != (wanted, _SETS, _COUNTERS)


def sets_to_replace(found: Listed) -> list[str]:
    """Sets and maps of the found table that are not as this version defines them."""
    return [name for name, shape in found.sets.items() if _SETS.get(name) != shape]


def text(change: Delta, table: str = TABLE) -> str:
    """A delta as nft input. Removals come first: an element that is added under a used key is refused (EEXIST)."""
    lines = []
    for verb, slots in (("delete", change.remove), ("add", change.add)):
        by_set: dict[str, list[str]] = {}
        for slot, value in slots.items():
            by_set.setdefault(slot.set, []).append(_element(slot, value if verb == "add" else None))
        lines += [f"{verb} element inet {table} {name} {{ {', '.join(found)} }}" for name, found in by_set.items()]
    return "\n".join(lines) + "\n" if lines else ""


def _element(slot: Slot, value: Parts | None) -> str:
    if slot.set.startswith("onlink") and slot.key != OTHERS:
        prefix, interface = slot.key
        return f'{prefix} . "{interface}"'
    written = " . ".join(map(str, slot.key))
    return f"{written} : {' . '.join(map(str, value))}" if value else written


def fingerprint(mark_bit: int, found: Listed) -> str:
    """What the chains should be and how this nft lists them, in 64 hexadecimal digits."""
    return hashlib.sha256(f"{_filled(SKELETON, mark_bit)}\n{found.rules}".encode()).hexdigest()


def set_fingerprint(digest: str) -> str:
    """nft input that leaves a fingerprint in the table."""
    return f'add element inet {TABLE} fingerprint {{ 0x1 comment "{digest}" }}\n'

"""The rules with which others publish N containers, each on one port of the host, as text for nft or iptables-restore.

Must not run anything. The one idea: the structure of a peer's rules is kept (which hooks and chains, what a packet is
compared with, in which order); the newest container is the last one in them, as when it was added. Of chains that only
packets to other containers reach, kube-proxy's are left empty, for they take minutes to load and cost no other packet.

portmap's are held against a real ADD (tests/bench). The others are from what their projects write down as expected:
Docker's description of its nftables rules (moby, integration/network/bridge/nftablesdoc, user-defined network with a
published port), kube-proxy's tests of all its rules (proxier_test.go in pkg/proxy/nftables and pkg/proxy/iptables), and
systemd's src/shared/firewall-util-nft.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from bench import portmap
from bench.portmap import Pod
from nfportd import ruleset

#: The host's address and interface towards its containers, and the address at which it is asked from elsewhere.
PODS, HOST = "pods0", "192.0.2.1"
NFT = ["nft", "-f", "-"]
IPTABLES = ["iptables-restore", "--noflush"]


class Published(Pod):
    """One of the containers, by the port that it has here: 60,000 need lower ones than `Pod` gives."""

    @property
    def port(self) -> int:
        """The host's port that leads to its port 80."""
        return 5_000 + self.number

    @property
    def service(self) -> str:
        """The part of the names of chains that kube-proxy derives from a hash."""
        return f"{self.number:016X}"

    @property
    def cluster_address(self) -> str:
        """What kube-proxy gives every service beside the port."""
        return f"172.30.{self.number // 250}.{self.number % 250 + 1}"


def newest(count: int) -> Published:
    """The container that is measured; it has its port for TCP and for UDP."""
    return Published(count - 1)


def _published(count: int) -> Iterator[tuple[Published, str]]:
    """All containers with the protocol of their port, the newest last and with two."""
    for number in range(count):
        yield Published(number), "tcp"
    yield newest(count), "udp"


def nothing(_count: int) -> str:
    """No rule, so no connection tracking either: a packet is only routed."""
    return ""


def conntrack_only(_count: int) -> str:
    """What makes the kernel track all connections of the host, in a chain that a forwarded packet does not see."""
    return "table inet tracked { chain input { type filter hook input priority filter; ct state invalid drop; }; }\n"


def one_dnat(count: int) -> str:
    """The fewest rules that translate: what NAT costs at the least."""
    pod = newest(count)
    rules = [f"    {protocol} dport {pod.port} dnat to {pod.address}:80\n" for protocol in ("tcp", "udp")]
    hook = "type nat hook prerouting priority dstnat;"
    return f"table ip translated {{\n  chain prerouting {{\n    {hook}\n{''.join(rules)}  }}\n}}\n"


def portmap_nftables(count: int) -> str:
    """portmap with its nftables backend: chains of rules that are tried one after the other."""
    shared = """\
table ip cni_hostport {
  chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump hostports_all; }
  chain output { type nat hook output priority -100; fib daddr type local jump hostports_all; }
  chain hostports_all { jump hostip_hostports; jump hostports; }
  chain hostip_hostports { }
  chain hostports { }
  chain masquerading { type nat hook postrouting priority srcnat; }
}
"""
    pods = portmap.nftables(map(Published, range(count)))
    return shared + pods + portmap.nftables([newest(count)]).splitlines(True)[0].replace("tcp", "udp")


def portmap_iptables(count: int) -> str:
    """portmap with its iptables backend: a chain a container behind rules that are tried one after the other."""
    shared = """\
*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "masquerade what has the mark" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-SETMARK -m comment --comment "the mark" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
"""
    tcp = portmap.iptables(map(Published, range(count))).removeprefix("*nat\n").removesuffix("COMMIT\n")
    lines = portmap.iptables([newest(count)]).splitlines()
    udp = [line.replace("-p tcp", "-p udp").replace("-m tcp", "-m udp") for line in lines if line.startswith("-A")]
    return shared + tcp + "\n".join([*udp, "COMMIT", ""])


def docker_nftables(count: int) -> str:
    """Docker 29 with its nftables backend and userland proxy, which is its default."""
    chains = ("filter-forward-in", "filter-forward-out", "nat-postrouting-in", "nat-postrouting-out")
    maps = "".join(
        f'  map {each}-jumps {{ type ifname : verdict; elements = {{ "{PODS}" : jump {each}__{PODS} }}; }}\n'
        for each in chains
    )
    body = f"""\
table ip docker-bridges {{
{maps}  chain filter-FORWARD {{
    type filter hook forward priority filter; policy accept;
    oifname vmap @filter-forward-in-jumps
    iifname vmap @filter-forward-out-jumps
  }}
  chain nat-OUTPUT {{
    type nat hook output priority -100; policy accept;
    ip daddr != 127.0.0.0/8 fib daddr type local counter jump nat-prerouting-and-output
  }}
  chain nat-POSTROUTING {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname vmap @nat-postrouting-out-jumps
    oifname vmap @nat-postrouting-in-jumps
  }}
  chain nat-PREROUTING {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local counter jump nat-prerouting-and-output
  }}
  chain filter-forward-out__{PODS} {{
    ct state established,related counter accept
    counter accept comment "out"
  }}
  chain nat-postrouting-in__{PODS} {{ }}
  chain nat-postrouting-out__{PODS} {{ oifname != "{PODS}" ip saddr 10.88.0.0/16 counter masquerade comment "out"; }}
  chain nat-prerouting-and-output {{
"""
    dnat, direct, accept = [], [], []
    for pod, protocol in _published(count):
        dnat.append(f'iifname != "{PODS}" {protocol} dport {pod.port} counter dnat to {pod.address}:80 comment "in"\n')
        accept.append(f"ip daddr {pod.address} {protocol} dport 80 counter accept\n")
        if protocol == "tcp":
            direct.append(f'ip daddr {pod.address} iifname != "{PODS}" counter drop comment "direct"\n')
    raw = "type filter hook prerouting priority raw; policy accept;\n"
    forward = f'ct state established,related counter accept\niifname "{PODS}" counter accept comment "bridge"\n'
    parts = [body, *dnat, "  }\n  chain raw-PREROUTING {\n", raw, *direct]
    parts += [f"  }}\n  chain filter-forward-in__{PODS} {{\n", forward, *accept]
    return "".join([*parts, 'counter drop comment "unpublished"\n  }\n}\n'])


def systemd_nftables(count: int) -> str:
    """io.systemd.nat, by which systemd-nspawn and networkd publish ports: one map."""
    shared = """\
table ip io.systemd.nat {
  set masq_saddr { type ipv4_addr; flags interval; }
  map map_port_ipport { type inet_proto . inet_service : ipv4_addr . inet_service; }
  chain prerouting {
    type nat hook prerouting priority -99; policy accept;
    fib daddr type local dnat ip addr . port to meta l4proto . th dport map @map_port_ipport
  }
  chain output {
    type nat hook output priority -99; policy accept;
    ip daddr != 127.0.0.0/8 oif "lo" dnat ip addr . port to meta l4proto . th dport map @map_port_ipport
  }
  chain postrouting { type nat hook postrouting priority 101; policy accept; ip saddr @masq_saddr masquerade; }
}
"""
    pods = (f"{protocol} . {pod.port} : {pod.address} . 80" for pod, protocol in _published(count))
    return shared + f"add element ip io.systemd.nat map_port_ipport {{ {', '.join(pods)} }}\n"


def kube_nftables(count: int) -> str:
    """kube-proxy in nftables mode: a map leads to chains of each service (NodePort; the client's address is kept)."""
    shared = f"""\
table ip kube-proxy {{
  set cluster-ips {{ type ipv4_addr; }}
  set nodeport-ips {{ type ipv4_addr; elements = {{ {HOST} }}; }}
  map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
  map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; }}
  chain cluster-ips-check {{ ip daddr @cluster-ips reject; ip daddr {{ 172.30.0.0/16 }} drop; }}
  chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain nodeport-endpoints-check {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
  chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
  chain filter-output-pre-dnat {{ type filter hook output priority -110; ct state new jump firewall-check; }}
  chain filter-forward {{
    type filter hook forward priority 0;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-input {{
    type filter hook input priority 0;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }}
  chain filter-output {{
    type filter hook output priority 0;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain mark-for-masquerade {{ mark set mark or 0x4000; }}
  chain masquerading {{ mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
"""
    chains, ports, addresses, services = [], [], [], []
    for pod, protocol in _published(count):
        name = f"{pod.service}-ns/{pod.id}/{protocol}/p80"
        endpoint = f"endpoint-{name}__{pod.address}/80"
        ports.append(f"{protocol} . {pod.port} : goto external-{name}")
        services.append(f"{pod.cluster_address} . {protocol} . 80 : goto service-{name}")
        addresses.append(pod.cluster_address)
        if pod != newest(count):
            chains += [f"  chain {kind}-{name} {{ }}\n" for kind in ("external", "service")]
            continue
        chains.append(f"""\
  chain {endpoint} {{
    ip saddr {pod.address} jump mark-for-masquerade
    meta l4proto {protocol} dnat to {pod.address}:80
  }}
  chain service-{name} {{
    ip daddr {pod.cluster_address} ip saddr != 10.0.0.0/8 jump mark-for-masquerade
    numgen random mod 1 vmap {{ 0 : goto {endpoint} }}
  }}
  chain external-{name} {{
    ip saddr 10.0.0.0/8 goto service-{name} comment "pods"
    fib saddr type local jump mark-for-masquerade comment "mark"
    fib saddr type local goto service-{name} comment "local"
    numgen random mod 1 vmap {{ 0 : goto {endpoint} }}
  }}
""")
    elements = {"service-nodeports": ports, "service-ips": services, "cluster-ips": addresses[:-1]}
    added = [f"add element ip kube-proxy {name} {{ {', '.join(each)} }}\n" for name, each in elements.items()]
    return "".join([shared, *chains, "}\n", *added])


def kube_iptables(count: int) -> str:
    """kube-proxy in iptables mode: a list of services, then one of ports (NodePort; the client's address is kept)."""
    chains, services, ports, rules = [], [], [], []
    for pod, protocol in _published(count):
        name, key = f"ns/{pod.id}:p80", f"{protocol.upper()}{pod.service[3:]}"
        match = f'-m comment --comment "{name}" -m {protocol} -p {protocol}'
        cluster = f"-d {pod.cluster_address} --dport 80"
        services.append(f"-A KUBE-SERVICES {match} {cluster} -j KUBE-SVC-{key}")
        ports.append(f"-A KUBE-NODEPORTS {match} --dport {pod.port} -j KUBE-EXT-{key}")
        measured = pod == newest(count)
        kinds = ("EXT", "SVC", "SVL", "SEP") if measured else ("EXT", "SVC")
        chains += [f":KUBE-{kind}-{key} - [0:0]" for kind in kinds]
        if not measured:
            continue
        said = f'-m comment --comment "{name}"'
        rules += [
            f"-A KUBE-EXT-{key} {said} -s 10.0.0.0/8 -j KUBE-SVC-{key}",
            f"-A KUBE-EXT-{key} {said} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            f"-A KUBE-EXT-{key} {said} -m addrtype --src-type LOCAL -j KUBE-SVC-{key}",
            f"-A KUBE-EXT-{key} -j KUBE-SVL-{key}",
            f"-A KUBE-SVL-{key} {said} -j KUBE-SEP-{key}",
            f"-A KUBE-SVC-{key} {match} {cluster} ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ",
            f"-A KUBE-SVC-{key} {said} -j KUBE-SEP-{key}",
            f"-A KUBE-SEP-{key} {said} -s {pod.address} -j KUBE-MARK-MASQ",
            f"-A KUBE-SEP-{key} {match} -j DNAT --to-destination {pod.address}:80",
        ]
    return "\n".join([_KUBE_FILTER, *chains, _KUBE_NAT, *services, _KUBE_LAST, *ports, *rules, "COMMIT", ""])


_KUBE_FILTER = """\
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]"""
_KUBE_NAT = """\
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully"""
_KUBE_LAST = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"


def part_of_ours(more: set[str], count: int) -> str:
    """nfportd's own rules with some that come on demand, and its elements."""
    pods = (f"{protocol} . {pod.port} : {pod.address} . 80" for pod, protocol in _published(count))
    onlink = f'add element inet nfportd onlink4 {{ 10.88.0.0/16 . "{PODS}" }}\n'
    added = f"add element inet nfportd any4 {{ {', '.join(pods)} }}\n{onlink}"
    return ruleset.skeleton(27) + ruleset.chains(more, 27) + added


class Layout(NamedTuple):
    """Rules for a number of containers, and what loads them."""

    text: Callable[[int], str]
    load: list[str]


#: What a forwarder can reach at best. The first two are asked at the target's own address.
NO_CONNTRACK, CONNTRACK, ONE_DNAT = "no conntrack", "conntrack, no NAT", "one DNAT rule"
LIMITS = {
    NO_CONNTRACK: Layout(nothing, NFT),
    CONNTRACK: Layout(conntrack_only, NFT),
    ONE_DNAT: Layout(one_dnat, NFT),
}
PEERS = {
    "portmap nftables": Layout(portmap_nftables, NFT),
    "portmap iptables": Layout(portmap_iptables, IPTABLES),
    "Docker nftables": Layout(docker_nftables, NFT),
    "kube-proxy nftables": Layout(kube_nftables, NFT),
    "kube-proxy iptables": Layout(kube_iptables, IPTABLES),
    "systemd nftables": Layout(systemd_nftables, NFT),
}

_ADDRESSES = {"dispatch_addr"}
_WISHES = _ADDRESSES | {"masquerade_addr", "masquerade_any"}
_SOURCES = _WISHES | {"admission"}
_ISOLATION = _SOURCES | {"isolation_forward", "isolation_output", "isolation_input"}
#: Where nfportd's time goes: what comes with the first mapping that needs it.
PARTS = {
    "mappings on every address": Layout(partial(part_of_ours, set()), NFT),
    "and on one address": Layout(partial(part_of_ours, _ADDRESSES), NFT),
    "and `masquerade`": Layout(partial(part_of_ours, _WISHES), NFT),
    "and `sources`": Layout(partial(part_of_ours, _SOURCES), NFT),
    "and `isolate`": Layout(partial(part_of_ours, _ISOLATION), NFT),
}

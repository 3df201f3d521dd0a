"""What `portmap` and netavark leave in the kernel for one container, written N times over in one go: real calls would
take minutes.

Must not guess: `check` holds what is written here against the lines that a real call left beside it. The one idea:
the lines of two containers differ by their id, address, port and chain, and by nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.netns import Namespace

NETWORK = "podnet"
#: By which netavark knows it; its chains begin with the first eight.
NETWORK_ID = "ab" * 32


class Pod(NamedTuple):
    """One container of the bench."""

    number: int

    @property
    def id(self) -> str:
        """Its container id."""
        return f"bench-{self.number:05}"

    @property
    def address(self) -> str:
        """Its address in 10.88.0.0/16."""
        return f"10.88.{self.number // 250 + 1}.{self.number % 250 + 1}"

    @property
    def port(self) -> int:
        """The host's port that leads to its port 80."""
        return 1_000 + self.number

    @property
    def chain(self) -> str:
        """Its chain in the iptables backend; 28 characters is the most that iptables takes."""
        return ("CNI-DN-" + hashlib.sha512(f"{NETWORK}{self.id}".encode()).hexdigest())[:28]


def nftables(pods: Iterable[Pod]) -> str:
    """The rules of the nftables backend, for `nft -f`."""
    rules = []
    for pod in pods:
        rules.append(f"hostports tcp dport {pod.port} dnat to {pod.address}:80")
        rules += [f"masquerading ip saddr {by} ip daddr {pod.address} masquerade" for by in (pod.address, "127.0.0.1")]
        rules[-3:] = [f'add rule ip cni_hostport {rule} comment "{pod.id}"\n' for rule in rules[-3:]]
    return "".join(rules)


def iptables(pods: Iterable[Pod]) -> str:
    """The chains and rules of the iptables backend, for `iptables-restore --noflush`."""
    chains, rules = [], []
    for pod in pods:
        chains.append(f":{pod.chain} - [0:0]")
        called = f'--comment "dnat name: \\"{NETWORK}\\" id: \\"{pod.id}\\""'
        rules.append(f"-A CNI-HOSTPORT-DNAT -p tcp -m comment {called} -m multiport --dports {pod.port} -j {pod.chain}")
        for source in ("10.88.0.0/16", "127.0.0.1/32"):
            rules.append(f"-A {pod.chain} -s {source} -p tcp -m tcp --dport {pod.port} -j CNI-HOSTPORT-SETMARK")
        rules.append(f"-A {pod.chain} -p tcp -m tcp --dport {pod.port} -j DNAT --to-destination {pod.address}:80")
    return "\n".join(["*nat", *chains, *rules, "COMMIT", ""])


def netavark(pods: Iterable[Pod]) -> str:
    """netavark's rules for containers of one network, for `nft -f`."""
    chain = f"nv_{NETWORK_ID[:8]}_10_88_0_0_nm16_dnat"
    rules = []
    for pod in pods:
        marks = [
            f"ip saddr {by} tcp dport {pod.port} jump NETAVARK-HOSTPORT-SETMARK" for by in ("10.88.0.0/16", "127.0.0.1")
        ]
        rules.append(f"NETAVARK-HOSTPORT-DNAT tcp dport {pod.port} jump {chain}")
        rules += [f"{chain} {rule}" for rule in (*marks, f"tcp dport {pod.port} dnat ip to {pod.address}:80")]
    return "".join(f"add rule inet netavark {rule}\n" for rule in rules)


class Backend(NamedTuple):
    """What writes a backend's rules, and the commands that load and list them."""

    write: Callable[[Iterable[Pod]], str]
    load: list[str]
    list: list[str]


BACKENDS = {
    "nftables": Backend(nftables, ["nft", "-f", "-"], ["nft", "list", "ruleset"]),
    "iptables": Backend(iptables, ["iptables-restore", "--noflush"], ["iptables-save"]),
    "netavark": Backend(netavark, ["nft", "-f", "-"], ["nft", "list", "ruleset"]),
}


def fill(space: Namespace, backend: str, pods: Iterable[Pod]) -> None:
    """Load the rules of these containers; the chains that all share must be there, from a real ADD."""
    space.run(BACKENDS[backend].load, text=BACKENDS[backend].write(pods))


def check(space: Namespace, backend: str, real: Pod, written: Iterable[Pod]) -> None:
    """Fail where the written containers do not look just as the one that was really added."""
    listing = space.run(BACKENDS[backend].list).stdout.splitlines()
    wanted = _shape(listing, real)
    for pod in written:
        if not wanted or _shape(listing, pod) != wanted:
            raise RuntimeError(f"{backend}: it leaves other rules than the bench writes: {wanted}")


def _shape(listing: list[str], pod: Pod) -> list[str]:
    """The lines about a container, with words in place of what differs between two."""
    words = {pod.chain: "CHAIN", pod.id: "ID", pod.address: "ADDRESS", str(pod.port): "PORT"}
    own = re.compile(r"(?<![\w.-])(" + "|".join(map(re.escape, words)) + r")(?![\w.-])")
    return [own.sub(lambda found: words[found[0]], line) for line in listing if own.search(line)]

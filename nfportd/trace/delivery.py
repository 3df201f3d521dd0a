"""From the mapping to its target: the route, others' chains on the way, masquerade, the neighbour.

Must not ask the kernel. The one idea: what ruleset.py's postrouting decides and what the kernel's routing says decide
together which source the target sees, and whether it can be reached.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from nfportd.matches import Packet
from nfportd.notation import Target
from nfportd.trace.facts import Bridge, Neighbour, Others, Parameter, Route, Rules, Way
from nfportd.trace.others import told
from nfportd.trace.telling import End, Hit, Telling, no_way


class Delivery(Telling):
    """The second half of a connection's way."""

    def deliver(self, hit: Hit) -> None:
        """Tell of the way to the target of an element, and of what stops the answers on their way back."""
        flow = self.flow
        way = self._route(hit)
        packet = replace(
            self.packet(), daddr=hit.target, dport=hit.port, oif=way.link, listen_port=flow.port,
            translated=True, local=way.kind == "local",
        )  # fmt: skip
        if self.local:
            # The hook still sees the link of the route to the listen address.
            self.filters("output", replace(packet, oif="lo"), after=-100, hit=hit)
        if way.kind == "local":
            self.filters("input", packet, hit=hit)
        else:
            if not self.local:
                self.filters("forward", packet, hit=hit)
            self._postrouting(hit, way, packet)
            self._neighbour(hit, way)
            self._answers(packet)
        self.arrives = True

    def _answers(self, packet: Packet) -> None:
        """What others' chains make of the first packet that comes back."""
        back = packet.answered()
        self.filters("prerouting", replace(back, oif=""))
        if self.local:
            self.filters("input", replace(back, oif="", local=True))
        else:
            self.filters("forward", back)

    def relayed(self, target: Target | None) -> None:
        """[::1] is served by the relay in the daemon, which makes a connection of its own. Raises End."""
        if target is None:
            self.stops("relay", "[::1] is served by the relay in the daemon, which does not answer",
                       "systemctl status nfportd")  # fmt: skip
        self.target = str(target)
        self.passes("relay", f"[::1] is served by the relay in the daemon: it connects to {target} from this host")
        way: Way = self.known(Route(target.address))
        if way.kind not in ("unicast", "local"):
            self.stops("route", f"no route leads to target {target.address}: {no_way(way)}")
        self.passes("route", f"to {target.address}: by {way.link}", link=way.link)
        packet = Packet(6, self.flow.protocol, way.source, None, target.address, target.ports.first, "", way.link,
                        translated=False)  # fmt: skip
        self.filters("output", packet)
        if way.kind == "unicast":
            self._neighbour(Hit("relay", "", target.address, target.ports.first), way)
        self.seen_as, self.arrives = way.source, True
        raise End

    def _route(self, hit: Hit) -> Way:
        flow = self.flow
        way: Way = self.known(Route(hit.target, flow.source, self.link))
        if way.kind not in ("unicast", "local"):
            self._no_route(hit, way)
        if way.kind == "unicast" and not self.local:
            self.forwarding()
        if flow.loopback and flow.family == 6 and self.known(Bridge(way.link)):
            self._bridged_loopback(way)
        how = f"by gateway {way.gateway}" if way.gateway else "on-link"
        to = "an address of this host" if way.kind == "local" else f"by {way.link}, {how}"
        self.passes("route", f"to {hit.target}: {to}", link=way.link)
        return way

    def _no_route(self, hit: Hit, way: Way) -> None:
        flow = self.flow
        plain: Way = self.known(Route(hit.target))
        if plain.kind in ("unicast", "local") and plain.link:
            if flow.loopback and flow.family == 4:
                name = f"net.ipv4.conf.{plain.link}.route_localnet"
                text = f"{name} is 0: the kernel sends nothing from 127.0.0.0/8 to {plain.link}"
                self.stops("route", text, f"sysctl -w {name}=1")
            if not self.local:
                self.forwarding()
            if way.error == errno.EXDEV:
                text = f"the reverse path check (rp_filter) of {self.link} drops what comes from {flow.source}"
                self.stops("route", text, f"sysctl -w net.ipv4.conf.{self.link}.rp_filter=2")
        self.stops(
            "route",
            f"no route leads to target {hit.target}: {no_way(way)}",
            f"ip -{flow.family} route get {hit.target}",
        )

    def forwarding(self) -> None:
        v4 = self.flow.family == 4
        name = f"ipv4/conf/{self.link}/forwarding" if v4 else "ipv6/conf/all/forwarding"
        if self.known(Parameter(name)) == "0":
            whole = "net.ipv4.ip_forward" if v4 else "net.ipv6.conf.all.forwarding"
            self.stops("route", f"this host does not forward IPv{self.flow.family} (net.{name.replace('/', '.')} is 0)",
                       f"sysctl -w {whole}=1")  # fmt: skip

    def _bridged_loopback(self, way: Way) -> None:
        """[::1] to a target behind a bridge, where no element leads to the relay."""
        if self.known(Parameter("bridge/bridge-nf-call-ip6tables")) == "1":
            text = f"net.bridge.bridge-nf-call-ip6tables is 1: bridge {way.link} undoes the translation of answers"
            self.stops(
                "relay", f"{text} to [::1] before IPv6 looks at them", "sysctl -w net.bridge.bridge-nf-call-ip6tables=0"
            )

    def _postrouting(self, hit: Hit, way: Way, packet: Packet) -> None:
        self.filters("postrouting", packet, hit=hit)
        why = self._masquerade(hit, way)
        if why:
            self.seen_as = self.known(Route(hit.target)).source or None
            self.passes("masquerade", f"{why}; the target sees {self.seen_as or 'an address of this host'}")
            return
        self.seen_as = self.flow.source
        others: Others = self.known(Rules("postrouting"))
        order = others.order
        for found in self.translations(others.ruleset, order.before + order.level + order.after, packet):
            self.passes(
                "masquerade", f"not by us, but {told(others.ruleset, found)}: the target sees what that makes of it"
            )
            self.seen_as = None if found.certain else self.seen_as
            return
        self.passes("masquerade", f"none: the target sees {self.flow.source}, and must answer it through this host")

    def _masquerade(self, hit: Hit, way: Way) -> str:
        """Why our postrouting masquerades; '' where it does not."""
        flow = self.flow
        key = (flow.protocol, flow.port) if hit.map == "any" else (flow.to, flow.protocol, flow.port)
        if self.element(f"always_{hit.map}{flow.family}", *key):
            return "masqueraded: the mapping says `masquerade: always`"
        if flow.loopback:
            return f"masqueraded: nothing answers to {flow.source} from another host"
        if not self.element(f"onlink{flow.family}", flow.source, way.link):
            return ""
        if self.element(f"never_{hit.map}{flow.family}", *key):
            return ""
        if flow.source == hit.target:
            return "masqueraded (hairpin): the target calls itself, its answer would not pass this host"
        return f"masqueraded: {flow.source} is on {way.link} like the target, whose answer would not pass this host"

    def _neighbour(self, hit: Hit, way: Way) -> None:
        address = way.gateway or hit.target
        state = self.known(Neighbour(way.link, address))
        if state in ("FAILED", "INCOMPLETE"):
            what = "gateway" if way.gateway else "target"
            text = (
                f"{what} {address} does not answer on {way.link} ({'ARP' if self.flow.family == 4 else 'NDP'}: {state})"
            )
            self.stops("neighbour", f"{text}: it is down, or not there", f"ip neigh show to {address} dev {way.link}")
        self.passes("neighbour", f"{address} on {way.link}: {state or 'not known'}")

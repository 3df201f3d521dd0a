"""What happens to a connection, step by step, by what the kernel has now.

Must not ask the kernel: facts.py says how. The one idea: the way of the first packet through the hooks in the order in
which the kernel calls them (ruleset.py is our part of it), until something ends it.
"""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import replace

from nfportd.forwarding import Ruleset
from nfportd.notation import join_port
from nfportd.ruleset import TABLE
from nfportd.trace import near
from nfportd.trace.delivery import Delivery
from nfportd.trace.facts import Explanation, Flow, Known, Listening, Others, Route, Rules, Way
from nfportd.trace.others import told
from nfportd.trace.telling import End, Hit, no_way
from nfportd.translation import Translation

#: Our base chains without which no mapping works.
_NEEDED = {"prerouting", "output", "postrouting"}


def explain(flow: Flow, known: Known) -> Explanation:
    """The steps of a connection. Raises Asked for what must be known first."""
    story = _Story(flow, known)
    with contextlib.suppress(End):
        story.tell()
    return Explanation(story.flow, tuple(story.steps), story.arrives, story.target, story.seen_as)


class _Story(Delivery):
    """The way of one connection, from its beginning."""

    def tell(self) -> None:
        """All steps, up to the one that ends it. Raises End, and Asked."""
        self._begin()
        self.filters("output" if self.local else "prerouting", self.packet(), before=-100)
        if not self.local:
            self._admission()
        self._translated_before()
        hit = self._dispatch()
        if hit is None:
            self._missed()
        else:
            self.deliver(hit)

    def _begin(self) -> None:
        flow, here = self.flow, self.known(Route(self.flow.source))
        self.local = here.kind == "local"
        if not self.local:
            self._arrive(here)
        if flow.to is None:
            self.flow = flow = replace(flow, to=self._default(here))
        assert flow.to
        if self.local:
            self.passes("start", f"{flow.source} is an address of this host: the connection takes the output hook")
        elif ipaddress.ip_address(flow.to).is_loopback:
            self._guard()
        way = self.known(Route(flow.to, flow.source, self.link))
        if way.kind == "unicast":
            self._past(way)
        if way.kind != "local":
            self.stops("destination", f"{flow.to} is no address of this host: {no_way(way)}")
        lacking = _NEEDED - self.known.ours
        if self.known.trouble:
            self.may("others", f"the rules of other programs cannot be read ({self.known.trouble}): they may stop it")
        if lacking:
            names = ", ".join(sorted(lacking))
            text = (
                f"table inet {TABLE} lacks its chains {names}; no mapping is in force"
                if self.known.ours
                else (f"there is no table inet {TABLE}: no mapping is in force")
            )
            self.may("table", text, "systemctl status nfportd")

    def _default(self, here: Way) -> str:
        """The address of this host that a client would most likely take."""
        if self.local:
            return self.flow.source
        if not here.source:
            self.stops("destination", f"{self.link} has no address of IPv{self.flow.family}; write TO with one")
        return here.source

    def _arrive(self, here: Way) -> None:
        flow = self.flow
        if flow.zone:
            self.link = flow.zone
        elif here.kind != "unicast":
            command = f"ip -{flow.family} route get {flow.source}"
            self.stops(
                "arrival", f"no way leads to {flow.source} ({no_way(here)}): answers would not get there", command
            )
        else:
            self.link = here.link
        by = f"by gateway {here.gateway}" if here.gateway else "on-link"
        how = "the link that was named" if flow.zone else f"the route to it, {by}"
        self.passes("arrival", f"{flow.source} arrives on {self.link} ({how})", link=self.link)
        if flow.family == 6 and ipaddress.ip_address(flow.source).is_link_local:
            text = "IPv6 does not forward link-local sources (RFC 4291, 2.5.6): mappings leave it to this host itself"
            self.stops("prerouting", text)

    def _guard(self) -> None:
        text = f"chain {TABLE} loopback_guard drops it: {self.flow.to} serves connections from this host only"
        if "loopback_guard" in self.known.ours:
            self.stops("loopback guard", text)
        self.stops("loopback guard", f"{self.flow.to} is a loopback address: the kernel drops it as a martian")

    def _past(self, way: Way) -> None:
        """It is not for this host; who has a route to a target comes past its mappings."""
        flow = self.flow
        text = f"{flow.to} is no address of this host: mappings leave it alone, it is routed to {way.link}"
        self.step("destination", "leaves", text, (), {})
        if self.element(f"isolated{flow.family}", flow.to, flow.protocol, flow.port):
            hook = "output" if self.local else "forward"
            text = f"chain isolation_{hook} drops it: a mapping with `isolate: true` leads to that target"
            self.stops("isolation", text)
        packet = replace(self.packet(), oif=way.link, local=False)
        if not self.local:
            self.forwarding()
        self.filters("output" if self.local else "forward", packet)
        raise End

    def _admission(self) -> None:
        flow = self.flow
        at, wide = (flow.to, flow.protocol, flow.port), (flow.protocol, flow.port)
        if self.element(f"open_addr{flow.family}", *at):
            return
        for name, key in (("addr", at), ("any", wide)):
            if not self.element(f"guarded_{name}{flow.family}", *key):
                continue
            if self.element(f"allowed_{name}{flow.family}", flow.source, *key):
                self.passes("admission", f"{flow.source} is in the `sources` of the mapping")
                return
            found = near.at(self.known.mappings or (), flow, specific=name == "addr")
            sources = f" ({', '.join(found['sources'])})" if found and found.get("sources") else ""
            text = f"{flow.source} is not in the `sources`{sources} of {near.titled(found)}: chain admission drops it"
            self.stops("admission", text)
        self.passes("admission", "the mapping, if there is one, has no `sources`: everybody may connect")

    def _translated_before(self) -> None:
        others: Others = self.known(Rules(self.hook))
        for found in self.translations(others.ruleset, others.order.before, self.packet()):
            self._taken(others.ruleset, found, "before ours")
        for found in self.translations(others.ruleset, others.order.level, self.packet()):
            text = f"{told(others.ruleset, found)}; it has our priority and comes first if it was made after ours"
            self.may("others' nat", text)

    def _taken(self, rules: Ruleset, found: Translation, when: str) -> None:
        """Another program's rule translates the packet, or may."""
        text = f"{told(rules, found)}, {when}"
        if not found.certain:
            self.may("others' nat", text)
            return
        delete = f"nft delete rule {found.place.chain} handle {found.place.handle}"
        commands = (f"nft -a list chain {found.place.chain}", delete) if found.place.handle is not None else ()
        self.stops("others' nat", f"{text}: our mappings are not asked", *commands)

    def _dispatch(self) -> Hit | None:
        flow = self.flow
        if not self.known.ours:
            return None
        keys = (("addr", (flow.to, flow.protocol, flow.port)), ("any", (flow.protocol, flow.port)))
        for name, key in keys:
            found = self.element(f"{name}{flow.family}", *key)
            written = join_port(str(flow.to) if name == "addr" else "*", f"{flow.port}/{flow.protocol}")
            if isinstance(found, bytes):
                size = 4 if flow.family == 4 else 16
                target, port = str(ipaddress.ip_address(found[:size])), int.from_bytes(found[size : size + 2], "big")
                hit = Hit(name, written, target, port)
                self._found(hit)
                return hit
        return None

    def _found(self, hit: Hit) -> None:
        flow, relayed = self.flow, ipaddress.ip_address(hit.target).is_loopback
        mappings = self.known.mappings or ()
        holder = near.at(mappings, flow, specific=hit.map == "addr")
        if relayed and holder is None:
            holder = near.at(mappings, flow, specific=False)
        self.target = join_port(hit.target, str(hit.port))
        whose = near.titled(holder) if holder else "the daemon does not tell whose it is"
        wide = f"no key {join_port(str(flow.to), f'{flow.port}/{flow.protocol}')}; " if hit.map == "any" else ""
        kind = "of this one address" if hit.map == "addr" else "of every address"
        named = holder or {}
        more = {"key": hit.key, "target": self.target, "owner": named.get("owner"), "mapping": named.get("name")}
        self.passes("lookup", f"{wide}key {hit.key} ({kind}): {whose}", **more)
        if relayed:
            self.relayed(near.target(holder, flow) if holder else None)
        self.passes("target", f"translated to {self.target}, the mapping's only target of IPv{flow.family}")

    def _missed(self) -> None:
        flow = self.flow
        specific = join_port(str(flow.to), f"{flow.port}/{flow.protocol}")
        text = f"no mapping: no key {specific}, none of every address ({flow.port}/{flow.protocol})"
        beside = tuple(near.beside(self.known.mappings, flow))
        self.step("lookup", "leaves", "; ".join((text, *beside)), (), {"near": list(beside)})
        others: Others = self.known(Rules(self.hook))
        for found in self.translations(others.ruleset, others.order.level + others.order.after, self.packet()):
            self._taken(others.ruleset, found, "after ours")
        self.filters("input", replace(self.packet(), oif=""))
        if flow.protocol == "sctp":
            self.step(
                "local delivery", "leaves", "it is for this host itself, whose SCTP sockets are not looked for", (), {}
            )
            return
        who = self.known(Listening(flow.family, flow.protocol, str(flow.to), flow.port))
        answer = f"{who} there on this host itself" if who else "no process of this host listens there: it is refused"
        self.step("local delivery", "leaves", answer, (), {})

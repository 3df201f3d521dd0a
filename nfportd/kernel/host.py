"""What the host must allow so that answers find their way: sysctls and the routes for [::1].

Must not decide what is needed: topology does. The one idea: compare what is with what is needed, change the
difference, and take back only what nfportd itself has set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Set as AbstractSet

from nfportd import topology
from nfportd.kernel import sysctl
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.sysctl import Sysctls
from nfportd.topology import Forward, Loopback, Need, Network

_log = logging.getLogger(__name__)

_FORWARD = {4: sysctl.IPV4_FORWARD, 6: sysctl.IPV6_FORWARD}
#: Seconds between two looks at parameters; one look reads a file for each interface with targets.
_LOOK = 1.0


def _parameter(need: Forward | Loopback) -> str | None:
    """The sysctl by which the host does what is needed; [::1] needs a route instead."""
    if isinstance(need, Forward):
        return _FORWARD[need.family]
    return sysctl.route_localnet(need.link.name) if need.family == 4 else None


class Host:
    """The prerequisites of forwarding on this host."""

    def __init__(self, network: NetworkWatch, sysctls: Sysctls) -> None:
        self._network = network
        self._sysctls = sysctls
        # What was so when it was last looked at.
        self._allowed: set[Forward | Loopback] = set()
        self._names: dict[int, str] = {}

    def allow(self, needs: AbstractSet[Need], network: Network) -> list[str]:
        """Make the host do what is needed. It stays so until `release`, for running flows still need it then, and
        others may have come to rely on it; the loopback guard keeps it harmless.

        Returns what had been so and was undone by somebody, for people; it is so again.
        """
        needed = {need for need in needs if isinstance(need, (Forward, Loopback))}
        self._follow_names(network)
        parameters = {parameter: need for need in needed if (parameter := _parameter(need))}
        if sysctl.IPV6_FORWARD in parameters and sysctl.read(sysctl.IPV6_FORWARD) == "0":
            self._warn_of_advertised_routes(network)
        mended: dict[Need, str] = {
            parameters[name]: f"{sysctl.label(name)}=1" for name in self._sysctls.require(set(parameters))
        }
        loopback = {need.link: need for need in needed if isinstance(need, Loopback) and need.family == 6}
        lacking = loopback.keys() - self._network.loopback_links() if loopback else ()
        for link in sorted(lacking, key=lambda each: each.index):
            self._network.set_loopback(link, present=True)
            _log.info("added route local ::1 dev %s", link.name)
            if link.index not in self._network.moved:
                mended[loopback[link]] = f"route local ::1 dev {link.name}"
        undone = [text for need, text in mended.items() if need in self._allowed]
        self._allowed = needed
        return undone

    def _follow_names(self, network: Network) -> None:
        """Parameters of a link go with it to a new name; what must be given back is remembered by name."""
        names = {link.index: link.name for link in network.links}
        renamed = {name: names[index] for index, name in self._names.items() if names.get(index, name) != name}
        self._names = names
        if renamed:
            parameter = sysctl.route_localnet
            self._sysctls.rename({parameter(old): parameter(new) for old, new in renamed.items()})

    async def watch(self) -> None:
        """Look again and again, for ever, whether parameters of which the kernel tells nobody are as they must be."""
        while True:
            await asyncio.sleep(_LOOK)
            self._sysctls.record()
            self._network.look()
            if self._sysctls.lacking({p for need in self._allowed if (p := _parameter(need))}):
                self._network.doubt()

    def release(self) -> None:
        """Give back everything that nfportd has set on this host, also in an earlier run."""
        self._sysctls.release()
        for link in sorted(self._network.loopback_links(), key=lambda each: each.index):
            self._network.set_loopback(link, present=False)
            _log.info("removed route local ::1 dev %s", link.name)

    def managed(self) -> list[str]:
        """The sysctls that nfportd has set, as sysctl(8) writes them."""
        return [f"{sysctl.label(name)}=1" for name in sorted(self._sysctls.managed)]

    def report(self) -> str:
        """What nfportd has set on this host, for people."""
        sysctls = self.managed()
        routes = [f"route local ::1 dev {link.name}" for link in self._network.loopback_links()]
        return ", ".join(sysctls + sorted(routes)) or "no sysctls or routes"

    def _warn_of_advertised_routes(self, network: Network) -> None:
        for name in sorted(topology.advertised_links(network)):
            if sysctl.read(sysctl.accept_ra(name)) == "1":
                _log.warning(
                    "%s takes IPv6 routes from router advertisements and stops when forwarding is on; "
                    "keep them with: sysctl -w %s=2",
                    name,
                    sysctl.label(sysctl.accept_ra(name)),
                )

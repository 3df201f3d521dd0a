"""What the host must allow so that answers find their way: sysctls and the routes for [::1].

Must not decide what is needed: topology does. The one idea: compare what is with what is needed, change the
difference, and take back only what nfportd itself has set.
"""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet

from nfportd import topology
from nfportd.kernel import sysctl
from nfportd.kernel.network import NetworkWatch
from nfportd.kernel.sysctl import Sysctls
from nfportd.topology import Forward, Loopback, Need, Network

_log = logging.getLogger(__name__)

_FORWARD = {4: sysctl.IPV4_FORWARD, 6: sysctl.IPV6_FORWARD}


class Host:
    """The prerequisites of forwarding on this host."""

    def __init__(self, network: NetworkWatch, sysctls: Sysctls) -> None:
        self._network = network
        self._sysctls = sysctls

    async def allow(self, needs: AbstractSet[Need], network: Network) -> None:
        """Make the host do what is needed. It stays so until `release`, for running flows still need it then, and
        others may have come to rely on it; the loopback guard keeps it harmless."""
        forward = {_FORWARD[need.family] for need in needs if isinstance(need, Forward)}
        localnet = {sysctl.route_localnet(n.link.name) for n in needs if isinstance(n, Loopback) and n.family == 4}
        if sysctl.IPV6_FORWARD in forward and sysctl.read(sysctl.IPV6_FORWARD) == "0":
            self._warn_of_advertised_routes(network)
        self._sysctls.require(forward | localnet)
        loopback = {n.link for n in needs if isinstance(n, Loopback) and n.family == 6}
        for link in sorted(loopback - await self._network.loopback_links(), key=lambda each: each.index):
            await self._network.set_loopback(link, present=True)
            _log.info("added route local ::1 dev %s", link.name)

    async def release(self) -> None:
        """Give back everything that nfportd has set on this host, also in an earlier run."""
        self._sysctls.release()
        for link in sorted(await self._network.loopback_links(), key=lambda each: each.index):
            await self._network.set_loopback(link, present=False)
            _log.info("removed route local ::1 dev %s", link.name)

    def managed(self) -> list[str]:
        """The sysctls that nfportd has set, as sysctl(8) writes them."""
        return [f"{sysctl.label(name)}=1" for name in sorted(self._sysctls.managed)]

    async def report(self) -> str:
        """What nfportd has set on this host, for people."""
        sysctls = self.managed()
        routes = [f"route local ::1 dev {link.name}" for link in await self._network.loopback_links()]
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

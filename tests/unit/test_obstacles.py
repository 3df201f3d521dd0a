"""When others' rules are read, and what becomes of trouble with that.

It must not run nft: tests/coexistence does. The one idea: an nft that fails as it is told, and the log.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from nfportd import obstacles
from nfportd.errors import KernelRefused
from nfportd.kernel.nft import NftDied
from nfportd.model import Mapping
from nfportd.obstacles import Obstacles
from nfportd.topology import Network, Topology
from tests.unit.test_firewalls import mapping


class BrokenNft:
    """Fails each time in the same way."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = 0

    async def listed(self, _command: str) -> Any:
        self.asked += 1
        raise self.error

    def close(self) -> None:
        """Nothing runs."""


class EmptyNft:
    """Lists one forward chain of ours and one of another's, and nothing in their tables."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    async def listed(self, command: str) -> Any:
        self.commands.append(command)
        chains = {"nfportd": "isolation_forward", "filter": "forward"} if command == "list chains" else {}
        hooked = {"family": "inet", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
        return {"nftables": [{"chain": {"table": table, "name": name, **hooked}} for table, name in chains.items()]}

    def close(self) -> None:
        """Nothing runs."""


def looking(nft: BrokenNft | EmptyNft, *held: Mapping) -> Obstacles:
    content = SimpleNamespace(content=SimpleNamespace(mappings=dict.fromkeys(held, 0)))
    register = SimpleNamespace(held={"web": content})
    reconciler: Any = SimpleNamespace(register=register, enforcer=SimpleNamespace(topology=Topology(Network())))
    broken: Any = nft
    return Obstacles(broken, reconciler, asyncio.Event())


WEB = mapping({"listen": "8080", "targets": "10.88.0.11:80"})


@pytest.mark.parametrize(
    ("error", "times"), [(KernelRefused("no"), 3), (KeyError("unheard of"), 3), (NftDied("libnftables crashed"), 1)]
)
def test_trouble_is_told_once_and_a_crash_is_not_provoked_again(
    error: Exception, times: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obstacles, "_FRESH", 0.0)
    nft = BrokenNft(error)

    async def look_thrice() -> None:
        found = looking(nft, WEB)
        for _ in range(3):
            assert await found.look() == []

    asyncio.run(look_thrice())

    assert nft.asked == times
    assert [record.getMessage() for record in caplog.records] == [
        f"the rules of other programs cannot be read: {error}"
    ]


def test_without_mappings_nothing_is_read() -> None:
    nft = BrokenNft(KernelRefused("no"))

    assert asyncio.run(looking(nft).look()) == []
    assert nft.asked == 0


def test_our_own_table_is_not_among_those_of_others() -> None:
    """It may have 65,000 elements, and stops nothing that came through a mapping."""
    nft = EmptyNft()

    assert asyncio.run(looking(nft, WEB).look()) == []
    assert nft.commands == ["list chains", "list table inet filter"]

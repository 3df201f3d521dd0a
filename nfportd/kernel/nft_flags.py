"""The flags of the nftables tables, asked of the kernel itself.

Must not know what they mean to us. The one idea: nft 1.0.6 writes a table that has one flag as JSON from memory that it
has freed (table_flags_json in its src/json.c), and does not know all flags; so whoever lists looks here first.

Layout: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from nfportd.kernel.netlink import NfTables
from nfportd.netlink import attributes, text

_GET_TABLE = 1  # NFT_MSG_GETTABLE
_NAME, _FLAGS = 1, 2  # NFTA_TABLE_*
_NAMES = {0x1: "dormant", 0x2: "owner", 0x4: "persist"}  # NFT_TABLE_F_*


class Flags:
    """Asks for flags."""

    def __init__(self) -> None:
        self._kernel = NfTables()

    def close(self) -> None:
        """Close the socket; who asks later gets another one."""
        self._kernel.close()

    def of_tables(self) -> dict[str, tuple[str, ...]]:
        """The inet tables of the network namespace of the first call, each with its flags as nft names them, sorted.

        Raises OSError.
        """
        found = {}
        for table in self._kernel.answers(_GET_TABLE, dump=True):
            said = dict(attributes(table))
            bits = int.from_bytes(said.get(_FLAGS, b""), "big")
            found[text(said[_NAME])] = tuple(name for bit, name in _NAMES.items() if bits & bit)
        return found

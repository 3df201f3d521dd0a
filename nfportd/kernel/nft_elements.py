"""The elements of our sets, asked of the kernel itself.

Must not know what they mean. The one idea: libnftables makes JSON of everything, which takes 3 s and 240 MB for 60,000
elements; the kernel hands them out in 0.1 s.

Layout: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfportd.kernel.netlink import NfTables
from nfportd.netlink import attributes, named
from nfportd.ruleset import TABLE

_GET_ELEMENTS, _GET_GENERATION = 13, 16  # NFT_MSG_GETSETELEM, NFT_MSG_GETGEN
_TABLE, _SET = 1, 2  # NFTA_SET_ELEM_LIST_*
_NUMBER = 1  # NFTA_GEN_ID


class ElementsDump:
    """Asks in the network namespace of the first question."""

    def __init__(self) -> None:
        self._kernel = NfTables()

    def close(self) -> None:
        """Close the socket; who asks later gets another one."""
        self._kernel.close()

    def generation(self) -> bytes:
        """What is another after each change of the ruleset. Raises OSError.

        The kernel marks no dump of elements as interrupted (NLM_F_DUMP_INTR); so whoever reads asks for this before and
        after.
        """
        (said,) = self._kernel.answers(_GET_GENERATION)
        return bytes(dict(attributes(said))[_NUMBER])

    def of(self, name: str) -> Iterator[memoryview]:
        """What the kernel says of a set's elements, as attributes of messages. Blocks. Raises OSError, ValueError."""
        return self._kernel.answers(_GET_ELEMENTS, named(_TABLE, TABLE), named(_SET, name), dump=True)

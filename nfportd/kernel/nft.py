"""libnftables: run text as one transaction, list our table.

Must not know mappings. The one idea: one long-lived context, used by one thread; a table with an owner belongs to
the netlink socket in that context (linux/netfilter/nf_tables.h, NFT_TABLE_F_OWNER).
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nftables

from nfportd import ruleset
from nfportd.errors import KernelRefused, NotPossible
from nfportd.ruleset import Listed

_NETLINK_NETFILTER = 12  # linux/netlink.h
_libc = ctypes.CDLL(None)


class Nft:
    """The only door to nftables. Its calls run in a thread of their own: libnftables blocks, and knows one at a time.

    libnftables works in the network namespace in which this is made.
    """

    def __init__(self) -> None:
        try:
            # libnftables ends the process where it cannot open such a socket.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
        except OSError as error:
            raise NotPossible(f"the kernel gives no netlink socket for nftables: {error.strerror}") from None
        try:
            self._nft = nftables.Nftables()
        except (OSError, AttributeError) as error:
            raise NotPossible(f"libnftables does not load ({error}); install python3-nftables and nftables") from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nft")

    def close(self) -> None:
        """End the thread, and give up the table's ownership with the context's socket."""
        self._thread.shutdown()
        del self._nft

    async def run(self, text: str) -> None:
        """Run nft text as one transaction. Raises KernelRefused with nft's words; then nothing of it is in force."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._run, text)

    async def list_table(self, *, elements: bool = True) -> Listed | None:
        """Our table, or None. Without elements the cost does not depend on the number of mappings."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._list, elements)

    async def listed(self, command: str) -> Any:
        """What nft lists, of any table, without the elements of sets. Raises KernelRefused, also where there is no
        such thing."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._listed, command)

    async def allows(self, text: str) -> str | None:
        """Let nft and the kernel check text without applying it; None, or why they refuse it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._check, text)

    def _command(self, text: str) -> str:
        code, output, error = self._nft.cmd(text)
        if code:
            raise KernelRefused(_reason(error))
        return str(output)

    def _run(self, text: str) -> None:
        self._command(text)
        if len(text) > 1_000_000:
            # Parsing a large transaction takes 70 times its memory and glibc keeps it; the daemon runs for months.
            _libc.malloc_trim(0)

    def _list(self, elements: bool) -> Listed | None:
        self._nft.set_json_output(True)
        self._nft.set_terse_output(not elements)
        try:
            # The table's name alone would be an error where there is none; nft 1.0.6 lists tables cheaply.
            names = json.loads(self._command("list tables inet"))
            if not any(t.get("table", {}).get("name") == ruleset.TABLE for t in names["nftables"]):
                return None
            listing: dict[str, Any] = json.loads(self._command(f"list table inet {ruleset.TABLE}"))
        finally:
            self._nft.set_json_output(False)
            self._nft.set_terse_output(False)
        found = ruleset.parse(listing)
        del listing
        if elements:
            _libc.malloc_trim(0)
        return found

    def _listed(self, command: str) -> Any:
        self._nft.set_json_output(True)
        self._nft.set_terse_output(True)
        try:
            return json.loads(self._command(command))
        finally:
            self._nft.set_json_output(False)
            self._nft.set_terse_output(False)

    def _check(self, text: str) -> str | None:
        self._nft.set_dry_run(True)
        try:
            self._command(text)
        except KernelRefused as refusal:
            return refusal.reason
        finally:
            self._nft.set_dry_run(False)
        return None


#: What the kernel's words mean here (net/netfilter/nf_tables_api.c).
_MEANINGS = {
    "Too many open files in system": "the map or set is full",
    "File exists": "the key is there already with another value",
    "Operation not permitted": "no CAP_NET_ADMIN, or another process owns the table",
}


def _reason(error: str) -> str:
    """The sentence in nft's answer, without the input that it repeats (a transaction may have megabytes)."""
    for line in error.splitlines():
        _, found, reason = line.partition("Error: ")
        if found:
            reason = reason.strip().removeprefix("Could not process rule: ")[:300]
            return f"{reason} ({_MEANINGS[reason]})" if reason in _MEANINGS else reason
    return error.strip()[:300] or "nft gave no reason"

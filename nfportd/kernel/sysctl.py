"""Kernel parameters under /proc/sys/net that forwarding needs.

Must not decide which ones: topology does. The one idea: what was set and what it was before is written down in the run
directory first, so that a stop, also of a later process after a crash, gives back exactly that.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping as AbstractMapping
from pathlib import Path

_log = logging.getLogger(__name__)

_ROOT = Path("/proc/sys/net")
IPV4_FORWARD = "ipv4/ip_forward"
IPV6_FORWARD = "ipv6/conf/all/forwarding"


def route_localnet(interface: str) -> str:
    """The parameter by which an interface takes answers to 127.0.0.0/8 (ip-sysctl.rst, route_localnet)."""
    return f"ipv4/conf/{interface}/route_localnet"


def accept_ra(interface: str) -> str:
    """The parameter by which an interface takes router advertisements; 1 means: not while forwarding."""
    return f"ipv6/conf/{interface}/accept_ra"


def read(name: str) -> str | None:
    """A parameter's value; None where the kernel has none (IPv6 off, the interface gone)."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


def label(name: str) -> str:
    """A parameter as sysctl(8) takes it: with slashes where an interface name holds dots."""
    return f"net/{name}" if "." in name else f"net.{name.replace('/', '.')}"


class Sysctls:
    """The parameters that nfportd set, remembered in `record` across crashes."""

    def __init__(self, record: Path, *, manage: bool) -> None:
        self._record = record
        self._manage = manage
        self._before: dict[str, str] = self._load()
        self._missing: set[str] = set()
        # Whether the record could be written last time.
        self._recorded = True

    def lacking(self, names: set[str]) -> set[str]:
        """Which of these are not 1, and could be set."""
        return {name for name in names if read(name) not in ("1", "2")} - self._missing

    def require(self, names: set[str]) -> set[str]:
        """See that each of these is 1: set it, or say once that it is missing where nfportd does not manage sysctls.

        Returns those that were set.
        """
        lacking = {name for name in names if read(name) not in ("1", "2")}
        for name in sorted(lacking):
            if not self._manage:
                if name not in self._missing:
                    _log.warning("missing: run sysctl -w %s=1 (manage_sysctls is false)", label(name))
            elif read(name) is None:
                if name not in self._missing:
                    _log.error("the kernel has no %s; is IPv6 disabled or the interface gone?", label(name))
            else:
                self._set(name)
        self._missing = {name for name in lacking if read(name) not in ("1", "2")}
        return lacking - self._missing

    def record(self) -> None:
        """Write down again what could not be written."""
        if not self._recorded:
            self._save()

    def rename(self, names: AbstractMapping[str, str]) -> None:
        """Parameters that have other names now are given back by those."""
        if names.keys() & self._before.keys():
            self._before = {names.get(name, name): before for name, before in self._before.items()}
            self._save()

    def release(self) -> None:
        """Give back what nfportd set, where it still has nfportd's value."""
        for name, before in sorted(self._before.items()):
            if read(name) == "1":
                self._write(name, before)
                _log.info("gave back %s=%s", label(name), before)
        self._before.clear()
        self._save()

    @property
    def managed(self) -> frozenset[str]:
        """The parameters that nfportd set, in this run or an earlier one."""
        return frozenset(self._before)

    def _set(self, name: str) -> None:
        value = read(name)
        if value is None:
            return
        self._before.setdefault(name, value)
        self._save()
        if self._write(name, "1"):
            _log.info("set %s=1 (was %s)", label(name), value)

    def _write(self, name: str, value: str) -> bool:
        try:
            (_ROOT / name).write_text(value)
        except OSError as error:
            _log.error("cannot set %s=%s: %s", label(name), value, error.strerror)
            return False
        return True

    def _load(self) -> dict[str, str]:
        try:
            found = json.loads(self._record.read_text())
            return {str(name): str(value) for name, value in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            _log.error("%s cannot be read (%s); what an earlier run set stays set", self._record, error)
            return {}

    def _save(self) -> None:
        """Write the record; where that cannot be, forwarding matters more than what a crash would leave behind."""
        scratch = self._record.with_suffix(".new")
        try:
            if self._before:
                scratch.write_text(json.dumps(self._before, indent=1))
                scratch.replace(self._record)
            else:
                self._record.unlink(missing_ok=True)
        except OSError as error:
            if self._recorded:
                text = "%s cannot be written (%s); after a crash the sysctls that nfportd sets would not be given back"
                _log.error(text, self._record, error.strerror)
            self._recorded = False
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
        else:
            self._recorded = True

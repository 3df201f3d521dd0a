"""The log: to the journal with its fields where stderr is the journal, else as plain lines.

Must not know what is logged. The one idea: systemd says which stream is the journal's (JOURNAL_STREAM), so that the
same program logs fields as a service and text in a terminal.
"""

from __future__ import annotations

import logging
import os
import sys

from systemd import journal

#: syslog(3)'s numbers for our levels.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
#: What a line may be about (messages.about), and the journal's fields for it.
_FIELDS = {"message_id": "MESSAGE_ID", "owner": "NFPORTD_OWNER", "key": "NFPORTD_KEY"}


def start(level: str) -> None:
    """Log from this level on."""
    lines = Journal() if _is_journal(sys.stderr.fileno()) else logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(message)s" if isinstance(lines, Journal) else "%(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[lines])


class Journal(logging.Handler):
    """Sends records with the fields that they are about."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            fields = {field: str(value) for name, field in _FIELDS.items() if (value := getattr(record, name, ""))}
            journal.send(
                self.format(record),
                PRIORITY=str(_PRIORITIES.get(record.levelno, 6)),
                SYSLOG_IDENTIFIER="nfportd",
                LOGGER=record.name,
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName or "",
                **fields,
            )
        except Exception:  # as logging's own: what cannot be logged must not end what logs
            self.handleError(record)


def _is_journal(descriptor: int) -> bool:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"

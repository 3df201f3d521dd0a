"""What a line of the log is about: its kind, the owner and the key, for those who search the journal.

Must not know how a log is written. The one idea: a kind is a fixed id (journald's MESSAGE_ID), under which
systemd/nfportd.catalog explains it; `extra=about(...)` fastens it to a line.
"""

from __future__ import annotations

from enum import StrEnum


class Message(StrEnum):
    """The kinds of lines that are worth a search. The ids never change."""

    READY = "cc9518ed0ee540409b63205c45fb3ccf"
    STOPPED = "fa6d2b9772974296b8ca0d301c381ba8"
    APPLIED = "7f9d3b072bf640df989d63bcab629fe3"
    WAITING = "62b525909de24e1aade4d409839b5dd9"
    REFUSED = "cfaa3225e4a3495b8545f1121da1113e"
    INVALID = "8f3ffcbde52b40209026be323e45a5b8"
    PORT_IN_USE = "c4a75776f7954532987f722ce751ac36"
    REPAIRED = "fafb1367a2754e0c9422d6009937b001"
    DENIED = "0eb30cb5a2a845f283ce27e950a8ca98"
    STOPPED_BY_OTHERS = "4126948cbc3b4478aaa4aebe14e9d0a1"
    LET_THROUGH = "55e6d9693ce44d7ba4ed377cfa4639ce"


def about(kind: Message, owner: str = "", key: object = "") -> dict[str, str]:
    """What `extra` of a log call takes."""
    return {"message_id": kind.value, "owner": owner, "key": str(key)}

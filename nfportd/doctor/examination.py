"""One pass over a host: gather, judge, and the report as JSON-able values.

`examine` is for nfportctl doctor, and for whoever else shows findings. Must not print. The one idea: whoever wants
findings calls one function, and gets the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from nfportd.doctor.asking import Places, Said, ask
from nfportd.doctor.facts import Published
from nfportd.doctor.gathering import gather
from nfportd.doctor.judgement import judge
from nfportd.errors import NfportdError


class NoSuchMapping(NfportdError):
    """Nothing is called by this name."""


def examine(places: Places, which: str | None = None) -> dict[str, Any]:
    """Look at everything that makes a port not work; or at what concerns one mapping, by its name or listen.

    Takes up to ten seconds, for it connects to targets, and needs no daemon. Returns `healthy`, `mappings` (how many
    were looked at), `findings` (each with cause, severity, mappings, what, why, commands), `checked` (what is fine),
    `not_checked` (what, why). Raises NoSuchMapping.
    """
    said = ask(places)
    if which is not None:
        said = _only(said, which)
    report = judge(asyncio.run(gather(said)))
    return {"healthy": not report.findings, "mappings": len(said.published), **report.json()}


def _only(said: Said, which: str) -> Said:
    """What concerns one mapping. Raises NoSuchMapping, with what is wrong in the files, which may be why."""
    chosen = tuple(each for each in said.published if which in (each.mapping.name, str(each.mapping.listen)))
    if not chosen:
        ignored = [f"{path} is not read: only files named *.yaml are" for path in said.files.ignored]
        text = f"no mapping is called {which!r}; {_known(said.published)}"
        raise NoSuchMapping("\n".join([text, *said.files.dropins, *ignored]))
    files = {each.owner.removeprefix("file:") for each in chosen if each.owner.startswith("file:")}
    broken = tuple(text for text in said.files.dropins if text.partition(":")[0].rpartition("/")[2] in files)
    return said._replace(published=chosen, files=said.files._replace(dropins=broken, ignored=()))


def _known(published: Sequence[Published]) -> str:
    names = sorted({each.title for each in published})
    return f"there are {', '.join(names[:10])}{' and others' if len(names) > 10 else ''}" if names else "there is none"

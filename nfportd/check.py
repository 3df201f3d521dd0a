"""`nfportd check`: what the daemon would say of these files, without it.

Must not change anything. The one idea: the same reading as the daemon's; with the privilege to ask, nft and the kernel
see the whole table too, in a dry run under another name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nfportd import ruleset
from nfportd.desired import Desired, delta
from nfportd.errors import InvalidInput, NotPossible, Problem
from nfportd.kernel.nft import Nft
from nfportd.sources import dropins

_SCRATCH = "nfportd_check"


def files(paths: Iterable[Path]) -> list[Path]:
    """The drop-ins that paths name: a file is itself, a directory is what the daemon would read in it.

    Raises InvalidInput for a path that is not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if dropins.is_dropin(p.name))
        elif path.exists():
            found.append(path)
        else:
            raise InvalidInput([Problem(str(path), 0, 0, "no such file or directory")])
    return found


def problems(found: Iterable[Path], desired: Desired, *, trusted: bool) -> list[Problem]:
    """Everything wrong in these files and between them. What is right is entered in `desired`.

    `trusted`: as the daemon does, refuse files that others can write to; a draft elsewhere may be anybody's.
    """
    wrong: list[Problem] = []
    for path in found:
        try:
            desired.replace(str(path), dropins.read(path, trusted=trusted))
        except InvalidInput as error:
            wrong += error.problems
        except FileNotFoundError:
            wrong.append(Problem(str(path), 0, 0, "vanished while it was read"))
    for claim, keys in desired.waiting(desired.claimed()).items():
        holder = desired.holder(keys[0])
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        message = f"mapping {claim.mapping}: {keys[0]}{more} is held by {holder}; remove one"
        wrong.append(Problem(claim.owner, claim.line, 1, message))
    return wrong


async def kernel_refuses(desired: Desired, mark_bit: int) -> str | None:
    """Why nft or the kernel would refuse the whole table; None if they would take it.

    Raises NotPossible where they cannot be asked.
    """
    nft = Nft()
    try:
        # Dormant: the dry run then registers no hooks, not even for a moment.
        flags = ("dormant",)
        if why := await nft.allows(ruleset.empty_table(flags, _SCRATCH)):
            raise NotPossible(why)
        elements = ruleset.text(delta({}, desired.wanted_of_all()), _SCRATCH)
        return await nft.allows(ruleset.skeleton(mark_bit, flags, _SCRATCH) + elements)
    finally:
        nft.close()

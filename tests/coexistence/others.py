"""The rules of other programs, as those have left them, and how they come into a namespace and out of it.

Must not know what a test asserts. The one idea: files hold what the real programs wrote (their first lines say which),
so that a test needs none of them.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.netns import Namespace

RULESETS = Path(__file__).parent / "rulesets"
#: A ruleset of an admin's own: a forward chain that drops, in a table of the name that Debian's example has.
PLAIN = """
table inet filter {
  chain forward { type filter hook forward priority filter; policy drop;
    ct state established,related accept
  }
}
"""


def text(name: str) -> str:
    """A ruleset for this nft: 1.0.6 does not know the flag persist, nor `dstnat` on the output hook; and a table with
    an owner would be nft's own."""
    found = (RULESETS / name).read_text()
    found = re.sub(r"^\s*flags owner,persist$", "", found, flags=re.MULTILINE)
    return found.replace("hook output priority dstnat + 10", "hook output priority -90")


def load(host: Namespace, name: str) -> None:
    """Put a ruleset in force beside what is there: one of nft, or those of both families of iptables."""
    if name.endswith(".nft"):
        host.nft(text(name))
    elif name == "plain":
        host.nft(PLAIN)
    else:
        for restore, kind in (("iptables-nft-restore", "iptables"), ("ip6tables-nft-restore", "ip6tables")):
            host.run([restore, str(RULESETS / f"{name}.{kind}")])


def tables(host: Namespace) -> list[str]:
    """The tables that are not ours, as `family name`."""
    listed = host.run(["nft", "list", "tables"]).stdout
    return [each for each in re.findall(r"^table (\S+ \S+)$", listed, re.MULTILINE) if each != "inet nfportd"]


def rules(host: Namespace) -> str:
    """Everything that others have in force, without counters."""
    return "".join(host.run(["nft", "-s", "list", "table", *each.split()]).stdout for each in tables(host))


@contextlib.contextmanager
def loaded(host: Namespace, name: str) -> Iterator[None]:
    """A ruleset for a while."""
    load(host, name)
    try:
        yield
    finally:
        clear(host)


def clear(host: Namespace) -> None:
    """Take away every table that is not ours."""
    host.nft("".join(f"delete table {each}\n" for each in tables(host)))


def ufw(host: Namespace, scratch: Path, command: str) -> None:
    """Run a command of the real ufw on rules that are in force, with settings of its own in a private /etc."""
    assert shutil.which("ufw")
    script = f"""
        mount -t tmpfs ufw '{scratch}' && mkdir '{scratch}/upper' '{scratch}/work'
        mount -t overlay ufw -o 'lowerdir=/etc,upperdir={scratch}/upper,workdir={scratch}/work' /etc
        sed -i 's/^ENABLED=.*/ENABLED=yes/' /etc/ufw/ufw.conf
        {command}
    """
    host.run(["unshare", "--mount", "sh", "-ec", script])

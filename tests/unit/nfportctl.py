"""nfportctl for the tests: run against a stub as a shell would run it.

It must not know what is right. The one idea: words of a command line in, what it printed and its exit status out.
"""

from __future__ import annotations

from click.testing import CliRunner, Result

from nfportd import cli
from tests.unit.stub import SINCE, Json, Stub

WEB: Json = {"name": "web", "listen": "8080", "targets": ["10.88.0.11:80", "[fd88::11]:80"]}
DNS: Json = {"name": "dns", "listen": "53", "protocol": ["udp"], "targets": ["10.88.0.12:53"]}
HOLDER = {"owner": "cni:net/4f/eth0", "source": "api", "since": SINCE, "key": "0.0.0.0:8080/tcp"}


def run(stub: Stub, *arguments: str, typed: str | None = None, color: bool = False) -> Result:
    return CliRunner().invoke(cli.main, ["--socket", str(stub.path), *arguments], input=typed, color=color)

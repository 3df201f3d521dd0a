"""Rules of iptables-legacy, which nftables does not show.

It must not know how they are noticed. The one idea: a table of iptables-legacy stays for the life of its namespace, so
they have a laboratory of their own.
"""

from __future__ import annotations

import shutil

import pytest

from tests.api.calling import client
from tests.conftest import dropin, mapping
from tests.lab import Daemon, Lab


def test_rules_that_cannot_be_read_are_named_with_what_shows_them(lab: Lab) -> None:
    if not shutil.which("iptables-legacy"):
        pytest.skip("iptables-legacy is not installed")
    daemon = Daemon(lab)
    (daemon.dropins / "web.yaml").write_text(dropin(mapping("web", 8080, "10.88.0.11:80")))
    if lab.host.run(["iptables-legacy", "-P", "FORWARD", "DROP"], check=False).returncode:
        pytest.skip("this kernel has no iptables-legacy")
    daemon.start()

    assert not lab.outside.ask("192.0.2.1", 8080, timeout=0.4)
    daemon.wait_for(r"INFO .*\(iptables-legacy\) may stop .*; look with: iptables-legacy -S FORWARD")
    with client(daemon) as api:
        (finding,) = api.get("/v1/status")["forwarding"]
    assert finding["certain"] is False
    assert "-P FORWARD DROP" in lab.host.run(finding["commands"][0].split()).stdout
    daemon.stop()

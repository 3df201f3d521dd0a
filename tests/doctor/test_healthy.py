"""nfportctl doctor on a host on which everything works, and its manners: JSON, exit status, one mapping, no root.

It must not know causes. The one idea: a doctor who finds something in a healthy patient is not believed again.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from nfportd.doctor.findings import Cause
from nfportd.doctor.judgement import CHECKS
from tests.conftest import mapping
from tests.doctor.conftest import UNMANAGED, WEB, Begin
from tests.lab import ROOT, Lab

_STRICT = ConfigDict(extra="forbid", strict=True)
Text = Annotated[str, Field(min_length=1)]


@with_config(_STRICT)
class Finding(TypedDict):
    cause: Text
    severity: Literal["error", "warning"]
    mappings: list[Text]
    what: Text
    why: Text
    commands: list[Text]


@with_config(_STRICT)
class NotChecked(TypedDict):
    what: Text
    why: Text


@with_config(_STRICT)
class Report(TypedDict):
    healthy: bool
    mappings: int
    findings: list[Finding]
    checked: list[Text]
    not_checked: list[NotChecked]


SCHEMA = TypeAdapter(Report)
ALL = [check.name for check in CHECKS]
EVERY_KIND = (
    WEB,
    mapping("lan", 8081, "192.0.2.50:80", masquerade="always"),
    mapping("routed", 8082, "10.88.1.2:80", "[fd88:0:0:1::2]:80"),
    mapping("alone", 8083, "10.88.2.11:80", isolate="true"),
    mapping("one", "192.0.2.2:8084", "10.88.0.12:80", sources="[198.51.100.0/24]"),
    mapping("here", 8085, "10.88.0.1:2222"),
    mapping("local", "127.0.0.1:8086", "10.88.0.12:80", reserve="true"),
    mapping("range", "20000-20009", "10.88.0.12:80-89"),
)


@pytest.mark.parametrize("settings", ["", UNMANAGED])
def test_a_healthy_host_has_no_findings(lab: Lab, begin: Begin, settings: str) -> None:
    here = lab.host.serve([2222], address="10.88.0.1")
    patient = begin(*EVERY_KIND, settings=settings)

    told = patient.examined()
    here.close()

    assert told.report["findings"] == []
    assert (told.status, told.report["healthy"], told.report["mappings"]) == (0, True, len(EVERY_KIND))
    assert (told.report["checked"], told.report["not_checked"]) == (ALL, [])
    SCHEMA.validate_python(told.report)


def test_others_that_let_pass_what_is_forwarded_are_no_findings(lab: Lab, begin: Begin) -> None:
    patient = begin()
    lab.host.nft(
        "table inet own {\n chain fw { type filter hook forward priority 5; policy drop; ct status dnat accept\n"
        " ct state established,related accept\n }\n"
        " chain pre { type nat hook prerouting priority dstnat; tcp dport 9090 dnat ip to 10.88.0.12:80\n }\n"
        " chain post { type nat hook postrouting priority srcnat; oifname out0 masquerade\n }\n}"
    )

    assert patient.examined().report["findings"] == []
    assert patient.reached() == "t1"


def test_it_says_what_was_found_why_and_what_to_run(begin: Begin) -> None:
    patient = begin(settings=UNMANAGED)
    patient.lab.host.sysctl("net.ipv4.ip_forward", 0)

    done = patient.call()

    assert (done.returncode, done.stderr) == (1, "")
    head, concerns, why, *_ = done.stdout.splitlines()
    assert head == "error: IPv4 forwarding is off [forwarding-off]"
    assert concerns == "  concerns: web"
    assert why.startswith("  The kernel drops what is to go on to a target.")
    assert "\n  run: sysctl -w net.ipv4.ip_forward=1\n\n1 error in 1 mapping\nchecked and fine:\n" in done.stdout
    SCHEMA.validate_python(patient.examined().report)


def test_one_mapping_is_examined_by_itself(begin: Begin) -> None:
    patient = begin(WEB, mapping("other", 8081, "10.88.0.11:81"))

    assert patient.examined("web").causes == []
    assert patient.examined("8080").report["mappings"] == 1
    assert patient.examined("other").only()["mappings"] == ["other"]
    assert patient.examined().causes == ["target-refuses"]

    done = patient.call("wep")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nfportctl: no mapping is called 'wep'; there are other, web\n"


def test_a_file_that_is_wrong_is_why_a_mapping_is_not_known(begin: Begin) -> None:
    patient = begin()
    patient.daemon.write("new.yaml", "mappings:\n  - name: new\n    listen: 99999\n    targets: [10.88.0.12:80]\n")

    done = patient.call("new")

    assert done.returncode == 1
    assert "new.yaml:3:13: " in done.stderr
    assert patient.examined("web").causes == []
    assert patient.examined().causes == ["file-broken"]


def test_wrong_usage_has_its_own_status(begin: Begin) -> None:
    assert begin().call("--what").returncode == 2


def test_who_is_not_root_is_told_what_was_not_looked_at(lab: Lab, begin: Begin) -> None:
    """Members of the group get the status; what only root sees is named, and the rest is judged all the same."""
    patient = begin(settings=f"{UNMANAGED}group: nogroup\n")
    for place in (lab.tmp, patient.daemon.dir):
        place.chmod(0o755)

    told = patient.examined(uid=65534)

    assert told.causes == []
    assert {each["what"]: each["why"] for each in told.report["not_checked"]} == {
        "nftables and the kernel's netfilter": "it takes root (CAP_NET_ADMIN)",
        "translations of other programs for the same ports": "it takes root (CAP_NET_ADMIN)",
    }
    lab.host.sysctl("net.ipv4.ip_forward", 0)
    lab.host.nft("table inet own { chain fw { type filter hook forward priority 5; policy drop; }\n}")
    assert sorted(patient.examined(uid=65534).causes) == ["forwarding-off", "stopped-by-others"]


def test_every_cause_is_in_the_manual() -> None:
    page = (ROOT / "docs/doctor.md").read_text()

    assert [cause for cause in Cause if f"| `{cause}` |" not in page] == []

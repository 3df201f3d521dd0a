"""The journal: fields, ids and the catalog that explains them, as journalctl gives them back.

It must not know how a line is sent. The one idea: an admin searches by owner, key or kind, and finds that line.
"""

from __future__ import annotations

from typing import Any

import pytest

from nfportd.messages import Message
from tests.conftest import dropin, mapping
from tests.lab import Lab
from tests.system.machine import Machine

pytestmark = pytest.mark.timeout(600)


def last(machine: Machine, kind: Message, *matches: str) -> dict[str, Any]:
    """The last line of a kind."""
    found = machine.journal(f"MESSAGE_ID={kind.value}", "_SYSTEMD_UNIT=nfportd.service", *matches)
    assert found, machine.log()
    return found[-1]


def test_a_conflict_is_found_by_the_owner_who_waits(service: Machine) -> None:
    service.write("/etc/nfportd.d/a.yaml", dropin(mapping("first", 8080, "10.88.0.11:80")))
    service.write("/etc/nfportd.d/b.yaml", dropin(mapping("second", 8080, "10.88.0.12:80")))
    service.systemctl("reload", "nfportd")

    line = last(service, Message.WAITING, "NFPORTD_OWNER=file:b.yaml")

    assert (line["NFPORTD_KEY"], line["PRIORITY"]) == ("0.0.0.0:8080/tcp", "4")
    assert 'held by mapping "first" (file:a.yaml line 2)' in line["MESSAGE"]


def test_a_broken_file_is_found_by_its_name(service: Machine) -> None:
    service.write("/etc/nfportd.d/wrong.yaml", "mappings:\n  - listen: 70000\n    targets: [10.88.0.11:80]\n")
    service.systemctl("reload", "nfportd", check=False)

    lines = service.journal(f"MESSAGE_ID={Message.INVALID.value}", "NFPORTD_OWNER=file:wrong.yaml")

    assert {line["PRIORITY"] for line in lines} == {"3"}
    assert any("wrong.yaml:2:13: " in line["MESSAGE"] for line in lines)


def test_a_port_in_use_is_found_by_its_key(service: Machine, lab: Lab) -> None:
    lab.host.serve([8095], ["tcp"], address="0.0.0.0")
    service.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8095, "10.88.0.11:80")))
    service.systemctl("reload", "nfportd")

    line = last(service, Message.PORT_IN_USE, "NFPORTD_KEY=0.0.0.0:8095/tcp")

    assert (line["NFPORTD_OWNER"], line["PRIORITY"]) == ("file:web.yaml", "3")


def test_who_is_denied_is_told(service: Machine) -> None:
    service.run("chmod", "666", "/run/nfportd/nfportd.sock")
    as_nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "nfportctl", "list")

    refused = service.run(*as_nobody, check=False)

    service.run("chmod", "660", "/run/nfportd/nfportd.sock")
    assert refused.returncode == 4
    assert "uid 65534" in last(service, Message.DENIED)["MESSAGE"]


def test_a_change_over_the_api_is_found_by_its_owner(service: Machine) -> None:
    service.run("nfportctl", "add", "--owner", "api:shop", "8080", "10.88.0.11:80")
    added = last(service, Message.APPLIED, "NFPORTD_OWNER=api:shop")
    service.run("nfportctl", "add", "--owner", "api:shop", "8081", "10.88.0.11:80", "--dry-run")
    tried = last(service, Message.APPLIED, "NFPORTD_OWNER=api:shop")
    service.run("nfportctl", "remove", "--owner", "api:shop", "--all")
    removed = last(service, Message.APPLIED, "NFPORTD_OWNER=api:shop")

    assert added["MESSAGE"].startswith("api:shop: +1 -0 mappings by uid 0 (pid ")
    assert tried["MESSAGE"] == added["MESSAGE"]
    assert removed["MESSAGE"].startswith("api:shop: +0 -1 mappings by uid 0 (pid ")


def test_ordinary_life_has_its_ids_too(service: Machine) -> None:
    service.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8080, "10.88.0.11:80")))
    service.systemctl("restart", "nfportd")
    service.write("/etc/nfportd.d/web.yaml", dropin(mapping("web", 8081, "10.88.0.11:80")))
    service.systemctl("reload", "nfportd")

    lines = [last(service, kind) for kind in (Message.READY, Message.STOPPED, Message.APPLIED)]

    assert {line["PRIORITY"] for line in lines} == {"6"}
    assert {line["_CAP_EFFECTIVE"] for line in lines} == {"1000"}
    assert last(service, Message.APPLIED, "NFPORTD_OWNER=file:web.yaml")["SYSLOG_IDENTIFIER"] == "nfportd"


def test_every_id_has_its_entry_in_the_catalog(machine: Machine) -> None:
    machine.run("journalctl", "--update-catalog")

    listed = machine.run("journalctl", "--list-catalog", *(kind.value for kind in Message)).stdout

    assert [line.partition(" ")[0] for line in sorted(listed.splitlines())] == sorted(kind.value for kind in Message)


def test_the_catalog_explains_a_line_with_its_owner(service: Machine) -> None:
    service.write("/etc/nfportd.d/odd.yaml", "mappings: 1\n")
    service.systemctl("reload", "nfportd", check=False)
    service.run("journalctl", "--update-catalog")

    explained = service.run("journalctl", "-b", "-x", "-o", "short", "NFPORTD_OWNER=file:odd.yaml").stdout

    assert "file:odd.yaml is broken" in explained

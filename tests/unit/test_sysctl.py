"""Kernel parameters: what is set, what is written down before, and what is given back; under a root of the test's own.

It must not touch /proc/sys. The one idea: files stand for parameters, and a second life reads the first one's record.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from nfportd.kernel import sysctl
from nfportd.kernel.sysctl import IPV4_FORWARD, IPV6_FORWARD, Sysctls

LOCALNET = sysctl.route_localnet("br0")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parameters that are all 0."""
    place = tmp_path / "net"
    for name in (IPV4_FORWARD, IPV6_FORWARD, LOCALNET):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("0\n")
    monkeypatch.setattr(sysctl, "_ROOT", place)
    return place


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "sysctls.json"


def test_what_is_required_is_set(root: Path, record: Path) -> None:
    Sysctls(record, manage=True).require({IPV4_FORWARD, LOCALNET})

    assert [sysctl.read(name) for name in (IPV4_FORWARD, LOCALNET, IPV6_FORWARD)] == ["1", "1", "0"]


def test_what_it_was_before_is_written_down(root: Path, record: Path) -> None:
    Sysctls(record, manage=True).require({IPV4_FORWARD})

    assert json.loads(record.read_text()) == {IPV4_FORWARD: "0"}


@pytest.mark.parametrize("value", ["1", "2"])
def test_what_is_on_already_is_not_ours(root: Path, record: Path, value: str) -> None:
    (root / IPV6_FORWARD).write_text(value)
    ours = Sysctls(record, manage=True)
    ours.require({IPV6_FORWARD})
    ours.release()

    assert (sysctl.read(IPV6_FORWARD), record.exists()) == (value, False)


def test_release_gives_back_what_it_was(root: Path, record: Path) -> None:
    ours = Sysctls(record, manage=True)
    ours.require({IPV4_FORWARD})
    ours.release()

    assert (sysctl.read(IPV4_FORWARD), record.exists()) == ("0", False)


def test_a_later_life_gives_back_what_an_earlier_one_set(root: Path, record: Path) -> None:
    Sysctls(record, manage=True).require({IPV4_FORWARD})
    later = Sysctls(record, manage=True)
    later.require({IPV4_FORWARD, LOCALNET})
    later.release()

    assert [sysctl.read(name) for name in (IPV4_FORWARD, LOCALNET)] == ["0", "0"]


def test_what_somebody_else_changed_meanwhile_stays(root: Path, record: Path) -> None:
    ours = Sysctls(record, manage=True)
    ours.require({IPV4_FORWARD})
    (root / IPV4_FORWARD).write_text("2")
    ours.release()

    assert sysctl.read(IPV4_FORWARD) == "2"


def test_what_somebody_switched_off_is_switched_on_again_and_still_given_back(root: Path, record: Path) -> None:
    ours = Sysctls(record, manage=True)
    ours.require({IPV4_FORWARD})
    (root / IPV4_FORWARD).write_text("0")
    ours.require({IPV4_FORWARD})
    on = sysctl.read(IPV4_FORWARD)
    ours.release()

    assert (on, sysctl.read(IPV4_FORWARD)) == ("1", "0")


def test_an_interface_that_has_gone_is_no_obstacle_to_the_others(root: Path, record: Path) -> None:
    ours = Sysctls(record, manage=True)
    ours.require({IPV4_FORWARD, LOCALNET})
    (root / LOCALNET).unlink()
    ours.release()

    assert (sysctl.read(IPV4_FORWARD), (root / LOCALNET).exists()) == ("0", False)


def test_without_the_right_to_manage_nothing_is_set(root: Path, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    Sysctls(record, manage=False).require({IPV4_FORWARD})

    assert (sysctl.read(IPV4_FORWARD), caplog.messages) == (
        "0",
        ["missing: run sysctl -w net.ipv4.ip_forward=1 (manage_sysctls is false)"],
    )


def test_what_is_missing_is_said_once(root: Path, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = Sysctls(record, manage=False)
    for _ in range(3):
        ours.require({IPV4_FORWARD})

    assert len(caplog.messages) == 1


def test_what_is_missing_again_is_said_again(root: Path, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = Sysctls(record, manage=False)
    for value in ("0", "1", "0"):
        (root / IPV4_FORWARD).write_text(value)
        ours.require({IPV4_FORWARD})

    assert len(caplog.messages) == 2


def test_a_parameter_that_the_kernel_does_not_have_is_said_once(
    root: Path, record: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Sysctls(record, manage=True)
    for _ in range(2):
        ours.require({sysctl.route_localnet("gone0")})

    assert caplog.messages == [
        "the kernel has no net.ipv4.conf.gone0.route_localnet; is IPv6 disabled or the interface gone?"
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "\xff"])
def test_a_damaged_record_is_said_and_forgotten(
    root: Path, record: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    record.write_bytes(content.encode("latin-1"))
    Sysctls(record, manage=True)

    assert [message.startswith(f"{record} cannot be read (") for message in caplog.messages] == [True]


def test_the_record_is_whole_at_every_moment(root: Path, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    ours = Sysctls(record, manage=True)
    ours.require({IPV4_FORWARD})
    ours.require({LOCALNET})

    assert (json.loads(record.read_text()), list(record.parent.glob("*.new"))) == (
        {IPV4_FORWARD: "0", LOCALNET: "0"},
        [],
    )


@pytest.mark.parametrize(
    ("name", "label"),
    [
        (IPV4_FORWARD, "net.ipv4.ip_forward"),
        (LOCALNET, "net.ipv4.conf.br0.route_localnet"),
        (sysctl.route_localnet("eth0.100"), "net/ipv4/conf/eth0.100/route_localnet"),
        (sysctl.accept_ra("eth0.100"), "net/ipv6/conf/eth0.100/accept_ra"),
    ],
)
def test_a_parameter_as_sysctl_8_takes_it(name: str, label: str) -> None:
    assert sysctl.label(name) == label

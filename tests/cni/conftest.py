"""Containers for the tests of the plugin: targets of the laboratory, attached to one standing daemon.

Must not know what a test asserts. The one idea: the daemon of the tests of the API serves here too.
"""

from __future__ import annotations

import pytest

from tests.api.conftest import Standing, api, daemon, standing, start
from tests.cni.calling import Attachment, attachment
from tests.lab import Daemon, Lab

__all__ = ["Standing", "api", "daemon", "standing", "start"]


@pytest.fixture
def t1(daemon: Daemon, lab: Lab) -> Attachment:
    return attachment(daemon, lab, "t1")


@pytest.fixture
def t2(daemon: Daemon, lab: Lab) -> Attachment:
    return attachment(daemon, lab, "t2")

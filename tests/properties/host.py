"""The host of the property tests: two bridges with the networks of the targets, and nothing behind them.

It must not know what happens on it. The one idea: elements and answers are looked at, so nobody has to be there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Lab
from tests.properties.model import NETWORK


@contextmanager
def bridged() -> Iterator[Lab]:
    """A laboratory with that host alone."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as lab:
        host = lab.space("host")
        for name in ("br0", "br1"):
            lab.bridge(host, name)
        host.batch(NETWORK)
        # The model knows no relay, whose port is a free one.
        lab.bridge_netfilter(False)
        yield lab

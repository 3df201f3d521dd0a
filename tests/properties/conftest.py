"""The namespace that tests on a real table share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.properties.host import bridged
from tests.properties.inside import Inside


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    with bridged() as lab:
        made = Inside(lab.host)
        gc.freeze()  # collecting after each life is cheap then
        yield made
        gc.unfreeze()
        made.close()

"""Each test of golden tensors reports how far it was from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest

from tests.reference.golden import deviations
from tests.reference.summary import PROPERTY


@pytest.fixture(autouse=True)
def _reported(record_property: Callable[[str, object], None]) -> Iterator[None]:
    deviations.clear()
    yield
    record_property(PROPERTY, deepcopy(deviations))

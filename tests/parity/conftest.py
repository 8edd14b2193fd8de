# SPDX-License-Identifier: Apache-2.0
"""What the parity tests share."""

from __future__ import annotations

from collections.abc import Iterator

import mindspore as ms
import pytest


@pytest.fixture
def pynative() -> Iterator[None]:
    """Operators one by one: no compilation for each of many variants."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)

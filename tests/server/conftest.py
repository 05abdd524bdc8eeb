"""Servers that the tests of a module share."""

from collections.abc import Iterator

import pytest

from infra_lab import AsyncEngine
from tests.server.live import Live, serving, simulated


@pytest.fixture(scope="module")
def sim() -> Iterator[Live]:
    """A simulated model that writes one sentence over and over."""
    with serving(simulated()) as live:
        yield live


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    """The bundled model, computed."""
    with serving(AsyncEngine.start("tiny", dtype="float32", device="cpu", kv_cache_bytes=16 << 20)) as live:
        yield live

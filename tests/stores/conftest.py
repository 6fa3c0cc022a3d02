"""Each test of this folder runs on every store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.stores.harness import HARNESSES, Harness, Store


@pytest.fixture(params=HARNESSES)
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    harness = HARNESSES[request.param](tmp_path)
    yield harness
    await harness.close()


@pytest.fixture
async def store(harness: Harness) -> Store:
    return await harness.open()

"""What the tests of the embedded store share: its file, and the store that holds it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.store.sqlite import SqliteStore
from tests.stores.harness import FINGERPRINT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(path, FINGERPRINT)
    yield store
    await store.close()

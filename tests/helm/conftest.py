"""The engine, started once for all tests of a worker."""

from collections.abc import Iterator

import pytest

from tests.helm.engine import Helm


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    with Helm() as engine:
        yield engine

"""A collector, and a gateway that delivers to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.server import running
from tests.promises.collector import Collector
from tests.promises.served import Served


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def served(collector: Collector, tmp_path: Path) -> Iterator[Served]:
    """Return a gateway, not yet up, whose destination `webhook` is the collector."""
    with running(collector.app()) as url:
        yield Served(tmp_path, WEBHOOK_URL=f"{url}/sink", WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=")

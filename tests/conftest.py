"""What the tests share: where logs go, a collector, and a gateway that delivers to it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gateway.server import running
from tests.promises.collector import Collector
from tests.promises.served import Served


@pytest.fixture(autouse=True)
def _logs_go_to_stderr() -> Iterator[None]:
    """Keep the log out of what a command prints, and out of streams that end with one test."""

    def configure() -> None:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))

    configure()
    yield
    configure()


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def served(collector: Collector, tmp_path: Path) -> Iterator[Served]:
    """Return a gateway, not yet up, whose destination `webhook` is the collector."""
    with running(collector.app()) as url:
        yield Served(tmp_path, WEBHOOK_URL=f"{url}/sink", WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=")

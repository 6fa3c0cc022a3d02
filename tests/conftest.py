"""What every test shares."""

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A machine under load is no defect: examples are limited in number, not in time.
settings.register_profile("gateway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gateway")


def _log_nowhere() -> None:
    """Logs of gateways that run inside the tests go nowhere: the command line's own output is what is compared."""
    renderer = structlog.processors.JSONRenderer(default=repr)
    structlog.configure([renderer], structlog.BoundLogger, logger_factory=structlog.ReturnLoggerFactory())


_log_nowhere()  # also what fixtures of a whole file start, before its first test


@pytest.fixture(autouse=True)
def _nothing_logged_by_the_test_before() -> None:
    """A command sets how its process logs, for good; here the process goes on with the next test."""
    _log_nowhere()

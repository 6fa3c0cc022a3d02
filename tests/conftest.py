"""What every test shares."""

import structlog
from hypothesis import HealthCheck, settings

# A machine under load is no defect: examples are limited in number, not in time.
settings.register_profile("gateway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gateway")

# Logs of gateways that run inside the tests go nowhere: the command line's own output is what is compared.
structlog.configure([structlog.processors.JSONRenderer(default=repr)], logger_factory=structlog.ReturnLoggerFactory())

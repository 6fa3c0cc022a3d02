"""What every test shares."""

from hypothesis import HealthCheck, settings

# A machine under load is no defect: examples are limited in number, not in time.
settings.register_profile("gateway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gateway")

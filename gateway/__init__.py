"""Payment webhooks in; attributed, privacy-safe, exactly-identified analytics events out."""

__version__ = "0.1.0"

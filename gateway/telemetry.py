"""Logs and metrics. A log line has a stable name and the ids to search by; nothing private goes into either.

The labels of metrics are names out of the mapping files, never anything that a payload brings.
"""

import logging
import sys

import structlog
from prometheus_client import Counter

EVENTS = Counter(
    "gateway_events",
    "Events by source, rule, and the subject that led to their visitor, or why none did: the stitch rate.",
    ["source", "rule", "linked_by", "unlinked"],
)
LATE_LINKS = Counter(
    "gateway_late_links", "Deliveries that tell of a link that came after the event had gone out.", ["destination"]
)


def configure_logs(*, json: bool, quiet: bool = False) -> None:
    """Write the process's log to stderr, as JSON for machines or as lines for people; `quiet` leaves only errors."""
    # Tracebacks without the frames' variables, here and below: those hold payloads.
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if json:
        processors.append(structlog.processors.ExceptionRenderer())
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR if quiet else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )

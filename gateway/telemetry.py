"""Logs: one line an occurrence, with a stable name and the ids to search by. Nothing private goes in."""

import logging
import sys

import structlog


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

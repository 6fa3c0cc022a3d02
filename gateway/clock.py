"""The time. Everybody else is told it, so that a test can say what it is."""

import time


def now_ms() -> int:
    """The wall clock, in ms since 1970."""
    return time.time_ns() // 1_000_000

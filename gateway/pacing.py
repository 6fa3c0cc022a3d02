"""When to try again. Pure: the clock and the randomness are arguments; times are in ms."""

import email.utils
from collections.abc import Callable

FIRST_PAUSE = 2_000
LONGEST_PAUSE = 3_600_000
LONGEST_RETRY_AFTER = 86_400_000
"""A collector may ask for a day's patience; more is taken for a mistake of its clock or its units."""


def backoff(attempts: int, uniform: Callable[[float, float], float]) -> int:
    """Return the pause after that many attempts: full jitter under a limit that doubles from 2 s to an hour."""
    limit = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempts - 1, 20))
    return int(uniform(0, limit))


def retry_after(value: str | None, now: int) -> int:
    """Return the pause that a Retry-After header asks for, given in seconds or as a date; 0 when it asks for none.

    Rule: RFC 9110, section 10.2.3.
    """
    if not value:
        return 0
    text = value.strip()
    if text.isascii() and text.isdigit():
        pause = int(text[:9]) * 1000
    else:
        try:
            pause = int(email.utils.parsedate_to_datetime(text).timestamp() * 1000) - now
        except (ValueError, OverflowError):
            return 0
    return max(0, min(pause, LONGEST_RETRY_AFTER))

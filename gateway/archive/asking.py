"""What operators write when they look for something, and what is said when it cannot be read, found or done."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal

from gateway.deliveries import (
    Place,
    State,
)
from gateway.documents import duration

MAX_PAGE = 200
"""Webhooks or deliveries of one page."""
MAX_RETRIED = 500
"""Deliveries that one call starts again."""


class Missing(Exception):
    """There is no such webhook or delivery."""


class Unclear(ValueError):
    """What was asked for cannot be read; the message says what to write."""


class Refused(Exception):
    """It is there, but what was asked cannot be done to it; the message says why."""


StateName = Literal["waiting", "due", "leased", "parked", "sent", "skipped", "dead", "pending"]
WebhookState = Literal["waiting", "due", "leased", "parked", "sent", "skipped", "dead", "pending", "failed"]
PENDING = frozenset({State.WAITING, State.DUE, State.LEASED, State.PARKED})


def moment(text: str, now: int) -> int:
    """Return a time in ms: a date, a time in ISO 8601 (UTC unless it says otherwise), or how long ago, such as 2h."""
    try:
        return now - duration(text)
    except ValueError:
        pass
    try:
        # A plus sign that nobody escaped in an address comes as a space.
        when = datetime.fromisoformat(re.sub(r" (?=[0-9]{2}:?[0-9]{2}$)", "+", text) if "T" in text else text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return int((when - _EPOCH) / timedelta(milliseconds=1))
    except (ValueError, OverflowError):
        forms = "2026-10-26, 2026-10-26T09:00:00Z, or 2h for two hours ago"
        raise Unclear(f"`{text[:40]}` is no time: write {forms}") from None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def subjects_of(pairs: Iterable[str]) -> dict[str, str]:
    """Return subjects by name from texts such as `user:42`. Raises `Unclear`."""
    subjects: dict[str, str] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if not colon or not name or not value or "\0" in name:
            raise Unclear("write a subject as name:value, such as user:42")
        subjects[name] = value
    return subjects


def states_of(state: WebhookState | None) -> frozenset[State]:
    """Return the states that a word means; none for no word."""
    if state is None:
        return frozenset()
    return PENDING if state == "pending" else frozenset({State[state.upper()]})


def place_of(after: str) -> Place:
    """Return where a list goes on. Raises `Unclear`."""
    webhook, dot, number = after.partition(".")
    if not dot:
        raise Unclear("this `after` is none that a page gave")
    return number_of(webhook), number_of(number)


def number_of(text: str) -> int:
    """Return the number that a page gave as its `after`. Raises `Unclear`."""
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise Unclear("this `after` is none that a page gave")
    return int(text)

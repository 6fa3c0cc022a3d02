"""Pauses stay within their bounds, whatever a collector asks for."""

import email.utils
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.pacing import FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER, backoff, retry_after

NOW = 1_800_000_000_000


def most(_low: float, high: float) -> float:
    return high


@given(st.integers(1, 10_000), st.randoms(use_true_random=False))
def test_a_pause_is_within_its_limit(attempts: int, random: object) -> None:
    assert 0 <= backoff(attempts, random.uniform) <= backoff(attempts, most) <= LONGEST_PAUSE  # type: ignore[attr-defined]


@given(st.integers(1, 10_000))
def test_the_limit_doubles_until_an_hour(attempts: int) -> None:
    assert backoff(attempts + 1, most) == min(LONGEST_PAUSE, 2 * backoff(attempts, most))


def test_the_first_limit_is_two_seconds_and_the_least_pause_none() -> None:
    assert backoff(1, most) == FIRST_PAUSE == 2_000
    assert backoff(7, lambda low, _high: low) == 0


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("7", 7_000),
        (" 120 ", 120_000),
        ("86400", LONGEST_RETRY_AFTER),
        ("86401", LONGEST_RETRY_AFTER),
        ("9" * 5_000, LONGEST_RETRY_AFTER),
        ("-5", 0),
        ("1.5", 0),
        ("٣", 0),
        ("soon", 0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30_000),
        ("Fri, 15 Jan 2027 07:59:00 GMT", 0),
        ("Fri, 15 Jan 2027 10:00:30 +0200", 30_000),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Fri, 99 Xyz 2027 08:00:30 GMT", 0),
    ],
)
def test_a_collector_may_ask_for_patience(value: str | None, pause: int) -> None:
    assert retry_after(value, NOW) == pause


@given(st.integers(-LONGEST_RETRY_AFTER, 2 * LONGEST_RETRY_AFTER))
def test_a_date_is_as_good_as_seconds(ahead: int) -> None:
    moment = (NOW + ahead) // 1000
    date = email.utils.format_datetime(datetime.fromtimestamp(moment, UTC), usegmt=True)
    assert retry_after(date, NOW) == max(0, min(moment * 1000 - NOW, LONGEST_RETRY_AFTER))


PIECES = [
    "Mon,",
    "01",
    "Jan",
    "2027",
    "08:00",
    "08:00:00",
    "99:99:99",
    "GMT",
    "+9999",
    "-0000",
    "+99999999",
    "0",
    "1e9",
]


@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join), st.integers(0, 2**53))
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0)
def test_no_text_breaks_it_or_asks_for_too_much(value: str, now: int) -> None:
    assert 0 <= retry_after(value, now) <= LONGEST_RETRY_AFTER

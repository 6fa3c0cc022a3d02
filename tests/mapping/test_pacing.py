"""Pauses stay within their bounds, whatever a collector asks for."""

import email.utils
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.pacing import FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER, Pace, backoff, retry_after

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


def paced(most: int = 8, per_second: float = 0) -> Pace:
    return Pace(most, per_second, 0)


def test_a_destination_that_is_well_gets_more_at_a_time_up_to_its_limit() -> None:
    pace = paced(4)
    assert pace.room(0, 0) == 2
    for _ in range(20):
        pace.answered(200, 0)
    assert (pace.room(0, 0), pace.room(3, 0), pace.room(9, 0)) == (4, 1, 0)


def test_as_many_are_held_ready_as_may_be_under_way_but_none_while_it_fails_or_is_rationed() -> None:
    pace = paced(8)
    assert pace.ahead() == 2
    pace.answered(500, 0)
    assert pace.ahead() == 0
    pace.answered(200, 0)
    assert pace.ahead() == pace.room(0, 0)
    assert paced(8, per_second=100).ahead() == 0


@pytest.mark.parametrize("status", [0, 429, 503])
def test_one_that_is_overwhelmed_gets_half(status: int) -> None:
    pace = paced(8)
    for _ in range(60):
        pace.answered(200, 0)
    pace.answered(status, 0)
    assert pace.room(0, 0) == 4


def test_after_five_failures_it_rests_and_then_one_request_tries() -> None:
    pace = paced()
    for _ in range(5):
        pace.answered(500, 1_000)
    assert (pace.room(0, 1_000), pace.pause(1_000)) == (0, 10_000)
    assert (pace.room(0, 11_000), pace.room(1, 11_000)) == (1, 0)
    pace.answered(500, 11_000)
    assert pace.pause(11_000) == 20_000
    for _ in range(20):
        pace.answered(0, 11_000)
    assert pace.pause(11_000) == 300_000
    pace.answered(200, 311_000)
    assert pace.room(0, 311_000) >= 1


def test_answers_that_are_no_failure_of_its_own_let_it_go_on() -> None:
    pace = paced()
    for _ in range(50):
        pace.answered(400, 0)
        pace.answered(429, 0)
    assert pace.room(0, 0) >= 1


def test_a_rate_is_kept_over_any_second() -> None:
    pace = paced(100, per_second=5)
    pace.limit = 100
    began, now = 0, 0
    while now < 10_000:
        room = pace.room(0, now)
        pace.began(room, now)
        began += room
        now += 10
    assert began == pytest.approx(5 * 10 + 5, abs=1)


@pytest.mark.parametrize("per_second", [0.1, 1, 50])
def test_it_says_how_long_until_there_is_room(per_second: float) -> None:
    pace = paced(8, per_second)
    pace.began(max(1, int(per_second)), 0)
    wait = pace.pause(0)
    assert (pace.room(0, wait - 2), pace.room(0, wait)) == (0, 1)

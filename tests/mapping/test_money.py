from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.money import EXPONENTS, Money, exact, money, money_minor, to_major, to_minor


def refusal(build: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ValueError) as caught:
        build(*arguments)
    return str(caught.value)


AMOUNTS = st.decimals(-(10**15), 10**15, allow_nan=False, allow_infinity=False, places=4)


@pytest.mark.parametrize(
    ("major", "amount"),
    [
        ("39.75", "39.75"),
        ("39.750", "39.750"),
        (39.75, "39.75"),
        (0.1, "0.1"),
        (1e-7, "1E-7"),
        (1e20, "1E+20"),
        (40, "40"),
        (-3, "-3"),
        (Decimal("1.10"), "1.10"),
        ("+1.5e3", "1.5E+3"),
        ("9" * 30, "9" * 30),
    ],
)
def test_an_amount_is_kept_as_it_is_written(major: object, amount: str) -> None:
    assert str(money(major, "usd").amount) == amount


@pytest.mark.parametrize(
    ("minor", "currency", "amount"),
    [
        (3975, "usd", "39.75"),
        (5, "USD", "0.05"),
        (-100, "EUR", "-1.00"),
        (500, "jpy", "500"),
        (1234, "KWD", "1.234"),
        (12345, "CLF", "1.2345"),
        ("3975", "USD", "39.75"),
        ("0.5", "USD", "0.005"),
        (500, "ISK", "500"),
    ],
)
def test_minor_units_follow_iso_4217(minor: object, currency: str, amount: str) -> None:
    assert money_minor(minor, currency) == Money(Decimal(amount), currency.upper())


def test_the_providers_special_cases_win_over_iso_4217() -> None:
    stripe = {"ISK": 2, "UGX": 2, "MGA": 0}
    assert money_minor(500, "isk", stripe) == Money(Decimal("5.00"), "ISK")
    assert money_minor(500, "mga", stripe) == Money(Decimal(500), "MGA")
    assert money_minor(500, "usd", stripe) == Money(Decimal("5.00"), "USD")


def test_a_currency_has_two_decimals_unless_iso_4217_says_otherwise() -> None:
    assert {code for code, exponent in EXPONENTS.items() if exponent == 2} == set()
    assert to_minor(money(1, "SEK")) == 100
    assert len(EXPONENTS) == 17 + 7 + 2


@pytest.mark.parametrize(
    ("amount", "minor"),
    [("0.125", 12), ("0.135", 14), ("0.1251", 13), ("-0.125", -12), ("2.675", 268), ("1e20", 10**22)],
)
def test_what_is_finer_than_a_minor_unit_is_rounded_half_to_even(amount: str, minor: int) -> None:
    assert to_minor(money(amount, "USD")) == minor


@given(st.integers(-(10**30) + 1, 10**30 - 1), st.sampled_from(["USD", "JPY", "KWD", "CLF"]))
def test_minor_units_survive_the_round_trip(minor: int, currency: str) -> None:
    assert to_minor(money_minor(minor, currency)) == minor


@given(AMOUNTS)
def test_major_units_survive_the_round_trip(amount: Decimal) -> None:
    assert str(to_major(money(str(amount), "EUR"))) == str(amount)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "NaN", "-Infinity", Decimal("sNaN"), Decimal("Infinity")]
)
def test_what_is_not_finite_is_refused(value: object) -> None:
    assert refusal(exact, value) == "an amount is a finite decimal number, such as 39.75"


@pytest.mark.parametrize(
    "value", ["", " 1", "1 ", "1_000", "1,000.00", "$5", "0x10", "٣", "1.2.3", ".", "-", "e5", "12\n"]
)
def test_text_that_is_no_plain_decimal_is_refused(value: str) -> None:
    assert refusal(exact, value) == "an amount is a finite decimal number, such as 39.75"


@pytest.mark.parametrize(
    "value", ["1e400", "1e-400", "9" * 31, "1" * 100_000, 10**30, 1e300, 5e-324, Decimal("1e31"), "1." + "0" * 31]
)
def test_what_is_beyond_thirty_digits_is_refused(value: object) -> None:
    assert refusal(exact, value) == "an amount has at most 30 digits"


@pytest.mark.parametrize(("value", "name"), [(True, "bool"), (None, "NoneType"), ([1], "list"), (b"1", "bytes")])
def test_what_is_no_number_is_refused_by_its_type(value: object, name: str) -> None:
    assert refusal(exact, value) == f"an amount is a number or decimal text, not {name}"


@pytest.mark.parametrize("currency", ["", "us", "usdt", "u$d", "ÄÖÜ", "123", None, 840, ["USD"]])
def test_a_currency_is_three_letters(currency: object) -> None:
    assert refusal(money, "1", currency) == "a currency is three letters, such as USD"


def test_money_reads_as_amount_and_currency() -> None:
    assert str(money("1e3", "usd")) == "1000 USD"
    assert money("39.75", "usd") == money("39.750", "USD") != money("39.75", "EUR")

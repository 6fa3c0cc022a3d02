"""Money: an exact decimal amount of one currency, and how many decimals each currency has.

Providers speak of minor units (Stripe's 3975), major units ("39.75") or floats; events carry
`Money`, so that nobody divides by 100. Amounts are kept exactly as they were said; rounding
happens once, in `to_minor`. Messages never quote the amount or the currency, which may be private.
"""

import re
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal
from types import MappingProxyType

import msgspec

# ISO 4217: every currency that does not have two decimals, by how many it has.
_UNUSUAL = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
EXPONENTS: Mapping[str, int] = MappingProxyType(
    {code: exponent for exponent, codes in _UNUSUAL.items() for code in codes.split()}
)
MAX_DIGITS = 30
# Wide enough that no operation on amounts of MAX_DIGITS loses a digit.
EXACT = Context(prec=4 * MAX_DIGITS, rounding=ROUND_HALF_EVEN)
NO_SPECIAL_CASES: Mapping[str, int] = MappingProxyType({})

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_TOO_LARGE = 10**MAX_DIGITS
_LONGEST_TEXT = 2 * MAX_DIGITS + 10


class Money(msgspec.Struct, frozen=True, tag_field="$", tag="money"):
    """An exact amount in major units (39.75 dollars) of an ISO 4217 currency in upper case."""

    amount: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.amount:f} {self.currency}"


def money(major: object, currency: object) -> Money:
    """Return `major` units of `currency`, exactly.

    Text and floats count as they are written: "39.75" and 39.75 are the same money. Raises ValueError.
    """
    return Money(exact(major), currency_code(currency))


def money_minor(minor: object, currency: object, exponents: Mapping[str, int] = NO_SPECIAL_CASES) -> Money:
    """Return `minor` units (cents, yen, fils) of `currency`. Raises ValueError.

    `exponents` holds the provider's special cases and wins over ISO 4217: Stripe counts ISK in hundredths.
    """
    code = currency_code(currency)
    exponent = exponents.get(code)
    if exponent is None:
        exponent = EXPONENTS.get(code, 2)
    return Money(exact(minor).scaleb(-exponent, EXACT), code)


def to_minor(value: Money) -> int:
    """Return the amount in minor units by ISO 4217; what is finer than one unit is rounded half to even."""
    shifted = value.amount.scaleb(EXPONENTS.get(value.currency, 2), EXACT)
    return int(shifted.to_integral_value(ROUND_HALF_EVEN, EXACT))


def to_major(value: Money) -> Decimal:
    """Return the exact amount in major units."""
    return value.amount


def currency_code(currency: object) -> str:
    """Return the currency in upper case, or raise ValueError. Does not check that ISO 4217 lists it."""
    if type(currency) is str and len(currency) == 3 and currency.isascii() and currency.isalpha():
        return currency.upper()
    raise ValueError("a currency is three letters, such as USD")


def exact(value: object) -> Decimal:
    """Return the number that `value` is written as, or raise ValueError.

    Takes an int, a float, a Decimal or decimal text; not a boolean, not NaN, not an infinity,
    and nothing of more than 30 digits or beyond 30 decimal places either way.
    """
    if type(value) is str:
        return _from_text(value)
    if type(value) is int:
        return _from_int(value)
    if type(value) is float:
        return _from_text(repr(value))
    if isinstance(value, Decimal):
        return _bounded(value)
    raise ValueError(f"an amount is a number or decimal text, not {type(value).__name__}")


def _from_int(value: int) -> Decimal:
    if abs(value) >= _TOO_LARGE:
        raise ValueError(f"an amount has at most {MAX_DIGITS} digits")
    return Decimal(value)


def _from_text(text: str) -> Decimal:
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"an amount has at most {MAX_DIGITS} digits")
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError("an amount is a finite decimal number, such as 39.75")
    number = Decimal(text)
    short = len(text) <= MAX_DIGITS and "e" not in text and "E" not in text
    return number if short else _bounded(number)


def _bounded(number: Decimal) -> Decimal:
    if not number.is_finite():
        raise ValueError("an amount is a finite decimal number, such as 39.75")
    _, digits, exponent = number.as_tuple()
    if len(digits) > MAX_DIGITS or not -MAX_DIGITS <= int(exponent) <= MAX_DIGITS:
        raise ValueError(f"an amount has at most {MAX_DIGITS} digits")
    return number

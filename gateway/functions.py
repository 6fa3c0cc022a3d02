"""The functions that a mapping may call, each declared once: signature, documentation, example and code.

`STANDARD` is JMESPath's own set and agrees with the `jmespath` package; what is not worth a faster
form here runs in the package itself. `MAPPING` adds the gateway's. Three rules hold for all of those:

- null in, null out: a missing text, amount or time leaves its key out instead of failing the webhook;
- work is bounded: no text grows beyond 64 Ki characters, no pattern may backtrack without end;
- an `EvaluationError` names types and positions, never a value: payloads hold personal data.
"""

import hashlib
import hmac
import json
import re
import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from jmespath.exceptions import JMESPathTypeError
from jmespath.functions import TYPES_MAP, Functions

from gateway.money import EXACT, EXPONENTS, Money, exact, money, money_minor, to_minor
from gateway.patterns import MAX_SUBJECT, bounded

Call = TypeVar("Call", bound=Callable[..., object])

MAX_TEXT = 65_536
_UUID_LENGTH = 36
# Names for uuid5(name); a browser that knows it can compute the same ids.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "webhook-translation-gateway")


class EvaluationError(Exception):
    """An expression met something that it cannot work on. The message holds no value of the document."""


class Scope(msgspec.Struct, frozen=True):
    """What a scoped function may look at besides its arguments."""

    headers: Mapping[str, str] = {}  # by lower-case name
    tables: Mapping[str, Mapping[str, object]] = {}
    exponents: Mapping[str, int] = {}  # the provider's exceptions to ISO 4217
    fetched: Mapping[str, object] = {}  # by the name in `fetch:`, None for what was not fetched


class Function(msgspec.Struct, frozen=True):
    """A function of the mapping language. `call` gets the scope first if `scoped`."""

    name: str
    call: Callable[..., object]
    minimum: int
    maximum: int | None  # None: as many arguments as one likes
    signature: str
    doc: str
    example: str  # an expression over EXAMPLE_DOCUMENT, in EXAMPLE_SCOPE
    result: object
    scoped: bool = False


class _Expression:
    """What `&expr` evaluates to. The package tells an expression by this very class name and calls `visit`."""

    __slots__ = ("expression", "scope")

    def __init__(self, expression: Callable[[object, Scope], object], scope: Scope) -> None:
        self.expression = expression
        self.scope = scope

    def visit(self, expression: Callable[[object, Scope], object], value: object) -> object:
        return expression(value, self.scope)


Reference = _Expression

EXAMPLE_SCOPE = Scope(
    headers={"x-shopify-topic": "orders/paid"},
    tables={"plans": {"price_1": "Pro"}},
    fetched={"line_items": {"data": [{"quantity": 2}]}},
)
EXAMPLE_DOCUMENT: Mapping[str, object] = MappingProxyType(
    {"items": [{"sku": "b", "price": 2}, {"sku": "a", "price": 9}]}
)

_TYPES: Mapping[type, str] = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
    Money: "money",
    _Expression: "expression reference",
}


def type_name(value: object) -> str:
    """Return what the language calls the type of `value`."""
    return _TYPES.get(type(value), "unknown")


def mismatch(name: str, position: int, expected: str, value: object) -> EvaluationError:
    """Return the error for an argument (from 1) of the wrong type."""
    return EvaluationError(f"`{name}` argument {position}: expected {expected}, got {type_name(value)}")


def _declare(
    functions: dict[str, Function], call: Call, signature: str, doc: str, example: str, result: object, scoped: bool
) -> Call:
    name, _, rest = signature.partition("(")
    parameters = [parameter for parameter in rest.partition(")")[0].split(", ") if parameter]
    open_ended = parameters[-1:] == ["..."]
    minimum = sum(not parameter.endswith(("?", "...")) for parameter in parameters)
    maximum = None if open_ended else len(parameters)
    functions[name] = Function(name, call, minimum, maximum, signature, doc, example, result, scoped)
    return call


# JMESPath's own functions. A fast form handles the arguments that are right and leaves all others to the package.

_RUNTIME = Functions()
_ENCODE = json.JSONEncoder(separators=(",", ":"), default=str).encode
_SIZED = frozenset({str, list, dict})


def _in_package(name: str) -> Callable[..., object]:
    def call(*arguments: object) -> object:
        try:
            return _RUNTIME.call_function(name, arguments)
        except JMESPathTypeError as error:
            raise _package_mismatch(name, error) from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise EvaluationError(f"`{name}`: cannot work on these arguments ({type(error).__name__})") from None

    return call


def _package_mismatch(name: str, error: JMESPathTypeError) -> EvaluationError:
    parameters = _RUNTIME.FUNCTION_TABLE[name]["signature"]
    # The package hands the parameter's own list of types to the error, except for a key that `&expr` yields.
    positions = (i for i, parameter in enumerate(parameters, 1) if parameter["types"] is error.expected_types)
    expected = " or ".join(_spoken(each) for each in error.expected_types)
    got = TYPES_MAP.get(error.actual_type, error.actual_type)
    return EvaluationError(f"`{name}` argument {next(positions, 2)}: expected {expected}, got {got}")


def _spoken(package_type: str) -> str:
    outer, _, inner = package_type.partition("-")
    if package_type == "expref":
        return "an expression such as `&name`"
    return f"{outer} of {inner}" if inner else outer


_slow: Mapping[str, Callable[..., object]] = {name: _in_package(name) for name in _RUNTIME.FUNCTION_TABLE}


def _to_string(value: object) -> object:
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    # The package knows no money and would write it as a JSON string, in quotes.
    return str(value) if type(value) is Money else _ENCODE(value)


def _to_number(value: object) -> object:
    if type(value) is int or type(value) is float:
        return value
    if type(value) is str and "." in value:  # as prices are written; the package tries an integer first
        try:
            return float(value)
        except ValueError:
            return None
    return _slow["to_number"](value)


def _not_null(*values: object) -> object:
    for value in values:
        if value is not None:
            return value
    return None


def _length(value: Any) -> object:
    return len(value) if type(value) in _SIZED else _slow["length"](value)


def _contains(subject: Any, search: object) -> object:
    if type(subject) is list or (type(subject) is str and type(search) is str):
        return search in subject
    return _slow["contains"](subject, search)


def _starts_with(subject: object, prefix: object) -> object:
    if type(subject) is str and type(prefix) is str:
        return subject.startswith(prefix)
    return _slow["starts_with"](subject, prefix)


def _ends_with(subject: object, suffix: object) -> object:
    if type(subject) is str and type(suffix) is str:
        return subject.endswith(suffix)
    return _slow["ends_with"](subject, suffix)


def _join(glue: object, parts: Any) -> object:
    if type(glue) is str and type(parts) is list and all(type(part) is str for part in parts):
        if len(glue) * len(parts) > MAX_TEXT:
            raise _too_long("join")
        return _bounded("join", glue.join(parts))
    return _slow["join"](glue, parts)


def _too_long(name: str) -> EvaluationError:
    return EvaluationError(f"`{name}`: the result is longer than {MAX_TEXT} characters")


def _bounded(name: str, text: str) -> str:
    if len(text) > MAX_TEXT:
        raise _too_long(name)
    return text


_FAST: Mapping[str, Callable[..., object]] = {
    "to_string": _to_string,
    "to_number": _to_number,
    "not_null": _not_null,
    "length": _length,
    "contains": _contains,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "join": _join,
}

_STANDARD: tuple[tuple[str, str, str, object], ...] = (
    ("abs(number) -> number", "The number without its sign.", "abs(`-3`)", 3),
    ("avg(numbers) -> number", "The mean; null of none.", "avg(`[1, 2]`)", 1.5),
    ("ceil(number) -> number", "The next whole number above.", "ceil(`1.2`)", 2),
    ("contains(subject, search) -> boolean", "Whether a text or list contains it.", "contains('abc', 'b')", True),
    ("ends_with(text, suffix) -> boolean", "Whether the text ends so.", "ends_with('abc', 'bc')", True),
    ("floor(number) -> number", "The next whole number below.", "floor(`1.8`)", 1),
    ("join(glue, texts) -> string", "The texts with the glue between them.", 'join(\'-\', `["a", "b"]`)', "a-b"),
    ("keys(object) -> array", "The object's keys.", 'keys(`{"a": 1}`)', ["a"]),
    ("length(subject) -> number", "How many characters, elements or keys.", "length(items)", 2),
    ("map(&expression, array) -> array", "Each element's result, nulls included.", "map(&sku, items)", ["b", "a"]),
    ("max(array) -> number | string", "The greatest; null of none.", "max(`[1, 2]`)", 2),
    ("max_by(array, &key) -> any", "The element with the greatest key.", "max_by(items, &price).sku", "a"),
    ("merge(object, ...) -> object", "One object; the last to set a key wins.", 'merge(`{}`, `{"a": 1}`)', {"a": 1}),
    ("min(array) -> number | string", "The least; null of none.", "min(`[1, 2]`)", 1),
    ("min_by(array, &key) -> any", "The element with the least key.", "min_by(items, &price).sku", "b"),
    ("not_null(value, ...) -> any", "The first value that is not null.", "not_null(none, 'a')", "a"),
    ("reverse(subject) -> any", "The text or list backwards.", "reverse('abc')", "cba"),
    ("sort(array) -> array", "The numbers or texts in order.", "sort(`[2, 1]`)", [1, 2]),
    ("sort_by(array, &key) -> array", "The elements by ascending key.", "sort_by(items, &sku)[0].price", 9),
    ("starts_with(text, prefix) -> boolean", "Whether the text begins so.", "starts_with('abc', 'ab')", True),
    ("sum(numbers) -> number", "The sum, 0 of none.", "sum(items[].price)", 11),
    ("to_array(value) -> array", "A list as it is, anything else in a list of its own.", "to_array('a')", ["a"]),
    ("to_number(value) -> number", "A number, or the number that a text says.", "to_number('1.5')", 1.5),
    (
        "to_string(value) -> string",
        "A text as it is, anything else as JSON; money as `39.75 USD`.",
        "to_string(`1`)",
        "1",
    ),
    ("type(value) -> string", "The name of the value's type.", "type('a')", "string"),
    ("values(object) -> array", "The object's values.", 'values(`{"a": 1}`)', [1]),
)


def _standard() -> dict[str, Function]:
    functions: dict[str, Function] = {}
    for signature, doc, example, result in _STANDARD:
        name = signature.partition("(")[0]
        _declare(functions, _FAST.get(name, _slow[name]), signature, doc, example, result, scoped=False)
    return functions


STANDARD: Mapping[str, Function] = MappingProxyType(_standard())

# The gateway's own.

_own: dict[str, Function] = {}


def _function(
    signature: str, doc: str, example: str, result: object, *, scoped: bool = False
) -> Callable[[Call], Call]:
    def declare(call: Call) -> Call:
        return _declare(_own, call, signature, doc, example, result, scoped)

    return declare


def _text(name: str, position: int, value: object) -> str:
    if type(value) is not str:
        raise mismatch(name, position, "string", value)
    return value


@_function(
    "header(name) -> string",
    "A request header, whatever its case.",
    "header('X-Shopify-Topic')",
    "orders/paid",
    scoped=True,
)
def _header(scope: Scope, name: object) -> object:
    return scope.headers.get(_text("header", 1, name).lower())


@_function(
    "lookup(table, key) -> any",
    "What the file's own table holds for the key.",
    "lookup('plans', 'price_1')",
    "Pro",
    scoped=True,
)
def _lookup(scope: Scope, table: object, key: object) -> object:
    entries = scope.tables.get(_text("lookup", 1, table))
    if entries is None:
        known = ", ".join(sorted(scope.tables)) or "none"
        raise EvaluationError(f"`lookup` argument 1: unknown table; the file's tables are: {known}")
    return None if key is None else entries.get(_text("lookup", 2, key))


@_function(
    "fetched(name) -> any",
    "The object that the file's own `fetch:` got; null when it was not fetched.",
    "fetched('line_items').data[0].quantity",
    2,
    scoped=True,
)
def _fetched(scope: Scope, name: object) -> object:
    if _text("fetched", 1, name) not in scope.fetched:
        known = ", ".join(sorted(scope.fetched)) or "none"
        raise EvaluationError(f"`fetched` argument 1: nothing is fetched by this name; the file's fetches are: {known}")
    return scope.fetched[str(name)]


@_function("default(value, otherwise) -> any", "The value, or the other if it is null.", "default(none, 'a')", "a")
def _default(value: object, otherwise: object) -> object:
    return otherwise if value is None else value


_function("coalesce(value, ...) -> any", "The first value that is not null.", "coalesce(none, 'a')", "a")(_not_null)


# Money and arithmetic. Numbers go through their decimal text, so that 0.1 + 0.2 is 0.3.

_QUOTIENT = Context(prec=28)
_CENTS = Money(Decimal("39.75"), "USD")


@_function(
    "money(major, currency) -> money",
    "Exact money from major units, as number or text.",
    "money('39.75', 'usd')",
    _CENTS,
)
def _money(major: object, currency: object) -> object:
    return None if major is None or currency is None else _checked("money", money, major, currency)


@_function(
    "money_minor(minor, currency) -> money",
    "Exact money from minor units, by ISO 4217 and the provider's exceptions.",
    "money_minor(`3975`, 'usd')",
    _CENTS,
    scoped=True,
)
def _money_minor(scope: Scope, minor: object, currency: object) -> object:
    if minor is None or currency is None:
        return None
    return _checked("money_minor", money_minor, minor, currency, scope.exponents)


@_function("minor(money) -> number", "The money in minor units.", "minor(money('39.75', 'USD'))", 3975)
def _minor(value: object) -> object:
    return None if value is None else to_minor(_cash("minor", value))


@_function(
    "major(money) -> number",
    "The money in major units; a plain number stays as it is.",
    "major(money('39.75', 'USD'))",
    39.75,
)
def _major(value: object) -> object:
    if value is None or type(value) is int or type(value) is float:
        return value
    return _number(_cash("major", value).amount)


@_function("currency(money) -> string", "The money's currency.", "currency(money('39.75', 'usd'))", "USD")
def _currency(value: object) -> object:
    return None if value is None else _cash("currency", value).currency


@_function(
    "add(a, b) -> number | money", "The sum of two numbers, or of money in one currency.", "add(`0.1`, `0.2`)", 0.3
)
def _add(left: object, right: object) -> object:
    return _combined("add", left, right, EXACT.add)


@_function(
    "subtract(a, b) -> number | money",
    "The difference of two numbers, or of money in one currency.",
    "subtract(`3`, `1.5`)",
    1.5,
)
def _subtract(left: object, right: object) -> object:
    return _combined("subtract", left, right, EXACT.subtract)


@_function(
    "multiply(a, b) -> number | money",
    "The product of two numbers, or of money and a number.",
    "multiply(`0.1`, `3`)",
    0.3,
)
def _multiply(left: object, right: object) -> object:
    if left is None or right is None:
        return None
    if type(left) is Money:
        return Money(EXACT.multiply(left.amount, _operand("multiply", 2, right)), left.currency)
    if type(right) is Money:
        return Money(EXACT.multiply(_operand("multiply", 1, left), right.amount), right.currency)
    return _number(EXACT.multiply(_operand("multiply", 1, left), _operand("multiply", 2, right)))


@_function(
    "divide(a, b) -> number | money", "The quotient of two numbers, or of money and a number.", "divide(`1`, `4`)", 0.25
)
def _divide(left: object, right: object) -> object:
    if left is None or right is None:
        return None
    divisor = _operand("divide", 2, right)
    if not divisor:
        raise EvaluationError("`divide` argument 2: division by zero")
    if type(left) is Money:
        return Money(_QUOTIENT.divide(left.amount, divisor), left.currency)
    return _number(_QUOTIENT.divide(_operand("divide", 1, left), divisor))


@_function(
    "round(value, digits?) -> number | money",
    "Rounded half to even: numbers to whole ones, money to minor units, or to so many decimals.",
    "round(`2.345`, `2`)",
    2.34,
)
def _round(value: object, digits: object = None) -> object:
    if value is None:
        return None
    if type(value) is Money:
        places = EXPONENTS.get(value.currency, 2) if digits is None else _places(digits)
        return Money(_rounded(value.amount, places), value.currency)
    return _number(_rounded(_operand("round", 1, value), 0 if digits is None else _places(digits)))


def _places(digits: object) -> int:
    if type(digits) is not int or not 0 <= digits <= 15:
        raise EvaluationError("`round` argument 2: expected a whole number from 0 to 15")
    return digits


def _rounded(amount: Decimal, places: int) -> Decimal:
    return amount.quantize(Decimal(1).scaleb(-places), context=EXACT)


def _checked(name: str, build: Callable[..., Money], *arguments: object) -> Money:
    try:
        return build(*arguments)
    except ValueError as error:
        message = f"`{name}`: {error}"
    raise EvaluationError(message)


def _cash(name: str, value: object) -> Money:
    if type(value) is not Money:
        raise mismatch(name, 1, "money", value)
    return value


def _combined(name: str, left: object, right: object, operate: Callable[[Decimal, Decimal], Decimal]) -> object:
    if left is None or right is None:
        return None
    if type(left) is Money and type(right) is Money:
        if left.currency != right.currency:
            raise EvaluationError(f"`{name}`: the two are not of one currency")
        return Money(operate(left.amount, right.amount), left.currency)
    if type(left) is Money:
        raise mismatch(name, 2, "money", right)
    return _number(operate(_operand(name, 1, left), _operand(name, 2, right)))


def _operand(name: str, position: int, value: object) -> Decimal:
    if type(value) is not int and type(value) is not float:
        raise mismatch(name, position, "number", value)
    try:
        return exact(value)
    except ValueError:
        message = f"`{name}` argument {position}: expected a finite number of at most 30 digits"
    raise EvaluationError(message)


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


@_function(
    "root() -> any",
    "The whole payload, from wherever: inside `[]` and `[?…]` all else sees the item only.",
    "items[].{sku: sku, of: length(root().items)} | [0]",
    {"sku": "b", "of": 2},
)
def _root() -> object:
    raise AssertionError("the compiler knows where the root is")


# Time. Everything becomes milliseconds since 1970 UTC first.

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_NAIVE = _EPOCH.replace(tzinfo=None)  # formatting an offset would cost as much as all the rest
_MILLISECOND = timedelta(milliseconds=1)
_FIRST = -62_135_596_800_000  # 0001-01-01
_LAST = 253_402_300_799_999  # 9999-12-31
_MILLISECONDS_FROM = 1e12  # as seconds that would be the year 33658
_LONGEST_TIME = 64


@_function(
    "iso8601(time) -> string",
    "UTC with milliseconds, from seconds or milliseconds since 1970 or ISO 8601 with an offset.",
    "iso8601(`1700000000`)",
    "2023-11-14T22:13:20.000Z",
)
def _iso8601(value: object) -> object:
    return None if value is None else _moment("iso8601", value).isoformat("T", "milliseconds") + "Z"


@_function("to_date(time) -> string", "The UTC date.", "to_date('2026-01-01T01:00:00+02:00')", "2025-12-31")
def _to_date(value: object) -> object:
    return None if value is None else _moment("to_date", value).date().isoformat()


@_function("epoch(time) -> number", "Whole seconds since 1970.", "epoch('2023-11-14T22:13:20Z')", 1_700_000_000)
def _epoch(value: object) -> object:
    return None if value is None else _milliseconds("epoch", value) // 1000


@_function(
    "epoch_ms(time) -> number", "Milliseconds since 1970.", "epoch_ms('2023-11-14T22:13:20.5Z')", 1_700_000_000_500
)
def _epoch_ms(value: object) -> object:
    return None if value is None else _milliseconds("epoch_ms", value)


def milliseconds(value: object) -> int:
    """Return a time, given as `epoch_ms` takes it, in ms since 1970. Raises EvaluationError."""
    return _milliseconds("epoch_ms", value)


def _moment(name: str, value: object) -> datetime:
    return _EPOCH_NAIVE + _milliseconds(name, value) * _MILLISECOND


def _milliseconds(name: str, value: object) -> int:
    if type(value) is int or type(value) is float:
        moment = value if value >= _MILLISECONDS_FROM else value * 1000
    elif type(value) is str:
        moment = _read_time(name, value)
    else:
        raise mismatch(name, 1, "number or string", value)
    # Written so that NaN is out of range too.
    if not _FIRST <= moment <= _LAST:
        raise EvaluationError(f"`{name}` argument 1: the time is not within the years 1 to 9999")
    return round(moment)


def _read_time(name: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text) if len(text) <= _LONGEST_TIME else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise EvaluationError(
            f"`{name}` argument 1: expected a date and time with an offset, such as 2026-07-27T10:00:00Z"
        )
    return (moment - _EPOCH) // _MILLISECOND


# Text.


@_function("lower(text) -> string", "In lower case.", "lower('ABC')", "abc")
def _lower(text: object) -> object:
    return None if text is None else _text("lower", 1, text).lower()


@_function("upper(text) -> string", "In upper case.", "upper('abc')", "ABC")
def _upper(text: object) -> object:
    return None if text is None else _text("upper", 1, text).upper()


@_function("trim(text) -> string", "Without white space at both ends.", "trim(' a ')", "a")
def _trim(text: object) -> object:
    return None if text is None else _text("trim", 1, text).strip()


@_function("replace(text, old, new) -> string", "With each `old` replaced by `new`.", "replace('a-b', '-', '+')", "a+b")
def _replace(text: object, old: object, new: object) -> object:
    if text is None:
        return None
    subject, search, other = _text("replace", 1, text), _text("replace", 2, old), _text("replace", 3, new)
    if len(subject) + subject.count(search) * (len(other) - len(search)) > MAX_TEXT:
        raise _too_long("replace")
    return subject.replace(search, other)


@_function("split(text, separator) -> array", "The parts between the separators.", "split('a,b', ',')", ["a", "b"])
def _split(text: object, separator: object) -> object:
    if text is None:
        return None
    subject, between = _text("split", 1, text), _text("split", 2, separator)
    if not between:
        raise EvaluationError("`split` argument 2: the separator is empty")
    return subject.split(between)


@_function(
    "base64(text) -> string", "In Base64, as Basic authentication wants it.", "base64('user:key')", "dXNlcjprZXk="
)
def _base64(text: object) -> object:
    return None if text is None else b64encode(_text("base64", 1, text).encode()).decode()


@_function("sha256(text) -> string", "SHA-256 of the text, in hex.", "sha256('')", hashlib.sha256().hexdigest())
def _sha256(text: object) -> object:
    return None if text is None else hashlib.sha256(_text("sha256", 1, text).encode()).hexdigest()


@_function(
    "hmac_sha256(key, text) -> string",
    "HMAC-SHA-256 of the text, in hex.",
    "hmac_sha256('k', 'a')",
    hmac.digest(b"k", b"a", "sha256").hex(),
)
def _hmac_sha256(key: object, text: object) -> object:
    if key is None or text is None:
        return None
    secret, message = _text("hmac_sha256", 1, key), _text("hmac_sha256", 2, text)
    return hmac.digest(secret.encode(), message.encode(), "sha256").hex()


@_function(
    "uuid5(namespace?, name) -> string",
    "The UUID of a name; the namespace is a UUID, a name, or the gateway's.",
    "uuid5('order-1')",
    str(uuid.uuid5(NAMESPACE, "order-1")),
)
def _uuid5(namespace: object, name: object = ...) -> object:
    if namespace is None or name is None:
        return None
    if name is ...:
        return str(uuid.uuid5(NAMESPACE, _text("uuid5", 1, namespace)))
    return str(uuid.uuid5(_namespace(_text("uuid5", 1, namespace)), _text("uuid5", 2, name)))


def _namespace(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text) if len(text) == _UUID_LENGTH else uuid.uuid5(NAMESPACE, text)
    except ValueError:
        return uuid.uuid5(NAMESPACE, text)


# Patterns.


@_function(
    "regex_match(text, pattern) -> boolean",
    "Whether the pattern is found in the text.",
    "regex_match('ord_12', '^ord_\\d+$')",
    True,
)
def _regex_match(text: object, pattern: object) -> object:
    if text is None:
        return None
    subject = _text("regex_match", 1, text)
    return _pattern("regex_match", pattern, len(subject)).search(subject) is not None


@_function(
    "regex_replace(text, pattern, replacement) -> string",
    "With each match replaced; `\\1` is the first group.",
    "regex_replace('12-34', '(\\d+)-(\\d+)', '\\2-\\1')",
    "34-12",
)
def _regex_replace(text: object, pattern: object, replacement: object) -> object:
    if text is None:
        return None
    subject, template = _text("regex_replace", 1, text), _text("regex_replace", 3, replacement)
    room = MAX_TEXT

    def expand(match: re.Match[str]) -> str:
        nonlocal room
        expanded = match.expand(template)
        room -= len(expanded)
        if room < 0:
            raise _too_long("regex_replace")
        return expanded

    try:
        return _pattern("regex_replace", pattern, len(subject)).sub(expand, subject)
    except (re.error, IndexError):
        message = "`regex_replace` argument 3: not a replacement for this pattern"
    raise EvaluationError(message)


def _pattern(name: str, pattern: object, length: int) -> re.Pattern[str]:
    if length > MAX_SUBJECT:
        raise EvaluationError(f"`{name}` argument 1: longer than {MAX_SUBJECT} characters")
    try:
        return bounded(_text(name, 2, pattern), length)
    except ValueError as error:
        message = f"`{name}` argument 2: {error}"
    raise EvaluationError(message)


MAPPING: Mapping[str, Function] = MappingProxyType({**STANDARD, **_own})

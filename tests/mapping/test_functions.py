import time
import uuid
from contextlib import suppress
from decimal import Decimal

import jmespath.functions
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.expressions import compile_expression
from gateway.functions import (
    EXAMPLE_DOCUMENT,
    EXAMPLE_SCOPE,
    MAPPING,
    NAMESPACE,
    STANDARD,
    EvaluationError,
    Function,
    Scope,
)
from gateway.money import Money, money

SCOPE = Scope(
    headers={"x-shopify-topic": "orders/paid"},
    tables={"plans": {"price_1": "Pro"}, "countries": {"GB": "United Kingdom"}},
    exponents={"ISK": 2},
)


def run(expression: str, document: object = None) -> object:
    return compile_expression(expression, MAPPING)(document, SCOPE)


def failure(expression: str, document: object = None) -> str:
    with pytest.raises(EvaluationError) as caught:
        run(expression, document)
    return str(caught.value)


@pytest.mark.parametrize("function", MAPPING.values(), ids=lambda function: function.name)
def test_every_function_is_documented_with_an_example_that_runs(function: Function) -> None:
    example = compile_expression(function.example, MAPPING)
    assert example(dict(EXAMPLE_DOCUMENT), EXAMPLE_SCOPE) == function.result
    assert type(example(dict(EXAMPLE_DOCUMENT), EXAMPLE_SCOPE)) is type(function.result)
    assert function.signature.startswith(f"{function.name}(")
    assert function.name in function.example
    assert function.doc.endswith(".")


def test_the_standard_functions_are_the_packages_with_its_arities() -> None:
    table = jmespath.functions.Functions.FUNCTION_TABLE
    arities = {name: (function.minimum, function.maximum) for name, function in STANDARD.items()}
    assert arities == {
        name: (len(spec["signature"]), None if spec["signature"][-1].get("variadic") else len(spec["signature"]))
        for name, spec in table.items()
    }


def test_the_gateways_functions_are_these() -> None:
    own = (
        "header money money_minor minor major currency iso8601 epoch epoch_ms to_date lower upper trim replace split "
        "default coalesce sha256 hmac_sha256 uuid5 regex_match regex_replace add subtract multiply divide round lookup "
        "root base64 fetched"
    )
    assert set(MAPPING) - set(STANDARD) == set(own.split())


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("header('X-SHOPIFY-topic')", "orders/paid"),
        ("header('absent')", None),
        ("lookup('plans', 'price_1')", "Pro"),
        ("lookup('plans', 'price_2')", None),
        ("lookup('plans', `null`)", None),
        ("default(`0`, 'x')", 0),
        ("default(`null`, 'x')", "x"),
        ("coalesce(`null`, `false`, 'x')", False),
        ("money_minor(`500`, 'isk')", Money(Decimal("5.00"), "ISK")),
        ("money_minor(`500`, `null`)", None),
        ("minor(`null`)", None),
        ("major(`12.5`)", 12.5),
        ("major(money('40.00', 'USD'))", 40),
        ("currency(`null`)", None),
        ("replace('aaa', '', '-')", "-a-a-a-"),
        ('trim(`"\\n x "`)', "x"),
        ("uuid5('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'a')", str(uuid.uuid5(uuid.NAMESPACE_DNS, "a"))),
        ("uuid5('shop', 'a')", str(uuid.uuid5(uuid.uuid5(NAMESPACE, "shop"), "a"))),
        ("regex_match('order 12', '\\d+')", True),
        ("regex_match('order', '\\d')", False),
        ("regex_replace('a-b-c', '-', '')", "abc"),
        ("regex_replace('a1b22', '(?P<n>\\d+)', '<\\g<n>>')", "a<1>b<22>"),
    ],
)
def test_a_function_gives(expression: str, value: object) -> None:
    found = run(expression)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "call",
    [
        *(
            "lower($)",
            "upper($)",
            "trim($)",
            "replace($, 'a', 'b')",
            "split($, ',')",
            "sha256($)",
            "hmac_sha256($, 'a')",
        ),
        *("hmac_sha256('k', $)", "uuid5($)", "uuid5('n', $)", "regex_match($, 'a')", "regex_replace($, 'a', 'b')"),
        *("iso8601($)", "epoch($)", "epoch_ms($)", "to_date($)", "money($, 'USD')", "money('1', $)", "minor($)"),
        *(
            "major($)",
            "currency($)",
            "add($, `1`)",
            "subtract(`1`, $)",
            "multiply($, `1`)",
            "divide(`1`, $)",
            "round($)",
        ),
    ],
)
def test_null_in_is_null_out(call: str) -> None:
    assert run(call.replace("$", "missing"), {}) is None


@pytest.mark.parametrize(
    ("time", "iso"),
    [
        ("`0`", "1970-01-01T00:00:00.000Z"),
        ("`-1`", "1969-12-31T23:59:59.000Z"),
        ("`1700000000`", "2023-11-14T22:13:20.000Z"),
        ("`1700000000.5`", "2023-11-14T22:13:20.500Z"),
        ("`1700000000123`", "2023-11-14T22:13:20.123Z"),
        ("`999999999999`", None),
        ("'2026-07-27T10:00:00Z'", "2026-07-27T10:00:00.000Z"),
        ("'2026-07-27T10:00:00-04:00'", "2026-07-27T14:00:00.000Z"),
        ("'2026-07-27 10:00:00.123456+00:00'", "2026-07-27T10:00:00.123Z"),
        ("'2026-07-27T10:00:00.123456789Z'", "2026-07-27T10:00:00.123Z"),
        ("'0001-01-01T00:00:00Z'", "0001-01-01T00:00:00.000Z"),
        ("'0001-01-01T00:00:00+01:00'", None),
        ("`1e400`", None),
        ("`NaN`", None),
    ],
)
def test_every_way_to_write_a_time_becomes_utc(time: str, iso: str | None) -> None:
    if iso is None:
        assert failure(f"iso8601({time})") == "`iso8601` argument 1: the time is not within the years 1 to 9999"
    else:
        assert run(f"iso8601({time})") == iso
        assert run(f"to_date({time})") == iso[:10]


@given(st.integers(-62_135_596_800, 253_402_300_799))
@settings(deadline=None, max_examples=50)
def test_a_time_and_its_epoch_are_one(seconds: int) -> None:
    assert run("epoch(iso8601(@))", seconds) == seconds
    assert run("epoch_ms(iso8601(@))", seconds) == seconds * 1000


@pytest.mark.parametrize(
    "time", ["2026-07-27T10:00:00", "2026-07-27", "yesterday", "", "1700000000", "2026-13-01T00:00:00Z"]
)
def test_a_time_without_an_offset_is_refused(time: str) -> None:
    message = "`epoch` argument 1: expected a date and time with an offset, such as 2026-07-27T10:00:00Z"
    assert failure("epoch(@)", time) == message


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("add(`0.1`, `0.2`)", 0.3),
        ("add(`1.5`, `1.5`)", 3),
        ("add(`1e29`, `1`)", 10**29 + 1),
        ("multiply(`1.1`, `1.1`)", 1.21),
        ("divide(`1`, `3`)", 1 / 3),
        ("divide(`9`, `3`)", 3),
        ("round(`2.5`)", 2),
        ("round(`-0.004`, `2`)", 0),
        ("round(`2.675`, `2`)", 2.68),
    ],
)
def test_arithmetic_is_decimal_and_whole_results_are_integers(expression: str, value: object) -> None:
    found = run(expression)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("add(paid, tax)", money("12.34", "USD")),
        ("subtract(tax, paid)", money("-7.66", "USD")),
        ("multiply(paid, `0.1`)", money("1.000", "USD")),
        ("multiply(`3`, tax)", money("7.02", "USD")),
        ("divide(paid, `4`)", money("2.5", "USD")),
        ("round(divide(paid, `3`))", money("3.33", "USD")),
        ("round(yen)", money("100", "JPY")),
        ("round(tax, `1`)", money("2.3", "USD")),
        ("minor(add(paid, tax))", 1234),
    ],
)
def test_money_counts_in_its_currency(expression: str, value: object) -> None:
    purse = {"paid": money("10.00", "USD"), "tax": money("2.34", "USD"), "yen": money("100.4", "JPY")}
    assert run(expression, purse) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("header(`1`)", "`header` argument 1: expected string, got number"),
        ("lookup('nope', 'a')", "`lookup` argument 1: unknown table; the file's tables are: countries, plans"),
        ("lookup('plans', `1`)", "`lookup` argument 2: expected string, got number"),
        ("lower(`1`)", "`lower` argument 1: expected string, got number"),
        ("replace('a', 'b', `null`)", "`replace` argument 3: expected string, got null"),
        ("split('a', '')", "`split` argument 2: the separator is empty"),
        ("money('4111x', 'USD')", "`money`: an amount is a finite decimal number, such as 39.75"),
        ("money(`true`, 'USD')", "`money`: an amount is a number or decimal text, not bool"),
        ("money_minor(`1`, 'bitcoin')", "`money_minor`: a currency is three letters, such as USD"),
        ("minor(`1`)", "`minor` argument 1: expected money, got number"),
        ("major('1')", "`major` argument 1: expected money, got string"),
        ("currency(@)", "`currency` argument 1: expected money, got object"),
        ("add('1', `1`)", "`add` argument 1: expected number, got string"),
        ("add(`1`, `true`)", "`add` argument 2: expected number, got boolean"),
        ("add(`1e300`, `1`)", "`add` argument 1: expected a finite number of at most 30 digits"),
        ("add(money('1', 'USD'), `1`)", "`add` argument 2: expected money, got number"),
        ("add(`1`, money('1', 'USD'))", "`add` argument 2: expected number, got money"),
        ("subtract(money('1', 'USD'), money('1', 'EUR'))", "`subtract`: the two are not of one currency"),
        ("multiply(money('1', 'USD'), money('1', 'USD'))", "`multiply` argument 2: expected number, got money"),
        ("divide(`1`, `0`)", "`divide` argument 2: division by zero"),
        ("round(`1`, `-1`)", "`round` argument 2: expected a whole number from 0 to 15"),
        ("iso8601(`true`)", "`iso8601` argument 1: expected number or string, got boolean"),
        ("iso8601(&a)", "`iso8601` argument 1: expected number or string, got expression reference"),
        ("sum([money('1', 'USD')])", "`sum` argument 1: expected array of number, got Money"),
    ],
)
def test_a_wrong_argument_is_named_by_position_and_type(expression: str, message: str) -> None:
    assert failure(expression, {}) == message


@pytest.mark.parametrize(
    "expression",
    [
        "join(@, [@, @, @, @, @, @, @, @])",
        "replace(@, '', @)",
        "replace(@, 'a', 'bbbbbbbbb')",
    ],
)
def test_no_text_grows_beyond_64_ki_characters(expression: str) -> None:
    assert failure(expression, "a" * 10_000).endswith("the result is longer than 65536 characters")


def test_a_replacement_cannot_grow_a_text_beyond_64_ki_characters() -> None:
    message = "`regex_replace`: the result is longer than 65536 characters"
    assert failure("regex_replace(s, '.', r)", {"s": "a" * 1000, "r": "\\g<0>" * 100}) == message


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a+)+$", "a repetition inside a repetition could take for ever"),
        ("(a*){2}", "a repetition inside a repetition could take for ever"),
        ("(?:a*?b)*", "a repetition inside a repetition could take for ever"),
        ("(a|aa)+$", "choices inside an unlimited repetition could take for ever"),
        ("(?:a?b)*", "choices inside an unlimited repetition could take for ever"),
        ("(a)\\1", "a pattern cannot refer back to a group"),
        ("(a)?(?(1)b|c)", "a pattern cannot refer back to a group"),
        ("a?" * 90, "too many repetitions or alternatives"),
        ("(?:a{0,5}){99}", "too many repetitions or alternatives"),
        (".*.*.*.*x", "has too many repetitions or alternatives for so long a text"),
        ("(", "not a valid pattern"),
        ("a" * 201, "a pattern has at most 200 characters"),
    ],
)
def test_a_pattern_that_could_backtrack_without_end_is_refused(pattern: str, message: str) -> None:
    assert failure("regex_match(s, p)", {"s": "a" * 200, "p": pattern}) == f"`regex_match` argument 2: {message}"


@pytest.mark.parametrize(
    "pattern", ["^\\w+@\\w+\\.\\w+$", "^(\\d{1,3}\\.){3}\\d{1,3}$", "(stripe|paypal)_\\w+", "[ab|]*", "(?i)x?y"]
)
def test_ordinary_patterns_are_allowed(pattern: str) -> None:
    assert run("regex_match(s, p)", {"s": "Y stripe_ab a@b.de 1.2.3.4", "p": pattern}) in {True, False}


@pytest.mark.parametrize(
    "pattern", [".*.*x", "^.*.*.*x", "(.*)(.*)x", "(?=(.*))(?=(.*))x", "(ab|ab)" * 20 + "x", "(?:a?){14}b"]
)
@pytest.mark.parametrize("length", [30, 250, 1000])
def test_the_worst_allowed_pattern_is_done_soon(pattern: str, length: int) -> None:
    started = time.perf_counter()
    with suppress(EvaluationError):
        run("regex_match(s, p)", {"s": ("ab" * length)[:length], "p": pattern})
    assert time.perf_counter() - started < 2


def test_a_pattern_meets_texts_of_a_thousand_characters_at_most() -> None:
    assert run("regex_match(@, 'b')", "a" * 1000) is False
    assert failure("regex_match(@, 'b')", "a" * 1001) == "`regex_match` argument 1: longer than 1000 characters"


def test_a_wrong_replacement_is_named() -> None:
    assert failure("regex_replace('a', 'a', '\\3')") == "`regex_replace` argument 3: not a replacement for this pattern"


def test_hashes_are_those_of_the_standard_library() -> None:
    assert run("sha256('é')") == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"
    hashed = run("hmac_sha256('key', 'The quick brown fox jumps over the lazy dog')")
    assert hashed == "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"

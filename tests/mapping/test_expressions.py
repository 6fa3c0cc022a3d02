import json
import re
import string
import warnings
from typing import Any

import jmespath
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gateway.expressions import (
    EvaluationError,
    ExpressionError,
    compile_expression,
    compile_template,
    template_errors,
)
from gateway.functions import MAPPING, STANDARD, Scope
from gateway.money import Money, money

# What the generated expressions and documents are made of: few names, so that they meet.

NAMES = ["a", "b", "c", '"odd name"', '"\'\\"\\\\{}"']
KEYS = ["a", "b", "c", "odd name", "'\"\\{}"]
SCALARS: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 10**30, 0.0, 1.0, -0.5, 2.5, 1e300]),
    st.sampled_from(["", "a", "b", "1", "2.5", " 7", "1e5", "é\u2028", "nan"]),
)
DOCUMENTS: SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
        st.lists(st.dictionaries(st.sampled_from(KEYS), inner, min_size=1, max_size=3), max_size=3),
        st.lists(st.sampled_from([1, 2, 2.5, 0]), max_size=4),
        st.lists(st.sampled_from(["a", "b", ""]), max_size=4),
    ),
    max_leaves=15,
)
LITERALS = st.one_of(
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner))
    .map(json.dumps)
    .map(lambda text: "`" + text.replace("`", "\\`") + "`"),
    st.sampled_from(["'a'", "''", "'it\\'s'", "`b`", "'\\\\'"]),
)
# How an expression grows; $x is an expression, $n a name, $i a number or nothing, $v a literal, $o an operator.
SHAPES = [
    *("$x.$n", "$x.$n.$n", "$x[$i0]", "$x[$i:$i]", "$x[$i:$i:-1]", "$x[::$i2]", "$x[$i:$i:0]", "$x[*]", "$x[*].$n"),
    *("$x.*", "$x.*.$n", "$x[]", "$x[].$n", "$x[?$x]", "$x[?$n == $v].$n", "$x[?$n $o $v] | [0]", "$x.[$n, $x]"),
    *(
        "$x.{a: $n, b: $x}",
        "[$x, $x]",
        "{b: $x, $n: $x}",
        "$x $o $x",
        "($x $o $x)",
        "!$x",
        "($x)",
        "$f($x)",
        "$g($x, $x)",
    ),
    *("map(&$x, $x)", "$s($x, &$x)", "type(&$x)", "(&$x).a", "!(&$x)"),
]
PARTS = {
    "n": NAMES,
    "i": ["", *map(str, range(-3, 4))],
    "o": ["==", "!=", "<", "<=", ">", ">=", "||", "&&", "|"],
    "f": [name for name, function in STANDARD.items() if function.maximum == 1],
    "g": ["contains", "ends_with", "join", "merge", "not_null", "starts_with"],
    "s": ["sort_by", "max_by", "min_by"],
}


@st.composite
def _longer(draw: DrawFn, inner: SearchStrategy[str]) -> str:
    parts = {name: st.sampled_from(choices) for name, choices in PARTS.items()} | {"x": inner, "v": LITERALS}
    return re.sub(r"\$(\w)", lambda part: draw(parts[part[1]]), draw(st.sampled_from(SHAPES)))


EXPRESSIONS = st.recursive(
    st.one_of(st.sampled_from([*NAMES, "@", "*", "[]", "[*]", "[0]", "a.b", "a.b.c", "b.a"]), LITERALS),
    _longer,
    max_leaves=8,
)


def same(left: object, right: object) -> bool:
    """Whether two JSON values are one, in type and key order too: 1, 1.0 and true are three values."""
    if type(left) is not type(right):
        return type(left).__name__ == type(right).__name__ == "_Expression"
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return left == right or (left != left and right != right)  # noqa: PLR0124 - NaN


def reference(expression: str, document: object) -> tuple[str, object]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "value", jmespath.search(expression, document)
    except Exception as error:
        return "error", error


def compiled(expression: str, document: object) -> tuple[str, object]:
    try:
        return "value", compile_expression(expression)(document)
    except (ExpressionError, EvaluationError) as error:
        return "error", error


def assert_agreement(expression: str, document: object) -> None:
    (expected, value), (got, found) = reference(expression, document), compiled(expression, document)
    assert got == expected, (expression, document, value, found)
    assert got == "error" or same(found, value), (expression, document, value, found)


@given(EXPRESSIONS, DOCUMENTS)
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@example("a || b", {"a": 0, "b": 1})
@example("[?a == `true`]", [{"a": 1}, {"a": True}])
@example("`null` == 'a'", None)
def test_the_compiled_form_agrees_with_the_package(expression: str, document: object) -> None:
    assert_agreement(expression, document)


@given(st.text(alphabet=string.printable + "é`'\"\\", max_size=30), DOCUMENTS)
@settings(max_examples=200, deadline=None)
def test_any_text_is_an_expression_for_both_or_for_neither(text: str, document: object) -> None:
    expected, got = reference(text, document), compiled(text, document)
    # A call that is wrong fails when it is compiled, even where the package would never reach it.
    assume("function" not in str(got[1]) and "takes" not in str(got[1]))
    assert got[0] == expected[0], (expected, got)


DOCUMENT = {
    "id": 7,
    "zero": 0,
    "one": 1,
    "yes": True,
    "no": False,
    "none": None,
    "empty": {"text": "", "list": [], "map": {}},
    "name": "Ada",
    "nested": {"a": {"b": {"c": 1.5}}, "list": [[1, [2]], 3, None, {"a": 1}]},
    "items": [
        {"sku": "b", "price": 2, "tags": ["x", "y"]},
        {"sku": "a", "price": 10.5, "tags": []},
        {"sku": None, "price": "3", "tags": "xyz"},
        "not a map",
        None,
    ],
    "people": [{"n": "x", "age": 3}, {"n": "y", "age": 1}, {"n": "z", "age": 2}],
    "map": {"k1": {"v": 1}, "k2": {"v": None}, "k3": 5},
    "huge": 10**40,
}


@pytest.mark.parametrize(
    "expression",
    [
        *("id", "nested.a.b.c", "nested.a.x.c", "name.a", "none.a", "items.a", "id.a.b", "@", "@.id", "nested.*.b"),
        *("items[0].sku", "items[-1]", "items[-2]", "items[99]", "items[-99]", "name[0]", "nested[0]", "items[0][0]"),
        *("items[1:3]", "items[::-1].sku", "items[:2:0]", "name[:1]", "name[::0]", "items[5:1]", "items[::2].price"),
        *("items[*].sku", "items[].tags", "items[].tags[]", "nested.list[]", "nested.list[][]", "map.*", "map.*.v"),
        *("*", "*.*", "items[*].tags[*]", "items[*].tags[0]", "(items[*].tags)[0]", "items[*].tags | [0]", "items.*"),
        *("empty.text || name", "empty.list || name", "empty.map || name", "no || name", "zero || name"),
        *("none || none", "zero && name", "yes && name", "none && name", "empty.text && name", "!zero"),
        *("!none", "!empty.list", "!name"),
        *("one == yes", "one == `true`", "zero == no", "zero == `false`", "yes == `1`", "no != `0`", "one == `1.0`"),
        *("none == `null`", "missing != `null`", "empty.list == `[]`", "nested.a == `{\"b\": {\"c\": 1.5}}`"),
        *("[one] == [yes]", "`[1]` == [yes]", "id == 'x'", "id > `3`", "id > name", "name < 'B'", "yes > `0`"),
        *("none < `1`", "huge > `1e39`", "huge == huge", "items > items", "'a' == name", "`7` == id", "`null` == none"),
        *("items[?price > `1`]", "items[?sku].sku", "items[?tags[?@ == 'x']]", "people[?age >= `2`].n", "id[?a]"),
        *("items[?sku == 'a' || price == `2`].price", "people[?age == `1` && n == 'y']", "people[?!(age == `1`)].n"),
        *("items[0].{s: sku, p: price}", "none.{a: @}", "items[*].[sku, price]", "{a: id, b: none}", "[id, none]"),
        *("missing.[a]", "@.[a, b] | [0]", "people[*].{who: n, old: age > `1`}", "items[].{t: tags[0]} | [].t"),
        *("sort_by(people, &age)[*].n", "max_by(people, &age).n", "min_by(people, &n).age", "sort_by(items, &sku)"),
        *("map(&age, people)", "map(&missing, people)", "map(&@, id)", "sort_by(people, age)", "sort_by(`[]`, &a)"),
        *("length(name)", "length(items)", "length(map)", "length(id)", "length(none)", "contains(name, 'd')"),
        *("contains(items[].sku, 'a')", "contains(name, id)", "contains(id, name)", "starts_with(name, 'A')"),
        *("ends_with(name, none)", "join('-', items[].sku)", "join('-', items[].price)", "join(none, `[]`)"),
        *("to_string(id)", "to_string(yes)", "to_string(none)", "to_string(nested)", "to_string('x')"),
        *("to_string(`1.0`)", "to_string(`\"é\"`)", "to_string(`1e400`)", "to_number(id)"),
        *("to_number('1_0')", "to_number('inf')", "to_number(' 3 ')", "to_number('x')", "to_number(yes)"),
        *("merge(map, {k1: id})", "merge(map, `[]`)", "merge(map, id)", "not_null(none, missing, id)"),
        *("type(yes)", "type(&a)", "type(none)", "type(huge)", "keys(map)", "values(map)", "reverse(name)", "sum(id)"),
        *("avg(people[].age)", "avg(`[]`)", "sort(people[].n)", "sort(`[1, \"a\"]`)", "sort(`[true]`)", "max(`[]`)"),
        *("abs(yes)", "ceil(`1.2`)", "floor(huge)", "to_array(id)", "`foo`", "`\"a\\`b\"`", "'it\\'s'", "\"odd name\""),
        *("a b", "a.", "a[", "[?a", "`", "'a", '"a', "a == ", "&", "a & b", "1", "a[1", "{a}", "{}", "a.1", "", " "),
        *("not_null(none)", "=a", "not_null(none id)", "length(name,)", "a.'b'"),
        *('"length"(name)', "name\n . a", "a[-]", '"\\u00e9"'),
    ],
)  # fmt: skip
def test_each_rule_of_the_language_is_the_packages(expression: str) -> None:
    assert_agreement(expression, DOCUMENT)


@pytest.mark.parametrize(
    ("expression", "message", "column"),
    [
        ("monye(a, b)", "unknown function `monye`; did you mean `money`?", 1),
        ("a || xyzzy(b)", "unknown function `xyzzy`", 6),
        ("items[?starts_with(sku)].length(@, @)", "`starts_with` takes 2 arguments, got 1", 8),
        ("coalesce()", "`coalesce` takes at least 1 argument, got 0", 1),
        ("uuid5(a, b, c)", "`uuid5` takes 1 to 2 arguments, got 3", 1),
        ("a.b.", "the expression ends too early", 5),
        ("", "the expression is empty", 1),
        ("a = b", "unknown token '='; did you mean `==`?", 3),
        ("a > 5", "unexpected 5; a number is written between backticks", 5),
        ("a, b", "unexpected `,`", 2),
        ("'open", "unclosed ' delimiter", 1),
        ('"length"(a)', "the name of a function is written without quotes", 1),
        ("a" * 5000, "the expression is longer than 4096 characters", None),
        ("(" * 2000, "the expression cannot be read", None),
        ("!" * 80 + "a", "the expression is nested more than 64 deep", None),
        (" || ".join("a" * 80), "the expression is nested more than 64 deep", None),
        (" | ".join(["[@, @][]"] * 20), "the expression could copy its document more than 10000 times", None),
    ],
)
def test_a_mistake_is_named_with_its_column(expression: str, message: str, column: int | None) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(expression, MAPPING)
    assert (str(caught.value), caught.value.column, caught.value.path) == (message, column, ())


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("length(secret)", "`length` argument 1: expected string or array or object, got number"),
        ("starts_with('a', secret)", "`starts_with` argument 2: expected string, got number"),
        ("sum([secret, 'x'])", "`sum` argument 1: expected array of number, got string"),
        ("sort_by([@], &none)", "`sort_by` argument 2: expected string or number, got null"),
        ("sort_by([@], secret)", "`sort_by` argument 2: expected an expression such as `&name`, got number"),
        ("merge(@, secret)", "`merge`: cannot work on these arguments (TypeError)"),
        ("secret < 'a'", "`<` compares numbers or strings, not number with string"),
        ("[secret][::0]", "the step of a slice cannot be 0"),
    ],
)
def test_a_failing_evaluation_names_types_and_never_a_value(expression: str, message: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        compile_expression(expression)({"secret": 4111111111111111})
    assert str(caught.value) == message
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_names_and_literals_cannot_become_code() -> None:
    name = "'\"\\\n{0.__class__}%s#\u2028\ud800"
    quoted = json.dumps(name)
    assert compile_expression(f"{quoted}.{quoted}")({name: {name: 1}}) == 1
    assert compile_expression(f"{{{quoted}: `{quoted}`}}")({}) == {name: name}
    assert compile_template({name: {"const": name}})({}) == {name: name}


def test_deep_projections_still_compile() -> None:
    expression = ".".join(["a[*]"] * 30)
    document: object = 1
    for _ in range(30):
        document = {"a": [document]}
    assert_agreement(expression, document)


def test_a_template_builds_structure_and_leaves_out_what_is_null() -> None:
    template = {
        "id": "id",
        "missing": "missing.deeper",
        "nothing": None,
        "two": 2,
        "on": True,
        "text": {"const": "id"},
        "odd": {"const": {"a": [None]}},
        "inner": {"gone": "missing"},
        "list": ["id", "missing", None, {"name": "name"}, 1.5],
    }
    assert compile_template(template)(DOCUMENT) == {
        "id": 7,
        "two": 2,
        "on": True,
        "text": "id",
        "odd": {"a": [None]},
        "inner": {},
        "list": [7, {"name": "Ada"}, 1.5],
    }


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("id", 7),
        ({"const": "id"}, "id"),
        ({"const": None}, None),
        (3, 3),
        (None, None),
        ({}, {}),
        ([], []),
        ("none", None),
    ],
)
def test_a_template_may_be_a_single_value(template: object, value: object) -> None:
    assert same(compile_template(template)(DOCUMENT), value)


@given(st.dictionaries(st.sampled_from(KEYS), EXPRESSIONS, max_size=5), DOCUMENTS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_template_is_its_expressions_side_by_side(template: dict[str, str], document: object) -> None:
    each = {key: reference(expression, document) for key, expression in template.items()}
    assume(not template_errors(template))
    if any(kind == "error" for kind, _ in each.values()):
        with pytest.raises(EvaluationError):
            compile_template(template)(document)
    else:
        expected = {key: value for key, (_, value) in each.items() if value is not None}
        assert same(compile_template(template)(document), expected)


def test_a_template_reports_all_of_its_mistakes_with_their_paths() -> None:
    template = {"a": "monye(x)", "b": [{"c": "ok"}, {"d": "x ="}], 1: "ok", "e": object(), "f": "lenght(a) || kyes(b)"}
    found = [(error.path, error.column, str(error)) for error in template_errors(template, MAPPING)]
    assert found == [
        ((), None, "a key must be text, got int"),
        (("a",), 1, "unknown function `monye`; did you mean `money`?"),
        (("b", 1, "d"), 3, "unknown token '='; did you mean `==`?"),
        (("e",), None, "expected text, a number, a boolean, null, a map or a list, got object"),
        (("f",), 1, "unknown function `lenght`; did you mean `length`?"),
        (("f",), 14, "unknown function `kyes`; did you mean `keys`?"),
    ]
    with pytest.raises(ExpressionError, match="a key must be text"):
        compile_template(template, MAPPING)


def test_a_template_has_limits() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert str(template_errors(endless)[0]) == "nested more than 64 deep"
    assert [str(e) for e in template_errors([1] * 20_000)] == ["the template has more than 10000 nodes"]


def test_the_scope_reaches_functions_wherever_they_stand() -> None:
    scope = Scope(headers={"x-topic": "orders/paid"}, exponents={"ISK": 2})
    template = {"topic": "map(&header('X-Topic'), [@])", "paid": "money_minor(amount, 'isk')"}
    expected = {"topic": ["orders/paid"], "paid": Money(money("19.99", "ISK").amount, "ISK")}
    assert compile_template(template, MAPPING)({"amount": 1999}, scope) == expected
    assert compile_template(template, MAPPING)({"amount": None}) == {"topic": [None]}


def test_money_is_an_ordinary_value_to_expressions() -> None:
    paid = {"paid": money("3.5", "EUR")}
    assert compile_expression("paid || 'x'")(paid) == paid["paid"]
    assert compile_expression("paid == `3.5`")(paid) is False
    assert compile_expression("paid > `3`")(paid) is None
    assert compile_expression("paid.amount")(paid) is None
    assert compile_expression("to_string(paid)")(paid) == "3.5 EUR"

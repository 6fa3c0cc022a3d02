"""What compiles and is still most likely a mistake is found, exactly; what may be right is left alone.

`lints/` holds one small source a case, each beside its exact findings (none, for what is right). All are judged by
`SAMPLES`. `python -m tests.mapping.test_lints` writes the findings again, for a reviewer to judge the difference.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.documents import parse, shape
from gateway.lints import lint
from gateway.mappings import bundled, read_document, sample_headers
from gateway.sources import Source, SourceSpec, compile_source, read_verified

CASES = sorted((Path(__file__).parent / "lints").glob("*.yaml"))
BUNDLED = sorted((bundled() / "sources").glob("*.yaml"))
SAMPLES: list[object] = [
    {
        "id": "evt_1",
        "type": "paid",
        "email": "ada@example.com",
        "created": 1700000000,
        "currency": "EUR",
        "amount": 3975,
        "price": "39.75",
        "status": "paid",
        "items": [{"kind": "plan", "sku": "a-1"}],
        "data": {"object": {"id": "pi_1", "amount": 3975, "currency": "eur", "tax_rate": 19}},
    },
    {"id": "evt_2", "type": "opened", "customer": {"email": "ada@example.com", "name": "Ada Example"}},
    ["a body that is no object"],
]


def found(text: str, samples: list[object], file: str = "case.yaml") -> list[str]:
    document = parse(text, file)
    compile_source(document, "v", lambda _: None)  # what does not compile is another test's
    return [str(each) for each in lint(document, shape(document, SourceSpec), samples)]


def findings(file: Path) -> str:
    return "".join(f"{each}\n" for each in found(file.read_text(), SAMPLES, file.name))


def rule(expression: str) -> str:
    """Return a source with one expression, as JSON, which is YAML too."""
    webhook = {"id": "id", "type": "type"}
    rules = [{"on": "a", "emit": "b", "properties": {"p": expression}}]
    verify = {"scheme": "token", "header": "X-Token"}
    return json.dumps({"source": "s", "verify": verify, "webhook": webhook, "rules": rules})


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_a_likely_mistake_is_told_exactly(file: Path) -> None:
    assert findings(file) == file.with_suffix(".txt").read_text()


def test_every_finding_has_its_case() -> None:
    folder = Path(__file__).parent / "lints"
    assert {file.stem for file in folder.glob("*.txt")} == {file.stem for file in CASES}


def bundled_samples(source: Source) -> tuple[list[object], list[str]]:
    """Return a source's sample bodies, and the types of the webhooks that they are."""
    bodies: list[object] = []
    types: list[str] = []
    for file in sorted((bundled() / "samples" / source.name).glob("*.json")):
        headers = sample_headers(bundled(), source.name, file.stem, file.read_bytes(), 0)
        webhook = read_verified(headers, file.read_bytes(), source, 0)
        bodies.append(webhook.document)
        types.append(webhook.type)
    return bodies, types


@pytest.mark.parametrize("file", BUNDLED, ids=lambda file: file.stem)
def test_a_bundled_source_has_nothing_to_tell(file: Path) -> None:
    document, version = read_document(file)
    source = compile_source(document, version, lambda _: None)
    bodies, types = bundled_samples(source)
    assert bodies
    assert lint(document, source.spec, bodies) == lint(document, source.spec, bodies, types) == []


@pytest.mark.parametrize("file", BUNDLED, ids=lambda file: file.stem)
def test_a_rule_without_a_sample_is_no_mistake(file: Path) -> None:
    document, version = read_document(file)
    source = compile_source(document, version, lambda _: None)
    bodies, types = bundled_samples(source)
    for kept in set(types):
        of_type = [body for body, type in zip(bodies, types, strict=True) if type == kept]
        told = [each.message for each in lint(document, source.spec, of_type, [kept])]
        assert told == [], kept


def test_a_type_that_no_sample_has_is_told_if_it_is_nearly_one_that_no_rule_is_for() -> None:
    text = rule("id").replace('"on": "a"', '"on": "order.complete"')
    document = parse(text, "f")
    told = lint(document, shape(document, SourceSpec), SAMPLES[:1], ["order.completed"])
    assert [each.hint for each in told] == ["did you mean `order.completed`?"]
    assert lint(document, shape(document, SourceSpec), SAMPLES[:1], ["refund.created"]) == []


def test_a_value_that_is_no_money_is_told() -> None:
    text = rule("id").replace('"emit": "b"', '"emit": "purchase", "once": "id"')
    for value, told in {"amount": 1, "money_minor(amount, currency)": 0, "money(price, currency)": 0}.items():
        changed = text.replace('{"p": "id"}', json.dumps({"value": value, "currency": "currency"}))
        assert len(found(changed, SAMPLES)) == told


def test_without_samples_no_name_is_judged() -> None:
    assert found((Path(__file__).parent / "lints" / "unknown-path.yaml").read_text(), []) == []
    assert found((Path(__file__).parent / "lints" / "compared-word.yaml").read_text(), [["a list"]]) == []


@pytest.mark.parametrize(
    ("types", "told"),
    [(None, ["parcel", "custmer"]), (["a", "b", "c"], ["parcel", "custmer"]), (["x", "y", "z"], ["custmer"])],
)
def test_a_rule_that_no_sample_is_for_is_judged_by_its_slips_only(types: list[str] | None, told: list[str]) -> None:
    document = parse(rule("parcel.id || custmer.name"), "f")
    found = lint(document, shape(document, SourceSpec), SAMPLES, types)
    assert [each.message.split("`")[1] for each in found] == told


@pytest.mark.parametrize(
    ("written", "judged"),
    [
        ("custmer", True),
        ("customerr", True),
        ("cusotmer", True),
        ("custoner", True),
        ("customers", False),  # a plural
        ("customer2", False),  # the next number
        ("costomar", False),  # two letters: perhaps another word
        ("date", False),  # `data` is a word as short, and another
        ("dta", True),
        ("ids", False),
    ],
)
def test_a_slip_of_the_finger_is_told_from_another_name(written: str, judged: bool) -> None:
    assert bool(found(rule(f"id && {written}"), SAMPLES)) == judged


@pytest.mark.parametrize(
    ("expression", "offset"),
    [
        ("dta.id", 0),
        ("id || dta.id", 6),
        ("lower('dta.x || ') || dta.id", 22),
        ('"data" && "dta".id', 10),
        ("{dta: id, b: dta2.id}", 13),
        ("items[?kind == 'dta.x'].sku | [0] && dta.id", 37),
        ("@.parcel.id", 2),
        ("items[?kind == refund].sku", 15),
        ("!id && !(!email) && !data.object", 20),
    ],
)
def test_a_finding_points_at_the_name_in_its_expression(expression: str, offset: int) -> None:
    document = parse(rule(expression), "f")
    (finding,) = lint(document, shape(document, SourceSpec), SAMPLES)
    start = document.diagnostic(("rules", 0, "properties", "p"), "")
    assert (finding.line, finding.column) == (start.line, start.column + 1 + offset)


WORDS = st.sampled_from(["id", "dta", "items", "@", "'x'", "`100`", "kind", '"email"', "paid"])
EXPRESSIONS = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([".", " == ", " || ", " && ", " | ", " < "]), inner).map("".join),
        inner.map("!{}".format),
        inner.map("({})".format),
        inner.map("{}[*]".format),
        inner.map("{}[]".format),
        inner.map("{}[1:]".format),
        st.tuples(inner, inner).map(lambda pair: f"{pair[0]}[?{pair[1]}]"),
        st.tuples(inner, inner).map(lambda pair: f"divide({pair[0]}, {pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"{{a: {pair[0]}, b: [{pair[1]}]}}"),
        inner.map("map(&{}, @)".format),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_whatever_parses_is_read_to_the_letter(expression: str) -> None:
    """A finding about a name stands exactly on that name."""
    document = parse(rule(expression), "f")
    start = document.diagnostic(("rules", 0, "properties", "p"), "").column
    for each in lint(document, shape(document, SourceSpec), SAMPLES):
        if each.message.startswith("no sample has a field"):
            assert expression[each.column - start - 1 :].lstrip('"').startswith(each.message.split("`")[1])


if __name__ == "__main__":
    for case in CASES:
        case.with_suffix(".txt").write_text(findings(case))

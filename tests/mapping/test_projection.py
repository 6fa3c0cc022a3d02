"""What is decoded for expressions only, and what they then give, is what they give over the whole document."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.documents import parse
from gateway.expressions import EvaluationError, compile_projection, compile_template, template_errors
from gateway.functions import MAPPING, Scope
from gateway.mappings import bundled
from gateway.sources import RULE_TEMPLATES, SourceSpec
from tests.mapping.strange import changed_samples
from tests.mapping.test_expressions import DOCUMENTS, EXPRESSIONS

SCOPE = Scope(headers={}, tables={}, exponents={})


def outcome(compiled: object, document: object) -> object:
    try:
        return json.dumps(compiled(document, SCOPE), default=str)  # type: ignore[operator]
    except EvaluationError as error:
        return str(error)


class Both:
    """The same templates over what they read, and over everything."""

    def __init__(self, templates: list[object]) -> None:
        self.projection = compile_projection(templates, MAPPING)
        self.whole = [compile_template(each, MAPPING) for each in templates]

    def assert_same(self, body: bytes) -> None:
        whole, part = msgspec.json.decode(body), self.projection.decode(body)
        for one, other in zip(self.projection.compiled, self.whole, strict=True):
            assert outcome(one, part) == outcome(other, whole)


@example(["items[].tags[0]", "items[].tags"], {"items": [{"tags": ["a"]}, [{"tags": ["b"]}, [{"tags": ["c"]}]], 1]})
@example(["a[0][0].b", "a[].c"], {"a": [[{"b": 1, "c": 2}], {"c": 3}, [[{"c": 4}]]]})
@example(["a.b", "keys(a)"], {"a": {"b": 1, "c": 2}})
@example(["a.{b: b}", "a || b"], {"a": {}, "b": 0})
@example(['"a\\"b".c', "a.b"], {'a"b': {"c": 1}, "a": {"b": None}})
@given(st.lists(EXPRESSIONS, max_size=4), DOCUMENTS)
@settings(max_examples=300, deadline=None)
def test_any_expressions_over_any_document(expressions: list[str], document: object) -> None:
    valid: list[object] = [each for each in expressions if not template_errors(each, MAPPING)]
    try:
        body = msgspec.json.encode(document)
    except (UnicodeEncodeError, ValueError):  # a lone surrogate, a number beyond 64 bits
        return
    Both(valid).assert_same(body)


def bundled_source(file: Path) -> Both:
    spec = msgspec.convert(parse(file.read_text(), file.name).data, SourceSpec)
    rules = [getattr(rule, key) for rule in spec.rules for key in RULE_TEMPLATES]
    identity = {name: getattr(spec.identity, name) for name in spec.identity.__struct_fields__}
    return Both([*rules, spec.visitor, identity])


BUNDLED = {file.stem: bundled_source(file) for file in (bundled() / "sources").glob("*.yaml")}


@settings(max_examples=150, deadline=None)
@given(changed_samples())
def test_the_bundled_mappings_over_strange_samples(changed: tuple) -> None:  # type: ignore[type-arg]
    file, body = changed
    BUNDLED[file.parent.name].assert_same(body)


@pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"1" * 400])
def test_what_nobody_reads_may_be_what_python_cannot_hold(number: bytes) -> None:
    projection = compile_projection(["id"])
    assert projection.compiled[0](projection.decode(b'{"id": "evt_1", "huge": ' + number + b"}")) == "evt_1"


@pytest.mark.parametrize("body", [b"", b"{", b'{"id": 1', b'{"id": 1} x', b'{"huge": 1e}', b'{"a": nul}', b"\xff"])
def test_what_is_no_json_is_refused_wherever_it_is_broken(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        compile_projection(["id"]).decode(body)


def test_a_document_nested_without_end_is_refused() -> None:
    with pytest.raises((RecursionError, msgspec.DecodeError)):
        compile_projection(["id"]).decode(b'{"x":' * 100_000 + b"1" + b"}" * 100_000)


def test_a_mapping_may_have_a_thousand_rules() -> None:
    templates: list[object] = [{"id": "id", "number": number, "of": f"items[{number}].id"} for number in range(5_000)]
    projection = compile_projection(templates)
    assert projection.compiled[7](projection.decode(b'{"id": 1, "items": []}')) == {"id": 1, "number": 7}

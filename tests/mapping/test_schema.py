"""The schemas that editors read say what `gateway check` says, but for what is inside an expression.

`gateway schema --write mappings/schema` writes them again when a Struct has changed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from gateway.documents import MappingErrors, parse, shape
from gateway.events import Event, Kind
from gateway.expressions import template_errors
from gateway.functions import MAPPING
from gateway.mappings import bundled
from gateway.schema import EVENTS, KINDS, SchemaKind, schema, write_schemas
from gateway.signatures import Scheme, VerifySpec, compile_verification
from gateway.sources import SourceSpec
from tests.mapping.test_documents import INVALID, VALID, complaints

BUNDLED: dict[SchemaKind, list[Path]] = {
    "source": sorted(bundled().glob("sources/*.yaml")),
    "destination": sorted(bundled().glob("destinations/*.yaml")),
    "tests": sorted(bundled().glob("tests/*/*.yaml")),
}
FILES = [
    pytest.param(kind, file, id=f"{kind}-{file.parent.name}-{file.stem}") for kind in KINDS for file in BUNDLED[kind]
]
SCHEMAS: dict[SchemaKind, Any] = {kind: schema(kind) for kind in KINDS}


def refusals(kind: SchemaKind, data: object) -> list[str]:
    """Return what an editor would mark; both drafts that editors know must agree."""
    new, old = (
        sorted(f"{error.json_path}: {error.message}" for error in draft(SCHEMAS[kind]).iter_errors(data))
        for draft in (jsonschema.Draft202012Validator, jsonschema.Draft7Validator)
    )
    assert new == old
    return new


def kind_of(file: Path) -> SchemaKind:
    return "destination" if file.name.startswith("destination-") else "source"


def readable(files: list[Path]) -> list[Path]:
    """Return the files that are YAML as the gateway takes it: no schema is asked about the others."""

    def is_read(file: Path) -> bool:
        try:
            return parse(file.read_text(), file.name) is not None
        except MappingErrors:
            return False

    return [file for file in files if is_read(file)]


def texts(data: object) -> Iterator[str]:
    match data:
        case str():
            yield data
        case dict():
            yield from (text for each in data.values() for text in texts(each))
        case list():
            yield from (text for each in data for text in texts(each))


def mistakes_of_expressions(data: object) -> set[str]:
    return {error.message for text in texts(data) for error in template_errors(text, MAPPING)}


def test_the_committed_schemas_are_those_of_the_structs(tmp_path: Path) -> None:
    for file in write_schemas(tmp_path / "schema"):
        assert (bundled() / "schema" / file.name).read_text() == file.read_text(), (
            "gateway schema --write mappings/schema"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_one_by_both_drafts_that_editors_know(kind: SchemaKind) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])
    jsonschema.Draft7Validator.check_schema(SCHEMAS[kind])


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_bundled_file_is_accepted(kind: SchemaKind, file: Path) -> None:
    assert refusals(kind, parse(file.read_text(), file.name).data) == []


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_bundled_file_names_its_schema_in_the_first_line(kind: SchemaKind, file: Path) -> None:
    first = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", file.read_text().splitlines()[0])
    assert first is not None
    assert (file.parent / first[1]).resolve() == (bundled() / f"schema/{kind}.json").resolve(strict=True)


@pytest.mark.parametrize("file", VALID, ids=lambda file: file.stem)
def test_what_the_check_accepts_the_schema_accepts(file: Path) -> None:
    assert refusals(kind_of(file), parse(file.read_text(), file.name).data) == []


@pytest.mark.parametrize("file", readable(INVALID), ids=lambda file: file.stem)
def test_what_the_check_refuses_the_schema_refuses_unless_all_mistakes_are_inside_expressions(file: Path) -> None:
    data = parse(file.read_text(), file.name).data
    told = {line.partition(": error: ")[2] for line in complaints(file).splitlines() if ": error: " in line}
    assert bool(refusals(kind_of(file), data)) == bool(told - mistakes_of_expressions(data))


def test_a_misspelt_key_is_refused_in_every_map_whose_keys_are_known() -> None:
    for kind in KINDS:
        for name, definition in [("root", SCHEMAS[kind]), *SCHEMAS[kind]["$defs"].items()]:
            if "additionalProperties" in definition and name != "value":
                assert definition["additionalProperties"] is False, f"{kind}: {name}"


def keys(form: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every key that an editor can offer, with its schema."""
    for name, found in form.get("properties", {}).items():
        yield f"{path}.{name}", found
        yield from keys(found, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(form.get(inner), dict):
            yield from keys(form[inner], f"{path}.{inner}")
    for name, found in form.get("$defs", {}).items():
        yield from keys(found, name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_says_what_it_is_for(kind: SchemaKind) -> None:
    found = dict(keys(SCHEMAS[kind], kind))
    assert len(found) > 25
    assert [path for path, form in found.items() if not form.get("description", "").endswith(".")] == []


def test_the_description_of_a_value_names_every_function() -> None:
    kinds: list[SchemaKind] = ["source", "destination"]
    for kind in kinds:
        description = SCHEMAS[kind]["$defs"]["value"]["description"]
        assert [name for name in MAPPING if f"`{name}(" not in description] == []


def rule(**keys: object) -> dict[str, object]:
    return {
        "source": "s",
        "verify": {"scheme": "token", "header": "X-Token"},
        "webhook": {"id": "id", "type": "type"},
        "rules": [{"on": "a", "emit": "b"} | keys],
    }


@pytest.mark.parametrize(
    "value",
    [
        "a.b || 'c'",
        5,
        0.5,
        True,
        None,
        {"const": ""},
        {"const": {"a": ["", None]}},
        {"a": {"b": ["c", 1]}},
        [{"const": "x"}],
    ],
)
def test_a_value_is_an_expression_a_constant_or_a_structure(value: object) -> None:
    assert refusals("source", rule(when=value, properties={"a": value})) == []


@pytest.mark.parametrize("value", ["", "  ", {"a": ""}, [["x", ""]], "a" * 4097])
def test_an_empty_or_endless_text_is_no_expression(value: object) -> None:
    assert template_errors(value, MAPPING) != []
    assert refusals("source", rule(when=value)) != []


@pytest.mark.parametrize(
    "keys",
    [
        {"on": []},
        {"on": ["a", 5]},
        {"emit": 5},
        {"emit": "Order Paid"},
        {"emit": None},
        {"emit": None, "once": None},
        {"hold": 120},
        {"hold": "2 m"},
        {"wait_for_link": "1.5h"},
        {"kind": "trakc"},
        {"properties": "payload"},
        {"allow_pii": "yes"},
    ],
    ids=str,
)
def test_a_rule_that_cannot_be_is_refused(keys: dict[str, object]) -> None:
    assert len(refusals("source", rule(**keys))) == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"currencies": {"isk": 2}},
        {"currencies": {"ISK": -1}},
        {"tables": {"plans": ["Pro"]}},
        {"subjects": {"email": ""}},
        {"subjects": {"cart": {"value": "cart", "browsr": True}}},
        {"visitor": {"datalyr": ""}},
        {"identity": {"mail": "email"}},
        {"verify": {"scheme": "stripe", "tolerance": 0}},
        {"verify": {"scheme": "hmac", "header": ""}},
        {"webhook": {"id": "id"}},
        {"wait_for_link": "soon"},
    ],
    ids=str,
)
def test_a_source_that_cannot_be_is_refused(keys: dict[str, object]) -> None:
    assert refusals("source", rule()) == []
    assert len(refusals("source", rule() | keys)) == 1


def test_a_table_holds_data_and_no_expressions() -> None:
    assert refusals("source", rule() | {"tables": {"plans": {"p1": "", "p2": {"": [""]}}}}) == []


PROBES = {"header": "X-A", "signature": "{signature},", "separator": ";", "tolerance": 9, "encoding": "base64"} | {
    "secret_encoding": "hex",
    "algorithm": "sha512",
    "payload": "{id}.{body}",
}


@pytest.mark.parametrize("scheme", get_args(Scheme))
@pytest.mark.parametrize("key", VerifySpec.__struct_fields__[2:])
def test_a_scheme_has_the_keys_that_the_check_leaves_to_it(scheme: Scheme, key: str) -> None:
    header = {"header": "X-B"} if scheme == "hmac" else {}
    verify: dict[str, object] = {**header, "scheme": scheme, key: PROBES.get(key, "X-C")}
    try:
        compile_verification(msgspec.convert(verify, VerifySpec))
        complaint = ""
    except ValueError as error:
        complaint = str(error)
    assert bool(refusals("source", rule() | {"verify": verify})) == (f"`{key}` is fixed by scheme" in complaint)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("payload", text)
        for text in ("{body}", "{timestamp}.{body}", "v0:{id}{body}{url}", "{}{body}", "{body}{body}", "{id}")
    ]
    + [("signature", text) for text in ("sha256={signature}", "t={timestamp},v1={signature}", "{timestamp}", "{sig}")]
    + [("algorithm", text) for text in ("sha1", "sha256", "sha384", "sha512", "md5", "SHA256")],
)
def test_the_texts_of_a_verification_are_judged_as_the_check_does(key: str, text: str) -> None:
    others = {"timestamp_header": "X-T", "id_header": "X-I", "url": "https://a.example/"}
    verify = {"scheme": "hmac", "header": "X-B", key: text} | (others if key == "payload" else {})
    try:
        compile_verification(msgspec.convert(verify, VerifySpec))
        accepted = True
    except ValueError:
        accepted = False
    assert (refusals("source", rule() | {"verify": verify}) == []) == accepted


def test_an_editor_offers_every_event_that_a_bundled_source_makes() -> None:
    specs = [shape(parse(file.read_text(), file.name), SourceSpec) for file in BUNDLED["source"]]
    made = {rule.emit for spec in specs for rule in spec.rules if rule.emit}
    assert made - EVENTS.keys() == set()


def destination(**keys: object) -> dict[str, object]:
    least = {"destination": "d", "enabled_by": [], "endpoint": "${URL}", "event": {"name": "name"}, "body": "event"}
    return least | keys


@pytest.mark.parametrize(
    "keys",
    [
        {"enabled_by": ["${KEY}"]},
        {"endpoint": "sink.example"},
        {"profile": "metta"},
        {"kinds": ["trakc"]},
        {"batch": {"max_bytes": 5}},
        {"batch": {"max_events": 0}},
        {"concurrency": 0},
        {"retry": {"on": ["429"]}},
        {"retry": {"on": ["6xx"]}},
        {"retry": {"for": "long"}},
        {"sign": {"scheme": "hmac", "secrets": "s"}},
        {"headers": {"X-A": ""}},
        {"settings": {"slot": 5}},
    ],
    ids=str,
)
def test_a_destination_that_cannot_be_is_refused(keys: dict[str, object]) -> None:
    assert refusals("destination", destination()) == []
    assert len(refusals("destination", destination(**keys))) == 1


@pytest.mark.parametrize(
    "test",
    [
        {},
        {"sample": "a", "payload": {}},
        {"webhooks": []},
        {"webhooks": [{}]},
        {"webhooks": [{"sample": "a", "payload": {}}]},
        {"webhooks": [{"sample": "a", "after": "soon"}]},
        {"webhooks": [{"sample": "a"}], "with": {"id": "b"}},
        {"sample": "a", "expect": [{"nmae": "purchase"}]},
        {"sample": "a", "expect": [{"user_id": 42}]},
        {"sample": "a", "skips": [{"reason": "filterd"}]},
        {"sample": "a", "links": [{"visitor_id": "v"}]},
        {"sample": "a", "links": [{"subjects": {}, "ids": {"datalyr": {"visitor": "v"}}}]},
    ],
    ids=str,
)
def test_a_test_that_cannot_pass_or_run_is_refused(test: dict[str, object]) -> None:
    whole = {"name": "n", "expect": []} | test
    assert refusals("tests", {"tests": [{"name": "n", "expect": [], "sample": "a"}]}) == []
    assert len(refusals("tests", {"tests": [whole]})) == 1


def test_an_expected_event_may_name_every_field_of_one_and_no_other() -> None:
    event = SCHEMAS["tests"]["$defs"]["TestSpec"]["properties"]["expect"]["items"]
    assert set(event["properties"]) == set(Event.__struct_fields__)
    assert set(event["properties"]["kind"]["enum"]) == set(get_args(Kind))

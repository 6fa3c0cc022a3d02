"""Mistakes in a mapping are all found, and each message says what, where and what to do.

`valid/` and `invalid/` hold one small file a case; those named `destination-…` are destinations, the others sources.
Beside a file of `invalid/` stand its exact messages; `python -m tests.mapping.test_documents` writes those again, for
a reviewer to judge the difference.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.destinations import compile_destination
from gateway.documents import Diagnostic, MappingErrors, duration, parse, substitute
from gateway.mappings import bundled, load_mappings
from gateway.sources import compile_source

VALID = sorted((Path(__file__).parent / "valid").glob("*.yaml"))
INVALID = sorted((Path(__file__).parent / "invalid").glob("*.yaml"))


def complaints(file: Path) -> str:
    compile_it = compile_destination if file.name.startswith("destination-") else compile_source
    try:
        compile_it(parse(file.read_text(), file.name), "v", lambda _: None)
    except MappingErrors as errors:
        return f"{errors}\n"
    return ""


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_a_mistake_is_told_exactly(file: Path) -> None:
    assert complaints(file) == file.with_suffix(".txt").read_text()


@pytest.mark.parametrize("file", VALID, ids=lambda file: file.stem)
def test_what_is_allowed_is_no_mistake(file: Path) -> None:
    assert complaints(file) == ""


def test_every_message_has_its_file() -> None:
    folder = Path(__file__).parent / "invalid"
    assert {file.stem for file in folder.glob("*.txt")} == {file.stem for file in INVALID}


def test_yaml_is_1_2() -> None:
    document = parse("on: on\nyes: NO\nn: 012\nt: 2026-01-01\nf: 1e3\nb: true\nz: ~\n", "f")
    assert document.data == {"on": "on", "yes": "NO", "n": 12, "t": "2026-01-01", "f": 1000.0, "b": True, "z": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0x1F", 31), ("-0x1F", -31), ("0o17", 15), ("0b11", 3), ("1_000", 1000), ("+5", 5), (".5", 0.5)],
)
def test_numbers_are_read_as_yaml_writes_them(text: str, value: float) -> None:
    assert parse(text, "f").data == value


def test_positions_point_at_values() -> None:
    document = parse("a:\n  b: [1,\n    two]\n", "f")
    assert str(document.diagnostic(("a", "b", 1), "wrong", "right")) == "f:3:5: error: wrong\n  hint: right"
    assert str(document.diagnostic(("a", "nowhere"), "wrong")) == "f:2:3: error: wrong"


@pytest.mark.parametrize(
    ("text", "result"),
    [("${A}", "1"), ("${B}", ""), ("${B:-x}", "x"), ("${A:-x}/y", "1/y"), ("$A {A}", "$A {A}"), ("${B:-}", "")],
)
def test_settings_are_filled_in(text: str, result: str) -> None:
    assert substitute(text, {"A": "1"}.get) == result


@pytest.mark.parametrize(("text", "ms"), [("90s", 90_000), ("2m", 120_000), ("4h", 14_400_000), ("30d", 2_592_000_000)])
def test_a_duration_is_a_number_and_a_unit(text: str, ms: int) -> None:
    assert duration(text) == ms


@pytest.mark.parametrize("text", ["", "5", "5x", "-5s", "1.5h", "s", "5 s", "1234567s", "٣s"])
def test_what_is_no_duration_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and a unit, such as 90s, 2m, 4h or 30d"):
        duration(text)


def mistakes(text: str) -> list[Diagnostic]:
    try:
        parse(text, "f")
    except MappingErrors as errors:
        return errors.diagnostics
    return []


@given(st.text(max_size=60) | st.text(alphabet=":-[]{}&*!|>'\"%@`#\n\t abc0x1_", max_size=40))
def test_any_text_is_a_document_or_a_mistake_within_it(text: str) -> None:
    assert all(each.line >= 1 and each.column >= 1 and each.message for each in mistakes(text))


def test_the_bundled_files_have_no_mistakes_and_name_their_settings() -> None:
    asked: set[str] = set()
    load_mappings(bundled(), asked.add)
    assert asked >= {"STRIPE_WEBHOOK_SECRET", "SHOPIFY_WEBHOOK_SECRET", "NEXLY_APP_ID", "DATALYR_HOST", "WEBHOOK_URL"}
    assert not {name for name in asked if not name.isupper()}


def test_a_file_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(MappingErrors, match="nested"):
        parse("a: " + "[" * 2000 + "]" * 2000, "f")


if __name__ == "__main__":
    for path in INVALID:
        path.with_suffix(".txt").write_text(complaints(path))

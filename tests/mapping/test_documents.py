"""Mistakes in a mapping are all found, and each message says what, where and what to do.

`invalid/` holds one small file a mistake, beside its exact messages; `python -m tests.mapping.test_documents` writes
those again, for a reviewer to judge the difference.
"""

from pathlib import Path

import pytest

from gateway.documents import MappingErrors, duration, parse, substitute
from gateway.sources import compile_source

INVALID = sorted((Path(__file__).parent / "invalid").glob("*.yaml"))


def complaints(file: Path) -> str:
    try:
        compile_source(parse(file.read_text(), file.name), "v", lambda _: None)
    except MappingErrors as errors:
        return f"{errors}\n"
    return ""


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_a_mistake_is_told_exactly(file: Path) -> None:
    assert complaints(file) == file.with_suffix(".txt").read_text()


def test_yaml_is_1_2() -> None:
    document = parse("on: on\nyes: NO\nn: 012\nt: 2026-01-01\nf: 1e3\nb: true\nz: ~\n", "f")
    assert document.data == {"on": "on", "yes": "NO", "n": 12, "t": "2026-01-01", "f": 1000.0, "b": True, "z": None}


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


def test_a_file_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(MappingErrors, match="nested"):
        parse("a: " + "[" * 2000 + "]" * 2000, "f")


if __name__ == "__main__":
    for path in INVALID:
        path.with_suffix(".txt").write_text(complaints(path))

"""Samples that something happened to: what senders change without notice, and what attackers try."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from gateway.mappings import bundled

SAMPLES = sorted((bundled() / "samples").glob("*/*.json"))
NAMES = [f"{file.parent.name}/{file.stem}" for file in SAMPLES]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "0", "-1.5", "usd", "1e999", "2026-01-01T00:00:00Z", "x" * 5000, "\x00", "é"])
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value inside a document, itself first."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield from places(each, (*path, name))


def put(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    """Return the document with another value in one place."""
    if not path:
        return value
    copy: Any = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


@st.composite
def changed_samples(draw: st.DrawFn) -> tuple[Path, bytes]:
    """Draw a sample in which up to three values are anything else."""
    file = draw(st.sampled_from(SAMPLES))
    document = msgspec.json.decode(file.read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        where = list(places(document))
        document = put(document, where[draw(st.integers(0, len(where) - 1))], draw(JSON))
    return file, msgspec.json.encode(document)

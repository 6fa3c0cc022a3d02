"""What the playground's editor completes: keys of a mapping, functions, event types, and paths of the webhook."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from msgspec import Struct

from gateway.functions import MAPPING
from gateway.schema import schema

MAX_PATHS = 1_500
MAX_DEPTH = 12
MAX_SHOWN = 40
"""Characters of a value that are shown beside its path."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Words(Struct, frozen=True):
    """All of it. `functions` and `paths` are names, each with what it is."""

    schema: dict[str, object]
    functions: tuple[tuple[str, str], ...]
    types: tuple[str, ...]
    paths: tuple[tuple[str, str], ...]


def words(document: object, types: Sequence[str]) -> Words:
    """Return what may be written for a document; one of a person is to be masked before."""
    paths = dict[str, str]()
    for path, shown in _paths(document):
        paths.setdefault(path, shown)
        if len(paths) == MAX_PATHS:
            break
    return Words(_schema(), _functions(), tuple(types), tuple(paths.items()))


@lru_cache(1)
def _schema() -> dict[str, object]:
    return schema("source")


@lru_cache(1)
def _functions() -> tuple[tuple[str, str], ...]:
    return tuple((name, f"{each.signature}: {each.doc}") for name, each in sorted(MAPPING.items()))


def _paths(value: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if path:
            yield path, "map"
        for key, each in value.items() if depth < MAX_DEPTH else ():
            if isinstance(key, str) and _NAME.fullmatch(key):
                yield from _paths(each, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, list):
        yield path, f"list of {len(value)}"
        for each in value[:1]:
            yield from _paths(each, f"{path}[]", depth + 1)
    elif path:
        yield path, "null" if value is None else str(value)[:MAX_SHOWN]

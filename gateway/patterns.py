"""Regular expressions whose worst case is known before they run.

Python's `re` backtracks, and both patterns and subjects may come from strangers. So a pattern's choices are counted:
each repetition and each alternative multiplies the ways to try, and a pattern with too many for a text is refused.
"""

import importlib
import re
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Any

from msgspec import Struct

MAX_PATTERN = 200
MAX_SUBJECT = 1_000
_MAX_WAYS = 20_000_000  # measured: at most 0.7 s, for repeated groups; 0.05 s for repeated characters
_MAX_CHOICES = 64
_SYNTAX = importlib.import_module("re._parser")
_UNLIMITED = int(_SYNTAX.MAXREPEAT)


def bounded(pattern: str, length: int) -> re.Pattern[str]:
    """Return the pattern compiled, for a text of that length (at most `MAX_SUBJECT`).

    Raises `ValueError` that says what is wrong with it.
    """
    known = _analysed(pattern)
    if isinstance(known, str):
        raise ValueError(known)  # noqa: TRY004 -- the value is wrong, not its type
    if known.ways(length) > _MAX_WAYS:
        raise ValueError("has too many repetitions or alternatives for so long a text")
    return known.compiled


class _Pattern(Struct, frozen=True):
    compiled: re.Pattern[str]
    choices: tuple[int, ...]
    anchored: bool

    def ways(self, length: int) -> int:
        starts = 1 if self.anchored else length + 1
        return starts * prod(min(choice, length + 1) for choice in self.choices)


@lru_cache(maxsize=512)
def _analysed(pattern: str) -> _Pattern | str:
    """Return the pattern with its choices, or what is wrong with it."""
    if len(pattern) > MAX_PATTERN:
        return f"a pattern has at most {MAX_PATTERN} characters"
    try:
        compiled = re.compile(pattern)
        tree = _SYNTAX.parse(pattern)
        choices = tuple(_choices(tree))
    except _EndlessPatternError as error:
        return str(error)
    except (re.error, OverflowError, RecursionError):
        return "not a valid pattern"
    return _Pattern(compiled, choices, _is_anchored(tree, compiled.flags))


class _EndlessPatternError(Exception):
    """The pattern could backtrack without end."""


def _choices(tree: Any) -> list[int]:
    found = [choice for operation, argument in tree for choice in _choices_of(str(operation), argument)]
    if len(found) > _MAX_CHOICES:
        raise _EndlessPatternError("too many repetitions or alternatives")
    return found


def _choices_of(operation: str, argument: Any) -> list[int]:
    if operation in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
        return _choices_of_repeat(*argument)
    if operation == "BRANCH":
        branches = [_choices(branch) for branch in argument[1]]
        return [len(branches), *max(branches, key=lambda each: prod(min(c, MAX_SUBJECT) for c in each))]
    if operation.startswith("GROUPREF"):
        raise _EndlessPatternError("a pattern cannot refer back to a group")
    if operation in {"SUBPATTERN", "ASSERT", "ASSERT_NOT", "ATOMIC_GROUP"}:
        return _choices(argument[-1] if isinstance(argument, tuple) else argument)
    return []


def _choices_of_repeat(least: int, most: int, body: Any) -> list[int]:
    inner = _choices(body)
    if most > 1 and _UNLIMITED in inner:
        raise _EndlessPatternError("a repetition inside a repetition could take for ever")
    if most == _UNLIMITED:
        if inner:
            raise _EndlessPatternError("choices inside an unlimited repetition could take for ever")
        return [_UNLIMITED]
    times = min(most, _MAX_CHOICES + 1) if inner else 0
    return inner * times + ([most - least + 1] if most > least else [])


def _is_anchored(tree: Any, flags: int) -> bool:
    first: Iterator[tuple[object, object]] = iter(tree)
    operation, position = next(first, (None, None))
    if str(operation) != "AT" or flags & re.MULTILINE:
        return False
    return str(position) in {"AT_BEGINNING", "AT_BEGINNING_STRING"}

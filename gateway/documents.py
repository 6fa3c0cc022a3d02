"""YAML documents with positions, and the diagnostics that point into them. Shared by sources and destinations.

A document is loaded as plain data next to a table of positions, so that every later complaint, whoever makes it,
can say file, line and column. YAML 1.2: `on`, `yes` and the country `NO` are strings.
"""

import copy
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct, inspect
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

T = TypeVar("T")
Place = tuple[str | int, ...]
Variables = Callable[[str], str | None]

MAX_DEPTH = 40
MAX_BYTES = 1_000_000


class Diagnostic(Struct, frozen=True, order=True):
    """One complaint about a document, 1-based, printed as a compiler would: `file:line:column: error: message`."""

    file: str
    line: int
    column: int
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: error: {self.message}{hint}"


class MappingErrors(Exception):
    """Every mistake found in the mapping files, in order."""

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        self.diagnostics = sorted(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))


class Position(Struct, frozen=True):
    """Where a value begins, 1-based, and how it is written: a quote, `>` or `|` for a block, else nothing."""

    line: int
    column: int
    style: str = ""


class Document(Struct, frozen=True, eq=False):
    """Plain data from one YAML file, and where each value stands. Equal only to itself: what is made of it is kept."""

    file: str
    data: object
    positions: Mapping[Place, Position]
    lines: tuple[str, ...] = ()

    def diagnostic(self, place: Place, message: str, hint: str | None = None, offset: int | None = None) -> Diagnostic:
        """Point at `place`, or at its nearest parent; or `offset` characters into its text."""
        while place and place not in self.positions:
            place, offset = place[:-1], None
        position = self.positions.get(place, Position(1, 1))
        line, column = position.line, position.column
        if offset is not None:
            line, column = _spread(self.lines, position, offset)
        return Diagnostic(self.file, line, column, message, hint)


def _spread(lines: Sequence[str], at: Position, offset: int) -> tuple[int, int]:
    """Return line and column of a character of a text, which YAML may have folded from several lines."""
    line, column = at.line, at.column
    if at.style in {">", "|"}:
        line, column = line + 1, 0  # the text begins below its `>-`
    elif at.style:
        column += 1  # the quote
    while line <= len(lines):
        text = lines[line - 1]
        start = column - 1 if column else len(text) - len(text.lstrip())
        length = len(text.rstrip()) - start
        if offset <= length or line == len(lines):
            return line, start + 1 + max(0, min(offset, length))
        line, column, offset = line + 1, 0, offset - length - 1
    return at.line, at.column


@lru_cache(maxsize=128)  # so that a reload, and every gateway of a test run, reads only what changed
def parse(text: str, file: str) -> Document:
    """Read one YAML document. What it returns is shared: treat it as read-only.

    Raises `MappingErrors` on bad syntax, repeated keys, tags, aliases and excessive depth.
    """
    if len(text) > MAX_BYTES:
        raise MappingErrors([Diagnostic(file, 1, 1, f"the file is larger than {MAX_BYTES:,} characters")])
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise MappingErrors([Diagnostic(file, line, column, f"not YAML: {error.problem or error.context}")]) from None
    except ReaderError as error:
        before = text[: error.position].split("\n")
        message = f"not YAML: the character U+{error.character:04X} may not stand in a file"
        raise MappingErrors([Diagnostic(file, len(before), len(before[-1]) + 1, message)]) from None
    except RecursionError:
        raise MappingErrors([Diagnostic(file, 1, 1, "not YAML: nested too deeply")]) from None
    if node is None:
        raise MappingErrors([Diagnostic(file, 1, 1, "the file is empty")])
    reader = _Reader(file)
    data = reader.read(node, ())
    if reader.diagnostics:
        raise MappingErrors(reader.diagnostics)
    return Document(file, data, reader.positions, tuple(text.splitlines()))


class _Reader:
    """Turns composed nodes into plain data, noting where each value began."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.positions: dict[Place, Position] = {}
        self.diagnostics: list[Diagnostic] = []
        self.seen: set[int] = set()

    def read(self, node: Node, place: Place) -> object:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.positions[place] = Position(line, column, str(getattr(node, "style", None) or ""))
        if len(place) > MAX_DEPTH:
            self._complain(node, f"nested deeper than {MAX_DEPTH} levels")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if id(node) in self.seen:
            self._complain(node, "aliases (*name) are not supported: write the value out")
            return None
        self.seen.add(id(node))
        if isinstance(node, SequenceNode):
            return [self.read(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, MappingNode):
            return self._mapping(node, place)
        self._complain(node, "not a value that a mapping can hold")
        return None

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if not isinstance(key, str):
                self._complain(key_node, "a key must be plain text")
            elif key in values:
                self._complain(key_node, f"the key `{key}` appears twice")
            else:
                values[key] = self.read(value_node, (*place, key))
        return values

    def _scalar(self, node: ScalarNode) -> object:
        kind, text = str(node.tag).rpartition(":")[2], node.value
        match kind:
            case "str" | "timestamp":
                return text
            case "int" | "float":
                try:
                    return _number(kind, text)
                except ValueError:  # written as a number, but none: `1_`, or more digits than Python reads
                    self._complain(node, "not a number that can be read; quote it if it is text")
                    return None
            case "bool":
                return text.lower() == "true"
            case "null":
                return None
        tag = str(node.tag)
        hint = f'; to say `not`, quote the expression: "{tag}"' if tag.startswith("!") and tag[1:2].isalpha() else ""
        self._complain(node, f"tags ({tag}) are not supported{hint}")
        return None

    def _complain(self, node: Node, message: str) -> None:
        self.diagnostics.append(Diagnostic(self.file, node.start_mark.line + 1, node.start_mark.column + 1, message))


def _number(kind: str, text: str) -> int | float:
    if kind == "int":
        return int(text, 0) if text.lstrip("+-")[:2] in {"0x", "0o", "0b"} else int(text)
    return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::-([^}]*))?\}")


PLACEHOLDER = "…"
"""What examples of settings hold in the place of somebody's own; no secret has it."""


def substitute(text: str, variables: Variables) -> str:
    """Replace `${NAME}` and `${NAME:-default}` in a text. A variable that is not set becomes its default, else ``."""
    return _VARIABLE.sub(lambda match: variables(match[1]) or match[2] or "", text)


_PATH = re.compile(r" - at `(?:key in )?\$(.*)`$")
_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+)\]|\[(\.\.\.)\]")


MAX_MISTAKES = 50
"""Mistakes of shape that are told of one file."""


def shape(document: Document, kind: type[T]) -> T:
    """Turn a document into the Struct `kind`. Raises `MappingErrors` that point at the values that do not fit."""
    shaped, diagnostics = shaped_as(document, kind)
    if shaped is None or diagnostics:
        raise MappingErrors(diagnostics)
    return shaped


def shaped_as(document: Document, kind: type[T]) -> tuple[T | None, list[Diagnostic]]:
    """Return a document as the Struct `kind` without what does not fit, and what that is.

    None instead of the Struct if nothing can be made of it.
    """
    data = copy.deepcopy(document.data)
    diagnostics: list[Diagnostic] = []
    while len(diagnostics) < MAX_MISTAKES:
        try:
            return msgspec.convert(data, kind), diagnostics
        except msgspec.ValidationError as error:
            place, message, hint = _locate(str(error), kind)
            # What is missing only because it was taken out as wrong is no mistake of its own.
            if "missing required field" not in message or not diagnostics:
                diagnostics.append(document.diagnostic(place, message, hint))
            if "missing required field" in message or not _take_out(data, place):
                break
    return None, diagnostics


def _take_out(data: object, place: Place) -> bool:
    """Remove a key from nested maps and lists; say whether it was there."""
    for step in place[:-1]:
        data = data.get(step) if isinstance(data, dict) else data[step] if isinstance(data, list) else None  # type: ignore[index]
    if not place or not isinstance(data, dict):
        return False
    return data.pop(place[-1], _NOWHERE) is not _NOWHERE


_NOWHERE = object()


def _locate(message: str, kind: type) -> tuple[Place, str, str | None]:
    """Return the place that a message of msgspec's speaks of, the message for people, and a hint."""
    place: Place = ()
    if found := _PATH.search(message):
        message = message[: found.start()]
        for name, index, anything in _STEP.findall(found[1]):
            if anything:  # msgspec does not say which key: point at the parent
                break
            place = (*place, int(index) if index else name)
    hint = None
    if unknown := re.search(r"unknown field `([^`]*)`", message):
        place = (*place, unknown[1])
        message = f"unknown key `{unknown[1]}`"
        hint = suggest(unknown[1], _field_names(kind))
    return place, message, hint


def _field_names(kind: type) -> list[str]:
    """Every key that `kind` and the Structs inside it know: good enough a dictionary for a spelling hint."""
    names: set[str] = set()
    open_types = [inspect.type_info(kind)]
    while open_types:
        match open_types.pop():
            case inspect.StructType(fields=fields):
                names.update(field.encode_name for field in fields)
                open_types += [field.type for field in fields]
            case inspect.ListType(item_type=inner) | inspect.DictType(value_type=inner):
                open_types.append(inner)
            case inspect.UnionType(types=types):
                open_types += types
    return sorted(names)


def suggest(word: str, known: list[str] | Mapping[str, object]) -> str | None:
    """Return `did you mean …?` for the known word nearest to a misspelt one, if any is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else None


_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration(text: str) -> int:
    """Return the milliseconds in `90s`, `2m`, `4h` or `30d`. Raises `ValueError` that says what to write."""
    if (match := re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip())) is None:
        raise ValueError(f"`{text}` is not a duration: write a number and a unit, such as 90s, 2m, 4h or 30d")
    return int(match[1]) * _UNITS[match[2]]


def yaml_files(folder: Path) -> list[Path]:
    """Return the YAML files of a folder, in order of their names; none when there is no such folder."""
    return sorted(path for path in folder.glob("*") if path.suffix in {".yaml", ".yml"} and path.is_file())

"""Compiles JMESPath, and whole templates of it, to Python functions.

The `jmespath` package parses and is the reference: on every expression and document the compiled
function gives the same value, or fails where the package fails. It is some twenty times as fast,
because a template becomes one Python function in which each object on the way to a field is
looked up once. How a node becomes code:

- `_At` is where a node starts: a variable, and field names from it that nobody has looked up yet.
- Statements go to the current block; what an emitter returns is an expression to be used once.
- `_Current.prelude` is the spot right behind a variable's assignment. The objects that fields are
  read from are fetched there, so that all fields of one object share the walk to it.
- A document is plain data, or, when `compile_projection` compiled, Structs of only the fields that are read: `_Shape`
  records those in a first pass, and says in the second which type stands where. Whatever is used whole (compared,
  passed on, counted) is plain data in both, so nothing can tell the two apart.
- Names and literals reach the source as `ascii()` of a string, as a number, or as a constant of
  the namespace: never as text of the author's.

Results share structure with the document and with literals; treat them as read-only.
"""

import difflib
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import lru_cache
from itertools import count, pairwise
from math import isfinite, prod
from numbers import Number
from typing import Any, NamedTuple, Protocol, Union, cast, get_args, get_origin

import msgspec
from jmespath.exceptions import EmptyExpressionError, IncompleteExpressionError, LexerError, ParseError
from jmespath.lexer import Lexer
from jmespath.parser import Parser

from gateway.functions import STANDARD, EvaluationError, Function, Reference, Scope, type_name

__all__ = [
    "Compiled",
    "EvaluationError",
    "ExpressionError",
    "Projection",
    "Scope",
    "compile_expression",
    "compile_projection",
    "compile_template",
    "template_errors",
]

MAX_LENGTH = 4_096
MAX_DEPTH = 64
MAX_NODES = 10_000
# How often an expression may copy its document: `[@,@] | [@,@] | …` doubles it at every step.
MAX_GROWTH = 10_000
MAX_ITEMS = 10_000

_Path = tuple[str | int, ...]


class ExpressionError(Exception):
    """An expression that cannot be compiled: what is wrong, and in which column (from 1) if that is known.

    `path` leads from the root of a template to the expression.
    """

    def __init__(self, message: str, column: int | None = None, path: _Path = ()) -> None:
        super().__init__(message)
        self.message = message
        self.column = column
        self.path = path

    @property
    def offset(self) -> int | None:
        """The characters before the mistake, if its column is known."""
        return None if self.column is None else self.column - 1


class Compiled(Protocol):
    """A compiled expression or template. Raises EvaluationError."""

    def __call__(self, document: object, scope: Scope | None = None, /) -> object:
        """Return what it yields of a document. Raises EvaluationError."""
        ...


def compile_expression(text: str, functions: Mapping[str, Function] = STANDARD) -> Compiled:
    """Return the JMESPath expression as a function of a document, or raise ExpressionError."""
    node, errors = _parse(text, functions)
    if node is None or errors:
        raise errors[0]
    return _Writer(functions).compile(node)


def compile_template(node: object, functions: Mapping[str, Function] = STANDARD) -> Compiled:
    """Return the template as one function of a document, or raise its first ExpressionError.

    Text is an expression, `{const: anything}` a literal, maps and lists build structure, all else is
    itself. A key or list item whose value is null is left out; a map that ends up empty stays.
    """
    plan = _Plan(functions)
    tree = plan.read(node, ())
    if plan.errors:
        raise plan.errors[0]
    return _Writer(functions).compile(tree)


class Projection(NamedTuple):
    """Templates compiled over a document of which only what they read is decoded.

    `decode` reads JSON and raises `msgspec.DecodeError`; `compiled` are the templates' functions of what it returns.
    """

    decode: Callable[[bytes], object]
    compiled: tuple[Compiled, ...]


def compile_projection(templates: Sequence[object], functions: Mapping[str, Function] = STANDARD) -> Projection:
    """Return the templates as functions of a document that is decoded for them, or raise the first ExpressionError.

    Each gives what `compile_template` gives over the whole document. What none of them reads is skipped, not decoded:
    it may hold what JSON allows and Python does not, such as a number without end.
    """
    trees: list[_Node] = []
    for each in templates:
        plan = _Plan(functions)  # one each: the limit on nodes is a template's
        trees.append(plan.read(each, ()))
        if plan.errors:
            raise plan.errors[0]
    root = _Shape()
    for tree in trees:
        _Writer(functions, root).write(tree)
    decoder = msgspec.json.Decoder(root.build())
    return Projection(decoder.decode, tuple(_Writer(functions, root).compile(tree) for tree in trees))


def template_errors(node: object, functions: Mapping[str, Function] = STANDARD) -> list[ExpressionError]:
    """Return everything that is wrong with the template, in its order."""
    plan = _Plan(functions)
    plan.read(node, ())
    return plan.errors


# Reading: from text to the package's syntax tree, which this module only looks at.

_Node = Mapping[str, Any]
_NOTHING: _Node = {"type": "literal", "value": None, "children": []}


def _parse(
    text: str, functions: Mapping[str, Function], path: _Path = ()
) -> tuple[_Node | None, list[ExpressionError]]:
    node, message, column = _tree(text)
    if node is None:
        return None, [ExpressionError(message, column, path)]
    return node, list(_faults(node, text, functions, path))


@lru_cache(maxsize=8192)  # the same expressions are checked, compiled, and read again by every reload
def _tree(text: str) -> tuple[_Node | None, str, int | None]:
    """Return the expression's tree, or what is wrong with its syntax and in which column."""
    if len(text) > MAX_LENGTH:
        return None, f"the expression is longer than {MAX_LENGTH} characters", None
    try:
        with warnings.catch_warnings():
            # The package still accepts the literal `foo` without quotes, and says so on stderr.
            warnings.simplefilter("ignore")
            return Parser().parse(text).parsed, "", None
    except (ParseError, EmptyExpressionError) as error:
        return None, *_syntax_error(text, error)
    except (ValueError, LookupError, RecursionError):
        return None, "the expression cannot be read", None


_LEXER_HINTS = {
    "=": "; did you mean `==`?",
    "/": "; for money write money_minor(amount, currency), which knows each currency's decimals, else divide(a, b)",
    "+": "; write add(a, b)",
}


def _syntax_error(text: str, error: ParseError | EmptyExpressionError) -> tuple[str, int]:
    if isinstance(error, EmptyExpressionError) or not text.strip():
        return "the expression is empty", 1
    kind = error.token_type
    if isinstance(error, IncompleteExpressionError) or kind == "EOF":
        return "the expression ends too early", len(text) + 1
    column = error.lex_position + 1
    if isinstance(error, LexerError):
        hint = _LEXER_HINTS.get(error.lexer_value, "")
        return error.message[:1].lower() + error.message[1:100] + hint, column
    if kind == "NUMBER":
        return f"unexpected {error.token_value}; a number is written between backticks", column
    if error.msg.startswith("Quoted"):
        return "the name of a function is written without quotes", column
    return f"unexpected `{str(error.token_value)[:40]}`", column


def _faults(node: _Node, text: str, functions: Mapping[str, Function], path: _Path) -> Iterator[ExpressionError]:
    if _is_too_deep(node):
        yield ExpressionError(f"the expression is nested more than {MAX_DEPTH} deep", None, path)
        return
    if _growth(node) > MAX_GROWTH:
        yield ExpressionError(f"the expression could copy its document more than {MAX_GROWTH} times", None, path)
    calls = list(_calls(node))
    for call, column in zip(calls, _call_columns(text) if calls else (), strict=True):
        message = _call_fault(call, functions)
        if message:
            yield ExpressionError(message, column, path)


def _is_too_deep(node: _Node) -> bool:
    layer = [node]
    for _ in range(MAX_DEPTH):
        layer = [child for each in layer for child in _children(each)]
    return bool(layer)


def _children(node: _Node) -> list[_Node]:
    return [] if node["type"] == "slice" else node["children"]


def _growth(node: _Node) -> int:
    """Return how many copies of what it starts from `node` may hold, at most."""
    copies = [_growth(child) for child in _children(node)] or [1]
    kind = node["type"]
    if kind == "filter_projection":
        return copies[0] * max(copies[1:])
    if kind in _SEQUENCES or kind in {"projection", "value_projection"} or _takes_reference(node):
        return prod(copies)
    return sum(copies) if kind in {"multi_select_list", "multi_select_dict", "function_expression"} else max(copies)


def _takes_reference(node: _Node) -> bool:
    return node["type"] == "function_expression" and any(child["type"] == "expref" for child in node["children"])


def _calls(node: _Node) -> Iterator[_Node]:
    """Yield the function calls in the order of the text."""
    if node["type"] == "function_expression":
        yield node
    children = _children(node)
    if node["type"] == "filter_projection":
        # The package puts the condition last, but it is written before what follows the filter.
        children = [children[0], children[2], children[1]]
    for child in children:
        yield from _calls(child)


@lru_cache(maxsize=8192)
def _call_columns(text: str) -> list[int]:
    # Nodes do not say where they stand, but no call is anything else than a name and a parenthesis.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = list(Lexer().tokenize(text))
    return [a["start"] + 1 for a, b in pairwise(tokens) if (a["type"], b["type"]) == ("unquoted_identifier", "lparen")]


def _call_fault(call: _Node, functions: Mapping[str, Function]) -> str | None:
    name, given = call["value"], len(call["children"])
    function = functions.get(name)
    if function is None:
        close = difflib.get_close_matches(name, functions, 1)
        return f"unknown function `{name}`" + (f"; did you mean `{close[0]}`?" if close else "")
    if function.minimum <= given and (function.maximum is None or given <= function.maximum):
        return None
    return f"`{name}` takes {_arity(function)}, got {given}"


def _arity(function: Function) -> str:
    least, most = function.minimum, function.maximum
    if most is None:
        return f"at least {least} argument" + ("s" if least != 1 else "")
    amount = str(most) if least == most else f"{least} to {most}"
    return f"{amount} argument" + ("s" if most != 1 else "")


class _Plan:
    """Reads a template into a syntax tree with two nodes that JMESPath does not have, and collects the errors."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self.functions = functions
        self.errors: list[ExpressionError] = []
        self.nodes = 0

    def read(self, node: object, path: _Path) -> _Node:
        self.nodes += 1
        if self.nodes == MAX_NODES:
            return self.fail(f"the template has more than {MAX_NODES} nodes", path)
        if len(path) > MAX_DEPTH or self.nodes > MAX_NODES:
            return _NOTHING if self.nodes > MAX_NODES else self.fail(f"nested more than {MAX_DEPTH} deep", path)
        if isinstance(node, str):
            return self.read_expression(node, path)
        if isinstance(node, dict):
            return _literal(node["const"]) if node.keys() == {"const"} else self.read_map(node, path)
        if isinstance(node, list):
            children = [self.read(item, (*path, index)) for index, item in enumerate(node)]
            return {"type": "template_list", "children": children}
        if node is None or isinstance(node, bool | int | float):
            return _literal(node)
        expected = "text, a number, a boolean, null, a map or a list"
        return self.fail(f"expected {expected}, got {type(node).__name__}", path)

    def read_expression(self, text: str, path: _Path) -> _Node:
        node, errors = _parse(text, self.functions, path)
        self.errors += errors
        return _NOTHING if node is None else node

    def read_map(self, node: dict[Any, object], path: _Path) -> _Node:
        for key in node:
            if not isinstance(key, str):
                self.fail(f"a key must be text, got {type(key).__name__}", path)
        children = [self.read(value, (*path, key)) for key, value in node.items()]
        return {"type": "template_map", "value": list(node), "children": children}

    def fail(self, message: str, path: _Path) -> _Node:
        self.errors.append(ExpressionError(message, None, path))
        return _NOTHING


def _literal(value: object) -> _Node:
    return {"type": "literal", "value": value, "children": []}


# What generated code calls. The rules are those of the package's `visitor.py`.

_ORDERED = frozenset({int, float, str})


def _equals(left: object, right: object) -> bool:
    # Python says 1 == True, JMESPath does not; inside of lists and objects the package goes by Python.
    return bool(left == right) and (type(left) is bool) == (type(right) is bool)


def _differs(left: object, right: object) -> bool:
    return not _equals(left, right)


def _ordering(symbol: str, compare: Callable[[Any, Any], bool]) -> Callable[[object, object], bool | None]:
    def ordered(left: object, right: object) -> bool | None:
        if not (_is_ordered(left) and _is_ordered(right)):
            return None
        try:
            return compare(left, right)
        except TypeError:
            message = f"`{symbol}` compares numbers or strings, not {type_name(left)} with {type_name(right)}"
        raise EvaluationError(message)

    return ordered


def _is_ordered(value: object) -> bool:
    return type(value) in _ORDERED or (isinstance(value, Number | str) and not isinstance(value, bool))


def _flattened(value: object) -> list[object] | None:
    if not isinstance(value, list):
        return None
    merged: list[object] = []
    for element in value:
        if isinstance(element, list):
            merged.extend(element)
            _within(merged)
        else:
            merged.append(element)
    return merged


def _within(items: Sized) -> Sized:
    """Return a list or an object that is about to be gone through, if that takes no longer than it may."""
    if len(items) > MAX_ITEMS:
        raise EvaluationError(f"a list of more than {MAX_ITEMS:,} items")
    return items


def _sliced(value: object, start: int | None, stop: int | None, step: int | None) -> list[object] | None:
    if not isinstance(value, list):
        return None
    if step == 0:
        raise EvaluationError("the step of a slice cannot be 0")
    return value[start:stop:step]


def _failure(error: Exception) -> EvaluationError:
    # A new error: the old one's context and frames hold values of the document.
    if isinstance(error, EvaluationError):
        return EvaluationError(*error.args)
    return EvaluationError(f"the expression failed ({type(error).__name__})")


_COMPARATORS: Mapping[str, Callable[[Any, Any], bool | None]] = {
    "eq": _equals,
    "ne": _differs,
    "lt": _ordering("<", operator.lt),
    "lte": _ordering("<=", operator.le),
    "gt": _ordering(">", operator.gt),
    "gte": _ordering(">=", operator.ge),
}

_NAMESPACE: Mapping[str, object] = {
    "__builtins__": {},
    "Exception": Exception,
    "dict": dict,
    "isinstance": isinstance,
    "len": len,
    "list": list,
    "type": type,
    "nothing": {},  # stands in for whatever has no fields
    "no_scope": Scope(),
    "Reference": Reference,
    "failure": _failure,
    "flattened": _flattened,
    "sliced": _sliced,
    "within": _within,
    **_COMPARATORS,
}

# Writing.

_SEQUENCES = frozenset({"subexpression", "index_expression", "pipe"})
# CPython allows 20 loops and 100 indents inside of each other; deeper nodes get a function of their own.
_INLINE_DEPTH = 12


class _Block:
    """Lines of Python and blocks of them, `indent` levels further in than what they stand in."""

    def __init__(self, indent: int) -> None:
        self.indent = indent
        self.lines: list[str | _Block] = []

    def render(self, indent: int = 0) -> Iterator[str]:
        for line in self.lines:
            if isinstance(line, str):
                yield " " * (indent + self.indent) + line
            else:
                yield from line.render(indent + self.indent)


class _Shape:
    """What is read of one place in a document: all of it, some fields, items of a list.

    While shapes are `recorded` the functions compiled over them are thrown away. `build` then gives each place that is
    never used whole a Struct, so that fields become slots, and all else is not decoded.
    """

    def __init__(self) -> None:
        self.whole = False
        self.fields: dict[str, _Shape] = {}
        self.items: _Shape | None = None
        self.flattened = False
        self.struct: type[msgspec.Struct] | None = None
        self.recorded = True

    def field(self, name: str) -> "_Shape":
        return self.fields.setdefault(name, _Shape()) if self.recorded else self.fields[name]

    def item(self) -> "_Shape":
        if self.items is None:
            assert self.recorded  # noqa: S101 -- both passes read the same
            self.items = _Shape()
        return self.items

    def use_whole(self) -> None:
        assert self.recorded  # noqa: S101 -- what is used whole is no shape in the second pass
        self.whole = True

    def slot(self, name: str) -> str:
        return f"f{list(self.fields).index(name)}"

    def build(self) -> Any:
        """Return the type to decode, and end the recording."""
        self.recorded = False
        if self.items is not None and self.items.items is not None and self.flattened:
            self.items.whole = True  # its items could be those of a list, and of a list in a list
        if self.whole or not (self.fields or self.items) or not all(map(_can_be_slot, self.fields)):
            self.whole = True
            return Any
        return Union[(*_SCALARS, self._object(), self._list())]

    def _object(self) -> Any:
        if not self.fields:
            return dict[str, Any]
        slots = [(self.slot(name), shape.build(), None) for name, shape in self.fields.items()]
        names = {self.slot(name): name for name in self.fields}
        self.struct = msgspec.defstruct("Projected", slots, rename=names, gc=False, eq=False)
        return self.struct

    def _list(self) -> Any:
        item = self.items.build() if self.items else Any
        if item is not Any and self.flattened:
            # Flattening goes one level into the lists of a list: there, too, stand items.
            item = Union[(*(each for each in get_args(item) if get_origin(each) is not list), _list_of(item))]
        return _list_of(item)


def _list_of(item: Any) -> Any:
    return list.__class_getitem__(item)  # `list[item]` is for types that a type checker can see


_SCALARS = (str, int, float, bool, None)


def _can_be_slot(name: str) -> bool:
    return name.isprintable() and not set(name) & {'"', "\\"}  # msgspec renames to nothing else


class _Current:
    """A variable that fields are read from, and where to put what all of its readers share."""

    def __init__(self, name: str, prelude: _Block, shape: _Shape | None) -> None:
        self.name = name
        self.prelude = prelude
        self.shape = shape
        self.objects: dict[tuple[str, ...], str] = {}


class _At(NamedTuple):
    current: _Current
    path: tuple[str, ...]


class _Code(NamedTuple):
    """A Python expression. `plain`: Python takes it for true exactly when JMESPath does, as 0 is true there."""

    source: str
    plain: bool = False


class _Writer:
    def __init__(self, functions: Mapping[str, Function], root: _Shape | None = None) -> None:
        self.functions = functions
        self.root = root
        self.top = _Current("value", _Block(0), root)
        self.namespace = dict(_NAMESPACE)
        self.numbers = count()
        self.helpers: list[str] = []
        self.block = _Block(0)
        self.depth = 0
        self.scoped = False

    def compile(self, node: _Node) -> Compiled:
        """Return the function."""
        exec(compile(self.write(node), "<mapping>", "exec"), self.namespace)  # noqa: S102 - the source holds nothing of the author's, see above
        return cast("Compiled", self.namespace["compiled"])

    def write(self, node: _Node) -> str:
        """Return the function's source. The `try` costs nothing until something fails."""
        self.block.indent = 2
        self.top = self.enter("value", self.root)
        returned = self.emit(node, _At(self.top, ())).source
        body = [*self.block.render(), f"  return {returned}"]
        if self.scoped:
            body.insert(0, "  if scope is None: scope = no_scope")
        ending = [" except Exception as error:", "  caught = failure(error)", " raise caught"]
        return "\n".join([*self.helpers, "def compiled(value, scope=None):", " try:", *body, *ending])

    # Names, lines and blocks.

    def fresh(self) -> str:
        return f"v{next(self.numbers)}"

    def line(self, text: str) -> None:
        self.block.lines.append(text)

    @contextmanager
    def inside(self, head: str) -> Iterator[None]:
        self.line(head)
        outer, self.block = self.block, _Block(1)
        outer.lines.append(self.block)
        self.depth += 1
        yield
        self.block = outer
        self.depth -= 1

    def constant(self, value: object) -> str:
        name = f"c{next(self.numbers)}"
        self.namespace[name] = value
        return name

    def variable(self, source: str) -> str:
        if source.isidentifier() and source not in {"None", "True", "False"}:
            return source
        name = self.fresh()
        self.line(f"{name} = {source}")
        return name

    def enter(self, source: str, shape: _Shape | None = None) -> _Current:
        name = self.variable(source)
        prelude = _Block(0)
        self.block.lines.append(prelude)
        return _Current(name, prelude, shape)

    # Fields: the only places that know how a document is read.

    def value(self, at: _At) -> str:
        """Return what stands at a place, to be used whole."""
        shape = self.shape(at)
        if shape is not None:
            shape.use_whole()
        return self.fetch(at)

    def shape(self, at: _At) -> _Shape | None:
        """Return the shape of a place, or None if plain data stands there."""
        shape = at.current.shape
        for name in at.path:
            if shape is None:
                return None
            shape = shape.field(name) if shape.recorded or not shape.whole else None
        return None if shape is None or (shape.whole and not shape.recorded) else shape

    def fetch(self, at: _At) -> str:
        """Return what stands at a place: for its fields, its items, or to see whether it is there."""
        if not at.path:
            return at.current.name
        *path, last = at.path
        container = self.object(at.current, tuple(path))
        self.shape(at)
        shape = self.shape(_At(at.current, tuple(path)))
        return f"{container}.{shape.slot(last)}" if shape else f"{container}.get({last!a})"

    def object(self, current: _Current, path: tuple[str, ...]) -> str:
        """Return a variable that holds the object at `path`, or an empty one: fetched once, and it cannot fail."""
        if path not in current.objects:
            at = _At(current, path)
            source, shape, name = self.fetch(at), self.shape(at), self.fresh()
            current.objects[path] = name
            if shape is None or shape.struct is None:
                check = f"if not isinstance({name}, dict): {name} = nothing"
            else:
                struct = self.constant(shape.struct)
                check = f"if type({name}) is not {struct}: {name} = {self.constant(shape.struct())}"
            current.prelude.lines += [f"{name} = {source}", check]
        return current.objects[path]

    def elements(self, at: _At, *, flat: bool = False) -> tuple[str, _Shape | None]:
        """Return the list at a place, and the shape of its items."""
        shape = self.shape(at)
        if shape is None:
            return self.fetch(at), None
        shape.flattened |= flat
        return self.fetch(at), shape.item()

    # Nodes.

    def emit(self, node: _Node, at: _At) -> _Code:
        if self.depth > _INLINE_DEPTH:
            return _Code(f"{self.helper(node)}({self.value(at)}, scope, {self.top.name})")
        emitted: _Code = getattr(self, f"emit_{node['type']}")(node, at)
        return emitted

    def helper(self, node: _Node) -> str:
        """Write the node as a function of its own and return its name."""
        name = self.fresh()
        block, depth, top = self.block, self.depth, self.top
        self.block, self.depth = _Block(1), 0
        self.top = self.enter("root", self.root)
        returned = self.emit(node, _At(self.enter("value"), ())).source
        self.helpers += [f"def {name}(value, scope, root):", *self.block.render(), f" return {returned}"]
        self.block, self.depth, self.top = block, depth, top
        return name

    def walk(self, node: _Node, at: _At) -> _At:
        """Return where the node leads, without looking fields up."""
        kind = node["type"]
        if kind == "field":
            return _At(at.current, (*at.path, node["value"]))
        if kind in {"current", "identity"}:
            return at
        if kind == "function_expression" and node["value"] == "root":
            return _At(self.top, ())
        if kind == "index":
            return self.element(node["value"], at)
        if kind not in _SEQUENCES:
            return _At(self.enter(self.emit(node, at).source), ())
        for child in node["children"]:
            at = self.walk(child, at)
        return at

    def emit_field(self, node: _Node, at: _At) -> _Code:
        return _Code(self.value(self.walk(node, at)))

    emit_current = emit_identity = emit_index = emit_subexpression = emit_index_expression = emit_pipe = emit_field

    def emit_literal(self, node: _Node, _: _At) -> _Code:
        value = node["value"]
        if isinstance(value, str):
            return _Code(ascii(value) if type(value) is str else self.constant(value), plain=True)
        if value is None or isinstance(value, bool):
            return _Code(repr(value), plain=True)
        if (type(value) is int and value.bit_length() <= 64) or (type(value) is float and isfinite(value)):
            return _Code(f"({value!r})")
        return _Code(self.constant(value))

    def element(self, index: int, at: _At) -> _At:
        source, shape = self.elements(at)
        name = self.variable(source)
        enough = f"len({name}) > {index}" if index >= 0 else f"len({name}) >= {-index}"
        return _At(self.enter(f"({name}[{index}] if isinstance({name}, list) and {enough} else None)", shape), ())

    def emit_slice(self, node: _Node, at: _At) -> _Code:
        start, stop, step = node["children"]
        return _Code(f"sliced({self.value(at)}, {start}, {stop}, {step})", plain=True)

    def emit_flatten(self, node: _Node, at: _At) -> _Code:
        return _Code(f"flattened({self.emit(node['children'][0], at).source})", plain=True)

    def emit_multi_select_list(self, node: _Node, at: _At) -> _Code:
        result = self.fresh()
        self.line(f"{result} = None")
        with self.inside(f"if {self.fetch(at)} is not None:"):
            items = [self.emit(child, at).source for child in node["children"]]
            self.line(f"{result} = [{', '.join(items)}]")
        return _Code(result, plain=True)

    def emit_multi_select_dict(self, node: _Node, at: _At) -> _Code:
        result = self.fresh()
        self.line(f"{result} = None")
        with self.inside(f"if {self.fetch(at)} is not None:"):
            pairs = [f"{each['value']!a}: {self.emit(each['children'][0], at).source}" for each in node["children"]]
            self.line(f"{result} = {{{', '.join(pairs)}}}")
        return _Code(result, plain=True)

    def emit_or_expression(self, node: _Node, at: _At) -> _Code:
        return self.either(node, at, "not {}", "not {0} and ({0} is False or {0} != 0)")

    def emit_and_expression(self, node: _Node, at: _At) -> _Code:
        return self.either(node, at, "{}", "{0} or ({0} is not False and {0} == 0)")

    def either(self, node: _Node, at: _At, plain: str, full: str) -> _Code:
        """Write the first operand, and the second if the first meets the condition."""
        result = self.fresh()
        first = self.emit(node["children"][0], at)
        self.line(f"{result} = {first.source}")
        with self.inside(f"if {(plain if first.plain else full).format(result)}:"):
            second = self.emit(node["children"][1], at)
            self.line(f"{result} = {second.source}")
        return _Code(result, first.plain and second.plain)

    def emit_not_expression(self, node: _Node, at: _At) -> _Code:
        return _Code(f"(not {self.truth(self.emit(node['children'][0], at))})", plain=True)

    def truth(self, code: _Code) -> str:
        if code.plain:
            return code.source
        name = self.variable(code.source)
        return f"({name} or ({name} is not False and {name} == 0))"

    def emit_comparator(self, node: _Node, at: _At) -> _Code:
        left, right = node["children"]
        name = node["value"]
        if left["type"] == "literal":
            left, right = (right, left) if name in {"eq", "ne"} else (left, right)
        first, second = self.emit(left, at).source, self.emit(right, at).source
        if name in {"eq", "ne"} and right["type"] == "literal":
            # Two literals: Python would warn of `is` between them.
            simple = None if left["type"] == "literal" else _simple_equality(name, right["value"])
            if simple:
                return _Code(f"({first} {simple} {second})", plain=True)
        return _Code(f"{name}({first}, {second})", plain=True)

    def emit_projection(self, node: _Node, at: _At) -> _Code:
        base, right = node["children"]
        return self.projected_list(base, at, right)

    def emit_value_projection(self, node: _Node, at: _At) -> _Code:
        base, right = node["children"]
        return self.projected(self.emit(base, at).source, None, "dict", right)

    def emit_filter_projection(self, node: _Node, at: _At) -> _Code:
        base, right, condition = node["children"]
        return self.projected_list(base, at, right, condition)

    def projected_list(self, base: _Node, at: _At, right: _Node, condition: _Node | None = None) -> _Code:
        flat = base["type"] == "flatten"
        source, shape = self.elements(self.walk(base["children"][0] if flat else base, at), flat=flat)
        return self.projected(f"flattened({source})" if flat else source, shape, "list", right, condition)

    def projected(
        self, base: str, shape: _Shape | None, kind: str, right: _Node, condition: _Node | None = None
    ) -> _Code:
        name, result, element = self.variable(base), self.fresh(), self.fresh()
        self.line(f"{result} = None")
        with self.inside(f"if isinstance({name}, {kind}):"):
            self.line(f"{result} = []")
            with self.inside(f"for {element} in within({name if kind == 'list' else name + '.values()'}):"):
                at = _At(self.enter(element, shape), ())
                if condition is None:
                    self.append(result, self.emit(right, at))
                else:
                    with self.inside(f"if {self.truth(self.emit(condition, at))}:"):
                        self.append(result, self.emit(right, at))
        return _Code(result, plain=True)

    def append(self, result: str, code: _Code) -> None:
        name = self.variable(code.source)
        self.line(f"if {name} is not None: {result}.append({name})")

    def emit_expref(self, node: _Node, _: _At) -> _Code:
        self.scoped = True
        helper = self.helper(node["children"][0])
        return _Code(f"Reference(lambda value, scope: {helper}(value, scope, {self.top.name}), scope)", plain=True)

    def emit_function_expression(self, node: _Node, at: _At) -> _Code:
        if node["value"] == "root":
            return _Code(self.value(_At(self.top, ())))
        function = self.functions[node["value"]]
        arguments = [self.emit(child, at).source for child in node["children"]]
        if function.scoped:
            self.scoped = True
            arguments.insert(0, "scope")
        return _Code(f"{self.constant(function.call)}({', '.join(arguments)})")

    def emit_template_map(self, node: _Node, at: _At) -> _Code:
        result = self.fresh()
        self.line(f"{result} = {{}}")
        for key, child in zip(node["value"], node["children"], strict=True):
            self.keep(child, at, f"{result}[{key!a}] = ", "")
        return _Code(result, plain=True)

    def emit_template_list(self, node: _Node, at: _At) -> _Code:
        result = self.fresh()
        self.line(f"{result} = []")
        for child in node["children"]:
            self.keep(child, at, f"{result}.append(", ")")
        return _Code(result, plain=True)

    def keep(self, node: _Node, at: _At, before: str, after: str) -> None:
        name = self.variable(self.emit(node, at).source)
        self.line(f"if {name} is not None: {before}{name}{after}")


def _simple_equality(name: str, literal: Any) -> str | None:
    """Return the Python operator that says what JMESPath's == or != says for this literal on the right."""
    if literal is None or isinstance(literal, bool):
        return "is" if name == "eq" else "is not"
    if isinstance(literal, int | float) and literal in {0, 1}:
        return None
    return "==" if name == "eq" else "!="

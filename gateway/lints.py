"""What is most likely a mistake in a source's mapping, though it compiles: `gateway check` tells it.

A finding must be worth its interruption: where a name may be right and only the samples too few, nothing is said.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations, takewhile
from typing import Any, NamedTuple

from jmespath.exceptions import JMESPathError
from jmespath.lexer import Lexer
from jmespath.parser import Parser

from gateway.documents import Diagnostic, Document, Place, duration, suggest
from gateway.sources import RuleSpec, SourceSpec, SubjectSpec, matches, rule_types

_Node = Mapping[str, Any]

_SEQUENCES = frozenset({"subexpression", "index_expression", "pipe"})
_PROJECTIONS = frozenset({"projection", "value_projection", "filter_projection"})
_NAMED = frozenset({"field", "function_expression", "key_val_pair"})
_TIME_FUNCTIONS = frozenset({"epoch", "epoch_ms", "iso8601", "to_date"})
# Words of a field's or property's name that say that a division by 100 or 1000 is not about money.
_NO_MONEY = re.compile(
    "at|bps|bytes|created|date|duration|end|epoch|expiration|expires|grams|ms|millis|milliseconds|occurred|pct|percent"
    "|percentage|rate|ratio|seconds|start|time|timestamp|updated|weight"
)
# What binds looser than `!`, as it is written behind an operand.
_LOOSER_THAN_NOT = {
    "comparator": "",
    "filter_projection": "[?b]",
    "flatten": "[]",
    "index_expression": "[0]",
    "subexpression": ".b",
    "value_projection": ".*",
}
_SYMBOLS = {"eq": "==", "ne": "!=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_EVENT_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DECIMALS = "which knows each currency's decimals: yen have none, Kuwaiti dinars three"
_ADD_SAMPLE = "for a field that samples lack, add a sample that has it"
_TELL_APART = "tell them apart by `when`"
# Events that count as money wherever they go.
_COUNTED = frozenset({"purchase", "refund"})


def lint(
    document: Document, spec: SourceSpec, samples: Sequence[object], types: Sequence[str] | None = None
) -> list[Diagnostic]:
    """Return what looks wrong in a source that compiles, in the order of the file.

    `samples` are request bodies as the provider sends them. Without any, no name of a field can be judged. `types` are
    their webhooks' types: if given, a rule that there is no sample for may read what the samples lack.
    """
    fields = _Fields.of(samples, spec.tables)
    expressions = list(_expressions(spec))
    found = [document.diagnostic(*each) for each in _tables(spec, expressions)]
    unsampled = {index for index, rule in enumerate(spec.rules) if types is not None and not _is_for(rule, types)}
    for expression in expressions:
        guess = expression.kind != "person" and expression.rule not in unsampled
        findings = [
            *_unknown_fields(expression, fields, guess=guess),
            *_money_by_hand(expression),
            *_misread_not(expression),
        ]
        found += [document.diagnostic(expression.place, message, hint, at) for at, message, hint in findings]
    for index, rule in enumerate(spec.rules):
        found += [document.diagnostic(*each) for each in _rule_faults(rule, ("rules", index))]
    if types:
        found += [document.diagnostic(*each) for each in _unknown_types(spec.rules, types)]
    found += [document.diagnostic(*each) for each in _shadows(document, spec.rules)]
    return sorted(set(found), key=lambda each: (each.line, each.column, each.message))


# Reading: every expression of the file, and where its names stand.


class _Expression(NamedTuple):
    """An expression. `starts` has the offset of each name and each `!` in the text, by the identity of its node.

    `kind` says what it is there for: a `value` may be a text as well, a `key` (when, once, …) hardly, and what is said
    of a `person` is read from whatever a payload has.
    """

    place: Place
    kind: str
    tree: _Node
    starts: Mapping[int, int]

    @property
    def rule(self) -> str | int | None:
        return self.place[1] if self.place[0] == "rules" else None

    def start(self, node: _Node) -> int:
        return self.starts.get(id(node), 0)


_Finding = tuple[int, str, str | None]
_Fault = tuple[Place, str, str | None]


def _expressions(spec: SourceSpec) -> Iterator[_Expression]:
    for name in spec.webhook.__struct_fields__:
        kind = "value" if name in {"type", "account"} else "key"
        yield from _template(getattr(spec.webhook, name), ("webhook", name), kind)
    for name, subject in spec.subjects.items():
        if isinstance(subject, SubjectSpec):
            yield from _template(subject.value, ("subjects", name, "value"), "person")
        else:
            yield from _template(subject, ("subjects", name), "person")
    yield from _template(spec.visitor, ("visitor",), "person")
    for name in spec.identity.__struct_fields__:
        yield from _template(getattr(spec.identity, name), ("identity", name), "person")
    for index, rule in enumerate(spec.rules):
        for name in ("when", "once", "of", "at"):
            yield from _template(getattr(rule, name), ("rules", index, name), "key")
        for name in ("properties", "context"):
            yield from _template(getattr(rule, name), ("rules", index, name), "value")


def _template(node: object, place: Place, kind: str) -> Iterator[_Expression]:
    if isinstance(node, str):
        tree_and_starts = _read(node)
        if tree_and_starts:
            yield _Expression(place, kind, *tree_and_starts)
    elif isinstance(node, dict) and node.keys() != {"const"}:
        for key, value in node.items():
            yield from _template(value, (*place, key), kind)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _template(value, (*place, index), kind)


def _read(text: str) -> tuple[_Node, dict[int, int]] | None:
    """Return the syntax tree and where its names and `!` stand; None for what does not parse, which has its own error.

    Nodes carry no positions. But each name in the text is just one node, and they come in the same order.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of literals without quotes, which the package still accepts
            tree = Parser().parse(text).parsed
            tokens = list(Lexer().tokenize(text))
    except (JMESPathError, ValueError, LookupError, RecursionError):
        return None
    nodes = list(_nodes(tree))
    starts: dict[int, int] = {}
    for types, tags in ((_NAMED, ("unquoted_identifier", "quoted_identifier")), ({"not_expression"}, ("not",))):
        of_kind = [node for node in nodes if node["type"] in types]
        places = [token["start"] for token in tokens if token["type"] in tags]
        starts |= {id(node): at for node, at in zip(of_kind, places, strict=True)}
    return tree, starts


def _children(node: _Node) -> list[_Node]:
    """Return a node's children in the order of the text."""
    if node["type"] == "slice":
        return []  # its children are numbers
    children: list[_Node] = node["children"]
    if node["type"] == "filter_projection":  # the package puts the condition last
        return [children[0], children[2], children[1]]
    return children


def _nodes(node: _Node) -> Iterator[_Node]:
    yield node
    for child in _children(node):
        yield from _nodes(child)


class _Name(NamedTuple):
    """A field's name as it is used: read from the payload itself (`top`) or from something in it; with more read from
    it (`path`) or not; and what it is compared with.
    """

    node: _Node
    name: str
    top: bool
    path: bool
    against: _Node | None = None


def _names(node: _Node, top: bool = True, path: bool = False, against: _Node | None = None) -> Iterator[_Name]:
    kind, children = node["type"], _children(node)
    if kind == "field":
        yield _Name(node, node["value"], top, path, against)
    elif kind in _SEQUENCES:
        for number, child in enumerate(children, 1):
            yield from _names(child, top, path or number < len(children))
            top = top and child["type"] in {"current", "identity"}
    elif kind in _PROJECTIONS:
        yield from _names(children[0], top, path=True)
        for child in children[1:]:
            yield from _names(child, top=False, path=path)
    elif kind == "comparator":
        left, right = children
        yield from _names(left, top, against=right)
        yield from _names(right, top, against=left)
    else:
        for child in children:
            yield from _names(child, top and kind != "expref", path=kind == "flatten")


# Fields.


class _Fields(NamedTuple):
    """The names that samples have at their top, and those that samples or the file's tables have anywhere."""

    top: AbstractSet[str]
    anywhere: AbstractSet[str]

    @staticmethod
    def of(samples: Sequence[object], tables: object) -> "_Fields":
        top = {name for sample in samples if isinstance(sample, dict) for name in sample}
        anywhere: set[str] = set()
        open_values = [*samples, tables]
        while open_values:
            value = open_values.pop()
            if isinstance(value, dict):
                anywhere |= value.keys()
                open_values += value.values()
            elif isinstance(value, list):
                open_values += value
        return _Fields(top, anywhere)


def _unknown_fields(expression: _Expression, fields: _Fields, guess: bool) -> Iterator[_Finding]:
    """Yield the names that no sample has; unless `guess`, only those that are another name with a slip."""
    if not fields.top:
        return
    # What the expression itself makes is not read from a sample.
    told = {node["value"] for node in _nodes(expression.tree) if node["type"] == "key_val_pair"}
    for each in _names(expression.tree):
        known = fields.top if each.top else fields.anywhere
        if each.name in told or each.name in known:
            continue
        meant = next((name for name in sorted(known) if _is_slip(each.name, name)), None)
        hint = f"did you mean `{meant}`?" if meant else _unknown_field_hint(each, expression, known) if guess else None
        if hint:
            told.add(each.name)
            yield expression.start(each.node), f"no sample has a field `{each.name}`", hint


def _unknown_field_hint(each: _Name, expression: _Expression, known: AbstractSet[str]) -> str | None:
    """Return what to write instead, or None where the name may well be right."""
    if each.against is not None:  # with a literal, what is compared is meant as a field
        return None if each.against["type"] == "literal" else f"for the text write '{each.name}'"
    is_bare = each.node is expression.tree
    if not each.top or not (each.path or is_bare):
        return None
    if each.path:
        return suggest(each.name, sorted(known)) or _ADD_SAMPLE
    text = f"for the text itself write {{const: {each.name}}}; " if expression.kind == "value" else ""
    return text + _ADD_SAMPLE


def _is_slip(written: str, known: str) -> bool:
    """Whether a slip of the finger makes one of the other: a letter too few, too many, wrong, or two swapped.

    Not what makes another good name: a plural, the next number, or, in a short name, another letter.
    """
    if max(len(written), len(known)) < 4:
        return False
    head = _shared(written, known)
    one, other = written[head:], known[head:]
    tail = _shared(one[::-1], other[::-1])
    one, other = one[: len(one) - tail], other[: len(other) - tail]
    changed = one + other
    if any(letter.isdigit() for letter in changed):
        return False
    if len(changed) == 1:
        return tail > 0 or changed != "s"
    return (len(one) == len(other) == 1 and len(known) >= 6) or (len(one) == 2 and one == other[::-1])


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


# Single expressions.


def _money_by_hand(expression: _Expression) -> Iterator[_Finding]:
    if not _is_no_money(step for step in expression.place if isinstance(step, str)):
        yield from ((expression.start(node), message, hint) for node, message, hint in _by_hand(expression.tree))


def _by_hand(node: _Node, inside: str = "") -> Iterator[tuple[_Node, str, str]]:
    """Yield the calls that shift a decimal point. `inside` is the function whose argument this is."""
    name = node["value"] if node["type"] == "function_expression" else ""
    if name in _TIME_FUNCTIONS:
        return
    decimals = _decimals(name, node["children"], inside) if name in {"divide", "multiply"} else None
    if decimals:
        leaves = [each.name for each in _names(node) if not each.path]
        calls = {child["value"] for child in _nodes(node) if child["type"] == "function_expression"}
        if leaves and not calls & _TIME_FUNCTIONS and not _is_no_money(leaves):
            factor, places, instead = decimals
            message = f"`{name}` by {factor:g} fits only currencies with {places} decimals"
            yield node, message, f"write {instead}(amount, currency), {_DECIMALS}"
            return
    for child in _children(node):
        yield from _by_hand(child, name or inside)


def _is_no_money(names: Iterable[str]) -> bool:
    """Whether one of the names says that it is about a time, a share or a weight."""
    words = (word.lower() for name in names for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    return any(_NO_MONEY.fullmatch(word) for word in words)


def _decimals(name: str, arguments: list[_Node], inside: str) -> tuple[float, int, str] | None:
    """Return the factor, the decimals that it stands for, and the function that is meant."""
    for argument in arguments[1:] if name == "divide" else arguments:
        value = argument["value"] if argument["type"] == "literal" else None
        if not isinstance(value, int | float):
            continue
        to_major: dict[float, int] = {100: 2, 1000: 3} if name == "divide" else {0.01: 2, 0.001: 3}
        to_minor: dict[float, int] = {100: 2, 1000: 3} if name == "multiply" and inside == "money_minor" else {}
        if value in to_major:
            return value, to_major[value], "money_minor"
        if value in to_minor:
            return value, to_minor[value], "money"
    return None


def _misread_not(expression: _Expression) -> Iterator[_Finding]:
    for node in _nodes(expression.tree):
        first = node["children"][0] if node["type"] in _LOOSER_THAN_NOT else None
        if first is None or first["type"] != "not_expression":
            continue
        rest, outcome = _LOOSER_THAN_NOT[node["type"]], "null"
        if node["type"] == "comparator":
            right = node["children"][1]
            if right["type"] != "literal" or isinstance(right["value"], bool):
                continue  # a boolean may be compared with one
            rest, outcome = f" {_SYMBOLS[node['value']]} b", {"eq": "false", "ne": "true"}.get(node["value"], "null")
        message = f"`!a{rest}` is read as `(!a){rest}`, which is always {outcome}"
        yield expression.start(first), message, f"write !(a{rest})"


# Tables and rules.


def _tables(spec: SourceSpec, expressions: Sequence[_Expression]) -> Iterator[tuple[Place, str, str | None, int]]:
    used: set[str] = set()
    any_may_be = False
    for expression in expressions:
        for node in _nodes(expression.tree):
            if node["type"] != "function_expression" or node["value"] != "lookup" or not node["children"]:
                continue
            table = node["children"][0]
            if table["type"] != "literal" or not isinstance(table["value"], str):
                any_may_be = True
                continue
            name = table["value"]
            used.add(name)
            if name not in spec.tables:
                hint = suggest(name, spec.tables) or (
                    f"there are: {', '.join(spec.tables)}" if spec.tables else "the file has no `tables:`"
                )
                yield expression.place, f"there is no table `{name}`", hint, expression.start(node)
    if not any_may_be:
        for name in spec.tables.keys() - used:
            yield ("tables", name), f"no expression uses the table `{name}`", None, 0


def _rule_faults(rule: RuleSpec, place: Place) -> Iterator[_Fault]:
    if rule.emit is None:
        return
    where = (*place, "emit")
    if not _EVENT_NAME.fullmatch(rule.emit):
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", rule.emit)
        name = "_".join(words).lower()
        hint = f"write {name}" if _EVENT_NAME.fullmatch(name) else None
        yield where, f"`{rule.emit}` is no event name: those are snake_case", hint
    if rule.emit in _COUNTED:
        if not rule.once:
            hint = "give the keys of the payment, such as its id, so that each payment counts once"
            yield where, f"a `{rule.emit}` without `once` counts every report of it", hint
        value = rule.properties.get("value")
        if isinstance(value, str) and not _makes_money(value):
            hint = "write money(amount, currency) for major units, money_minor(amount, currency) for minor ones"
            message = f"the `value` of a `{rule.emit}` is no money: {_DECIMALS_UNKNOWN}"
            yield (*place, "properties", "value"), message, hint
        missing = [name for name in ("value", "currency") if rule.properties.get(name) is None]
        if missing:
            names = " and ".join(f"`{name}`" for name in missing)
            yield where, f"a `{rule.emit}` without {names} in its properties says nothing of the money", None


def _unknown_types(rules: Sequence[RuleSpec], types: Sequence[str]) -> Iterator[_Fault]:
    """Yield the types that no sample has, and that are a slip away from one that no rule is for."""
    idle = [type for type in types if not any(_is_for(rule, [type]) for rule in rules)]
    for index, rule in enumerate(rules):
        for type in rule_types(rule):
            meant = next((each for each in idle if type not in types and _is_slip(type, each)), None)
            if "*" not in type and meant is not None:
                message = f"no sample has the type `{type}`, and no rule is for `{meant}`"
                yield ("rules", index, "on"), message, f"did you mean `{meant}`?"


_DECIMALS_UNKNOWN = "nobody can tell whether it is in major or in minor units"


def _makes_money(expression: str) -> bool:
    return "money(" in expression or "money_minor(" in expression


def _shadows(document: Document, rules: Sequence[RuleSpec]) -> Iterator[_Fault]:
    lines = [document.diagnostic(("rules", index), "").line for index in range(len(rules))]
    for (first, earlier), (second, later) in combinations(enumerate(rules), 2):
        if later.emit is None or later.emit != earlier.emit:
            continue
        if not earlier.once or not later.once:
            if shared := _both_emit(later, earlier):
                other = f"the rule `{_title(earlier)}` (line {lines[first]})"
                message = f"one `{shared}` can make `{later.emit}` twice: {other} emits it too"
                yield ("rules", second), message, f"{_TELL_APART}, give them the same `once`, or remove one"
        else:
            # Of two reports of one payment the one with the shorter hold goes out, else the first.
            loser, winner = (first, second) if _hold(later) < _hold(earlier) else (second, first)
            if _takes_all(rules[winner], rules[loser]):
                other = f"the rule `{_title(rules[winner])}` (line {lines[winner]})"
                message = f"this rule never emits: {other} claims the same keys for each of its webhooks"
                yield ("rules", loser), message, f"{_TELL_APART}, or remove one"


def _title(rule: RuleSpec) -> str:
    return rule.name or f"{rule.emit} on {', '.join(rule_types(rule))}"


def _takes_all(winner: RuleSpec, loser: RuleSpec) -> bool:
    """Whether each webhook that is for the loser is for the winner too, under the same keys."""
    return (
        _keys(winner.once) == _keys(loser.once)
        and _meaning(winner.when) in {_ALWAYS, _meaning(loser.when)}
        and all(_is_for(winner, [type]) for type in rule_types(loser))
    )


def _both_emit(later: RuleSpec, earlier: RuleSpec) -> str | None:
    """Return a type whose webhooks make the event by both rules, if nothing tells the two apart."""
    whens = {_meaning(earlier.when), _meaning(later.when)}
    if later.kind != earlier.kind or (len(whens) > 1 and _ALWAYS not in whens):
        return None
    return _shared_type(earlier, later)


def _meaning(node: object) -> str:
    """Return a text that is the same for templates that say the same."""
    if isinstance(node, str):
        read = _read(node)
        return repr(read[0] if read else node)
    if isinstance(node, dict):
        return repr({key: value if key == "const" else _meaning(value) for key, value in node.items()})
    return repr([_meaning(each) for each in node] if isinstance(node, list) else [node])


_ALWAYS = _meaning(True)


def _keys(once: object) -> set[str]:
    return {_meaning(each) for each in (once if isinstance(once, list) else [once])}


def _hold(rule: RuleSpec) -> int:
    return duration(rule.hold) if rule.hold else 0


def _is_for(rule: RuleSpec, given: Sequence[str]) -> bool:
    return any(matches(type, pattern) for type in given for pattern in rule_types(rule))


def _shared_type(one: RuleSpec, other: RuleSpec) -> str | None:
    """Return a type, or a pattern of types, that both rules are for."""
    for mine in rule_types(one):
        for theirs in rule_types(other):
            if matches(mine, theirs):
                return mine
            if matches(theirs, mine) or _cross(mine, theirs):
                return theirs
    return None


def _cross(one: str, other: str) -> bool:
    """Whether two patterns with wildcards have a type in common: their ends decide, for a `*` takes in all else."""
    if "*" not in one or "*" not in other:
        return False
    heads = one.partition("*")[0], other.partition("*")[0]
    tails = one.rpartition("*")[2], other.rpartition("*")[2]
    starts = heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])
    return starts and (tails[0].endswith(tails[1]) or tails[1].endswith(tails[0]))

"""What happens to one webhook, and why: every expression that is looked at, and what it gives.

The end is the truth, because `translate` itself is asked for it. The way there is each expression of the file,
evaluated by itself. An `Explanation` is texts that anybody may see: identity is hashed, and masked wherever else it is.
"""

import hashlib
import json
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec
from jmespath.lexer import Lexer
from msgspec import Struct, structs

from gateway.destinations import iso
from gateway.events import Webhook
from gateway.expressions import EvaluationError, compile_template
from gateway.fetches import decoded
from gateway.functions import MAPPING, Scope, milliseconds
from gateway.identity import PROFILES, PiiGuard, Profile, hash_identity, normalise_subject
from gateway.money import Money
from gateway.sources import MalformedWebhook, RuleSpec, Source, SubjectSpec, read_verified, wanted_of
from gateway.translate import MAX_SUBJECT, Translation, translate

Resolve = Callable[[Mapping[str, str]], Mapping[str, Mapping[str, str] | None]]
"""From subjects' normalised values, by name, to the visitor ids, by product, that each is linked to.

None is a subject without a link; a subject that is left out was not looked up. A link may have no visitor id.
"""

_CUT = 80
_WIDTH = 110
_DEPTH = 20
_MASK = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}%s\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
_LITERAL = re.compile(r"'[^']*'|`[^`]*`")
_EMAIL = re.compile(r"[^\s@](@|%40)[^\s@]")


class Step(Struct, frozen=True):
    """A step on the way: the expression that it evaluates, what that gave, and the steps inside it."""

    name: str
    expression: str | None = None
    gave: tuple[str, ...] = ()
    inside: tuple["Step", ...] = ()


class Explanation(Struct, frozen=True):
    """All that can be said of one webhook: `webhook` and `refused`, or else what was made of it, step by step."""

    title: str
    steps: tuple[Step, ...]


def explain(
    source: Source,
    headers: Mapping[str, str],
    body: bytes,
    profiles: Sequence[Profile],
    resolve: Resolve,
    now: int = 0,
    fetched: Mapping[str, bytes] = MappingProxyType({}),
) -> Explanation:
    """Explain a request of a source. Its signature is not looked at; `now` is when it was received, in ms.

    `fetched` are the objects, as JSON, that were fetched for it; nothing is fetched here.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        document = None
    objects = dict.fromkeys(source.spec.fetch) | {name: decoded(each) for name, each in fetched.items()}
    scope = Scope(headers=headers, tables=source.tables, exponents=source.currencies, fetched=objects)
    reader = _Reader(source, document, scope)
    title = f"{source.name}, mapping {source.version}"
    spec = structs.asdict(source.spec.webhook)
    try:
        webhook = read_verified(headers, body, source, now, fetched)
    except MalformedWebhook as error:
        read = [reader.step(name, each) for name, each in spec.items()]
        return Explanation(title, (Step("webhook", inside=tuple(read)), Step("refused", gave=(str(error),))))
    values = structs.asdict(webhook) | {"occurred_at": iso(webhook.occurred_at)}
    translation = _translated(webhook, source, profiles)
    others = len(source.rules) - len(source.rules_for(webhook.type))
    sections: dict[str, Iterator[Step]] = {
        "webhook": (Step(name, _expression(each), (reader.shown(values[name]),)) for name, each in spec.items()),
        **({"fetched": _fetched(webhook, source)} if source.fetches else {}),
        "subjects, in order of trust": reader.subject_steps(resolve),
        "identity": reader.identity_steps(),
        "visitor ids in the payload": (reader.step(name, each) for name, each in source.spec.visitor.items()),
        f"rules for this type ({others} are for others)": _rules(webhook, source, profiles, translation, reader),
        "what comes of it": _outcome(translation, reader),
    }
    return Explanation(title, tuple(Step(name, inside=tuple(steps)) for name, steps in sections.items()))


def _translated(webhook: Webhook, source: Source, profiles: Sequence[Profile]) -> Translation:
    return translate(webhook, source, profiles, lambda _name, _value: b"")


def _fetched(webhook: Webhook, source: Source) -> Iterator[Step]:
    """Yield what is there of what the source fetches for this webhook; what is in it, the rules tell."""
    wanted, errors = wanted_of(webhook, source)
    missing = {each.name: f"to be fetched from {each.url}" for each in wanted}
    missing |= {each.name: f"fails: {each.error}" for each in errors}
    for each in source.fetches:
        nothing = "not needed" if each.enabled else f"off: {', '.join(source.spec.fetch[each.name].enabled_by)} not set"
        there = "there" if each.name in webhook.fetched else missing.get(each.name, nothing)
        yield Step(each.name, gave=(there,))


def _rules(
    webhook: Webhook, source: Source, profiles: Sequence[Profile], whole: Translation, reader: "_Reader"
) -> Iterator[Step]:
    named = {id(rule) for rule in source.rules_for(webhook.type)}
    emissions = iter(whole.emissions)
    for rule, spec in zip(source.rules, source.spec.rules, strict=True):
        if id(rule) not in named:
            continue
        # A translation does not say which rule its parts are from: one rule alone makes one part.
        alone = _translated(webhook, structs.replace(source, rules=(rule,), _by_type={}), profiles)
        met, steps = reader.condition(spec.when)
        steps += tuple(reader.rule_steps(spec, rule.wait_for_link)) if met else ()
        if alone.emissions:
            steps += (Step("event id", gave=(next(emissions).event.id,)),)
        yield Step(rule.name, gave=(_verdict(alone, met=met),), inside=steps)


def _verdict(alone: Translation, *, met: bool) -> str:
    if alone.request is not None:
        return f"matched, asks about data: {alone.request.kind}"
    if not alone.notes:
        return f"matched, makes {alone.emissions[0].event.name}" if alone.emissions else "matched, ties payment keys"
    (note,) = alone.notes
    if note.skip == "filtered":
        return "matched, but none of its keys has a value" if met else "not matched"
    return f"matched, but skipped as {note.skip}: {note.error}" if note.skip else f"failed: {note.error}"


def _outcome(translation: Translation, reader: "_Reader") -> Iterator[Step]:
    for emission in translation.emissions:
        event, payment = emission.event, emission.payment
        hold = f", held for {payment.hold // 1000}s" if payment and payment.hold else ""
        yield Step("event", gave=(f"{event.name} {event.id} at {iso(event.at)}{hold} ({event.rule})",))
    for payment in translation.payments:
        yield Step("payment keys", gave=(", ".join(map(reader.shown, payment.keys)),))
    if translation.request is not None:
        yield Step("privacy", gave=(translation.request.kind,))
    for note in translation.notes:
        by = f" ({note.rule})" if note.rule else ""
        yield Step("skipped" if note.skip else "failed", gave=(f"{note.skip or note.error}{by}",))


class _Reader:
    """Evaluates a source's templates over one document, and shows what they give without personal data."""

    def __init__(self, source: Source, document: object, scope: Scope) -> None:
        self.document = document
        self.scope = scope
        fields = {name: each for name, each in structs.asdict(source.spec.identity).items() if each is not None}
        self.identity = {name: (each, self.value(each)) for name, each in fields.items()}
        self.raw = {name: value for name, (_, value) in self.identity.items() if isinstance(value, str) and value}
        self.guard = PiiGuard(self.raw)
        subjects = source.spec.subjects.items()
        named = {name: each.value if isinstance(each, SubjectSpec) else each for name, each in subjects}
        self.subjects = {name: (each, self.value(each)) for name, each in named.items()}
        usable = {name: self.usable(name, value) for name, (_, value) in self.subjects.items()}
        self.linkable = {name: text for name, text in usable.items() if text}

    def value(self, template: object, then: Callable[[object], object] | None = None) -> object:
        """Return what a template gives, or the `EvaluationError` that it fails with."""
        try:
            value = compile_template(template, MAPPING)(self.document, self.scope)
            return value if then is None or value is None else then(value)
        except EvaluationError as error:
            return error

    def usable(self, name: str, value: object) -> str | None:
        text = str(value) if type(value) is int else value
        usable = isinstance(text, str) and len(text) <= MAX_SUBJECT
        return normalise_subject(name, str(text), self.raw.get("country")) if usable else None

    def subject_steps(self, resolve: Resolve) -> Iterator[Step]:
        links = resolve(self.linkable) if self.linkable else {}
        first = next((name for name in self.linkable if links.get(name) is not None), None)
        for name, (template, value) in self.subjects.items():
            text, private = self.linkable.get(name), name in {"user", "email", "phone"}
            digest = hashlib.sha256(text.encode()).hexdigest() if text and private else None
            shown = self.hashed(digest, value) if private or not text else self.shown(text)
            if text and name in links:
                ids = links[name]
                told = ", ".join(f"{product} {self.shown(id)}".strip() for product, id in (ids or {}).items() if id)
                shown += ", not linked" if ids is None else f", linked to {told or 'no visitor id'}"
            yield Step(name, _expression(template), (shown + (": this gives the visitor" if name == first else ""),))

    def identity_steps(self) -> Iterator[Step]:
        # Only some profiles hash the country, which above all says how phone numbers are written.
        some, most = (hash_identity(self.raw, self.raw.get("country"), PROFILES[each]) for each in ("meta", "default"))
        digests = some | most
        for name, (template, value) in self.identity.items():
            yield Step(name, _expression(template), (self.hashed(digests.get(name), value),))

    def hashed(self, digest: str | None, value: object) -> str:
        if digest or isinstance(value, EvaluationError):
            return f"sha256:{digest[:8]}…" if digest else self.shown(value)
        return "nothing usable" if _is_true(value) else "nothing"

    def condition(self, template: object) -> tuple[bool, tuple[Step, ...]]:
        """Return whether a condition is met, and its step; its parts are told when it is not."""
        met = _is_true(self.value(template))
        if not isinstance(template, str):
            return met, ()
        return met, (structs.replace(self.part(template, "when"), inside=()) if met else self.part(template, "when"),)

    def part(self, expression: str, name: str = "") -> Step:
        value = self.value(expression)
        many = len(value) if isinstance(value, dict | list) else 0
        shown = f"a {'map' if isinstance(value, dict) else 'list'} of {many}" if many else self.shown(value)
        return Step(name, _expression(expression), (shown,), tuple(map(self.part, _operands(expression))))

    def rule_steps(self, spec: RuleSpec, wait_for_link: int) -> Iterator[Step]:
        """Yield the steps of a rule whose condition is met."""
        for name, keys in (("once", spec.once), ("of", spec.of)):
            yield from (self.step(name, each) for each in (keys if isinstance(keys, list) else [keys]) if each)
        if spec.hold:
            yield Step("hold", gave=(spec.hold,))
        if wait_for_link:
            yield Step("wait_for_link", gave=(f"{wait_for_link // 1000}s",))
        if spec.at is not None:
            yield self.step("at", spec.at, lambda moment: iso(milliseconds(moment)))
        for name, template in (("properties", spec.properties), ("context", spec.context)):
            if template:
                yield Step(name, inside=tuple(self.leaves(template, "")))

    def leaves(self, template: object, path: str) -> Iterator[Step]:
        if isinstance(template, dict) and template.keys() != {"const"}:
            for name, each in template.items():
                yield from self.leaves(each, f"{path}.{name}".lstrip("."))
        elif isinstance(template, list):
            for each in template:
                yield from self.leaves(each, f"{path}[]")
        else:
            yield self.step(path, template)

    def step(self, name: str, template: object, then: Callable[[object], object] | None = None) -> Step:
        """Evaluate a template; a map or a list that it gives is told leaf by leaf."""
        value = self.value(template, then)
        found: dict[str, list[str]] = {}
        self.collect(value, name, found)
        many = isinstance(value, dict | list) and value
        gave = (f"{path}: {_short(', '.join(texts))}" if many else texts[0] for path, texts in found.items())
        return Step(name, _expression(template), tuple(gave))

    def collect(self, value: object, path: str, found: dict[str, list[str]], depth: int = 0) -> None:
        if isinstance(value, dict) and value and depth < _DEPTH:
            for key, each in value.items():
                self.collect(each, f"{path}.{self.masked(key) or _short(key)}", found, depth + 1)
        elif isinstance(value, list) and value and depth < _DEPTH:
            for each in value:
                self.collect(each, f"{path}[]", found, depth + 1)
        else:
            found.setdefault(path, []).append("…" if depth == _DEPTH else self.shown(value))

    def shown(self, value: object) -> str:
        """Return a value in one line: money with its currency, null as `nothing`, all else as JSON does."""
        if value is None or isinstance(value, EvaluationError):
            return "nothing" if value is None else f"fails: {value}"
        text = str(value) if isinstance(value, str | int | float | Money) else ""
        written = text if isinstance(value, Money) else json.dumps(value, ensure_ascii=False)
        return self.masked(text) or _short(written)

    def masked(self, text: str) -> str | None:
        """Return what stands for a text that gives somebody away."""
        user = "user" if text.strip() == self.linkable.get("user") else None
        found = user or self.guard.leaks(text) or ("email" if _EMAIL.search(text) else None)
        return _MASK % found if found else None


def _is_true(value: object) -> bool:
    """JMESPath's truth, in which 0 is true; what fails is not."""
    return not isinstance(value, EvaluationError) and (bool(value) or type(value) in {int, float})


def _expression(template: object) -> str | None:
    return re.sub(r"\s*\n\s*", " ", template) if isinstance(template, str) else None


def _short(text: str) -> str:
    """Cut a long text, and write out what a terminal would obey: a payload may hold anything."""
    written = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return written if len(written) <= _CUT else written[: _CUT - 1] + "…"


_COMBINING = ({"or"}, {"and"}, {"eq", "ne", "lt", "lte", "gt", "gte"})  # the loosest first


def _operands(expression: str) -> list[str]:
    """Return what an expression combines with `||`, `&&`, `!` or a comparison, or puts in parentheses; no literals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about literals without quotes, as compiling does
        *tokens, _end = Lexer().tokenize(expression)
    outer, depth = [], 0
    for token in tokens:
        depth -= token["type"] in {"rparen", "rbracket", "rbrace"}
        outer += [token] if depth == 0 else []
        depth += token["type"] in {"lparen", "lbracket", "lbrace", "filter"}
    types = [token["type"] for token in outer]
    if "pipe" in types or "expref" in types:  # what follows them starts from something else than the document
        return []
    for operators in _COMBINING:
        if cuts := [token for token in outer if token["type"] in operators]:
            starts = [0, *(token["start"] + len(token["value"]) for token in cuts)]
            ends = [*(token["start"] for token in cuts), len(expression)]
            parts = [expression[start:end].strip() for start, end in zip(starts, ends, strict=True)]
            return [part for part in parts if not _LITERAL.fullmatch(part)]
    if types == ["not", "unquoted_identifier"]:
        return [outer[1]["value"]]
    if types[-2:] == ["lparen", "rparen"] and types[:-2] in ([], ["not"]):
        inside = expression[outer[-2]["start"] + 1 : outer[-1]["start"]].strip()
        return [inside] if len(types) == 3 else _operands(inside)
    return []


def lines(explanation: Explanation) -> Iterator[str]:
    """Yield an explanation as plain text."""
    yield explanation.title
    for step in explanation.steps:
        yield from _laid_out(step if step.gave or step.inside else structs.replace(step, gave=("none",)), "")


def _laid_out(step: Step, indent: str) -> Iterator[str]:
    head = indent + ": ".join(filter(None, (step.name, step.expression)))
    line = f"{head}{' →' if step.expression else ':'} {''.join(step.gave)}"
    if len(step.gave) == 1 and (step.expression is None or len(line) <= _WIDTH):
        yield line
    else:
        whole = _LITERAL.sub(lambda literal: literal[0].replace(" ", "\0"), head)  # a literal stays on one line
        wrapped = textwrap.wrap(
            whole, _WIDTH, subsequent_indent=f"{indent}    ", break_on_hyphens=False, break_long_words=False
        )
        yield from (each.replace("\0", " ") for each in wrapped)
        yield from (f"{indent}  → {each}" for each in step.gave)
    for each in step.inside:
        yield from _laid_out(each, indent + "  ")

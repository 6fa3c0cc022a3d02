"""A source: how its requests are verified and read, and the rules that make events of them.

The YAML file is shaped by `SourceSpec`; `compile_source` turns it into a `Source`, whose expressions are Python
functions. `read` turns a request into a `Webhook`.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

from gateway.deliveries import Privacy
from gateway.documents import (
    PLACEHOLDER,
    Diagnostic,
    Document,
    MappingErrors,
    Place,
    Variables,
    duration,
    shaped_as,
    substitute,
    suggest,
)
from gateway.events import Kind, Webhook
from gateway.expressions import EvaluationError, Projection, compile_projection, template_errors
from gateway.fetches import MAX_FETCHES, Fetch, FetchSpec, Wanted, decoded, is_header, is_name, url_mistake, wanted_by
from gateway.functions import MAPPING, Function, Scope, milliseconds
from gateway.signatures import Verification, VerifySpec, compile_verification, verify

Evaluate = Callable[[object, Scope | None], object]

MAX_TYPE = 128
MAX_ID = 256


class MalformedWebhook(Exception):
    """A verified request that cannot be read: not JSON, or without what makes it a webhook."""


class RequestSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The `webhook:` block: how to read the request itself. `id`, account and type make the duplicate key."""

    id: object
    type: object
    occurred_at: object = None
    account: object = None
    test: object = False


class SubjectSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A subject; `browser: true` says that its value is unguessable, so that a browser may link it by itself."""

    value: object
    browser: bool = False


class IdentitySpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The `identity:` block. `country` (ISO 3166-1 alpha-2) is how a national phone number is understood."""

    email: object = None
    phone: object = None
    first_name: object = None
    last_name: object = None
    country: object = None


class RuleSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `rules:`."""

    on: str | list[str]
    emit: str | None = None
    name: str | None = None
    when: object = True
    kind: Kind = "track"
    once: object = None
    of: object = None
    hold: str | None = None
    state_of: object = None
    wait_for_link: str | None = None
    at: object = None
    properties: dict[str, object] = {}
    context: dict[str, object] = {}
    allow_pii: bool = False
    privacy: Privacy | None = None


class SetupSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How the sender's endpoint is made, for `gateway check` to print.

    `command` may say `{url}`; `each` is repeated for every type that a rule names, as `{type}`. `required` are types
    that must be sent, and why.
    """

    command: str | None = None
    each: str = ""
    required: dict[str, str] = {}


class SourceSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A file under `mappings/sources/`."""

    source: str
    verify: VerifySpec
    webhook: RequestSpec
    rules: list[RuleSpec]
    subjects: dict[str, SubjectSpec | str] = {}
    visitor: dict[str, object] = {}
    identity: IdentitySpec = field(default_factory=IdentitySpec)
    wait_for_link: str | None = None
    currencies: dict[Annotated[str, Meta(pattern="^[A-Z]{3}$")], Annotated[int, Meta(ge=0, le=8)]] = {}
    tables: dict[str, dict[str, object]] = {}
    fetch: dict[str, FetchSpec] = {}
    setup: SetupSpec = field(default_factory=SetupSpec)


class Rule(Struct, frozen=True):
    """A compiled rule. `hold` and `wait_for_link` are in ms."""

    name: str
    on: tuple[str, ...]
    emit: str | None
    privacy: Privacy | None
    kind: Kind
    when: Evaluate
    once: Evaluate
    of: Evaluate
    state_of: Evaluate
    at: Evaluate
    properties: Evaluate
    context: Evaluate
    hold: int
    wait_for_link: int
    allow_pii: bool


class Source(Struct):
    """A compiled source. `decode` reads what its expressions need of a body, and nothing else.

    `person` evaluates subjects, visitor and identity at once: most webhooks need all three.
    """

    name: str
    version: str
    verification: Verification
    decode: Callable[[bytes], object]
    request: Evaluate
    person: Evaluate
    browser_subjects: frozenset[str]
    subject_names: tuple[str, ...]
    rules: tuple[Rule, ...]
    currencies: Mapping[str, int]
    tables: Mapping[str, Mapping[str, object]]
    fetches: tuple[Fetch, ...]
    spec: SourceSpec
    _by_type: dict[str, tuple[Rule, ...]] = {}

    def rules_for(self, type: str) -> tuple[Rule, ...]:
        """Return the rules whose `on` matches a type, in the file's order."""
        rules = self._by_type.get(type)
        if rules is None:
            rules = tuple(rule for rule in self.rules if any(matches(type, each) for each in rule.on))
            if len(self._by_type) < 4096:  # types come from outside: do not let them fill the memory
                self._by_type[type] = rules
        return rules


def matches(type: str, pattern: str) -> bool:
    """Tell whether a type is one that a rule's `on` means."""
    if "*" not in pattern:
        return type == pattern
    return fnmatch.fnmatchcase(type, pattern.replace("[", "[[]").replace("?", "[?]"))  # the language has only `*`


class Headers(Struct, frozen=True):
    """Request headers: names in lower case, values as Latin-1, and the names that came more than once."""

    values: Mapping[str, str]
    repeated: AbstractSet[str] = frozenset()


def read(headers: Headers, body: bytes, source: Source, now: int) -> Webhook:
    """Verify a request and return it as a webhook, decoded once. `now` is when it was received, in ms.

    Raises `SignatureError` before anything of the body is looked at, and `MalformedWebhook` after.
    """
    verify(source.verification, headers.values, body, now / 1000, headers.repeated)
    return read_verified(headers.values, body, source, now)


def read_verified(
    headers: Mapping[str, str],
    body: bytes,
    source: Source,
    now: int,
    fetched: Mapping[str, bytes] = MappingProxyType({}),
) -> Webhook:
    """Return a request whose signature was checked before (a stored webhook) as a webhook.

    `fetched` are the objects, as JSON, that were fetched for it.
    """
    if "content-encoding" in headers and headers["content-encoding"].strip().lower() not in {"", "identity"}:
        raise MalformedWebhook(f"the body is {headers['content-encoding'][:20]}-encoded; send it as it is")
    try:
        document = source.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedWebhook(f"the body is not JSON that can be read: {error}") from None
    scope = Scope(headers=headers, tables=source.tables, exponents=source.currencies)
    try:
        parts = source.request(document, scope)
    except EvaluationError as error:
        raise MalformedWebhook(f"the `webhook:` block of source `{source.name}` does not fit it: {error}") from None
    assert isinstance(parts, dict)  # noqa: S101 -- a template that is a mapping yields one
    return Webhook(
        source=source.name,
        id=_text(parts.get("id"), "id", MAX_ID),
        type=_text(parts.get("type"), "type", MAX_TYPE),
        account=_text(parts.get("account", ""), "account", MAX_ID),
        occurred_at=_moment(parts.get("occurred_at"), now),
        received_at=now,
        test=parts.get("test") in (True, "true"),
        headers=headers,
        body=body,
        document=document,
        fetched={name: decoded(each) for name, each in fetched.items()},
    )


def _text(value: object, what: str, limit: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or (not value and what != "account"):
        raise MalformedWebhook(f"it has no {what}: check the `webhook:` block of its source")
    if len(value) > limit or not value.isprintable():
        raise MalformedWebhook(f"its {what} is longer than {limit} characters, or not printable")
    return value


def _moment(value: object, now: int) -> int:
    """Return when it happened, or when it was received if the sender's word on that is no time."""
    if value is None:
        return now
    try:
        return milliseconds(value)
    except EvaluationError:
        return now


def scope_of(webhook: Webhook, source: Source) -> Scope:
    """Return what the functions of a mapping may know of a webhook besides its body."""
    known = {each: webhook.fetched.get(each) for each in source.spec.fetch}
    return Scope(headers=webhook.headers, tables=source.tables, exponents=source.currencies, fetched=known)


class FetchError(Struct, frozen=True):
    """Why an object cannot be fetched for a webhook. No personal data."""

    name: str
    error: str


def wanted_of(webhook: Webhook, source: Source) -> tuple[list[Wanted], list[FetchError]]:
    """Return the objects that a webhook needs and does not have, and those of which it cannot be said which."""
    wanted: list[Wanted] = []
    errors: list[FetchError] = []
    if not source.fetches:
        return wanted, errors
    scope = scope_of(webhook, source)
    for each in source.fetches:
        if not each.enabled or each.name in webhook.fetched or not any(matches(webhook.type, on) for on in each.on):
            continue
        try:
            found = wanted_by(each, webhook.document, scope)
        except EvaluationError as error:
            errors.append(FetchError(each.name, str(error)))
            continue
        if found is not None:
            wanted.append(found)
    return wanted, errors


def compile_source(document: Document, version: str, variables: Variables) -> Source:
    """Compile a source's document. Raises `MappingErrors` with every mistake found in it."""
    plan = _plan(document)
    checker = _Checker(document, list(plan.diagnostics))
    verification = checker.verification(plan.spec.verify, variables)
    if checker.diagnostics:
        raise MappingErrors(checker.diagnostics)
    subjects = plan.subjects
    return Source(
        name=plan.spec.source,
        version=version,
        verification=verification,
        decode=plan.projection.decode,
        request=plan.compiled["webhook",],
        person=plan.compiled["person",],
        browser_subjects=frozenset(name for name, each in subjects.items() if each.browser),
        subject_names=tuple(subjects),
        rules=plan.rules,
        currencies=plan.spec.currencies,
        tables=plan.spec.tables,
        fetches=tuple(_fetch(name, each, plan.compiled, variables) for name, each in plan.spec.fetch.items()),
        spec=plan.spec,
    )


class _Plan(NamedTuple):
    """All of a source that its document alone decides, whatever the settings; without mistakes also compiled."""

    spec: SourceSpec
    diagnostics: tuple[Diagnostic, ...]
    subjects: Mapping[str, SubjectSpec]
    projection: Projection
    compiled: Mapping[Place, Evaluate]
    rules: tuple[Rule, ...]


@lru_cache(maxsize=64)  # a reload compiles only what changed: the same text is the same document
def _plan(document: Document) -> _Plan:
    spec, misshapen = shaped_as(document, SourceSpec)
    if spec is None:
        raise MappingErrors(misshapen)
    checker = _Checker(document, misshapen)
    subjects = {name: SubjectSpec(each) if isinstance(each, str) else each for name, each in spec.subjects.items()}
    templates: dict[Place, object] = {
        ("webhook",): _block(spec.webhook),
        ("person",): {
            "subjects": {name: each.value for name, each in subjects.items()},
            "visitor": spec.visitor,
            "identity": _block(spec.identity),
        },
    }
    checker.expressions(templates["webhook",], ("webhook",), _BEFORE)
    for name, each in subjects.items():
        inside: Place = () if isinstance(spec.subjects[name], str) else ("value",)
        checker.expressions(each.value, ("subjects", name, *inside))
    checker.expressions(spec.visitor, ("visitor",))
    checker.expressions(_block(spec.identity), ("identity",))
    wait_for_link = checker.duration(spec.wait_for_link, ("wait_for_link",))
    for index, rule in enumerate(spec.rules):
        for key in RULE_TEMPLATES:
            place = ("rules", index, key)
            checker.expressions(getattr(rule, key), place)
            templates[place] = _keys(getattr(rule, key)) if key in {"once", "of"} else getattr(rule, key)
        checker.rule(rule, index)
    for name, fetch in spec.fetch.items():
        templates["fetch", name, "when"], templates["fetch", name, "with"] = fetch.when, fetch.values
        checker.fetch(fetch, name, spec.rules)
    if checker.diagnostics:
        return _Plan(spec, tuple(checker.diagnostics), subjects, compile_projection((), MAPPING), {}, ())
    projection = compile_projection(list(templates.values()), MAPPING)
    compiled = dict(zip(templates, projection.compiled, strict=True))
    rules = tuple(
        _rule(rule, name, index, wait_for_link, compiled)
        for index, (rule, name) in enumerate(zip(spec.rules, _names(spec.rules), strict=True))
    )
    return _Plan(spec, (), subjects, projection, compiled, rules)


_BEFORE = {name: each for name, each in MAPPING.items() if name != "fetched"}
"""What may be called before anything is fetched."""

RULE_TEMPLATES = ("when", "once", "of", "state_of", "at", "properties", "context")
"""The keys of a rule that hold expressions."""


def _block(spec: Struct) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def _keys(node: object) -> object:
    """Return one key, or a list of them, as a list."""
    return node if isinstance(node, list) or node is None else [node]


def _rule(spec: RuleSpec, name: str, index: int, wait_for_link: int, compiled: Mapping[Place, Evaluate]) -> Rule:
    return Rule(
        name=name,
        on=rule_types(spec),
        emit=spec.emit,
        privacy=spec.privacy,
        kind=spec.kind,
        **{key: compiled["rules", index, key] for key in RULE_TEMPLATES},
        hold=duration(spec.hold) if spec.hold else 0,
        wait_for_link=duration(spec.wait_for_link) if spec.wait_for_link else wait_for_link,
        allow_pii=spec.allow_pii,
    )


def _fetch(name: str, spec: FetchSpec, compiled: Mapping[Place, Evaluate], variables: Variables) -> Fetch:
    return Fetch(
        name=name,
        on=fetch_types(spec),
        when=compiled["fetch", name, "when"],
        values=compiled["fetch", name, "with"],
        url=spec.url,
        headers={header: substitute(text, variables) for header, text in spec.headers.items()},
        enabled=all(variables(each) for each in spec.enabled_by),
    )


def fetch_types(spec: FetchSpec) -> tuple[str, ...]:
    """Return the types and patterns of an `on` in `fetch:`."""
    return (spec.on,) if isinstance(spec.on, str) else tuple(spec.on)


def _names(rules: Sequence[RuleSpec]) -> list[str]:
    """Return what skips, errors and tests call each rule: its name, or one that no other rule has."""
    names: list[str] = []
    for number, spec in enumerate(rules, 1):
        made = f"{spec.emit or spec.privacy or 'claim'} on {', '.join(rule_types(spec))}"
        names.append(spec.name or (made if made not in names else f"{made} (rule {number})"))
    return names


def rule_types(spec: RuleSpec) -> tuple[str, ...]:
    """Return the types and patterns of a rule's `on`."""
    return (spec.on,) if isinstance(spec.on, str) else tuple(spec.on)


_FETCHED = re.compile(r"\bfetched\(\s*'([^'\\]*)'")


def _names_fetched(node: object, path: Place) -> Iterator[tuple[Place, int, str]]:
    """Yield what a template says that is fetched: where, how many characters into its text, and the name."""
    if isinstance(node, str):
        for found in _FETCHED.finditer(node):
            yield path, found.start(1) - 1, found[1]
    elif isinstance(node, dict) and node.keys() != {"const"}:
        for key, each in node.items():
            yield from _names_fetched(each, (*path, key))
    elif isinstance(node, list):
        for index, each in enumerate(node):
            yield from _names_fetched(each, (*path, index))


class _Checker:
    """Checks the parts of one document, collecting a diagnostic for each mistake on the way."""

    def __init__(self, document: Document, diagnostics: list[Diagnostic]) -> None:
        self.document = document
        self.diagnostics = diagnostics
        data = document.data if isinstance(document.data, dict) else {}
        fetch = data.get("fetch")
        self.known = list(map(str, fetch)) if isinstance(fetch, dict) else []

    def complain(self, place: Place, message: str, offset: int | None = None) -> None:
        self.diagnostics.append(self.document.diagnostic(place, message, offset=offset))

    def expressions(self, node: object, place: Place, functions: Mapping[str, Function] = MAPPING) -> None:
        for path, offset, name in _names_fetched(node, ()):
            if functions is MAPPING and name not in self.known:
                hint = suggest(name, self.known)
                message = f"nothing is fetched as `{name}`" + (f"; {hint}" if hint else "")
                self.complain((*place, *path), message, offset)
        for error in template_errors(node, functions):
            early = functions is _BEFORE and "`fetched`" in error.message
            message = "`fetched` is for `subjects`, `visitor`, `identity` and `rules`: nothing is fetched before"
            self.complain((*place, *error.path), message if early else error.message, error.offset)

    def fetch(self, spec: FetchSpec, name: str, rules: Sequence[RuleSpec]) -> None:
        place: Place = ("fetch", name)
        if not is_name(name):
            self.complain(place, f"`{name}`: write what is fetched in snake_case, such as line_items")
        if self.known.index(name) == MAX_FETCHES:
            self.complain(place, f"a source may fetch {MAX_FETCHES} objects at most")
        if not fetch_types(spec):
            self.complain((*place, "on"), "name at least one type in `on`")
        if mistake := url_mistake(spec.url, list(spec.values)):
            self.complain((*place, "url"), mistake)
        for header in spec.headers:
            if not is_header(header):
                self.complain((*place, "headers", header), f"`{header}` is no header that may be set")
        self.expressions(spec.when, (*place, "when"), _BEFORE)
        self.expressions(spec.values, (*place, "with"), _BEFORE)
        asking = [each for rule in rules if rule.privacy is not None for each in rule_types(rule)]
        for each in fetch_types(spec):
            if any(matches(one, each) or matches(each, one) for one in asking):
                self.complain((*place, "on"), f"`{each}` asks about somebody's data, and that waits for nothing")

    def duration(self, text: str | None, place: Place) -> int:
        try:
            return duration(text) if text is not None else 0
        except ValueError as error:
            self.complain(place, str(error))
            return 0

    def verification(self, spec: VerifySpec, variables: Variables) -> Verification:
        url = substitute(spec.url, variables) if spec.url else spec.url
        named = spec.secrets
        spec = msgspec.structs.replace(spec, secrets=substitute(named, variables), url=url)
        if PLACEHOLDER in spec.secrets:
            message = f"what is set for {named} holds `{PLACEHOLDER}`: put your own in the place of the example"
            self.complain(("verify", "secrets"), message)
        try:
            return compile_verification(spec)
        except ValueError as error:
            for line in str(error).splitlines():
                self.complain(("verify",), line)
            return compile_verification(VerifySpec(scheme="token"))

    def rule(self, spec: RuleSpec, index: int) -> None:
        place: Place = ("rules", index)
        if not rule_types(spec):
            self.complain((*place, "on"), "a rule needs at least one type in `on`")
        if spec.emit is None and spec.once is None and spec.privacy is None:
            self.complain(place, "a rule that emits nothing needs `once` or `privacy`: without it, it does nothing")
        if spec.privacy is not None and (spec.emit is not None or spec.once is not None):
            self.complain((*place, "privacy"), "a rule about data neither emits nor claims: write two rules")
        self.duration(spec.wait_for_link, (*place, "wait_for_link"))
        self.duration(spec.hold, (*place, "hold"))

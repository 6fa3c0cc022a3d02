"""A source: how its requests are verified and read, and the rules that make events of them.

The YAML file is shaped by `SourceSpec`; `compile_source` turns it into a `Source`, whose expressions are Python
functions. `read` turns a request into a `Webhook`.
"""

import fnmatch
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

import msgspec
from msgspec import Struct, field

from gateway.documents import Diagnostic, Document, MappingErrors, Place, Variables, duration, shape, substitute
from gateway.events import Kind, Webhook
from gateway.expressions import EvaluationError, compile_template, template_errors
from gateway.functions import MAPPING, Scope, milliseconds
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
    emit: str | None
    name: str | None = None
    when: object = True
    kind: Kind = "track"
    once: object = None
    of: object = None
    hold: str | None = None
    wait_for_link: str | None = None
    at: object = None
    properties: dict[str, object] = {}
    context: dict[str, object] = {}
    allow_pii: bool = False


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
    currencies: dict[str, int] = {}
    tables: dict[str, dict[str, object]] = {}
    setup: SetupSpec = field(default_factory=SetupSpec)


class Rule(Struct, frozen=True):
    """A compiled rule. `hold` and `wait_for_link` are in ms."""

    name: str
    on: tuple[str, ...]
    emit: str | None
    kind: Kind
    when: Evaluate
    once: Evaluate
    of: Evaluate
    at: Evaluate
    properties: Evaluate
    context: Evaluate
    hold: int
    wait_for_link: int
    allow_pii: bool


class Source(Struct):
    """A compiled source. `person` evaluates subjects, visitor and identity at once: most webhooks need all three."""

    name: str
    version: str
    verification: Verification
    request: Evaluate
    person: Evaluate
    browser_subjects: frozenset[str]
    subject_names: tuple[str, ...]
    rules: tuple[Rule, ...]
    currencies: Mapping[str, int]
    tables: Mapping[str, Mapping[str, object]]
    spec: SourceSpec
    _by_type: dict[str, tuple[Rule, ...]] = {}

    def rules_for(self, type: str) -> tuple[Rule, ...]:
        """Return the rules whose `on` matches a type, in the file's order."""
        rules = self._by_type.get(type)
        if rules is None:
            rules = tuple(rule for rule in self.rules if any(fnmatch.fnmatchcase(type, each) for each in rule.on))
            if len(self._by_type) < 4096:  # types come from outside: do not let them fill the memory
                self._by_type[type] = rules
        return rules


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


def read_verified(headers: Mapping[str, str], body: bytes, source: Source, now: int) -> Webhook:
    """Return a request whose signature was checked before (a stored webhook) as a webhook."""
    if "content-encoding" in headers and headers["content-encoding"].strip().lower() not in {"", "identity"}:
        raise MalformedWebhook(f"the body is {headers['content-encoding'][:20]}-encoded; send it as it is")
    try:
        document = msgspec.json.decode(body)
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
    return Scope(headers=webhook.headers, tables=source.tables, exponents=source.currencies)


def compile_source(document: Document, version: str, variables: Variables) -> Source:
    """Compile a source's document. Raises `MappingErrors` with every mistake found in it."""
    spec = shape(document, SourceSpec)
    compiler = _Compiler(document)
    subjects = {
        name: each if isinstance(each, SubjectSpec) else SubjectSpec(each) for name, each in spec.subjects.items()
    }
    person = {
        "subjects": {name: each.value for name, each in subjects.items()},
        "visitor": spec.visitor,
        "identity": {name: getattr(spec.identity, name) for name in IdentitySpec.__struct_fields__},
    }
    for name, each in spec.subjects.items():
        compiler.check(each.value if isinstance(each, SubjectSpec) else each, ("subjects", name))
    for block in ("visitor", "identity"):
        compiler.check(person[block], (block,))
    source_wait = compiler.duration(spec.wait_for_link, ("wait_for_link",))
    source = Source(
        name=spec.source,
        version=version,
        verification=compiler.verification(spec.verify, variables),
        request=compiler.template(
            {name: getattr(spec.webhook, name) for name in RequestSpec.__struct_fields__}, ("webhook",)
        ),
        person=compile_template(person, MAPPING) if not compiler.diagnostics else _never,
        browser_subjects=frozenset(name for name, each in subjects.items() if each.browser),
        subject_names=tuple(subjects),
        rules=tuple(compiler.rule(rule, index, source_wait) for index, rule in enumerate(spec.rules)),
        currencies=spec.currencies,
        tables=spec.tables,
        spec=spec,
    )
    if compiler.diagnostics:
        raise MappingErrors(compiler.diagnostics)
    return source


def _never(_document: object, _scope: Scope | None) -> object:
    raise AssertionError("a source with mistakes is never used")


class _Compiler:
    """Compiles the parts of one document, collecting a diagnostic for each mistake on the way."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.diagnostics: list[Diagnostic] = []

    def check(self, node: object, place: Place) -> bool:
        errors = template_errors(node, MAPPING)
        for error in errors:
            where = (*place, *error.path)
            self.diagnostics.append(self.document.diagnostic(where, error.message, offset=(error.column or 1) - 1))
        return not errors

    def template(self, node: object, place: Place) -> Evaluate:
        return compile_template(node, MAPPING) if self.check(node, place) else _never

    def keys(self, node: object, place: Place) -> Evaluate:
        """Compile one key or a list of them; both become a list."""
        if isinstance(node, list) or node is None:
            return self.template(node, place)
        return compile_template([node], MAPPING) if self.check(node, place) else _never

    def duration(self, text: str | None, place: Place) -> int:
        try:
            return duration(text) if text is not None else 0
        except ValueError as error:
            self.diagnostics.append(self.document.diagnostic(place, str(error)))
            return 0

    def verification(self, spec: VerifySpec, variables: Variables) -> Verification:
        url = substitute(spec.url, variables) if spec.url else spec.url
        spec = msgspec.structs.replace(spec, secrets=substitute(spec.secrets, variables), url=url)
        try:
            return compile_verification(spec)
        except ValueError as error:
            self.diagnostics += [self.document.diagnostic(("verify",), line) for line in str(error).splitlines()]
            return compile_verification(VerifySpec(scheme="token"))

    def rule(self, spec: RuleSpec, index: int, source_wait: int) -> Rule:
        place: Place = ("rules", index)
        on = tuple([spec.on] if isinstance(spec.on, str) else spec.on)
        if not on:
            self.diagnostics.append(self.document.diagnostic((*place, "on"), "a rule needs at least one type in `on`"))
        if spec.emit is None and spec.once is None:
            message = "a rule that emits nothing needs `once`: without it, it does nothing"
            self.diagnostics.append(self.document.diagnostic(place, message))
        wait = self.duration(spec.wait_for_link, (*place, "wait_for_link"))
        return Rule(
            name=spec.name or f"{spec.emit or 'claim'} on {', '.join(on)}",
            on=on,
            emit=spec.emit,
            kind=spec.kind,
            when=self.template(spec.when, (*place, "when")),
            once=self.keys(spec.once, (*place, "once")),
            of=self.keys(spec.of, (*place, "of")),
            at=self.template(spec.at, (*place, "at")),
            properties=self.template(spec.properties, (*place, "properties")),
            context=self.template(spec.context, (*place, "context")),
            hold=self.duration(spec.hold, (*place, "hold")),
            wait_for_link=wait or source_wait,
            allow_pii=spec.allow_pii,
        )

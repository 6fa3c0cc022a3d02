"""A destination: from an event to the bytes on its wire, and from its answer to what becomes of the delivery. No I/O.

    render  one event -> its part of the body, without secrets: what a failed try stores for the next
    pack    rendered events -> a request, with the envelope and the secrets
    judge   the response -> one outcome for each event

The YAML file is shaped by `DestinationSpec`; `compile_destination` turns it into a `Destination`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Literal
from urllib.parse import urlsplit
from uuid import uuid5

import msgspec
from msgspec import Meta, Raw, Struct, field

from gateway.deliveries import SkipReason, State
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
from gateway.events import Event, Kind, ProductIds
from gateway.expressions import EvaluationError, compile_template, template_errors
from gateway.functions import MAPPING, NAMESPACE, Scope
from gateway.identity import PROFILES, Profile
from gateway.money import Money, to_major
from gateway.sealing import Secret
from gateway.signatures import Verification, VerifySpec, compile_verification, sign

Evaluate = Callable[[object, Scope | None], object]

VISIT = 86_400_000
"""How long after a link, in ms, an event may still belong to the session that the link named."""
MAX_RESPONSE = 64 * 1024
"""Bytes of a response that are read; what comes after is not looked at."""


class Unrenderable(Exception):
    """The destination's file does not fit this event; the message says which expression failed."""


class BatchSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How many events one request may carry."""

    max_events: Annotated[int, Meta(ge=1)]
    max_bytes: Annotated[int, Meta(ge=1)] = 500_000


class RetrySpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Which answers are worth another try, and for how long: statuses, classes such as `5xx`, and `network`."""

    on: list[int | Annotated[str, Meta(pattern="^([1-5]xx|network)$")]] = field(
        default_factory=lambda: [408, 425, 429, "5xx", "network"]
    )
    for_: str = field(default="3d", name="for")


class RouteSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Which events are meant, by canonical name, source and account: `*` is a wildcard, a list left out means any."""

    events: list[str] = []
    sources: list[str] = []
    accounts: list[str] = []


class ParkSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Which statuses mean that nothing is wrong with the event: it waits, however long, and burns no tries."""

    on: list[int] = field(default_factory=lambda: [401, 402, 403])
    for_: str = field(default="15m", name="for")


class DedupSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The field by which the collector itself recognises a repeated event, and for how long."""

    field: str
    window: str


class RateSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How many requests a second at the most."""

    per_second: Annotated[float, Meta(gt=0)]


class SignSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How outgoing requests are signed."""

    secrets: str
    scheme: Literal["standard-webhooks"] = "standard-webhooks"


class DestinationSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A file under `mappings/destinations/`."""

    destination: str
    enabled_by: list[Annotated[str, Meta(pattern="^[A-Z][A-Z0-9_]*$")]]
    endpoint: str
    event: object
    body: object
    product: str | None = None
    kinds: list[Kind] = field(default_factory=lambda: ["track", "identify", "group", "page"])
    profile: str = "default"
    settings: dict[str, str] = {}
    secrets: dict[str, str] = {}
    headers: dict[str, object] = {}
    sign: SignSpec | None = None
    needs: object = True
    names: dict[str, str] = {}
    batch: BatchSpec | None = None
    concurrency: Annotated[int, Meta(ge=1)] = 8
    success: object = "status >= `200` && status < `300`"
    rejected: object = None
    retry: RetrySpec = field(default_factory=RetrySpec)
    park: ParkSpec = field(default_factory=ParkSpec)
    uncertain: Literal["retry", "park"] = "retry"
    dedup: DedupSpec | None = None
    rate: RateSpec | None = None
    endpoints: dict[Kind, str] = {}
    only: RouteSpec | None = None
    except_: RouteSpec | None = field(default=None, name="except")
    when: object = True
    test_events: Literal["skip", "forward", "only"] | None = None
    max_age: str | None = None
    late: bool = False
    ordered: bool = False
    like: str | None = None
    variables: dict[str, str] = {}


class Destination(Struct, frozen=True):
    """A compiled destination. `retry_for`, `park_for`, `dedup_window` and `max_age` (0: any) are in ms."""

    name: str
    product: str
    version: str
    enabled_by: tuple[str, ...]
    url: str
    urls: Mapping[str, str]
    kinds: frozenset[str]
    only: RouteSpec | None
    except_: RouteSpec | None
    when: Evaluate
    test_events: str | None
    late: bool
    ordered: bool
    max_age: int
    profile: Profile
    names: Mapping[str, str]
    settings: Mapping[str, str]
    secrets: Mapping[str, Secret]
    needs: Evaluate
    event: Evaluate
    body: Evaluate
    headers: Evaluate
    signing: Verification | None
    success: Evaluate
    rejected: Evaluate
    max_events: int
    max_bytes: int
    concurrency: int
    per_second: float
    retry_on: frozenset[int | str]
    retry_for: int
    park_on: frozenset[int]
    park_for: int
    park_uncertain: bool
    dedup_window: int


class Request(Struct, frozen=True):
    """What goes over the wire, secrets included: for the client's eyes only."""

    url: str
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Request({urlsplit(self.url).hostname}, {len(self.body)} bytes)"


class Response(Struct, frozen=True):
    """What came back: `status` is 0 and `error` says why when nothing did. `headers` has names in lower case.

    `uncertain` says that the request may have arrived all the same.
    """

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    error: str | None = None
    uncertain: bool = False


class Outcome(Struct, frozen=True):
    """What an answer means for one delivery: SENT, DUE (again), PARKED or DEAD, and why.

    `uncertain`: it may have been sent. `own`: the answer speaks of this event, not of its batch.
    """

    state: Literal[State.SENT, State.DUE, State.PARKED, State.DEAD]
    reason: str
    uncertain: bool = False
    own: bool = False


_ENCODE = msgspec.json.Encoder(decimal_format="number").encode
_DECODE = msgspec.json.Decoder(float_hook=Decimal).decode


def route(event: Event, destination: Destination, *, forward_tests: bool) -> SkipReason | None:
    """Return why an event is not for this destination, or None when it is. `forward_tests` is the gateway's setting."""
    tests = destination.test_events or ("forward" if forward_tests else "skip")
    if event.test and tests == "skip":
        return "test_event"
    if (tests == "only" and not event.test) or event.kind not in destination.kinds:
        return "not_routed"
    if destination.only is not None and not _is_meant(event, destination.only):
        return "not_routed"
    if destination.except_ is not None and _is_meant(event, destination.except_):
        return "not_routed"
    return None if _consents(event, destination) else "no_consent"


def wants_late(event: Event, destination: Destination, *, forward_tests: bool) -> bool:
    """Say whether the destination is to hear of a link that comes when the event has gone out without a visitor."""
    # All that routing looks at; the rest of it is made when it is due.
    told = msgspec.structs.replace(event, kind="identify", properties={}, context={})
    return destination.late and route(told, destination, forward_tests=forward_tests) is None


def told_late(event: Event) -> Event:
    """Return the event that tells who the visitor of an earlier event was. It repeats nothing of what was paid."""
    return msgspec.structs.replace(
        event,
        id=str(uuid5(NAMESPACE, f"{event.id}|late")),
        kind="identify",
        at=event.visitor.linked_at or event.at if event.visitor else event.at,
        properties={},
        context={},
        late_for=event.id,
    )


def _is_meant(event: Event, route: RouteSpec) -> bool:
    given = ((route.events, event.name), (route.sources, event.source), (route.accounts, event.account))
    return all(not patterns or any(fnmatchcase(text, each) for each in patterns) for patterns, text in given)


def _consents(event: Event, destination: Destination) -> bool:
    if destination.when is _always:
        return True
    try:
        consent = destination.when(_document(event, destination), _NO_SCOPE)
    except EvaluationError:
        return False  # what cannot be read is no consent
    return consent not in (None, False, "", [], {}) or (consent == 0 and consent is not False)


def _always(_document: object, _scope: Scope | None) -> object:
    return True


def render(event: Event, destination: Destination) -> bytes | SkipReason:
    """Return the event as this destination writes it, as JSON, or the reason why it does not take it.

    Raises `Unrenderable`.
    """
    document = _document(event, destination)
    try:
        if not destination.needs(document, _NO_SCOPE):
            return "no_person"
        return _ENCODE(plain(destination.event(document, _NO_SCOPE)))
    except (EvaluationError, msgspec.EncodeError, UnicodeEncodeError) as error:
        raise Unrenderable(f"destination `{destination.name}` cannot write event `{event.name}`: {error}") from None


def pack(rendered: Sequence[bytes], destination: Destination, id: str, now: int, kind: str = "track") -> Request:
    """Put rendered events of one kind into a request. `id` is the idempotency key; `now`, in ms, is when it is sent.

    The body is the same on every try; only a signature with a timestamp differs.
    """
    secrets = {name: secret.reveal() for name, secret in destination.secrets.items()}
    scope: dict[str, object] = {"id": id, "secrets": secrets, "settings": destination.settings}
    if destination.max_events > 1:
        envelope = scope | {"events": [Raw(each) for each in rendered]}
    else:
        envelope = scope | {"event": _DECODE(rendered[0])}
    body = _ENCODE(destination.body(envelope, _NO_SCOPE))
    headers = {"Content-Type": "application/json"}
    written = destination.headers(scope, _NO_SCOPE)
    assert isinstance(written, dict)  # noqa: S101 -- a template that is a mapping yields one
    headers.update({name: str(value) for name, value in written.items()})
    if destination.signing is not None:
        headers.update(sign(destination.signing, body, now / 1000, id))
    return Request(destination.urls.get(kind, destination.url), headers, body)


def judge(response: Response, destination: Destination, batch: int) -> list[Outcome]:
    """Say what an answer means for each of the `batch` events of its request."""
    answer = {"status": response.status, "body": _json(response.body)}
    outcome = _judge(response, answer, destination)
    if response.status == 0:
        return [outcome] * batch
    refused = _evaluated(destination.rejected, answer)
    if not isinstance(refused, list) or not refused:
        return [outcome] * batch
    alone = Outcome(State.DEAD, f"http_{response.status}: refused", own=True)
    # The others were taken if the file calls this answer a success; else they are sent again, without the refused.
    others = outcome if outcome.state == State.SENT else Outcome(State.DUE, f"http_{response.status}", own=True)
    return [alone if index in refused else others for index in range(batch)]


def _judge(response: Response, answer: Mapping[str, object], destination: Destination) -> Outcome:
    status = response.status
    if status == 0:
        again = "network" in destination.retry_on
        reason = response.error or "network"
        return Outcome(State.DUE if again else State.DEAD, reason, uncertain=response.uncertain)
    reason = f"http_{status}: {response.error}" if response.error else f"http_{status}"
    if _evaluated(destination.success, answer):
        return Outcome(State.SENT, reason)
    if status in destination.retry_on or f"{status // 100}xx" in destination.retry_on:
        return Outcome(State.DUE, reason)
    return Outcome(State.PARKED if status in destination.park_on else State.DEAD, reason)


def _evaluated(predicate: Evaluate, answer: Mapping[str, object]) -> object:
    try:
        return predicate(answer, _NO_SCOPE)
    except EvaluationError:
        return None  # an answer of another shape than the file knows is no success


def _json(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None  # HTML, or cut off at MAX_RESPONSE: a predicate on the body does not hold then


_NO_SCOPE = Scope(headers={}, tables={}, exponents={})


def _document(event: Event, destination: Destination) -> dict[str, object]:
    """What the expressions of a destination see."""
    visitor = event.visitor
    ids = visitor.ids if visitor else {}
    own = ids.get(destination.product, ProductIds())
    shared = ids.get("", ProductIds())
    visitors = {product: each.visitor_id for product, each in ids.items() if product}
    # A year later the visitor is still the same; the session is not.
    is_same_visit = visitor is None or visitor.linked_at is None or event.at - visitor.linked_at <= VISIT
    sessions = {product: each.session_id for product, each in ids.items() if product and is_same_visit}
    visitors[destination.product] = own.visitor_id or shared.visitor_id
    sessions[destination.product] = (own.session_id or shared.session_id) if is_same_visit else None
    return {
        "id": event.id,
        "name": destination.names.get(event.name, event.name),
        "event": event.name,
        "kind": event.kind,
        "at": iso(event.at),
        "at_ms": event.at,
        "user_id": event.user_id,
        "identity": event.identity.get(destination.profile.name, {}),
        "visitor": {product: id for product, id in visitors.items() if id},
        "session": {product: id for product, id in sessions.items() if id},
        "click_ids": visitor.click_ids if visitor else {},
        "linked_by": visitor.linked_by if visitor else None,
        "unlinked": event.unlinked,
        "late_for": event.late_for,
        "properties": event.properties,
        "context": event.context,
        "test": event.test,
        "source": event.source,
        "account": event.account,
        "webhook_id": event.webhook_id,
        "type": event.type,
        "rule": event.rule,
        "settings": destination.settings,
    }


def iso(at: int) -> str:
    """Return a time, in ms since 1970, as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: object) -> object:
    """Write money as a number of major units, unless the file made something else of it with `minor()`."""
    if isinstance(value, Money):
        return to_major(value)
    if isinstance(value, dict):
        # Most values are text: to ask here is half the cost of a call for each.
        return {name: item if type(item) is str else plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def compile_destination(document: Document, version: str, variables: Variables) -> Destination:
    """Compile a destination's document. Raises `MappingErrors` with every mistake found in it."""
    spec, mistakes, templates = _plan(document)
    diagnostics = list(mistakes)
    variables = _renamed(variables, spec)
    url = substitute(spec.endpoint, variables)
    urls: dict[str, str] = {kind: substitute(text, variables) for kind, text in spec.endpoints.items()}
    durations = {
        ("retry", "for"): spec.retry.for_,
        ("park", "for"): spec.park.for_,
        ("max_age",): spec.max_age or "0s",
        ("dedup", "window"): spec.dedup.window if spec.dedup else "0s",
    }
    times: dict[Place, int] = {}
    for place, text in durations.items():
        try:
            times[place] = duration(text)
        except ValueError as error:
            diagnostics.append(document.diagnostic(place, str(error)))
    if spec.profile not in PROFILES:
        known = ", ".join(PROFILES)
        diagnostics.append(document.diagnostic(("profile",), f"unknown profile `{spec.profile}`; known are {known}"))
    is_on = all(variables(name) for name in spec.enabled_by)
    for name, text in spec.secrets.items() if is_on else ():
        if PLACEHOLDER in substitute(text, variables):
            message = f"what is set for {text} holds `{PLACEHOLDER}`: put your own in the place of the example"
            diagnostics.append(document.diagnostic(("secrets", name), message))
    places: list[Place] = [("endpoint",), *(("endpoints", kind) for kind in urls)]
    for where, each in zip(places, [url, *urls.values()], strict=True):
        if is_on and urlsplit(each).scheme not in {"http", "https"}:
            message = "the endpoint is no http(s) URL once its settings are filled in"
            diagnostics.append(document.diagnostic(where, message))
    if diagnostics:
        raise MappingErrors(diagnostics)
    return Destination(
        name=spec.destination,
        product=spec.product or spec.destination,
        version=version,
        enabled_by=tuple(spec.variables.get(name, name) for name in spec.enabled_by),
        url=url,
        urls=urls,
        kinds=frozenset(spec.kinds),
        only=spec.only,
        except_=spec.except_,
        when=_always if spec.when is True else templates["when"],
        test_events=spec.test_events,
        late=spec.late,
        ordered=spec.ordered,
        max_age=times["max_age",],
        profile=PROFILES[spec.profile],
        names=spec.names,
        settings={name: substitute(text, variables) for name, text in spec.settings.items()},
        secrets={name: Secret(substitute(text, variables)) for name, text in spec.secrets.items()},
        needs=templates["needs"],
        event=templates["event"],
        body=templates["body"],
        headers=templates["headers"],
        signing=_signing(spec.sign, document, variables),
        success=templates["success"],
        rejected=templates["rejected"],
        max_events=spec.batch.max_events if spec.batch else 1,
        max_bytes=spec.batch.max_bytes if spec.batch else 1_000_000,
        concurrency=spec.concurrency,
        per_second=spec.rate.per_second if spec.rate else 0,
        retry_on=frozenset(spec.retry.on),
        retry_for=times["retry", "for"],
        park_on=frozenset(spec.park.on),
        park_for=times["park", "for"],
        park_uncertain=spec.uncertain == "park",
        dedup_window=times["dedup", "window"],
    )


@lru_cache(maxsize=64)  # a reload compiles only what changed: the same text is the same document
def _plan(document: Document) -> tuple[DestinationSpec, tuple[Diagnostic, ...], Mapping[str, Evaluate]]:
    """Return what the document alone decides, whatever the settings: its shape, its mistakes, its templates."""
    spec, diagnostics = shaped_as(document, DestinationSpec)
    if spec is None:
        raise MappingErrors(diagnostics)
    templates: dict[str, Evaluate] = {}
    for block in ("needs", "event", "body", "headers", "success", "rejected", "when"):
        node = getattr(spec, block)
        errors = template_errors(node, MAPPING)
        for error in errors:
            diagnostics.append(document.diagnostic((block, *error.path), error.message, offset=error.offset))
        if not errors:
            templates[block] = compile_template(node, MAPPING)
    return spec, tuple(diagnostics), templates


def _renamed(variables: Variables, spec: DestinationSpec) -> Variables:
    """Return the settings as a second instance of a destination sees them: by the names that its file gives them."""
    return lambda name: variables(spec.variables.get(name, name))


def inherited(document: Document, files: Mapping[str, Document]) -> Document:
    """Return a destination's document over the one that it is `like`. Raises `MappingErrors` if there is none.

    `files` are the folder's documents by their destination's name.
    """
    own = document.data
    if not isinstance(own, dict) or "like" not in own:
        return document
    base = files.get(str(own["like"]))
    if base is None or not isinstance(base.data, dict) or "like" in base.data:
        message = f"there is no destination `{own['like']}` with a file of its own to be like"
        raise MappingErrors([document.diagnostic(("like",), message, suggest(str(own["like"]), list(files)))])
    data = {"product": base.data.get("product", own["like"])} | base.data | own
    return msgspec.structs.replace(document, data=data)


def _signing(spec: SignSpec | None, document: Document, variables: Variables) -> Verification | None:
    secrets = substitute(spec.secrets, variables) if spec else ""
    if spec is None or not secrets:
        return None
    try:
        return compile_verification(VerifySpec(scheme=spec.scheme, secrets=secrets))
    except ValueError as error:
        raise MappingErrors([document.diagnostic(("sign",), str(error))]) from None

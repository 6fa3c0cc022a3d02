"""A destination: from an event to the bytes on its wire, and from its answer to what becomes of the delivery. No I/O.

    render  one event -> its part of the body, without secrets: what a failed try stores for the next
    pack    rendered events -> a request, with the envelope and the secrets
    judge   the response -> one outcome for each event

The YAML file is shaped by `DestinationSpec`; `compile_destination` turns it into a `Destination`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Raw, Struct, field

from gateway.deliveries import SkipReason, State
from gateway.documents import Diagnostic, Document, MappingErrors, Variables, duration, shape, substitute
from gateway.events import Event, Kind, ProductIds
from gateway.expressions import EvaluationError, compile_template, template_errors
from gateway.functions import MAPPING, Scope
from gateway.identity import PROFILES, Profile
from gateway.money import Money, to_major
from gateway.sealing import Secret
from gateway.signatures import Verification, VerifySpec, compile_verification, sign

Evaluate = Callable[[object, Scope | None], object]

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
    retry: RetrySpec = field(default_factory=RetrySpec)


class Destination(Struct, frozen=True):
    """A compiled destination. `retry_for` is in ms."""

    name: str
    product: str
    version: str
    enabled_by: tuple[str, ...]
    url: str
    kinds: frozenset[str]
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
    max_events: int
    max_bytes: int
    concurrency: int
    retry_on: frozenset[int | str]
    retry_for: int


class Request(Struct, frozen=True):
    """What goes over the wire, secrets included: for the client's eyes only."""

    url: str
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Request({urlsplit(self.url).hostname}, {len(self.body)} bytes)"


class Response(Struct, frozen=True):
    """What came back: `status` is 0 and `error` says why when nothing did. `headers` has names in lower case."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    error: str | None = None


class Outcome(Struct, frozen=True):
    """What an answer means for one delivery: SENT, DUE (again) or DEAD, and why."""

    state: Literal[State.SENT, State.DUE, State.DEAD]
    reason: str


_ENCODE = msgspec.json.Encoder(decimal_format="number").encode
_DECODE = msgspec.json.Decoder(float_hook=Decimal).decode


def route(event: Event, destination: Destination, *, forward_tests: bool) -> SkipReason | None:
    """Return why an event is not for this destination, or None when it is."""
    if event.test and not forward_tests:
        return "test_event"
    if event.kind not in destination.kinds:
        return "not_routed"
    return None


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


def pack(rendered: Sequence[bytes], destination: Destination, id: str, now: int) -> Request:
    """Put rendered events into one request. `id` is the idempotency key; `now`, in ms, is when it is sent.

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
    return Request(destination.url, headers, body)


def judge(response: Response, destination: Destination, batch: int) -> list[Outcome]:
    """Say what an answer means for each of the `batch` events of its request."""
    return [_judge(response, destination)] * batch


def _judge(response: Response, destination: Destination) -> Outcome:
    if response.status == 0:
        again = "network" in destination.retry_on
        return Outcome(State.DUE if again else State.DEAD, response.error or "network")
    if destination.success({"status": response.status, "body": _json(response.body)}, _NO_SCOPE):
        return Outcome(State.SENT, f"http_{response.status}")
    again = response.status in destination.retry_on or f"{response.status // 100}xx" in destination.retry_on
    return Outcome(State.DUE if again else State.DEAD, f"http_{response.status}")


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
    sessions = {product: each.session_id for product, each in ids.items() if product}
    visitors[destination.product] = own.visitor_id or shared.visitor_id
    sessions[destination.product] = own.session_id or shared.session_id
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
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def enabled(document: Document, variables: Variables) -> bool:
    """Say whether all that a destination's file names in `enabled_by` is set."""
    return all(variables(name) for name in shape(document, DestinationSpec).enabled_by)


def compile_destination(document: Document, version: str, variables: Variables) -> Destination:
    """Compile a destination's document. Raises `MappingErrors` with every mistake found in it."""
    spec = shape(document, DestinationSpec)
    diagnostics: list[Diagnostic] = []
    templates: dict[str, Evaluate] = {}
    for block in ("needs", "event", "body", "headers", "success"):
        node = getattr(spec, block)
        errors = template_errors(node, MAPPING)
        for error in errors:
            where = (block, *error.path)
            diagnostics.append(document.diagnostic(where, error.message, offset=error.offset))
        if not errors:
            templates[block] = compile_template(node, MAPPING)
    url = substitute(spec.endpoint, variables)
    try:
        retry_for = duration(spec.retry.for_)
    except ValueError as error:
        diagnostics.append(document.diagnostic(("retry", "for"), str(error)))
    if spec.profile not in PROFILES:
        known = ", ".join(PROFILES)
        diagnostics.append(document.diagnostic(("profile",), f"unknown profile `{spec.profile}`; known are {known}"))
    if enabled(document, variables) and urlsplit(url).scheme not in {"http", "https"}:
        message = "the endpoint is no http(s) URL once its settings are filled in"
        diagnostics.append(document.diagnostic(("endpoint",), message))
    if diagnostics:
        raise MappingErrors(diagnostics)
    return Destination(
        name=spec.destination,
        product=spec.product or spec.destination,
        version=version,
        enabled_by=tuple(spec.enabled_by),
        url=url,
        kinds=frozenset(spec.kinds),
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
        max_events=spec.batch.max_events if spec.batch else 1,
        max_bytes=spec.batch.max_bytes if spec.batch else 1_000_000,
        concurrency=spec.concurrency,
        retry_on=frozenset(spec.retry.on),
        retry_for=retry_for,
    )


def _signing(spec: SignSpec | None, document: Document, variables: Variables) -> Verification | None:
    secrets = substitute(spec.secrets, variables) if spec else ""
    if spec is None or not secrets:
        return None
    try:
        return compile_verification(VerifySpec(scheme=spec.scheme, secrets=secrets))
    except ValueError as error:
        raise MappingErrors([document.diagnostic(("sign",), str(error))]) from None

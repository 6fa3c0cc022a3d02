"""The one way in, for HTTP, replay, import, the command line and the demo: read, translate, resolve, accept.

`receive` returns only after the webhook and all that follows from it are durable.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct, msgpack, structs

from gateway.deliveries import (
    Acceptance,
    LinkPart,
    NewClaim,
    NewDelivery,
    NewEvent,
    Receipt,
    StoredWebhook,
    StoreUnavailable,
)
from gateway.destinations import route, wants_late
from gateway.events import Event, Webhook
from gateway.fetches import FETCH
from gateway.links import Resolution, resolve
from gateway.mappings import Mappings
from gateway.sealing import Sealer
from gateway.signatures import SignatureError, verify
from gateway.sources import Headers, MalformedWebhook, Source, read_verified, wanted_of
from gateway.telemetry import Metrics, Stopwatch, about
from gateway.tracing import Tracing, encode_traced
from gateway.translate import Emission, Note, Translation, event_id, event_key, translate

Clock = Callable[[], int]
"""Milliseconds since 1970."""

_UNKEPT_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


class Outbox(Protocol):
    """What is needed of a store to take webhooks in."""

    async def accept(self, acceptance: Acceptance) -> Receipt:
        """Store a webhook with all that follows from it, unless it is there already, in one atomic step."""
        ...

    async def replay(self, webhook: int, acceptance: Acceptance, now: int) -> Receipt:
        """Put what the mappings make of a stored webhook now beside what they made of it then."""
        ...

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, in one round trip."""
        ...

    async def order_of(self, keys: Sequence[bytes]) -> bytes | None:
        """Return what the payment that one of the keys belongs to is called, sealed."""
        ...


class UnknownSource(Exception):
    """No mapping file defines this source."""


class KeptRequest(Struct, frozen=True):
    """A request as it is kept for replay, sealed. `fetched` are the objects, as JSON, that were fetched for it."""

    headers: dict[str, str]
    body: bytes
    fetched: dict[str, bytes] = {}


def kept_request(stored: StoredWebhook, sealer: Sealer) -> KeptRequest:
    """Return a stored webhook's request. Raises `ValueError` when retention has taken it."""
    if stored.sealed is None:
        raise ValueError(f"webhook {stored.webhook} has no body any more: retention took it, or somebody was forgotten")
    return msgpack.decode(sealer.open(stored.sealed, b"webhook"), type=KeptRequest)


class Received(Struct, frozen=True):
    """The answer to a webhook: the sender's own id for it, and what the store says."""

    id: str
    receipt: Receipt


class Intake:
    """Takes webhooks in under the mappings in force."""

    def __init__(
        self,
        store: Outbox,
        sealer: Sealer,
        mappings: Callable[[], Mappings],
        clock: Clock,
        wake: Callable[[frozenset[str]], None],
        *,
        forward_tests: bool,
        asked: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`wake` is told which destinations have work now, `asked` that a webhook asks about somebody's data.

        Without `metrics` it counts for nobody, without `tracing` it makes no spans.
        """
        self._store = store
        self._sealer = sealer
        self._mappings = mappings
        self._clock = clock
        self._wake = wake
        self._forward_tests = forward_tests
        self._asked = asked
        self._metrics = metrics or Metrics()
        self._tracing = tracing

    def source(self, name: str) -> Source:
        """Return the source of that name. Raises `UnknownSource`."""
        try:
            return self._mappings().sources[name]
        except KeyError:
            raise UnknownSource(name) from None

    async def receive(self, source: str, headers: Headers, body: bytes) -> Received:
        """Verify a request and keep it with its events and deliveries; durable on return.

        Raises `UnknownSource`, `SignatureError`, `MalformedWebhook`, `StoreUnavailable`; nothing is stored then.
        """
        mappings, origin, now = self._mappings(), self.source(source), self._clock()
        stopwatch = Stopwatch()
        try:
            secret = verify(origin.verification, headers.values, body, now / 1000, headers.repeated)
        except SignatureError as error:
            self._metrics.refused(source, error.reason)
            raise
        self._metrics.verified(origin, secret)
        return await self._take(headers.values, body, origin, mappings, now, stopwatch)

    async def take(
        self,
        source: str,
        headers: Mapping[str, str],
        body: bytes,
        came_at: int | None = None,
        fetched: Mapping[str, bytes] | None = None,
    ) -> Received:
        """Keep a request whose origin is known by other means than its signature, as `receive` does.

        `came_at` (ms) is when it came elsewhere: when it happened, for a sender that does not say. `fetched` are all
        objects that will ever be fetched for it; without, it may wait for some. Raises
        `UnknownSource`, `MalformedWebhook`, `StoreUnavailable`.
        """
        mappings, origin = self._mappings(), self.source(source)
        return await self._take(headers, body, origin, mappings, self._clock(), Stopwatch(), came_at, fetched)

    async def _take(
        self,
        headers: Mapping[str, str],
        body: bytes,
        source: Source,
        mappings: Mappings,
        now: int,
        stopwatch: Stopwatch,
        came_at: int | None = None,
        fetched: Mapping[str, bytes] | None = None,
    ) -> Received:
        try:
            webhook = read_verified(headers, body, source, now if came_at is None else came_at, fetched or {})
        except MalformedWebhook:
            self._metrics.not_taken(source, "malformed")
            raise
        if came_at is not None:
            webhook = structs.replace(webhook, received_at=now)
        stopwatch.lap("verify")
        with about(webhook_id=webhook.id):
            return await self._keep(webhook, source, mappings, stopwatch, None if fetched is None else {})

    async def _keep(
        self,
        webhook: Webhook,
        source: Source,
        mappings: Mappings,
        stopwatch: Stopwatch,
        failed: Mapping[str, str] | None,
    ) -> Received:
        span = self._tracing.webhook(webhook, stopwatch) if self._tracing else None
        try:
            acceptance, events = await self._accept(
                webhook, source, mappings, webhook.received_at, stopwatch, span.traceparent if span else None, failed
            )
            receipt = await self._store.accept(acceptance)
        except BaseException as error:
            away = isinstance(error, StoreUnavailable)
            self._metrics.not_taken(source, "store_unavailable" if away else "failed", webhook.type)
            if away:
                _LOG.error("store_unavailable", source=webhook.source, type=webhook.type, error=str(error))
            if span:
                span.failed(error)
            raise
        stopwatch.lap("accept")
        self._wake(receipt.due)
        self._metrics.accepted(webhook, source, acceptance, events, receipt, stopwatch.seconds())
        if span:
            span.accepted(receipt)
        if not receipt.duplicate:
            _tell_failures(webhook, acceptance, receipt.webhook)
            if acceptance.request is not None:
                self._asked()
        return Received(webhook.id, receipt)

    async def replay(self, stored: StoredWebhook, failed: Mapping[str, str] | None = None) -> Receipt:
        """Translate a stored webhook again under the mappings in force.

        What was sent or is pending stays as it is; what was skipped or is dead starts again. `failed` says, when all
        was fetched that ever will be, what was not and why; without, the webhook may wait for more. Raises
        `UnknownSource`, `MalformedWebhook`, `StoreUnavailable`; and `ValueError` when retention has taken the body.
        """
        kept = kept_request(stored, self._sealer)
        mappings, source, now = self._mappings(), self.source(stored.source), self._clock()
        webhook = read_verified(kept.headers, kept.body, source, stored.received_at, kept.fetched)
        with about(webhook_id=webhook.id):
            acceptance, events = await self._accept(webhook, source, mappings, now, Stopwatch(), None, failed)
            receipt = await self._store.replay(stored.webhook, acceptance, now)
            if failed is not None:  # its events are made only now
                self._metrics.made(source, acceptance, events)
                _tell_failures(webhook, acceptance, stored.webhook)
        self._wake(receipt.due)
        return receipt

    async def _accept(
        self,
        webhook: Webhook,
        source: Source,
        mappings: Mappings,
        now: int,
        stopwatch: Stopwatch,
        traceparent: str | None,
        failed: Mapping[str, str] | None,
    ) -> tuple[Acceptance, list[Event]]:
        translation = translate(webhook, source, mappings.profiles, self._sealer.subject_key)
        translation, waits = _until_fetched(translation, webhook, source, failed)
        self._metrics.translated(source, stopwatch.lap("translate"))
        resolution = await self._resolve(translation, now)
        stopwatch.lap("resolve")
        emissions = [await self._named(each) if each.of else each for each in translation.emissions]
        events = [
            structs.replace(each.event, visitor=resolution.visitor, unlinked=resolution.unlinked) for each in emissions
        ]
        acceptance = Acceptance(
            key=duplicate_key(webhook),
            source=webhook.source,
            account=webhook.account,
            type=webhook.type,
            id=webhook.id,
            occurred_at=webhook.occurred_at,
            received_at=webhook.received_at,
            test=webhook.test,
            mapping=source.version,
            # Who asks to be forgotten is not to be kept for having asked.
            sealed=None if translation.request else self._sealer.seal(_kept(webhook), b"webhook"),
            notes=msgspec.json.encode(translation.notes),
            events=tuple(
                self._event(event, emission, mappings, now, traceparent)
                for event, emission in zip(events, emissions, strict=True)
            )
            or self._fetch(webhook, waits, traceparent),
            bare_claims=tuple(NewClaim(_payment_keys(webhook, each.keys)) for each in translation.payments),
            learned=() if webhook.test else resolution.learned,  # a test teaches nothing about real people
            subjects=tuple(translation.subjects.values()),
            unlinked=resolution.visitor is None and bool(translation.emissions),
            teaches=not webhook.test,
            request=translation.request,
        )
        return acceptance, events

    def _fetch(self, webhook: Webhook, waits: Sequence[str], traceparent: str | None) -> tuple[NewEvent, ...]:
        """Return what stands for a webhook's events while it waits: a delivery that `Fetching` leases, like any other.

        Its id is made of the objects' names, so that a replay starts again what is dead, and else changes nothing.
        """
        if not waits:
            return ()
        names = ", ".join(waits)
        event = Event(
            id=event_id(webhook, webhook.id, f"{FETCH} {names}", 0),
            name="fetch",
            at=webhook.occurred_at,
            test=webhook.test,
            source=webhook.source,
            account=webhook.account,
            webhook_id=webhook.id,
            type=webhook.type,
            rule=f"fetch {names}",
        )
        sealed = self._sealer.seal(encode_traced(event, traceparent), b"event")
        return (NewEvent(event_key(event.id), sealed, (NewDelivery(FETCH),), at=event.at),)

    async def _resolve(self, translation: Translation, now: int) -> Resolution:
        found = await self._store.resolve(list(translation.subjects.values())) if translation.subjects else {}
        return resolve(translation.subjects, translation.visitor, found, self._sealer, now)

    async def _named(self, emission: Emission) -> Emission:
        """Return what is about an earlier payment (a refund) with the `order_id` that its purchase went out with."""
        event = emission.event
        sealed = await self._store.order_of(_payment_keys(event, emission.of))
        if sealed is None:
            return emission
        properties = event.properties | {"order_id": self._sealer.open(sealed, _ORDER).decode()}
        return structs.replace(emission, event=structs.replace(event, properties=properties))

    def _event(
        self, event: Event, emission: Emission, mappings: Mappings, now: int, traceparent: str | None
    ) -> NewEvent:
        waits = emission.wait_for_link and event.visitor is None and event.subjects
        wait_until = now + emission.wait_for_link if waits else 0
        return NewEvent(
            id=event_key(event.id),
            sealed=self._sealer.seal(encode_traced(event, traceparent), b"event"),
            deliveries=tuple(
                NewDelivery(
                    name,
                    route(event, destination, forward_tests=self._forward_tests),
                    wait_until,
                    event.visitor is None and wants_late(event, destination, forward_tests=self._forward_tests),
                    _lane(event) if destination.ordered else None,
                )
                for name, destination in mappings.destinations.items()
            ),
            claim=self._claim(event, emission),
            at=event.at,
            state_of=_digest("state", event.source, event.account, emission.state_of) if emission.state_of else None,
        )

    def _claim(self, event: Event, emission: Emission) -> NewClaim | None:
        if emission.payment is None:
            return None
        order = event.properties.get("order_id")
        told = self._sealer.seal(order.encode(), _ORDER) if isinstance(order, str) and not emission.of else None
        return NewClaim(_payment_keys(event, emission.payment.keys), event.name, emission.payment.hold, told)


def _until_fetched(
    translation: Translation, webhook: Webhook, source: Source, failed: Mapping[str, str] | None
) -> tuple[Translation, Sequence[str]]:
    """Return what holds while objects are fetched, and their names; without any, the translation and what failed.

    Whom the webhook names holds from the start, so that it is forgotten with them. What it asks about data waits for
    nothing.
    """
    wanted, errors = wanted_of(webhook, source)
    notes = [Note(f"fetch {each.name}", error=each.error) for each in errors]
    if wanted and failed is None and translation.request is None and source.rules_for(webhook.type):
        notes += [Note(f"fetch {each.name}", skip="waits_for_fetch") for each in wanted]
        names = sorted({each.name for each in wanted} | webhook.fetched.keys())
        return Translation(subjects=translation.subjects, visitor=translation.visitor, notes=tuple(notes)), names
    notes += [Note(f"fetch {name}", error=f"fetch failed: {why}") for name, why in (failed or {}).items()]
    return (structs.replace(translation, notes=(*translation.notes, *notes)) if notes else translation), ()


def _tell_failures(webhook: Webhook, acceptance: Acceptance, number: int) -> None:
    """Log the rules that failed: their webhook is kept, but nobody gets its event before the mapping is mended."""
    if b'"error"' not in acceptance.notes:
        return
    for note in msgspec.json.decode(acceptance.notes, type=list[Note]):
        if note.error:
            log = _LOG.bind(source=webhook.source, type=webhook.type, webhook=number, rule=note.rule)
            log.warning("rule_failed", reason=note.skip or "error", error=note.error)


_ORDER = b"order"
_LOG = structlog.get_logger(__name__)


class _Scoped(Protocol):
    @property
    def source(self) -> str: ...
    @property
    def account(self) -> str: ...


def _payment_keys(scope: _Scoped, keys: tuple[str, ...]) -> tuple[bytes, ...]:
    """Return a payment's keys as a store keeps them: they mean something only within their source and account."""
    return tuple(_digest("payment", scope.source, scope.account, key) for key in keys)


def _lane(event: Event) -> bytes | None:
    """Return what tells whose event this is from others': the visitor, or who is named first."""
    for ids in event.visitor.ids.values() if event.visitor else ():
        return _digest("lane", ids.visitor_id or ids.session_id or "")
    return next(iter(event.subjects.values()), None)


def duplicate_key(webhook: Webhook) -> bytes:
    """A webhook is the same webhook when source, account, type and id agree."""
    return _digest("webhook", webhook.source, webhook.account, webhook.type, webhook.id)


def _digest(*parts: str) -> bytes:
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _kept(webhook: Webhook) -> bytes:
    headers = {name: value for name, value in webhook.headers.items() if name not in _UNKEPT_HEADERS}
    fetched = {name: msgspec.json.encode(each) for name, each in webhook.fetched.items()}
    return msgpack.encode(KeptRequest(headers, webhook.body, fetched))

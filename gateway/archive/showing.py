"""How what is stored is shown: opened, masked, and in the words of people."""

import msgspec

from gateway.archive.shapes import RequestShown, WebhookLine
from gateway.deliveries import (
    DeadGroup,
    FoundWebhook,
    Place,
    State,
    StoredWebhook,
)
from gateway.destinations import iso
from gateway.dry_run import shown
from gateway.events import Event
from gateway.identity import PiiGuard
from gateway.intake import KeptRequest
from gateway.masking import Folded, guard_of, guarded, masked_headers
from gateway.sources import MalformedWebhook, Source, read_verified
from gateway.translate import Note


def cursor(place: Place | None) -> str | None:
    """Return a place of a list as a page gives it."""
    return f"{place[0]}.{place[1]}" if place else None


def time_of(at: int) -> str | None:
    """Return a time in ISO 8601; None for one that never comes."""
    return iso(at) if 0 < at < 250_000_000_000_000 else None


def told(state: State, reason: str | None) -> str:
    """Return a state, and why."""
    return f"{state.name.lower()}: {reason}" if reason else state.name.lower()


def fields_of(group: DeadGroup) -> tuple[str, str, int, int, int]:
    """Return what is told of a group of the dead."""
    return group.destination, group.reason, group.number, group.oldest, group.newest


def notes_of(stored: StoredWebhook) -> list[Note]:
    """Return what the rules of a webhook noted."""
    return msgspec.json.decode(stored.notes, type=list[Note]) if stored.notes else []


def webhook_line(found: FoundWebhook) -> WebhookLine:
    """Return a webhook as lists show it."""
    stored = found.webhook
    return WebhookLine(
        webhook=stored.webhook,
        source=stored.source,
        account=stored.account,
        type=stored.type,
        id=stored.id,
        occurred_at=time_of(stored.occurred_at) or "",
        received_at=time_of(stored.received_at) or "",
        test=stored.test,
        mapping=stored.mapping,
        states={state.name.lower(): number for state, number in sorted(found.states.items())},
        failed=b'"error"' in stored.notes,
    )


def event_shown(event: Event, guard: PiiGuard, *, reveal: bool) -> dict[str, object]:
    """Return an event as it is shown, masked unless it is revealed."""
    plain: dict[str, object] = msgspec.to_builtins(shown(event), str_keys=True)
    if reveal:
        return plain
    masked = guarded(plain, guard)
    assert isinstance(masked, dict)  # noqa: S101
    return masked


def request_shown(kept: KeptRequest, guard: PiiGuard, *, reveal: bool) -> RequestShown:
    """Return a request as it is shown, masked and folded unless it is revealed."""
    try:
        document: object = msgspec.json.decode(kept.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = kept.body.decode("utf-8", "replace")
    if reveal:
        return RequestShown(kept.headers, document, 0)
    folded = Folded(guard)
    body = folded.masked(document)
    return RequestShown(masked_headers(kept.headers, guard), body, folded.hidden)


def guard_for(source: Source | None, kept: KeptRequest | None, received_at: int) -> PiiGuard:
    """Return what finds the person that a kept request speaks of; nobody, when its mapping cannot read it any more."""
    if source is None or kept is None:
        return PiiGuard({})
    try:
        return guard_of(read_verified(kept.headers, kept.body, source, received_at), source)
    except MalformedWebhook:
        return PiiGuard({})

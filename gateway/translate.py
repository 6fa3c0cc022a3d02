"""A webhook and its source in, events out: as data, without I/O.

Personal data ends here. Identity is hashed, subjects become keyed hashes, a user id that is an email address goes on
as its hash, and a property that repeats somebody's email or phone is refused. What cannot be translated is not
lost: each rule that skipped or failed leaves a note, and the webhook itself is kept for replay.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from gateway.deliveries import DataRequest, Privacy
from gateway.events import MONEY_TAG, Event, ProductIds, Visitor, Webhook
from gateway.expressions import EvaluationError
from gateway.functions import NAMESPACE, Scope, milliseconds
from gateway.identity import PiiGuard, Profile, hash_identity, normalise_email, normalise_subject
from gateway.sources import Rule, Source, scope_of

_NAMESPACE = NAMESPACE.bytes

SubjectKey = Callable[[str, str], bytes]

MAX_KEYS = 16
"""Keys of one `once`."""
MAX_DEPTH = 100
"""Levels of a property."""
MAX_SIZE = 200_000
"""Values and characters of an event's properties and context."""
MAX_SUBJECT = 512
"""Characters of a subject's value; longer ones are no ids."""


class Note(Struct, frozen=True, omit_defaults=True):
    """Why a rule made no event: it skipped (`skip` is the reason) or failed (`error` says why). No personal data."""

    rule: str | None = None
    skip: str | None = None
    error: str | None = None


class Payment(Struct, frozen=True):
    """The keys of one payment, as the rule wrote them. `hold` is in ms, and 0 for an event that goes at once."""

    keys: tuple[str, ...]
    hold: int = 0


class Emission(Struct, frozen=True):
    """An event and how it is to be handled. `wait_for_link` is in ms; `of` are keys of the payment it is about.

    `state_of` is the object whose state it tells.
    """

    event: Event
    payment: Payment | None = None
    wait_for_link: int = 0
    of: tuple[str, ...] = ()
    state_of: str | None = None


class Translation(Struct, frozen=True):
    """All that a webhook says. `payments` are keys tied together by rules that emit nothing.

    `request` is what it asks about data.
    """

    emissions: tuple[Emission, ...] = ()
    payments: tuple[Payment, ...] = ()
    subjects: Mapping[str, bytes] = {}
    visitor: Visitor | None = None
    notes: tuple[Note, ...] = ()
    request: DataRequest | None = None


class _Object(Struct):
    """What a body says that it is."""

    object: str | None = None


_OBJECT = msgspec.json.Decoder(_Object)


class _Person(Struct, frozen=True):
    """Who the webhook speaks of. `raw` never leaves this module."""

    subjects: Mapping[str, bytes]
    user_id: str | None
    visitor: Visitor | None
    identity: dict[str, dict[str, str]]
    guard: PiiGuard


def translate(webhook: Webhook, source: Source, profiles: Sequence[Profile], subject_key: SubjectKey) -> Translation:
    """Apply the source's rules to a webhook.

    `profiles` are the normalisations that the destinations ask for; `subject_key` turns a subject into its keyed
    hash. Never raises because of a payload: a rule that fails leaves a note.
    """
    rules = source.rules_for(webhook.type)
    if not rules:
        return Translation(notes=(Note(skip=_unmapped(webhook)),))
    scope = scope_of(webhook, source)
    try:
        person = _person(webhook, source, scope, profiles, subject_key)
    except EvaluationError as error:
        return Translation(notes=(Note(error=f"subjects, visitor or identity: {error}"),))
    emissions: list[Emission] = []
    payments: list[Payment] = []
    notes: list[Note] = []
    request: DataRequest | None = None
    for rule in rules:
        try:
            outcome = _apply(rule, webhook, scope, person, len(emissions))
        except EvaluationError as error:
            notes.append(Note(rule.name, error=str(error)))
            continue
        match outcome:
            case Emission():
                emissions.append(outcome)
            case Payment():
                payments.append(outcome)
            case Note():
                notes.append(outcome)
            case DataRequest():
                request = outcome
    return Translation(tuple(emissions), tuple(payments), person.subjects, person.visitor, tuple(notes), request)


def _unmapped(webhook: Webhook) -> str:
    # Stripe's API v2 sends events without their object; no rule can read one until fetching is configured.
    try:
        return "thin_event" if _OBJECT.decode(webhook.body).object == "v2.core.event" else "unmapped"
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "unmapped"


def _apply(
    rule: Rule, webhook: Webhook, scope: Scope, person: _Person, index: int
) -> Emission | Payment | Note | DataRequest:
    document = webhook.document
    if _is_false(rule.when(document, scope)):
        return Note(rule.name, skip="filtered")
    if rule.privacy is not None:
        return _data_request(rule.privacy, webhook, person)
    keys = _keys(rule.once(document, scope))
    payment = Payment(keys, rule.hold) if keys else None
    if rule.emit is None:
        return payment or Note(rule.name, skip="filtered")
    properties = _without_nulls(rule.properties(document, scope))
    context = _without_nulls(rule.context(document, scope))
    assert isinstance(properties, dict)  # noqa: S101 -- templates that are mappings yield one
    assert isinstance(context, dict)  # noqa: S101
    texts = _texts([properties, context], [], [MAX_SIZE])
    if not rule.allow_pii and (leak := person.guard.leaks_any(texts) or _stranger(texts)):
        return Note(
            rule.name, skip="pii_leak", error=f"a property contains the {leak}; hash it, or say `allow_pii: true`"
        )
    at = rule.at(document, scope)
    event = Event(
        id=event_id(webhook, keys[0] if keys else webhook.id, rule.emit, 0 if keys else index),
        name=rule.emit,
        kind=rule.kind,
        at=webhook.occurred_at if at is None else milliseconds(at),
        user_id=person.user_id,
        identity=person.identity,
        visitor=person.visitor,
        subjects=dict(person.subjects),
        properties=properties,
        context=context,
        test=webhook.test,
        source=webhook.source,
        account=webhook.account,
        webhook_id=webhook.id,
        type=webhook.type,
        rule=rule.name,
    )
    state_of = _as_text(rule.state_of(document, scope))
    return Emission(event, payment, rule.wait_for_link, _keys(rule.of(document, scope)), state_of)


def _data_request(asked: Privacy, webhook: Webhook, person: _Person) -> DataRequest:
    """Return what is asked. Never more than is named: without a subject nobody's data is meant, not everybody's."""
    if asked == "forget_account":
        if not webhook.account:
            raise EvaluationError("it asks for an account to be forgotten, and names none")
        return DataRequest(asked, webhook.source, webhook.account)
    if not person.subjects:
        raise EvaluationError("it asks about somebody's data, and none of the `subjects` is in it")
    return DataRequest(asked, webhook.source, webhook.account, tuple(person.subjects.values()))


def _without_nulls(value: object, depth: int = 0) -> object:
    """Leave keys without a value out of maps, as templates do by themselves and JMESPath's own `{…}` does not."""
    if depth > MAX_DEPTH:
        return value  # `_texts` refuses it
    if isinstance(value, dict):
        return {name: _without_nulls(item, depth + 1) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item, depth + 1) for item in value]
    return value


_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(\.[\w-]{1,63}){0,4}\.[A-Za-z]{2,24}\b")


def _stranger(texts: Sequence[str]) -> str | None:
    """Return `email` if a text holds anybody's email address: the guard only knows the payload's own person."""
    return "email" if any("@" in text and _EMAIL.search(text) for text in texts) else None


def _is_false(value: object) -> bool:
    """JMESPath's truth: 0 is true, empty texts, lists and objects are not."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def event_id(webhook: Webhook, key: str, name: str, index: int) -> str:
    """Return an event's id: the UUIDv5, under the project's namespace, of `source|account|key|name|index`.

    A browser that knows the order can compute the same id, so that a collector recognises both reports of it.
    """
    name = f"{webhook.source}|{webhook.account}|{key}|{name}|{index}"
    digest = bytearray(hashlib.sha1(_NAMESPACE + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50  # version 5 and the variant of RFC 9562: `uuid.uuid5` in a third of its time
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def event_key(id: str) -> bytes:
    """Return an event's id as the 16 bytes that a store keeps."""
    return bytes.fromhex(id.replace("-", ""))


def _keys(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(dict.fromkeys(_short(text) for key in value if (text := _as_text(key))))[:MAX_KEYS]


def _short(key: str) -> str:
    """Return a key, or the hash of one that is long: its payment must count once all the same."""
    return key if len(key) <= MAX_SUBJECT else hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _person(
    webhook: Webhook, source: Source, scope: Scope, profiles: Sequence[Profile], subject_key: SubjectKey
) -> _Person:
    found = source.person(webhook.document, scope)
    assert isinstance(found, dict)  # noqa: S101 -- compile_source wrote this template
    country = found["identity"].pop("country", None)
    country = country if isinstance(country, str) else None
    raw = {name: text for name, value in found["identity"].items() if (text := _as_text(value))}
    values = {name: text for name, value in found["subjects"].items() if (text := _subject(name, value, country))}
    identity = {profile.name: hashed for profile in profiles if (hashed := hash_identity(raw, country, profile))}
    guard = PiiGuard(raw)
    return _Person(
        subjects={name: subject_key(name, value) for name, value in values.items()},
        user_id=_user_id(values.get("user"), guard),
        visitor=_payload_visitor(found["visitor"], guard),
        identity=identity,
        guard=guard,
    )


def _as_text(value: object) -> str | None:
    """Return a text, or a whole number as one: some senders write phones and ids so."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return str(value)
    return value if isinstance(value, str) else None


def _subject(name: str, value: object, country: str | None) -> str | None:
    text = _as_text(value)
    return None if text is None or len(text) > MAX_SUBJECT else normalise_subject(name, text, country)


def _user_id(user: str | None, guard: PiiGuard) -> str | None:
    """Return the user as collectors may see it: an email address or the person's phone only as its hash."""
    if user is None or ("@" not in user and guard.leaks(user) is None):
        return user
    return hashlib.sha256((normalise_email(user) or user).encode("utf-8", "replace")).hexdigest()


def _payload_visitor(ids: Mapping[str, object], guard: PiiGuard) -> Visitor | None:
    """Return the visitor that the payload itself carries: the page put its id where the provider gives it back."""
    products = {
        product: ProductIds(visitor_id=value)
        for product, value in ids.items()
        if isinstance(value, str)
        and 0 < len(value) <= MAX_SUBJECT
        and value.isprintable()
        # Whoever fills in the page's fields may write anything there: a person's data is no visitor id.
        and guard.leaks(value) is None
        and not _EMAIL.search(value)
    }
    return Visitor(ids=products, linked_by="payload") if products else None


_SMALLEST = -(2**63)
_LARGEST = 2**64 - 1


def _texts(value: object, found: list[str], room: list[int], depth: int = 0) -> list[str]:
    """Collect every text in a value, keys included: some rules pass an object of the payload on as it is.

    `room` is how many values and characters there may still be. Raises EvaluationError when it is used up, and for what
    is nested so deeply that it could not be encoded later.
    """
    if depth > MAX_DEPTH:
        raise EvaluationError(f"a property is nested deeper than {MAX_DEPTH} levels")
    room[0] -= 1
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        raise EvaluationError("a property is a number of more than 64 bits")
    if isinstance(value, str):
        room[0] -= len(value)
        found.append(value)
    if room[0] < 0:
        raise EvaluationError(f"the properties hold more than {MAX_SIZE:,} values and characters")
    if isinstance(value, dict):
        if MONEY_TAG in value:  # an object of the payload's that would be read back from the store as money
            raise EvaluationError(f"a property has a key `{MONEY_TAG}`, which is not supported")
        for name, item in value.items():
            room[0] -= len(name)
            found.append(name)
            _texts(item, found, room, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _texts(item, found, room, depth + 1)
    return found

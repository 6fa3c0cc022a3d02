"""What the mappings would do with a payload, without sending or storing anything."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from types import MappingProxyType

import msgspec
from msgspec import Struct, structs

from gateway.destinations import Destination, Unrenderable, iso, pack, plain, render, route
from gateway.events import Event
from gateway.mappings import Mappings
from gateway.sealing import Secret
from gateway.sources import read_verified
from gateway.translate import Translation, translate

_KEY = b"\0" * 16
_ENCODE = msgspec.json.Encoder(decimal_format="number").encode


def events_of(
    mappings: Mappings,
    source: str,
    headers: Mapping[str, str],
    body: bytes,
    now: int = 0,
    fetched: Mapping[str, bytes] = MappingProxyType({}),
) -> Translation:
    """Translate a body as if it had come from `source`, verified, and `fetched` was got for it; nothing is fetched.

    Raises `MalformedWebhook`.
    """
    origin = mappings.sources[source]
    webhook = read_verified(headers, body, origin, now, fetched)
    return translate(webhook, origin, mappings.profiles, lambda _kind, _value: _KEY)


def shown(event: Event) -> dict[str, object]:
    """Return an event as it is printed: money in major units, times in ISO 8601, subjects by name."""
    known = {name: value for name, value in structs.asdict(event).items() if value not in (None, {}, "")}
    printed = {"at": iso(event.at), "properties": plain(event.properties), "subjects": list(event.subjects)}
    return known | printed


def changes(before: Translation, after: Translation) -> Iterator[str]:
    """Yield what differs between two translations of one webhook: events and their fields, and why there is none."""
    old, new = ([_flat(shown(each.event)) for each in translation.emissions] for translation in (before, after))
    for number, (one, other) in enumerate(zip_longest(old, new), 1):
        if one is None or other is None:
            sign, there = ("+", other) if one is None else ("-", one)
            yield f"{sign} event {number}: {there['name']} {there.get('properties.value', '')}".rstrip()
            continue
        for name in dict.fromkeys((*one, *other)):
            if one.get(name) != other.get(name):
                yield f"  event {number}, {name}: {one.get(name, 'nothing')} -> {other.get(name, 'nothing')}"
    for sign, notes, others in (("-", before.notes, after.notes), ("+", after.notes, before.notes)):
        for note in notes:
            if note not in others:
                why = f"{note.skip or 'failed'}: {note.error}" if note.error else note.skip
                yield f"{sign} rule `{note.rule or '*'}` {why}"


def _flat(value: object, path: str = "") -> dict[str, str]:
    """Return each leaf of nested data under its path, as text."""
    if isinstance(value, Struct):
        value = structs.asdict(value)
    if not isinstance(value, dict | list) or not value:
        return {path: value if isinstance(value, str) else _ENCODE(value).decode()}
    flat: dict[str, str] = {}
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        flat |= _flat(each, f"{path}.{key}" if path else str(key))
    return flat


def request_of(event: Event, destination: Destination, now: int = 0) -> dict[str, object]:
    """Return the request that one event would make (`url`, `headers`, `body`), its secrets masked; or why none.

    Whether tests are forwarded is the gateway's setting, and is not looked at. Raises `Unrenderable`.
    """
    hidden = {name: Secret("***" if secret.reveal() else "") for name, secret in destination.secrets.items()}
    masked = structs.replace(destination, secrets=hidden)
    rendered = route(event, masked, forward_tests=True) or render(event, masked)
    if isinstance(rendered, str):
        return {"skipped": rendered}
    request = pack([rendered], masked, event.id, now, event.kind)
    url = request.url
    for secret in destination.secrets.values():  # some collectors want theirs in the URL
        url = url.replace(secret.reveal(), "***") if secret.reveal() else url
    return {"url": url, "headers": dict(request.headers), "body": msgspec.Raw(request.body)}


def requests_of(translation: Translation, destination: Destination, now: int = 0) -> Iterator[str]:
    """Yield each request that would go out, as text, its secrets masked."""
    for emission in translation.emissions:
        try:
            request = request_of(emission.event, destination, now)
        except Unrenderable as error:
            yield f"# {error}"
            continue
        match request:
            case {"skipped": reason}:
                yield f"# {emission.event.name}: skipped: {reason}"
            case {"url": url, "headers": dict(headers), "body": msgspec.Raw() as body}:
                written = "\n".join(f"{name}: {value}" for name, value in headers.items())
                yield f"POST {url}\n{written}\n\n{msgspec.json.format(bytes(body), indent=2).decode()}\n"

"""What the mappings would do with a payload, without sending or storing anything."""

from collections.abc import Iterator, Mapping

import msgspec
from msgspec import structs

from gateway.destinations import Destination, Unrenderable, iso, pack, plain, render
from gateway.events import Event
from gateway.mappings import Mappings
from gateway.sealing import Secret
from gateway.sources import read_verified
from gateway.translate import Translation, translate

_KEY = b"\0" * 16


def events_of(mappings: Mappings, source: str, headers: Mapping[str, str], body: bytes, now: int = 0) -> Translation:
    """Translate a body as if it had come from `source`, verified. Raises `MalformedWebhook`."""
    origin = mappings.sources[source]
    webhook = read_verified(headers, body, origin, now)
    return translate(webhook, origin, mappings.profiles, lambda _kind, _value: _KEY)


def shown(event: Event) -> dict[str, object]:
    """Return an event as it is printed: money in major units, times in ISO 8601, subjects by name."""
    known = {name: value for name, value in structs.asdict(event).items() if value not in (None, {}, "")}
    printed = {"at": iso(event.at), "properties": plain(event.properties), "subjects": list(event.subjects)}
    return known | printed


def requests_of(translation: Translation, destination: Destination, now: int = 0) -> Iterator[str]:
    """Yield each request that would go out, as text, its secrets masked."""
    masked = structs.replace(destination, secrets={name: Secret("***") for name in destination.secrets})
    for emission in translation.emissions:
        event = emission.event
        try:
            rendered = render(event, masked)
        except Unrenderable as error:
            yield f"# {error}"
            continue
        if isinstance(rendered, str):
            yield f"# {event.name}: skipped: {rendered}"
            continue
        request = pack([rendered], masked, event.id, now)
        headers = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        yield f"POST {request.url}\n{headers}\n\n{msgspec.json.format(request.body, indent=2).decode()}\n"

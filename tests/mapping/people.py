"""What the samples say of people."""

from pathlib import Path
from typing import Any

from gateway.events import Webhook
from gateway.mappings import bundled, load_mappings, sample_headers
from gateway.sources import read_verified, scope_of

MAPPINGS = load_mappings(bundled(), lambda _: None)


def webhook_of(file: Path) -> Webhook:
    source, body = file.parent.name, file.read_bytes()
    headers = sample_headers(bundled(), source, file.name, body, 0)
    return read_verified(headers, body, MAPPINGS.sources[source], 0)


def personal_data_of(file: Path) -> list[bytes]:
    """Return what the sample says of a person, as it is written."""
    webhook = webhook_of(file)
    source = MAPPINGS.sources[webhook.source]
    found: Any = source.person(webhook.document, scope_of(webhook, source))
    identity = found["identity"]
    name = " ".join(str(identity.get(part, "")) for part in ("first_name", "last_name"))
    texts = [name.strip(), identity.get("email"), identity.get("phone")]
    return [text.lower().encode() for text in texts if text and len(text.split()) + len(text) > 6]

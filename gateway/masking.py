"""What people are shown of payloads: structure, ids, amounts and times, and nothing that says who somebody is.

A text is shown only if it looks like none of a person's: the rest is `***`. So a field that nobody thought of hides too
much rather than too little. Nothing is shown of what stands under a name such as `email` or `address`.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from gateway.events import Webhook
from gateway.expressions import EvaluationError
from gateway.identity import PiiGuard
from gateway.sources import Source, scope_of

MASK = "***"
MAX_SHOWN = 2_000
"""Values of a document that are shown; the rest is folded."""
MAX_LIST = 50
"""Entries of one list or map that are shown."""
MAX_DEPTH = 20
MAX_TEXT = 200
FOLD = "…"

_PRIVATE_PARTS = (
    "mail",
    "phone",
    "name",
    "address",
    "street",
    "birth",
    "secret",
    "token",
    "password",
    "auth",
    "cookie",
)
_PRIVATE_WORD = re.compile(
    r"agent|browser|cell|city|comment|company|contact|coordinates|county|description|dob|family|first|forwarded|gender"
    r"|geo|given|hmac|house|iban|ip|key|label|last|last4|lat|latitude|line|line1|line2|lng|locality|login|lon|longitude"
    r"|message|mobile|notes?|number|person|postal|postcode|province|referr?er|region|sha256|signature|state|subject"
    r"|surname|tax|text|tel|title|town|uri|url|user|vat|zip"
)
_OF_MONEY = {
    "amount",
    "cost",
    "current",
    "discount",
    "estimated",
    "price",
    "rate",
    "shipping",
    "subtotal",
    "tax",
    "total",
}
"""Words of which a name of an amount consists, such as `total_tax`, that alone or with others would be private."""
_PARTS_OF_NAMES = re.compile(r"[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*|[0-9]+")
_ID = re.compile(
    r"[a-z]{1,14}_(?=[A-Za-z0-9_]*[0-9A-Z])[A-Za-z0-9_]{1,100}"  # evt_1Ab
    r"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|gid://[a-z]{1,20}/[A-Za-z]{1,40}/[0-9]{1,20}"
    r"|-?[0-9]{1,15}\.[0-9]{1,12}"  # an amount; digits alone may be a phone
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.]{5,18}(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
"""What is shown whatever it stands under, unless that is private."""
_WORD = re.compile(r"[A-Za-z]{1,30}(?:[_./][a-z]{1,30}){0,5}")
_WORDY = re.compile(r"status|type|object|mode|kind|event|currency|reason|interval|brand|scheme|topic")
"""Names under which a word is one of a few that the provider knows."""
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_.$\-]{0,63}")
_EMAIL = re.compile(r"[^\s@]+(?:@|%40)[^\s@]+", re.IGNORECASE)
_LONG_NUMBER = re.compile(r"[0-9]{7,}")


class Folded:
    """Counts what is shown of one document, and what is not."""

    def __init__(self, guard: PiiGuard) -> None:
        self._guard = guard
        self._left = MAX_SHOWN
        self.hidden = 0
        """Entries that were folded away."""

    def masked(self, value: object, name: str = "", depth: int = 0) -> object:
        """Return a value as it is shown."""
        self._left -= 1
        if isinstance(value, dict | list):
            return self._inside(value, name, depth)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return value if self._is_shown(value, name) else MASK
        return MASK if _is_private(name) or self._guard.leaks(str(value)) else value

    def _inside(self, value: dict[str, object] | list[object], name: str, depth: int) -> object:
        if depth >= MAX_DEPTH:
            self.hidden += len(value)
            return FOLD
        entries = list(value.items()) if isinstance(value, dict) else [(name, each) for each in value]
        shown: list[tuple[str, object]] = []
        for key, each in entries[:MAX_LIST]:
            if self._left <= 0:
                break
            under = name if isinstance(value, list) else _under(name, key)
            shown.append((key, self.masked(each, under, depth + 1)))
        folded = len(entries) - len(shown)
        self.hidden += folded
        if isinstance(value, list):
            return [each for _, each in shown] + ([f"{FOLD} {folded} more"] if folded else [])
        told: dict[str, object] = {self._key(key, place): each for place, (key, each) in enumerate(shown)}
        return told | ({FOLD: f"{folded} more"} if folded else {})

    def _key(self, key: str, place: int) -> str:
        plain = _NAME.fullmatch(key) and not _LONG_NUMBER.search(key) and not self._guard.leaks(key)
        return key if plain else f"{MASK}{place}"

    def _is_shown(self, text: str, name: str) -> bool:
        if not text:
            return True
        if len(text) > MAX_TEXT or _is_private(name) or self._guard.leaks(text):
            return False
        return bool(_ID.fullmatch(text) or (any(map(_WORDY.fullmatch, _words(name))) and _WORD.fullmatch(text)))


def _under(name: str, key: str) -> str:
    """Return the name that decides over what is in a map: an address hides all that it holds, whatever it is called."""
    return name if _is_private(name) else key


@lru_cache(4_096)
def _words(name: str) -> frozenset[str]:
    return frozenset(each.lower() for each in _PARTS_OF_NAMES.findall(name[:100]))


@lru_cache(4_096)
def _is_private(name: str) -> bool:
    lower, words = name[:100].lower(), _words(name)
    if words <= _OF_MONEY and len(words) > 1:
        return False
    return any(part in lower for part in _PRIVATE_PARTS) or any(map(_PRIVATE_WORD.fullmatch, words))


def guard_of(webhook: Webhook, source: Source) -> PiiGuard:
    """Return what finds the person that a webhook speaks of in texts; nobody, when its mapping fails to say who."""
    try:
        person = source.person(webhook.document, scope_of(webhook, source))
    except EvaluationError:
        return PiiGuard({})
    identity = person.get("identity") if isinstance(person, dict) else None
    return PiiGuard({name: text for name, text in (identity or {}).items() if isinstance(text, str)})


_HEADERS = re.compile(r"content-(?:type|length)|x-[a-z\-]*(?:topic|event|webhook-id|event-id|version|triggered-at)")


def masked_headers(headers: dict[str, str], guard: PiiGuard) -> dict[str, str]:
    """Return headers as they are shown: names, and the values of those that say what the request is."""

    def shown(name: str, value: str) -> bool:
        known = _HEADERS.fullmatch(name.lower()) and len(value) <= MAX_TEXT
        return bool(known) and not _EMAIL.search(value) and not guard.leaks(value)

    return {name: value if shown(name, value) else MASK for name, value in headers.items()}


def guarded(value: object, guard: PiiGuard) -> object:
    """Return what the gateway made (an event, an answer) with each text masked that gives somebody away."""
    return _each_text(value, lambda text: MASK if _EMAIL.search(text) or guard.leaks(text) else text)


def _each_text(value: object, change: Callable[[str], str], depth: int = 0) -> object:
    if isinstance(value, str):
        return change(value)
    if depth >= 5 * MAX_DEPTH:
        return FOLD
    if isinstance(value, dict):
        return {change(str(key)): _each_text(each, change, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(each, change, depth + 1) for each in value]
    return value

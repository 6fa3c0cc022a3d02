"""What a source asks its provider for besides the webhook: the `fetch:` block. Pure; `fetching` does the requests.

A payload decides only which object is meant. Host, path and query are the file's: a placeholder is a whole segment of
the path, its value is percent-encoded, and one that would lead elsewhere (`..`) is refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Struct, field, structs

from gateway.deliveries import Accounted
from gateway.expressions import EvaluationError
from gateway.functions import Scope

Evaluate = Callable[[object, Scope | None], object]

FETCH = "@fetch"
"""The destination, one of our own, of what stands for a webhook's events while objects are fetched for it."""
MAX_OBJECT = 1_048_576
"""Bytes of what is fetched."""
MAX_FETCHES = 8
"""Objects that one source may ask for: all that one webhook needs are fetched under one lease."""
MAX_VALUE = 256
"""Characters of what stands in a placeholder's place; longer ones are no ids."""


class FetchSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `fetch:`: an object that rules need and the payload lacks, seen by them as `fetched('<name>')`."""

    on: str | list[str]
    url: str
    when: object = True
    values: dict[str, object] = field(default={}, name="with")
    headers: dict[str, str] = {}
    enabled_by: list[str] = []


class Fetch(Struct, frozen=True):
    """A compiled entry. `url` has its placeholders as `{name}`; `headers` hold secrets, and are not printed.

    `enabled` is false while one of its settings is missing: nothing is fetched then.
    """

    name: str
    on: tuple[str, ...]
    when: Evaluate
    values: Evaluate
    url: str
    headers: Mapping[str, str]
    enabled: bool

    def __repr__(self) -> str:
        return f"Fetch({self.name}, {self.url})"


class Wanted(Struct, frozen=True):
    """An object that a webhook needs: its name, and where it is."""

    name: str
    url: str
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Wanted({self.name}, {self.url})"


def wanted_by(fetch: Fetch, document: object, scope: Scope) -> Wanted | None:
    """Return what an entry asks for, or None when it does not apply or the payload does not say which object.

    Raises `EvaluationError` for an expression that fails, and for a value that could lead elsewhere.
    """
    met = fetch.when(document, scope)
    if met is None or met is False or (isinstance(met, str | list | dict) and not met):
        return None
    values = fetch.values(document, scope)
    assert isinstance(values, dict)  # noqa: S101 -- a template that is a mapping yields one
    if not values.keys() >= set(_PLACEHOLDER.findall(fetch.url)):
        return None
    return Wanted(
        fetch.name, _PLACEHOLDER.sub(lambda match: _segment(match[1], values[match[1]]), fetch.url), fetch.headers
    )


def _segment(name: str, value: object) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not 0 < len(text) <= MAX_VALUE or not text.isprintable():
        raise EvaluationError(f"`with.{name}` is no id: a text of 1 to {MAX_VALUE} printable characters, or a number")
    # Whoever decodes `%2F` before it looks at the path would climb.
    if not {".", ".."}.isdisjoint(re.split(r"[/\\]", text)):
        raise EvaluationError(f"`with.{name}` is no id: it would lead to another address")
    return quote(text, safe="")


def decoded(body: bytes) -> object:
    """Return a fetched object. Raises `ValueError` for what is none."""
    try:
        value: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("the answer is not JSON") from None
    return value


def without_fetches(each: Accounted) -> Accounted:
    """Return a webhook's events and deliveries without what stands for them while objects are fetched."""
    own = {event for event, destination, *_ in each.deliveries if destination == FETCH}
    if not own:
        return each
    return structs.replace(
        each,
        events={id: sealed for id, sealed in each.events.items() if id not in own},
        deliveries=tuple(delivery for delivery in each.deliveries if delivery[1] != FETCH),
    )


_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def is_name(text: str) -> bool:
    """Whether an entry of `fetch:` may be called so."""
    return _NAME.fullmatch(text) is not None


def is_header(text: str) -> bool:
    """Whether a header of a request may be called so; what frames the request is not the file's to say."""
    reserved = {"host", "content-length", "transfer-encoding", "connection", "upgrade"}
    return _HEADER.fullmatch(text) is not None and text.lower() not in reserved


def url_mistake(url: str, names: Sequence[str]) -> str | None:
    """Return what is wrong with an entry's `url`, whose placeholders have these names; None when it is right."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "this is no URL: write https://host/path/{id}"
    if "$" in url or not url.isprintable() or " " in url:
        return "write the URL out, without settings or spaces: only whole segments of its path may be placeholders"
    safe = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))
    if not safe or not host or port == 0 or "@" in parts.netloc or "{" in parts.netloc or "\\" in url:
        return "write https://host/path/{id}: the host is fixed, without a user, and http only leads to this machine"
    if parts.fragment or "#" in url:
        return "a URL that is fetched has no fragment (`#…`)"
    segments = parts.path.split("/")
    if any(("{" in each or "}" in each) and not re.fullmatch(r"\{[^{}]+\}", each) for each in segments) or (
        "{" in parts.query or "}" in parts.query
    ):
        return (
            "a placeholder such as {id} is a whole segment of the path: a payload chooses no part of one, nor a query"
        )
    if not {".", ".."}.isdisjoint(segments):
        return "the path has a segment `.` or `..`: write where it leads"
    used = _PLACEHOLDER.findall(parts.path)
    if missing := [each for each in used if each not in names]:
        return f"{{{missing[0]}}} is not in `with`: say there what it is in the payload"
    if unused := [each for each in names if each not in used]:
        return f"`with.{unused[0]}` is not in the URL: write {{{unused[0]}}} there, or leave it out"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

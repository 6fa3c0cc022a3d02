"""POST /webhooks/{source}: a thin edge over intake.

An `@asgi` route, as this is the hot path: the body must be kept to the byte and counted while it is read, and
Litestar's request and response objects would cost as much as everything else that happens to a webhook.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Literal

import msgspec
import structlog
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from gateway.deliveries import StoreUnavailable
from gateway.intake import Intake, UnknownSource
from gateway.signatures import SignatureError
from gateway.sources import Headers, MalformedWebhook
from gateway.telemetry import Metrics

RETRY_AFTER = b"5"
"""Seconds after which a sender may try again when the store is down."""
READ_WITHIN = 20.0
"""Seconds that a sender may take over its body."""

_LOG = structlog.get_logger(__name__)


class Accepted(msgspec.Struct):
    """The answer to a webhook that is safely stored."""

    id: str
    duplicate: bool
    received: Literal[True] = True


class Problem(msgspec.Struct, omit_defaults=True):
    """A problem document. Rule: RFC 9457."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    reason: str | None = None


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, detail: str, reason: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason


_UNREAD = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large", HTTPStatus.REQUEST_TIMEOUT: "too_slow"}
"""What metrics call a request whose body was not read to its end; else it broke off."""


def webhooks_route(
    intake: Intake, max_body: int, metrics: Metrics, all_read: Callable[[], Awaitable[object]]
) -> ASGIRouteHandler:
    """Return the route. `max_body` is in bytes; `all_read` waits until all mappings were read at the start."""

    # A mount, as Litestar 2.25 answers 500 on an `@asgi` route with a path parameter.
    @asgi("/webhooks", is_mount=True, copy_scope=False)
    async def receive_webhook(scope: Scope, receive: Receive, send: Send) -> None:
        source = scope["path"].strip("/")
        try:
            accepted = await _receive(intake, source, scope, receive, max_body, metrics, all_read)
        except _Refused as refused:
            await _refuse(send, refused)
        else:
            await _answer(send, HTTPStatus.OK, b"application/json", accepted)

    return receive_webhook


async def _receive(
    intake: Intake,
    source: str,
    scope: Scope,
    receive: Receive,
    max_body: int,
    metrics: Metrics,
    all_read: Callable[[], Awaitable[object]],
) -> Accepted:
    if scope.get("method") != "POST":
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "webhooks are sent with POST")
    headers = _headers(scope)
    try:
        try:
            origin = intake.source(source)
        except UnknownSource:
            await all_read()
            origin = intake.source(source)
        try:
            body = await _body(headers, receive, max_body)
        except _Refused as refused:
            metrics.not_taken(origin, _UNREAD.get(refused.status, "broken_off"))
            raise
        received = await intake.receive(source, headers, body)
    except UnknownSource:
        metrics.not_taken(None, "unknown_source")
        raise _Refused(
            HTTPStatus.NOT_FOUND, "there is no such source: its name is the `source:` of a file in mappings/sources"
        ) from None
    except SignatureError as error:
        _LOG.warning("webhook_refused", source=source, reason=error.reason)
        raise _Refused(HTTPStatus.UNAUTHORIZED, str(error), error.reason) from None
    except MalformedWebhook as error:
        _LOG.warning("webhook_malformed", source=source, error=str(error))
        raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
    except StoreUnavailable:
        raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the store cannot take it now; send it again later") from None
    return Accepted(received.id, received.receipt.duplicate)


def _headers(scope: Scope) -> Headers:
    values: dict[str, str] = {}
    repeated: set[str] = set()
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1")
        if name in values:
            repeated.add(name)
        values[name] = raw_value.decode("latin-1")
    return Headers(values, repeated)


async def _body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """Read the body, but no more than `limit` bytes and not for ever."""
    declared = headers.values.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body = message["body"]  # nearly always all of it comes at once
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_WITHIN):
            while message["type"] == "http.request":
                chunks.append(message["body"])
                size += len(chunks[-1])
                if size > limit:
                    raise _too_large(limit)
                if not message.get("more_body"):
                    return b"".join(chunks)
                message = await receive()
    except TimeoutError:
        raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {READ_WITHIN:.0f} s") from None
    raise _Refused(HTTPStatus.BAD_REQUEST, "the connection closed before the body was complete")


def _too_large(limit: int) -> _Refused:
    return _Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit:,} bytes; GATEWAY_MAX_BODY sets the limit"
    )


async def _refuse(send: Send, refused: _Refused) -> None:
    problem = Problem(refused.status.phrase, refused.status, str(refused), reason=refused.reason)
    extra: list[tuple[bytes, bytes]] = []
    if refused.status == HTTPStatus.SERVICE_UNAVAILABLE:
        extra.append((b"retry-after", RETRY_AFTER))
    if refused.status == HTTPStatus.METHOD_NOT_ALLOWED:
        extra.append((b"allow", b"POST"))
    await _answer(send, refused.status, b"application/problem+json", problem, extra)


async def _answer(
    send: Send, status: HTTPStatus, kind: bytes, content: msgspec.Struct, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = msgspec.json.encode(content)
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *(extra or ())]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})

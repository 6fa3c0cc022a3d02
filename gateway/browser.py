"""POST /link: what a page, or the backend behind it, says about who its visitor is.

Who may link what:

* a backend, with `Authorization: Bearer $GATEWAY_LINK_SECRET`: any subject
* a page with a token that the backend signed for its user: that user
* any page: subjects that the mapping marks `browser: true`, because nobody can guess their values

Nothing else: a page that could name any user could claim other people's payments.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import jwt
import msgspec
from litestar import Request, delete, post
from litestar.connection import ASGIConnection
from litestar.exceptions import (
    ClientException,
    NotAuthorizedException,
    PermissionDeniedException,
    ServiceUnavailableException,
    TooManyRequestsException,
)
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT
from msgspec import Struct

from gateway.deliveries import Forgotten, StoreUnavailable
from gateway.documents import suggest
from gateway.events import ProductIds, Visitor
from gateway.identity import normalise_subject
from gateway.links import Links, seal_visitor
from gateway.mappings import SubjectNames
from gateway.pacing import Allowance, client_of
from gateway.privacy import Privacy
from gateway.sealing import Sealer, Secret

LINKS_MAX_BODY = 16_384
MAX_ID = 512
MAX_ENTRIES = 20
MAX_PARTS = 40
"""Products that one subject may be linked to: all are read with each of its payments."""
MAX_TOKEN_LIFE = 86_400
"""Seconds. A token is for one visit; a longer-lived one would be a password in a page."""
LEEWAY = 30
"""Seconds by which the clocks of backend and gateway may differ."""
AUDIENCE = "gateway"

Text = str | int


class LinkRequest(Struct, frozen=True):
    """The body of POST /link. `ids` is per product; the camel-case spellings are taken too."""

    visitor_id: str | None = None
    session_id: str | None = None
    visitorId: str | None = None  # noqa: N815 -- the spelling of JavaScript
    sessionId: str | None = None  # noqa: N815
    ids: dict[str, ProductIds] = {}
    click_ids: dict[str, str] = {}
    subjects: dict[str, Text | None] = {}
    token: str | None = None


class Linking:
    """Decides who may link what, and stores it."""

    def __init__(
        self,
        store: Links,
        privacy: Privacy,
        sealer: Sealer,
        subjects: Callable[[], SubjectNames],
        all_read: Callable[[], Awaitable[object]],
        secret: Secret,
        origins: frozenset[str],
        clock: Callable[[], int],
        wake: Callable[[frozenset[str]], None],
    ) -> None:
        self._store = store
        self._privacy = privacy
        self._sealer = sealer
        self._names = subjects
        self._all_read = all_read
        self._secret = secret
        self._origins = origins
        self.clock = clock
        self._wake = wake

    def is_backend(self, authorization: str | None) -> bool:
        """Say whether a request bears the link secret. Constant time, whatever was sent."""
        if not authorization or not self._secret:
            return False
        scheme, _, credentials = authorization.partition(" ")
        return scheme.lower() == "bearer" and self._secret.matches(credentials.strip())

    async def link(self, body: bytes, authorization: str | None, origin: str | None) -> None:
        """Store the links that a request asks for, and release what waited for them.

        Raises Litestar's exceptions: 400 for what cannot be read, 401 for a wrong secret or token, 403 for what
        this caller may not link, 503 when the store is down.
        """
        request = _read(body)
        if self.is_backend(authorization):
            subjects = await self._subjects_of_backend(request)
        elif authorization:
            raise NotAuthorizedException(detail="this is not the GATEWAY_LINK_SECRET of this gateway")
        else:
            subjects = await self._subjects_of_page(request, origin)
        keys = self._keys(subjects)
        if not keys:
            raise ClientException(
                detail="there is no subject to link: send `subjects`, or a `token` that names the user"
            )
        visitor = _visitor(request)
        if not visitor.ids and not visitor.click_ids:
            raise ClientException(
                detail="there is nothing to link it to: send `visitor_id`, `session_id`, `ids` or `click_ids`"
            )
        now = self.clock()
        try:
            known = await self._store.resolve(keys)
            if any(len(visitor.ids.keys() | {part.part for part in parts}) > MAX_PARTS for parts in known.values()):
                raise ClientException(detail=f"a subject is linked to at most {MAX_PARTS} products")
            # What comes later is newer, also when the clock was set back meanwhile.
            at = max(now, 1 + max((part.linked_at for parts in known.values() for part in parts), default=0))
            self._wake(await self._store.link(seal_visitor(visitor, keys, at, self._sealer), now))
        except StoreUnavailable:
            raise _unavailable() from None

    async def forget(self, body: bytes, authorization: str | None) -> Forgotten:
        """Erase the subjects that a backend names: their links, webhooks and what has not gone out.

        Raises 400 for what cannot be read, 401 without the secret, 503 when the store is down.
        """
        if not self.is_backend(authorization):
            raise NotAuthorizedException(detail="only a backend may have somebody forgotten: send the link secret")
        subjects = await self._subjects_of_backend(_read(body))
        if not self._keys(subjects):
            raise ClientException(detail="there is no subject to forget: send `subjects`")
        try:
            return await self._privacy.forget(subjects)
        except ValueError as error:
            raise ClientException(detail=str(error)) from None
        except StoreUnavailable:
            raise _unavailable() from None

    async def _subjects_of_backend(self, request: LinkRequest) -> dict[str, str]:
        subjects = {name: str(value) for name, value in request.subjects.items() if value is not None}
        known = await self._known(subjects)
        if subjects and not known:
            name = next(iter(subjects))
            hint = suggest(name, sorted(self._names().all)) or "its name is one of the `subjects:` of a source"
            raise ClientException(detail=f"no mapping reads the subject `{name[:40]}`: {hint}")
        return subjects  # with those that no mapping reads yet

    async def _known(self, subjects: Mapping[str, str]) -> dict[str, str]:
        """Return those that some mapping reads: by no other is a payment ever found."""
        if not subjects.keys() <= self._names().all:
            await self._all_read()
        names = self._names().all
        return {name: value for name, value in subjects.items() if name in names}

    async def _subjects_of_page(self, request: LinkRequest, origin: str | None) -> dict[str, str]:
        if origin is not None and origin not in self._origins:
            raise PermissionDeniedException(detail="GATEWAY_LINK_ORIGINS does not list the origin of this page")
        # A page may tell of what no mapping reads: a cart's cookie, say, without a Shopify mapping.
        subjects = await self._known({name: str(it) for name, it in request.subjects.items() if it is not None})
        if request.token is not None:
            user = read_token(request.token, self._secret, self.clock() // 1000)
            if subjects.setdefault("user", user) != user:
                raise PermissionDeniedException(detail="the token names another user than `subjects.user`")
        allowed = self._names().browser | ({"user"} if request.token is not None else set())
        if refused := sorted(set(subjects) - allowed):
            raise PermissionDeniedException(
                detail=f"a page may not link `{refused[0][:40]}`: send it from your backend with the link secret, "
                "or, for the user, with a token"
            )
        return subjects

    def _keys(self, subjects: Mapping[str, str]) -> list[bytes]:
        if len(subjects) > MAX_ENTRIES:
            raise ClientException(detail=f"more than {MAX_ENTRIES} subjects")
        keys: list[bytes] = []
        for name, value in subjects.items():
            _check(name, "a subject's name")
            _check(value, f"subject `{name}`")
            if (normal := normalise_subject(name, value, None)) is not None:
                keys.append(self._sealer.subject_key(name, normal))
        return keys


def link_routes(linking: Linking, per_minute: int) -> list[HTTPRouteHandler]:
    """Return the routes, at most `per_minute` requests from one client; a backend is not limited."""
    allowance = Allowance(per_minute, linking.clock)

    def allowed(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        if linking.is_backend(connection.headers.get("authorization")):
            return
        if wait := allowance.take(client_of(connection.client.host if connection.client else "")):
            retry_after = {"Retry-After": str(-(-wait // 1000))}
            raise TooManyRequestsException(detail=f"at most {per_minute} links a minute", headers=retry_after)

    @post("/link", status_code=HTTP_204_NO_CONTENT, guards=[allowed], request_max_body_size=LINKS_MAX_BODY)
    async def link(request: Request[object, object, object]) -> None:  # type: ignore[type-var]
        authorization, origin = request.headers.get("authorization"), request.headers.get("origin")
        await linking.link(await request.body(), authorization, origin)

    @delete("/links", status_code=HTTP_200_OK, request_max_body_size=LINKS_MAX_BODY)
    async def forget(request: Request[object, object, object]) -> Forgotten:  # type: ignore[type-var]
        return await linking.forget(await request.body(), request.headers.get("authorization"))

    return [link, forget]


def _unavailable() -> ServiceUnavailableException:
    return ServiceUnavailableException(
        detail="the store cannot take it now; send it again later", headers={"Retry-After": "5"}
    )


def make_token(user: str, secret: Secret, now: int, lives: int) -> str:
    """Return a token that lets a page link this user's visitor. `now` and `lives` are in seconds."""
    return jwt.encode({"sub": user, "aud": AUDIENCE, "iat": now, "exp": now + lives}, secret.reveal(), "HS256")


def read_token(token: str, secret: Secret, now: int) -> str:
    """Return the user that a token names. Raises 401 for any token that is not ours, current and short-lived.

    Rule: RFC 7519; of the algorithms only HS256, whatever the token says of itself.
    """
    if not secret:
        raise NotAuthorizedException(detail="GATEWAY_LINK_SECRET is not set, so no token can be checked")
    try:
        claims = jwt.decode(
            token[:4096],
            secret.reveal(),
            algorithms=["HS256"],
            # The clock is ours, so times are judged below; an audience is optional, but a foreign one is refused.
            options={
                "require": ["exp", "sub"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": False,
                "verify_sub": False,
            },
        )
    except jwt.InvalidTokenError:
        raise NotAuthorizedException(detail="the token is not signed with this gateway's link secret") from None
    user, expires = claims["sub"], claims["exp"]
    if not _is_time(expires) or expires + LEEWAY < now:
        raise NotAuthorizedException(detail="the token has expired: make a new one for each page")
    if expires > now + MAX_TOKEN_LIFE + LEEWAY:
        raise NotAuthorizedException(detail="the token lives longer than a day: make short-lived ones")
    begins = claims.get("nbf", now)
    if not _is_time(begins) or begins > now + LEEWAY:
        raise NotAuthorizedException(detail="the token does not hold yet: see its `nbf`")
    audience = claims.get("aud", AUDIENCE)
    if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
        raise NotAuthorizedException(detail="the token is for another audience")
    if not isinstance(user, str) or not user:
        raise NotAuthorizedException(detail="the token names no user in `sub`: it is to be a string")
    return user


def _is_time(value: object) -> bool:
    """Tell whether a claim is a number: JSON's own, no `true`, and not the NaN that no comparison ever finds late."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124


def _read(body: bytes) -> LinkRequest:
    try:
        return msgspec.json.decode(body, type=LinkRequest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ClientException(detail=f"the body is no link: {error}") from None


def _visitor(request: LinkRequest) -> Visitor:
    ids = {name: each for name, each in request.ids.items() if each.visitor_id or each.session_id}
    visitor_id = request.visitor_id or request.visitorId
    session_id = request.session_id or request.sessionId
    if visitor_id or session_id:
        ids[""] = ProductIds(visitor_id, session_id)
    if len(ids) > MAX_ENTRIES or len(request.click_ids) > MAX_ENTRIES:
        raise ClientException(detail=f"more than {MAX_ENTRIES} ids")
    for name, each in ids.items():
        if name.startswith("@"):
            raise ClientException(detail="a product's name does not begin with `@`")
        for text in (name, each.visitor_id or "", each.session_id or ""):
            _check(text, "an id", may_be_empty=True)
    clicks = {name: value for name, value in request.click_ids.items() if value}
    for name, value in clicks.items():
        _check(name, "the name of a click id")
        _check(value, "a click id")
    return Visitor(ids, clicks)


def _check(text: str, what: str, *, may_be_empty: bool = False) -> None:
    if len(text) > MAX_ID or _CONTROL.search(text) or not (text or may_be_empty):
        raise ClientException(detail=f"{what} is empty, longer than {MAX_ID} characters, or has control characters")


# Not `isprintable`: what that knows of depends on the Unicode of this Python, and pages are newer.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

"""Who is signed in to the console: whoever knew the GATEWAY_ADMIN_TOKEN, for half a day, in one browser.

A session is a sealed cookie, so that it holds at every gateway that shares the key. Another token ends all sessions.
Who signs out leaves a mark in the store for as long as the cookie would have lasted, and every gateway refuses it from
then on. The mark is a link, of a subject that no payload can name: it needs nothing of a store that links do not.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct, msgpack

from gateway.deliveries import LinkPart
from gateway.events import ProductIds
from gateway.pacing import Allowance
from gateway.sealing import Sealer, SealError, Secret

LASTS = 12 * 3_600_000
"""How long a session lasts, in ms."""
SKEW = 300_000
"""By how many ms the clock of the gateway that began a session may be ahead."""
TRIES_PER_MINUTE = 10
"""Times that one client may try to sign in."""
MAX_COOKIE = 400
_PURPOSE = b"console session"
_NOBODY = msgpack.encode(ProductIds())


class Session(Struct, frozen=True):
    """One browser that is signed in. `token` says which admin token that was for."""

    id: bytes
    began: int
    token: bytes


_SESSION = msgpack.Decoder(Session)


class Marks(Protocol):
    """Where it is kept who signed out."""

    async def link(self, parts: Sequence[LinkPart], now: int) -> frozenset[str]:
        """Keep links until they end."""
        ...

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is kept under each of the keys."""
        ...


class Sessions:
    """Signs operators in and out."""

    def __init__(self, token: Secret, sealer: Sealer, clock: Callable[[], int]) -> None:
        self._token = token
        self._sealer = sealer
        self._clock = clock
        self._tries = Allowance(TRIES_PER_MINUTE, clock)
        self._for = hashlib.sha256(b"console\0" + token.reveal().encode("utf-8", "surrogatepass")).digest()[:16]

    def wait(self, client: str) -> int:
        """Count a try to sign in. Returns 0, or after how many ms the client may try again."""
        return self._tries.take(client)

    def sign_in(self, offered: str) -> str | None:
        """Return a new session's cookie, or None for a wrong token. Constant time, whatever was sent."""
        if not self._token or not self._token.matches(offered.strip()):
            return None
        session = Session(os.urandom(16), self._clock(), self._for)
        return base64.urlsafe_b64encode(self._sealer.seal(msgpack.encode(session), _PURPOSE)).decode()

    async def current(self, marks: Marks, cookie: str | None) -> Session | None:
        """Return the session of a cookie, None when it is none of ours or has ended. Raises `StoreUnavailable`."""
        session = self.opened(cookie)
        if session is None or (await marks.resolve([self._mark_of(session)])).get(self._mark_of(session)):
            return None
        return session

    def opened(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie, None when it is none of ours; not whether somebody signed out of it."""
        if not cookie or len(cookie) > MAX_COOKIE:
            return None
        try:
            sealed = base64.b64decode(cookie.encode("ascii"), altchars=b"-_", validate=True)
            session = _SESSION.decode(self._sealer.open(sealed, _PURPOSE))
        except (UnicodeEncodeError, binascii.Error, SealError, msgspec.MsgspecError):
            return None
        lives = -SKEW <= self._clock() - session.began < LASTS
        return session if lives and session.token == self._for else None

    async def sign_out(self, marks: Marks, session: Session) -> None:
        """End a session before its time, at every gateway of this store. Raises `StoreUnavailable`."""
        now, ends = self._clock(), session.began + LASTS
        mark = LinkPart(self._mark_of(session), "", self._sealer.seal(_NOBODY, b"link"), now, ends)
        await marks.link([mark], now)

    def _mark_of(self, session: Session) -> bytes:
        return self._sealer.subject_key("console session", session.id.hex())

    def form_token(self, session: Session) -> str:
        """Return what each form of a session carries, and no other site can know."""
        return self._sealer.subject_key("console form", session.id.hex()).hex()

    def is_form_of(self, session: Session, offered: str) -> bool:
        """Say whether a form was made for this session."""
        return Secret(self.form_token(session)).matches(offered)

"""Who is signed in to the console: whoever knew the GATEWAY_ADMIN_TOKEN, for half a day, in one browser.

A session is a sealed cookie, so that it holds at every gateway that shares the key, and none of them keeps a list.
Another token ends all sessions. Who signs out loses the cookie; the gateway that was asked refuses it from then on.
"""

import base64
import binascii
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable

import msgspec
from msgspec import Struct, msgpack

from gateway.pacing import Allowance
from gateway.sealing import Sealer, SealError, Secret

LASTS = 12 * 3_600_000
"""How long a session lasts, in ms."""
TRIES_PER_MINUTE = 10
"""Times that one client may try to sign in."""
MAX_SIGNED_OUT = 10_000
"""Sessions that were ended early and are remembered until their time is over."""
MAX_COOKIE = 400
_PURPOSE = b"console session"


class Session(Struct, frozen=True):
    """One browser that is signed in. `token` says which admin token that was for."""

    id: bytes
    began: int
    token: bytes


_SESSION = msgpack.Decoder(Session)


class Sessions:
    """Signs operators in and out."""

    def __init__(self, token: Secret, sealer: Sealer, clock: Callable[[], int]) -> None:
        self._token = token
        self._sealer = sealer
        self._clock = clock
        self._tries = Allowance(TRIES_PER_MINUTE, clock)
        self._mark = hashlib.sha256(b"console\0" + token.reveal().encode("utf-8", "surrogatepass")).digest()[:16]
        self._ended: OrderedDict[bytes, int] = OrderedDict()

    def wait(self, client: str) -> int:
        """Count a try to sign in. Returns 0, or after how many ms the client may try again."""
        return self._tries.take(client)

    def sign_in(self, offered: str) -> str | None:
        """Return a new session's cookie, or None for a wrong token. Constant time, whatever was sent."""
        if not self._token or not self._token.matches(offered.strip()):
            return None
        session = Session(os.urandom(16), self._clock(), self._mark)
        return base64.urlsafe_b64encode(self._sealer.seal(msgpack.encode(session), _PURPOSE)).decode()

    def session(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie, None when it is none of ours or has ended."""
        if not cookie or len(cookie) > MAX_COOKIE:
            return None
        try:
            sealed = base64.b64decode(cookie.encode("ascii"), altchars=b"-_", validate=True)
            session = _SESSION.decode(self._sealer.open(sealed, _PURPOSE))
        except (UnicodeEncodeError, binascii.Error, SealError, msgspec.MsgspecError):
            return None
        lives = 0 <= self._clock() - session.began < LASTS
        return session if lives and session.token == self._mark and session.id not in self._ended else None

    def sign_out(self, session: Session) -> None:
        """End a session before its time."""
        now = self._clock()
        while self._ended and (len(self._ended) >= MAX_SIGNED_OUT or next(iter(self._ended.values())) <= now):
            self._ended.popitem(last=False)
        self._ended[session.id] = session.began + LASTS

    def form_token(self, session: Session) -> str:
        """Return what each form of a session carries, and no other site can know."""
        return self._sealer.subject_key("console form", session.id.hex()).hex()

    def is_form_of(self, session: Session, offered: str) -> bool:
        """Say whether a form was made for this session."""
        return Secret(self.form_token(session)).matches(offered)

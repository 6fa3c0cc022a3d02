"""Who is an operator: whoever bears the GATEWAY_ADMIN_TOKEN. Wrong guesses are counted, and each change is logged."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import structlog
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, TooManyRequestsException
from litestar.handlers import BaseRouteHandler

from gateway.pacing import client_of
from gateway.sealing import Secret

GUESSES_PER_MINUTE = 10
"""Wrong tokens that one client may send; whatever it sends after that is not looked at."""
MAX_CLIENTS = 10_000
"""Clients whose guesses are counted; of more, the one that was counted longest begins anew."""
MINUTE = 60_000

_LOG = structlog.get_logger(__name__)


class Operators:
    """Lets operators in, and writes down what they did."""

    def __init__(self, token: Secret, clock: Callable[[], int]) -> None:
        self._token = token
        self._clock = clock
        self._guesses: OrderedDict[str, tuple[int, int]] = OrderedDict()
        # Says which token it was when there was another before, and is too short to guess it by.
        self.fingerprint = hashlib.sha256(b"operator\0" + token.reveal().encode()).hexdigest()[:8] if token else ""

    @property
    def guard(self) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]:
        """The guard of operators' routes."""

        # A function, as Litestar copies the routers that it is given with all that hangs on their methods.
        def guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
            self.admit(connection)

        return guard

    def admit(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        """Let a request pass that bears the token. Raises 401, or 429 after too many wrong ones."""
        client = client_of(connection.client.host if connection.client else "")
        if wait := self._shut_out(client):
            retry_after = {"Retry-After": str(-(-wait // 1000))}
            raise TooManyRequestsException(detail="too many wrong tokens: wait a minute", headers=retry_after)
        if not self.is_operator(connection.headers.get("authorization", "")):
            self._count(client)
            raise NotAuthorizedException(
                detail="this needs `Authorization: Bearer` with the GATEWAY_ADMIN_TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def is_operator(self, authorization: str) -> bool:
        """Say whether a request bears the token. Constant time, whatever was sent."""
        scheme, _, credentials = authorization.partition(" ")
        return bool(self._token) and scheme.lower() == "bearer" and self._token.matches(credentials.strip())

    def did(self, what: str, number: int, **about: object) -> None:
        """Log a change: what, to how many things, and by which token. `about` names no person."""
        _LOG.info("operator_did", what=what, number=number, by=self.fingerprint, **about)

    def _shut_out(self, client: str) -> int:
        """Return for how many ms a client is not listened to."""
        began, guesses = self._guesses.get(client, (0, 0))
        left = began + MINUTE - self._clock()
        return min(left, MINUTE) if guesses >= GUESSES_PER_MINUTE and left > 0 else 0

    def _count(self, client: str) -> None:
        now = self._clock()
        began, guesses = self._guesses.pop(client, (now, 0))
        if not 0 <= now - began < MINUTE:
            began, guesses = now, 0
        while len(self._guesses) >= MAX_CLIENTS:
            self._guesses.popitem(last=False)
        self._guesses[client] = (began, guesses + 1)

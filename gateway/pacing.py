"""When to try again, and how much anybody may. Pure: the clock and the randomness are arguments; times are in ms."""

import email.utils
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import AddressValueError, IPv6Address

MINUTE = 60_000
MAX_CLIENTS = 50_000
"""Clients whose requests are counted; of more, the one that was counted longest begins anew."""
FIRST_PAUSE = 2_000
LONGEST_PAUSE = 3_600_000
LONGEST_RETRY_AFTER = 86_400_000
"""A collector may ask for a day's patience; more is taken for a mistake of its clock or its units."""


def backoff(attempts: int, uniform: Callable[[float, float], float]) -> int:
    """Return the pause after that many attempts: full jitter under a limit that doubles from 2 s to an hour."""
    limit = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempts - 1, 20))
    return int(uniform(0, limit))


def retry_after(value: str | None, now: int) -> int:
    """Return the pause that a Retry-After header asks for, given in seconds or as a date; 0 when it asks for none.

    Rule: RFC 9110, section 10.2.3.
    """
    if not value:
        return 0
    text = value.strip()
    if text.isascii() and text.isdigit():
        pause = int(text[:9]) * 1000
    else:
        try:
            pause = int(email.utils.parsedate_to_datetime(text).timestamp() * 1000) - now
        except (ValueError, OverflowError):
            return 0
    return max(0, min(pause, LONGEST_RETRY_AFTER))


FAILURES = 5
"""Failed requests in a row after which a destination is left alone for a while."""
SHORTEST_REST = 10_000
LONGEST_REST = 300_000
TOO_MANY = 429
SERVER_ERRORS = 500
UNAVAILABLE = 503


class Pace:
    """How many requests to one destination may be under way: what it takes well, and no more than it was said to take.

    - The limit begins at two, grows by one with each limit's worth of successes, and halves when the destination is
      overwhelmed (429, 503, no answer): additive increase, multiplicative decrease, as TCP does.
    - After `FAILURES` failures in a row nothing is sent for a rest that doubles from 10 s to 5 min; then one request
      tries. So a dead destination costs one try a rest, and the deliveries that wait for it none.
    - `per_second` (0: any number) fills a bucket of tokens that holds one second's worth.
    """

    def __init__(self, most: int, per_second: float, now: int) -> None:
        self.most = most
        self.per_second = per_second
        self.limit = float(min(2, most))
        self.failures = 0
        self.rests_until = 0
        self._tokens = max(1.0, per_second)
        self._counted_at = now

    def room(self, under_way: int, now: int) -> int:
        """Return how many more requests may begin now."""
        if self.rests_until > now:
            return 0
        limit = 1 if self.failures >= FAILURES else int(self.limit)
        room = max(0, limit - under_way)
        if self.per_second:
            self._refill(now)
            room = min(room, int(self._tokens))
        return room

    def ahead(self) -> int:
        """Return how many requests may be held ready beside those under way: none while it fails or is rationed."""
        return 0 if self.failures or self.per_second else int(self.limit)

    def pause(self, now: int) -> int:
        """Return the ms until time alone makes room, 0 if it is not time that is lacking."""
        if self.rests_until > now:
            return self.rests_until - now
        if self.per_second and self._tokens < 1:
            return int((1 - self._tokens) / self.per_second * 1000) + 1
        return 0

    def began(self, requests: int, now: int) -> None:
        """Note that requests began."""
        if self.per_second:
            self._refill(now)
            self._tokens -= requests

    def answered(self, status: int, now: int) -> None:
        """Note an answer; status 0 is none."""
        if 0 < status < SERVER_ERRORS and status != TOO_MANY:
            self.failures = 0
            self.rests_until = 0
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
            return
        if status in {0, TOO_MANY, UNAVAILABLE}:
            self.limit = max(1.0, self.limit / 2)
        if status == TOO_MANY:
            return  # it is well, only busy: `Retry-After` says for how long
        self.failures += 1
        if self.failures >= FAILURES:
            rest = SHORTEST_REST * 2 ** min(self.failures - FAILURES, 10)
            self.rests_until = now + min(LONGEST_REST, rest)

    def _refill(self, now: int) -> None:
        earned = max(0, now - self._counted_at) / 1000 * self.per_second
        self._tokens = min(max(1.0, self.per_second), self._tokens + earned)
        self._counted_at = now


class Allowance:
    """What each client may still send in the minute that began with its first request.

    Litestar's own rate limit keeps every address that ever called until somebody cleans up; this one has a bound.
    """

    def __init__(self, per_minute: int, clock: Callable[[], int]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._counted: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        """How many clients are counted."""
        return len(self._counted)

    def take(self, client: str) -> int:
        """Count a request. Returns 0, or after how many ms the client may send one again."""
        now = self._clock()
        began, requests = self._counted.get(client, (now, 0))
        if not 0 <= now - began < MINUTE:
            began, requests = now, 0
        if requests >= self._per_minute:
            return began + MINUTE - now
        if not requests:
            self._counted.pop(client, None)  # so that they are in the order in which they began
            while len(self._counted) >= MAX_CLIENTS:
                self._counted.popitem(last=False)
        self._counted[client] = (began, requests + 1)
        return 0


def client_of(host: str) -> str:
    """Return what counts as one client. Whoever has an IPv6 address has the 2**64 of its network."""
    try:
        address = IPv6Address(host)
    except AddressValueError:
        return host[:64]
    return str(address.ipv4_mapped or address.packed[:8].hex())

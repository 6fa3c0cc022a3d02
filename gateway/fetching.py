"""Fetches the objects that webhooks wait for, beside the requests, and then lets their events be made.

A webhook that needs an object is accepted at once, with one delivery to `FETCH` in the place of its events: so what
waits is durable, due, leased by one gateway of several, and tried again, as any delivery is. Here is what follows:

    lease ─▶ get ─▶ keep (the object, sealed with the webhook) ─▶ replay (the events) ─▶ settle: sent
               ├─▶ no answer, 408, 425, 429, 5xx, a wrong key (401, 402, 403): settle: due again, for three days
               └─▶ refused, or three days over: replay without it, with a note ─▶ settle: dead

A crash after any step does the steps again: what is kept is not fetched twice, a replay makes the same events under the
same ids, and a lease that nobody settles runs out. `gateway replay` of a webhook, or a retry of the dead delivery,
fetches again what is missing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Protocol

import structlog
from msgspec import Struct, msgpack, structs

from gateway.deliveries import Attempt, Lease, Receipt, Settlement, State, StoredWebhook, StoreUnavailable
from gateway.destinations import Request, Response
from gateway.fetches import FETCH, MAX_OBJECT, Wanted, decoded
from gateway.intake import KeptRequest, UnknownSource, kept_request
from gateway.pacing import Pace, backoff, retry_after
from gateway.sealing import Sealer, SealError
from gateway.sending import HttpSender
from gateway.sources import MalformedWebhook, Source, read_verified, wanted_of
from gateway.telemetry import Metrics

LEASE = 60_000
LAST_START = 30_000
"""How long after a lease begins the last request of it may, in ms: then there is time to answer, keep and replay."""
FETCH_FOR = 3 * 86_400_000
"""How long an object is tried for, in ms, counted from the first try."""
DEADLINE = 10.0
"""Seconds that a provider gets to answer."""
CONCURRENCY = 4
PER_SECOND = 20.0
"""Requests, which are also those of one webhook. Providers allow some 25 reads a second in test mode."""
IDLE, QUIET = 1.0, 60.0
"""Seconds between two looks at the store when nobody called: with a `fetch:` in force, and without."""
MENDED_BY_PEOPLE = frozenset({401, 402, 403})
AGAIN = MENDED_BY_PEOPLE | {408, 425, 429}
"""Refusals that are not for the sake of the object; 5xx are none either."""

_LOG = structlog.get_logger(__name__)


class Waiting(Protocol):
    """What is needed of a store to fetch what its webhooks wait for."""

    async def lease(self, destination: str, limit: int, now: int, until: int) -> tuple[list[Lease], int | None]:
        """Take due deliveries until then; also return when the next one falls due."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> int:
        """Record what became of leased deliveries."""
        ...

    async def webhook(self, number: int) -> StoredWebhook | None:
        """Return one webhook with its sealed request."""
        ...

    async def keep(self, webhook: int, sealed: bytes) -> bool:
        """Put a webhook's request in its own place; false when it is gone by now."""
        ...


class Makes(Protocol):
    """What makes a webhook's events."""

    def source(self, name: str) -> Source:
        """Return the source of that name. Raises `UnknownSource`."""
        ...

    async def replay(self, stored: StoredWebhook, failed: Mapping[str, str] | None = None) -> Receipt:
        """Translate a stored webhook again; `failed` says what could not be fetched, and why."""
        ...


class _Gone(Exception):
    """Retention, or a request about data, took what is to be fetched for."""


class _Tried(Struct, frozen=True):
    """What became of the requests for one webhook: why objects are missing for good, and why one is to be tried again.

    `last` is the newest answer, `done` what is kept now.
    """

    kept: KeptRequest
    failed: dict[str, str]
    again: str | None = None
    last: Response | None = None


class Fetching:
    """Fetches what is due until cancelled. Any number of gateways may do so over one store."""

    def __init__(
        self,
        store: Waiting,
        sealer: Sealer,
        intake: Makes,
        configured: Callable[[], bool],
        clock: Callable[[], int],
        uniform: Callable[[float, float], float],
        metrics: Metrics | None = None,
    ) -> None:
        """`configured` says whether a source in force fetches anything: without, it looks only now and then."""
        self._store = store
        self._sealer = sealer
        self._intake = intake
        self._configured = configured
        self._clock = clock
        self._uniform = uniform
        self._metrics = metrics or Metrics()
        self._pace = Pace(CONCURRENCY, PER_SECOND, clock())
        self._called = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    def wake(self, destinations: frozenset[str]) -> None:
        """Say which destinations have work; what waits for a fetch is one of them."""
        if FETCH in destinations:
            self._called.set()

    async def follow(self) -> None:
        """Fetch what is due, as it falls due. A store that is away is asked again."""
        sender = HttpSender(CONCURRENCY, deadline=DEADLINE)
        try:
            while True:
                self._called.clear()
                pause = await self._turn(sender)
                try:
                    async with asyncio.timeout(pause):
                        await self._called.wait()
                except TimeoutError:
                    pass
        finally:
            for each in self._under_way:
                each.cancel()  # the leases run out, and another takes them
            await asyncio.gather(*self._under_way, return_exceptions=True)
            await sender.close()

    async def _turn(self, sender: HttpSender) -> float:
        """Begin what there is room for; return how many seconds to idle then."""
        idle = IDLE if self._configured() else QUIET
        now = self._clock()
        room = self._pace.room(len(self._under_way), now)
        if room == 0:
            return min(idle, self._pace.pause(now) / 1000 or idle)
        try:
            leases, next_due = await self._store.lease(FETCH, room, now, now + LEASE)
        except StoreUnavailable as error:
            _LOG.warning("store_unavailable", during="fetch", error=str(error))
            return IDLE
        for lease in leases:
            task = asyncio.create_task(self._guarded(lease, now + LAST_START, sender))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        if len(leases) == room or next_due is None:
            return idle
        return max(0.0, min(idle, (next_due - self._clock()) / 1000))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._called.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("fetch_broke", exc_info=error)  # a defect; the lease runs out

    async def _guarded(self, lease: Lease, last_start: int, sender: HttpSender) -> None:
        """Fetch for one webhook and settle. Whatever goes wrong, the delivery is due again: nothing is lost."""
        started = self._clock()
        try:
            settlement = await self._fetch(lease, last_start, sender)
        except StoreUnavailable as error:
            _LOG.warning("store_unavailable", during="fetch", webhook=lease.webhook, error=str(error))
            settlement = self._again(lease, started, "the store was away", None)
        except (UnknownSource, MalformedWebhook) as error:
            why = "its source is not there" if isinstance(error, UnknownSource) else "its source cannot read it"
            settlement = self._again(lease, started, why, None)
        except _Gone:
            settlement = Settlement(lease, State.DEAD, "the webhook is past retention, or was forgotten")
        except SealError as error:
            settlement = Settlement(lease, State.DEAD, f"unreadable: {error}")
        except Exception as error:
            _LOG.exception("fetch_broke", webhook=lease.webhook)
            settlement = self._again(lease, started, f"failed: {type(error).__name__}", None)
        try:
            await self._store.settle([settlement])
        except StoreUnavailable as error:  # the lease runs out
            _LOG.warning("store_unavailable", during="fetch", webhook=lease.webhook, error=str(error))
        else:
            self._metrics.settled(FETCH, [settlement])

    async def _fetch(self, lease: Lease, last_start: int, sender: HttpSender) -> Settlement:
        stored, started = await self._store.webhook(lease.webhook), self._clock()
        if stored is None or stored.sealed is None:
            raise _Gone
        source = self._intake.source(stored.source)
        log = _LOG.bind(source=stored.source, type=stored.type, webhook=lease.webhook, webhook_id=stored.id)
        tried = await self._try(stored, source, last_start, sender)
        attempt = None
        if tried.last is not None:
            outcome = tried.again or "; ".join(tried.failed.values()) or f"http_{tried.last.status}"
            attempt = Attempt(started, self._clock() - started, tried.last.status, outcome)
        if tried.again is not None:
            settlement = self._again(lease, started, tried.again, attempt, tried.last)
            if settlement.state == State.DUE:
                log.warning("fetch_failed", reason=tried.again, again_in_ms=settlement.due_at - self._clock())
                return settlement
        failed = {**tried.failed, **self._given_up(stored, source, tried)}
        sealed = self._sealer.seal(msgpack.encode(tried.kept), b"webhook")
        try:
            await self._intake.replay(structs.replace(stored, sealed=sealed), failed)
        except ValueError:  # it went meanwhile
            raise _Gone from None
        if not failed:
            return Settlement(lease, State.SENT, None, 0, attempt)
        told = ", ".join(f"{name}: {why}" for name, why in failed.items())
        log.error("fetch_dead", reason=told, next_step="`gateway replay` fetches it again")
        return Settlement(lease, State.DEAD, f"fetch failed: {told}", 0, attempt)

    async def _try(self, stored: StoredWebhook, source: Source, last_start: int, sender: HttpSender) -> _Tried:
        """Get what is missing, one after another, and keep each at once."""
        tried = _Tried(kept_request(stored, self._sealer), {})
        for wanted in self._missing(stored, source, tried):
            if self._clock() > last_start:
                return structs.replace(tried, again="there was no time left")
            response = await self._get(wanted, sender)
            tried = structs.replace(tried, last=response)
            again, refused = _judged(response)
            if again:
                return structs.replace(tried, again=again)
            if refused:
                tried = structs.replace(tried, failed={**tried.failed, wanted.name: refused})
                continue
            kept = structs.replace(tried.kept, fetched={**tried.kept.fetched, wanted.name: response.body})
            if not await self._store.keep(stored.webhook, self._sealer.seal(msgpack.encode(kept), b"webhook")):
                raise _Gone
            tried = structs.replace(tried, kept=kept)
        return tried

    def _missing(self, stored: StoredWebhook, source: Source, tried: _Tried) -> list[Wanted]:
        kept = tried.kept
        webhook = read_verified(kept.headers, kept.body, source, stored.received_at, kept.fetched)
        return [each for each in wanted_of(webhook, source)[0] if each.name not in tried.failed]

    def _given_up(self, stored: StoredWebhook, source: Source, tried: _Tried) -> dict[str, str]:
        """Return what is missing when the time to try is over."""
        if tried.again is None:
            return {}
        return {each.name: f"gave up: {tried.again}" for each in self._missing(stored, source, tried)}

    async def _get(self, wanted: Wanted, sender: HttpSender) -> Response:
        self._pace.began(1, self._clock())
        request = Request(wanted.url, {"accept": "application/json", **wanted.headers}, b"")
        began = perf_counter()
        response = await sender.send(request, method="GET", most=MAX_OBJECT + 1)
        self._metrics.attempted(FETCH, response.status, perf_counter() - began)
        self._pace.answered(response.status, self._clock())
        return response

    def _again(
        self, lease: Lease, started: int, why: str, attempt: Attempt | None, response: Response | None = None
    ) -> Settlement:
        """Return the delivery to due, or give it up after `FETCH_FOR`."""
        now = self._clock()
        asked = retry_after(response.headers.get("retry-after"), now) if response else 0
        due_at = now + max(backoff(lease.attempts + 1, self._uniform), asked)
        attempt = attempt or Attempt(started, now - started, 0, why)
        if due_at > (lease.first_try_at or started) + FETCH_FOR:
            return Settlement(lease, State.DEAD, f"gave up: {why}", 0, attempt)
        return Settlement(lease, State.DUE, why, due_at, attempt)


def _judged(response: Response) -> tuple[str | None, str | None]:
    """Return why to try again, or why not to; neither for an object."""
    status = response.status
    if status == 0:
        return response.error or "network: no answer", None
    if status in AGAIN or status >= 500:
        hint = ": look at the key" if status in MENDED_BY_PEOPLE else ""
        return f"http_{status}{hint}", None
    if status != 200:
        return None, f"http_{status}: {response.error}" if response.error else f"http_{status}"
    if len(response.body) > MAX_OBJECT:
        return None, f"the answer is larger than {MAX_OBJECT:,} bytes"
    try:
        decoded(response.body)
    except ValueError as error:
        return None, str(error)
    return None, None

"""The loop of one destination: lease, render, send, judge, settle.

Each destination has its own loop, client and concurrency, so a slow or dead one holds nobody else up. An event is
rendered at its first try; a try that fails stores what was sent, and later tries send those bytes again. A request's
deadline is far shorter than a lease, so nobody sends what somebody else has leased meanwhile.

The loop takes turns: each settles what was answered since the last and leases what comes next, in one commit. What is
leased ahead is sent while the store is at work, so neither waits for the other.

A crash between sending and settling sends again, under the same idempotency key: at least once, never lost.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Protocol
from uuid import uuid5

import msgspec
import structlog
from msgspec import Struct, structs

from gateway.deliveries import NEVER, Attempt, Lease, LinkPart, Settlement, State, StoreUnavailable
from gateway.destinations import (
    Destination,
    Outcome,
    Request,
    Response,
    Unrenderable,
    judge,
    pack,
    render,
    told_late,
)
from gateway.events import Event, decode_event
from gateway.expressions import EvaluationError
from gateway.functions import NAMESPACE
from gateway.links import resolve
from gateway.mappings import Mappings
from gateway.pacing import FAILURES, Pace, backoff, retry_after
from gateway.sealing import Sealer, SealError
from gateway.sending import HttpSender
from gateway.telemetry import Metrics
from gateway.tracing import Tracing

LEASE = 60_000
MARGIN = 20_000
"""How long before its lease ends the last request of a lease may begin, in ms: a request's deadline, and to settle."""
SPLIT_ON = frozenset({400, 413, 422})
"""Refusals that may be for the sake of one event of a batch: its halves find out which."""
COMPANY = 0.005
"""Seconds that an outcome waits for others to be settled with, as long as there is enough to send."""
IDLE = 1.0
"""Seconds between two looks at the store when nobody called: another process may have put work there."""

_LOG = structlog.get_logger(__name__)


class Outbox(Protocol):
    """What is needed of a store to deliver."""

    async def lease(self, destination: str, limit: int, now: int, until: int) -> tuple[list[Lease], int | None]:
        """Take due deliveries until then; also return when the next one falls due."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> int:
        """Record what became of leased deliveries; return how many were still held by their lease."""
        ...

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, in one round trip."""
        ...

    async def link(self, parts: Sequence[LinkPart], now: int) -> frozenset[str]:
        """Store links and release what waited for them; return the destinations that have work now."""
        ...


class Sender(Protocol):
    """What sends a request and brings back what came of it."""

    async def send(self, request: Request) -> Response:
        """Never raises because of the other side: that is in the response."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class _Taken(Struct, frozen=True):
    """A lease, and when the last request of it may begin."""

    lease: Lease
    last_start: int


class _Item(Struct, frozen=True):
    lease: Lease
    event: Event
    rendered: bytes


class DeliveryLoop:
    """Delivers to one destination until stopped. `destination` is asked each time, as a mapping may be swapped."""

    def __init__(
        self,
        name: str,
        destination: Callable[[], Destination],
        store: Outbox,
        sealer: Sealer,
        sender: Sender,
        clock: Callable[[], int],
        uniform: Callable[[float, float], float],
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """Without `metrics` it counts for nobody, without `tracing` it makes no spans."""
        self.name = name
        self._destination = destination
        self._store = store
        self._sealer = sealer
        self._sender = sender
        self._clock = clock
        self._uniform = uniform
        self._metrics = metrics or Metrics()
        self._tracing = tracing
        now = destination()
        self.pace = Pace(now.concurrency, now.per_second, clock())
        self._called = asyncio.Event()
        self._stopping = False
        self._ahead: deque[_Taken] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._outcomes: list[Settlement] = []

    def wake(self) -> None:
        """Say that there may be work."""
        self._called.set()

    async def run(self) -> None:
        """Deliver what is due, as it falls due, until `stop`."""
        while not self._stopping:
            self._called.clear()
            pause = await self._turn()
            if pause > 0 and not self._stopping:
                await self._idle(pause)
            if len(self._ahead) > self.pace.ahead() * self._destination().max_events // 2:
                await asyncio.sleep(COMPANY)
        # Only here is it certain that nothing more begins: a lease may have been on its way when it was told to stop.
        self._give_back()
        await self._settle()
        while self._sending:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
            await self._settle()

    def stop(self) -> None:
        """Lease nothing more; `run` returns when what is being sent is settled."""
        self._stopping = True
        self._called.set()

    async def step(self) -> int:
        """Deliver what is due now; return how much that was. For whoever drives the loop by hand."""
        destination = self._destination()
        taken, _ = await self._lease(destination.concurrency * destination.max_events)
        await self._deliver(taken)
        await self._settle()
        return len(taken)

    async def _turn(self) -> float:
        """Settle what was answered, lease what comes next and begin to send; return how many seconds to idle then."""
        now = self._clock()
        if self.pace.rests_until > now:
            self._give_back()
        settling = asyncio.create_task(self._settle())  # begins before the lease, so both share a commit
        pause = IDLE
        room = self.pace.room(len(self._sending), now) + self.pace.ahead()
        wanted = room * self._destination().max_events - len(self._ahead)
        if wanted > 0:
            try:
                taken, next_due = await self._lease(wanted)
            except StoreUnavailable as error:
                _LOG.warning("store_unavailable", destination=self.name, error=str(error))
            else:
                self._ahead.extend(taken)
                self._begin()
                if len(taken) < wanted and next_due is not None:
                    pause = max(0.0, (next_due - self._clock()) / 1000)
        await settling
        return min(pause, IDLE, self.pace.pause(self._clock()) / 1000 or IDLE)

    async def _lease(self, limit: int) -> tuple[list[_Taken], int | None]:
        now = self._clock()
        leases, next_due = await self._store.lease(self.name, limit, now, now + LEASE)
        return [_Taken(lease, now + LEASE - MARGIN) for lease in leases], next_due

    def _begin(self) -> None:
        """Begin to send what is leased, as far as there is room."""
        now = self._clock()
        while self._ahead and not self._stopping and self.pace.room(len(self._sending), now) > 0:
            number = min(len(self._ahead), self._destination().max_events)
            taken = [self._ahead.popleft() for _ in range(number)]
            self.pace.began(1, now)
            task = asyncio.create_task(self._deliver(taken))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._begin()
        self._called.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease runs out and the delivery is due again; that it got here is a defect, so say so loudly.
            _LOG.error("delivery_failed", destination=self.name, exc_info=error)

    def _give_back(self) -> None:
        """Let go of what was leased and not begun. It was first in line, and is so again."""
        self._outcomes += [Settlement(each.lease, State.DUE, rendered=each.lease.rendered) for each in self._ahead]
        self._ahead.clear()

    async def _idle(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._called.wait()
        except TimeoutError:
            pass

    async def _deliver(self, taken: Sequence[_Taken]) -> None:
        if not taken:
            return
        destination = self._destination()
        last_start = taken[0].last_start  # the first was leased first; what begins later could be sent twice
        batches: deque[Sequence[_Item]] = deque(await self._prepared([each.lease for each in taken], destination))
        while batches:
            batch = batches.popleft()
            if self._clock() > last_start:
                self._outcomes += [self._returned(item) for item in batch]
                continue
            outcomes, halves = await self._try(batch, destination)
            batches.extendleft(reversed(halves))
            self._outcomes += outcomes
            self._called.set()

    async def _prepared(self, leases: Sequence[Lease], destination: Destination) -> list[list[_Item]]:
        """Return what is to be sent, request by request; what needs no request is an outcome already."""
        items: list[_Item] = []
        opened: list[tuple[Lease, Event]] = []
        for lease in leases:
            try:
                opened.append((lease, decode_event(self._sealer.open(lease.event, b"event"))))
            except (SealError, msgspec.MsgspecError) as error:
                # Of a message of msgspec's the type alone: it may quote what could not be read.
                reason = f"unreadable: {error if isinstance(error, SealError) else type(error).__name__}"
                _LOG.error("delivery_dead", destination=self.name, webhook=lease.webhook, reason=reason)
                self._outcomes.append(Settlement(lease, State.DEAD, reason))
        for lease, event in await self._resolved(opened):
            prepared = self._prepare(lease, event, destination)
            if isinstance(prepared, _Item):
                items.append(prepared)
            else:
                self._outcomes.append(prepared)
        return list(_batches(items, destination))

    async def _resolved(self, opened: Sequence[tuple[Lease, Event]]) -> list[tuple[Lease, Event]]:
        """Find the visitors of events that were not linked when they came, but may be by now; and learn from it."""
        keys = {key for _, event in opened if event.visitor is None for key in event.subjects.values()}
        if not keys:
            return [(lease, told_late(event) if lease.late else event) for lease, event in opened]
        now = self._clock()
        found = await self._store.resolve(list(keys))
        learned: list[LinkPart] = []
        resolved: list[tuple[Lease, Event]] = []
        for lease, stored in opened:
            event = stored
            if stored.visitor is None:
                resolution = resolve(stored.subjects, None, found, self._sealer, now)
                if not stored.test:  # a test teaches nothing about real people
                    learned += resolution.learned
                event = structs.replace(stored, visitor=resolution.visitor, unlinked=resolution.unlinked)
            resolved.append((lease, told_late(event) if lease.late else event))
        if learned:
            await self._store.link(learned, now)
        return resolved

    def _prepare(self, lease: Lease, event: Event, destination: Destination) -> _Item | Settlement:
        if destination.max_age and event.at < self._clock() - destination.max_age:
            return Settlement(lease, State.SKIPPED, "too_old")
        if lease.rendered is not None:
            return _Item(lease, event, self._sealer.open(lease.rendered, b"rendered"))
        try:
            rendered = render(event, destination)
        except Unrenderable as error:
            self._about(lease, event).error("delivery_dead", reason=str(error))
            return Settlement(lease, State.DEAD, f"unrenderable: {error}")
        if isinstance(rendered, str):
            return Settlement(lease, State.SKIPPED, rendered)
        return _Item(lease, event, rendered)

    def _returned(self, item: _Item) -> Settlement:
        """Give an event back that there was no time for: it is due at once, as it may have been sent before."""
        rendered = item.lease.rendered or self._sealer.seal(item.rendered, b"rendered")
        return Settlement(item.lease, State.DUE, None, self._clock(), None, rendered)

    async def _try(
        self, batch: Sequence[_Item], destination: Destination
    ) -> tuple[list[Settlement], list[Sequence[_Item]]]:
        """Send a batch; return what becomes of it, or the halves to send instead of one that was refused whole."""
        started = self._clock()
        kind = batch[0].event.kind
        try:
            request = pack([item.rendered for item in batch], destination, _request_id(batch), started, kind)
        except (EvaluationError, msgspec.MsgspecError, ValueError) as error:
            reason = f"unrenderable: the request cannot be written ({type(error).__name__})"
            for item in batch:
                self._about(item.lease, item.event).error("delivery_dead", reason=reason)
            return [Settlement(item.lease, State.DEAD, reason) for item in batch], []
        span = None
        if self._tracing:
            stored = [self._sealer.open(item.lease.event, b"event") for item in batch]
            span = self._tracing.attempt(self.name, [item.lease.webhook for item in batch], stored)
            request = structs.replace(request, headers={**request.headers, "traceparent": span.traceparent})
        began = perf_counter()
        response = await self._sender.send(request)
        self._metrics.attempted(self.name, response.status, perf_counter() - began)
        ended = self._clock()
        self.pace.answered(response.status, ended)
        outcomes = judge(response, destination, len(batch))
        if span:
            span.answered(response.status, outcomes)
        refused = all(each.state == State.DEAD and not each.own for each in outcomes)
        if refused and len(batch) > 1 and response.status in SPLIT_ON:
            middle = len(batch) // 2
            return [], [batch[:middle], batch[middle:]]
        return [
            self._settlement(item, outcome, response, destination, started, ended)
            for item, outcome in zip(batch, outcomes, strict=True)
        ], []

    def _settlement(
        self, item: _Item, outcome: Outcome, response: Response, destination: Destination, started: int, ended: int
    ) -> Settlement:
        lease = item.lease
        kept = self._sealer.seal(response.body, b"response") if outcome.state != State.SENT and response.body else None
        attempt = Attempt(started, ended - started, response.status, outcome.reason, kept)
        if outcome.state == State.SENT:
            return Settlement(lease, State.SENT, None, 0, attempt)
        pause = max(backoff(lease.attempts + 1, self._uniform), retry_after(response.headers.get("retry-after"), ended))
        first = lease.first_try_at or started
        log = self._about(lease, item.event).bind(reason=outcome.reason)
        if outcome.state == State.DEAD:
            log.error("delivery_dead")
            return Settlement(lease, State.DEAD, outcome.reason, 0, attempt)
        rendered = lease.rendered or self._sealer.seal(item.rendered, b"rendered")
        if outcome.state == State.PARKED:
            log.warning("delivery_parked", again_in_ms=destination.park_for)
            pause = max(destination.park_for, pause)
            return Settlement(lease, State.PARKED, outcome.reason, ended + pause, attempt, rendered)
        if outcome.uncertain and destination.park_uncertain and ended + pause > first + destination.dedup_window:
            log.warning("delivery_parked", next_step="look at the collector, then `gateway replay` if it is missing")
            return Settlement(lease, State.PARKED, f"uncertain: {outcome.reason}", NEVER, attempt, rendered)
        if ended + pause > first + destination.retry_for:
            log.error("delivery_dead", gave_up=True)
            return Settlement(lease, State.DEAD, f"gave up: {outcome.reason}", 0, attempt)
        log.warning("delivery_failed", attempt=lease.attempts + 1, again_in_ms=pause)
        return Settlement(lease, State.DUE, outcome.reason, ended + pause, attempt, rendered)

    def _about(self, lease: Lease, event: Event) -> structlog.typing.FilteringBoundLogger:
        """Return a log whose lines say which delivery they are about, by the ids that the webhook's own lines have."""
        log: structlog.typing.FilteringBoundLogger = _LOG.bind(
            destination=self.name, webhook=lease.webhook, webhook_id=event.webhook_id, event_id=event.id
        )
        return log

    async def _settle(self) -> None:
        """Settle what was answered, patiently: what was sent but not settled would be sent again."""
        settlements, self._outcomes = self._outcomes, []
        deadline = self._clock() + LEASE
        while settlements:
            try:
                held = await self._store.settle(settlements)
            except StoreUnavailable as error:
                _LOG.warning("store_unavailable", destination=self.name, error=str(error))
                if self._stopping or self._clock() > deadline:
                    _LOG.error("settlement_lost", destination=self.name, number=len(settlements))
                    return  # the leases run out, and the deliveries are due again
                await asyncio.sleep(IDLE)
            except Exception:
                # A defect, as in `_sent`: the others of this destination go on.
                _LOG.exception("settlement_lost", destination=self.name, number=len(settlements))
                return
            else:
                self._metrics.settled(self.name, settlements)
                if held < len(settlements):
                    _LOG.warning("lease_lost", destination=self.name, number=len(settlements) - held)
                return


def _batches(items: Sequence[_Item], destination: Destination) -> Iterator[list[_Item]]:
    """Split into requests within the destination's limits; an event over the limit by itself goes alone."""
    batch: list[_Item] = []
    size = 0
    if destination.urls:
        items = sorted(items, key=lambda item: item.event.kind)  # each kind has an endpoint of its own
    for item in items:
        full = len(batch) == destination.max_events or size + len(item.rendered) > destination.max_bytes
        if batch and (full or (destination.urls and batch[0].event.kind != item.event.kind)):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.rendered) + 1
    if batch:
        yield batch


def _request_id(batch: Sequence[_Item]) -> str:
    """Return the idempotency key: the event's own id, or for a batch one made of all of them."""
    if len(batch) == 1:
        return batch[0].event.id
    return str(uuid5(NAMESPACE, "|".join(item.event.id for item in batch)))


class DeliveryLoops:
    """A loop for each destination that is on, whichever those are under the mappings in force.

    A loop that leaves finishes by itself what it is sending: nobody waits for it but the stop of them all.
    """

    def __init__(
        self,
        mappings: Callable[[], Mappings],
        store: Outbox,
        sealer: Sealer,
        clock: Callable[[], int],
        uniform: Callable[[float, float], float],
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._mappings = mappings
        self._store = store
        self._sealer = sealer
        self._clock = clock
        self._uniform = uniform
        self._metrics = metrics or Metrics()
        self._tracing = tracing
        self._destinations: dict[str, Destination] = {}
        self._running: dict[str, _Running] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._stopped = False

    def follow(self) -> None:
        """Start and stop loops, so that there is one for each destination that is on now."""
        if self._stopped:
            return
        now = self._mappings().destinations
        self._destinations.update(now)  # a loop that is told to stop still has to finish with what it knew
        wanted = {name: each.concurrency for name, each in now.items()}
        for name, each in list(self._running.items()):
            if wanted.get(name) != each.concurrency:
                self._leave(name)
        for name, concurrency in wanted.items():
            if name not in self._running:
                self._running[name] = self._start(name, concurrency)

    def _start(self, name: str, concurrency: int) -> "_Running":
        destination = partial(self._destinations.__getitem__, name)
        sender = HttpSender(concurrency)
        loop = DeliveryLoop(
            name,
            destination,
            self._store,
            self._sealer,
            sender,
            self._clock,
            self._uniform,
            self._metrics,
            self._tracing,
        )
        return _Running(loop, sender, asyncio.create_task(loop.run(), name=f"deliver to {name}"), concurrency)

    def wake(self, destinations: frozenset[str]) -> None:
        """Say that these destinations may have work."""
        for name in destinations & self._running.keys():
            self._running[name].loop.wake()

    def breakers(self) -> dict[str, bool]:
        """Say of each destination whether it failed so often that it is left alone, but for a try now and then."""
        return {name: each.loop.pace.failures >= FAILURES for name, each in self._running.items()}

    def stopped(self) -> list[str]:
        """Return the destinations whose loop has ended though it should run."""
        return sorted(name for name, each in self._running.items() if each.task.done())

    async def stop(self) -> None:
        """Lease nothing more, and finish what is being sent. Nothing starts after this."""
        self._stopped = True
        for name in list(self._running):
            self._leave(name)
        await asyncio.gather(*self._leaving)

    def _leave(self, name: str) -> None:
        leaving = self._running.pop(name)
        leaving.loop.stop()
        task = asyncio.create_task(_finish(leaving), name=f"finish {name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


async def _finish(leaving: "_Running") -> None:
    await asyncio.gather(leaving.task, return_exceptions=True)
    await leaving.sender.close()


class _Running(Struct, frozen=True):
    loop: DeliveryLoop
    sender: HttpSender
    task: asyncio.Task[None]
    concurrency: int

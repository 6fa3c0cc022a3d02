"""How the gateway does just now: its last hour, minute by minute, and each destination's health."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from gateway.deliveries import Accounted, Backlog, Counts, FoundWebhook, State, Wanted
from gateway.events import decode_event
from gateway.fetches import FETCH, without_fetches
from gateway.mappings import Mappings
from gateway.sealing import Sealer, SealError
from gateway.store.opening import Store

T = TypeVar("T")

MINUTE = 60_000
MINUTES = 60
MAX_COUNTED = 4_000
"""Webhooks that the chart counts: the newest. With more in an hour it shows the minutes that those make up."""
MAX_OPENED = 500
"""Webhooks whose events are opened for the stitch rate: the newest of those."""
PAGE = 200
KEPT = 5.0
"""Seconds that what was counted is shown again to whoever asks meanwhile."""
SHARE = 20
"""What took long to count is kept that many times as long: looking costs no more than that share of a core."""


class Minute(Struct, frozen=True):
    """One minute of the charts: what came in it, and what has become of that by now. `at` is when it began, in ms."""

    at: int
    webhooks: int
    states: Mapping[State, int]

    @property
    def deliveries(self) -> int:
        """How many deliveries were made of what came."""
        return sum(self.states.values())


class Destination(Struct, frozen=True):
    """How a destination does. `oldest` is for how many ms the delivery that is due longest has been due."""

    name: str
    on: bool
    resting: bool
    counts: Counts
    due: int
    waiting: int
    oldest: int


class Overview(Struct, frozen=True):
    """All numbers of the first page. `stitched` of `events` have a visitor; `cut`: older minutes were not counted."""

    minutes: tuple[Minute, ...]
    webhooks: int
    deliveries: int
    cut: bool
    events: int
    stitched: int
    destinations: tuple[Destination, ...]
    pending: int
    dead: int


class Kept(Generic[T]):
    """Something that is costly to count, counted once for all who look within `lasts` seconds."""

    def __init__(self, count: Callable[[], Awaitable[T]], lasts: float = KEPT) -> None:
        self._count = count
        self._lasts = lasts
        self._value: T | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        """Return it as of now, or nearly."""
        async with self._lock:
            if self._value is None or time.monotonic() >= self._until:
                began = time.monotonic()
                self._value = await self._count()
                ended = time.monotonic()
                self._until = ended + max(self._lasts, (ended - began) * SHARE)
            return self._value


async def overview(
    store: Store, sealer: Sealer, mappings: Mappings, breakers: Mapping[str, bool], now: int
) -> Overview:
    """Count. Raises `StoreUnavailable`."""
    began = now - now % MINUTE - (MINUTES - 1) * MINUTE
    found, cut = await _newest(store, began)
    if cut:  # the minute in which counting stopped is not whole
        began = min(found[-1].webhook.received_at // MINUTE * MINUTE + MINUTE, now - now % MINUTE)
    counted = [each for each in found if each.webhook.received_at >= began]
    webhooks, states = [0] * MINUTES, [Counter[State]() for _ in range(MINUTES)]
    first = now - now % MINUTE - (MINUTES - 1) * MINUTE
    for each in counted:
        place = min((each.webhook.received_at - first) // MINUTE, MINUTES - 1)  # clocks of gateways differ a little
        webhooks[place] += 1
        states[place].update(each.states)
    events, stitched = await _stitched(store, sealer, [each.webhook.received_at for each in counted[:MAX_OPENED]])
    destinations = _destinations(await store.counts(), await store.backlog(now), mappings, breakers, now)
    return Overview(
        minutes=tuple(Minute(first + each * MINUTE, webhooks[each], states[each]) for each in range(MINUTES)),
        webhooks=sum(webhooks),
        deliveries=sum(each.total() for each in states),
        cut=cut,
        events=events,
        stitched=stitched,
        destinations=destinations,
        pending=sum(each.counts.pending for each in destinations),
        dead=sum(each.counts.dead for each in destinations),
    )


async def _newest(store: Store, since: int) -> tuple[list[FoundWebhook], bool]:
    """Return the webhooks since then, newest first, and whether there were too many."""
    found: list[FoundWebhook] = []
    before = None
    while True:
        page, before = await store.search(Wanted(since=since), before=before, limit=PAGE)
        found += page
        if before is None:
            return found, False
        if len(found) >= MAX_COUNTED:
            return found, True


async def _stitched(store: Store, sealer: Sealer, times: Sequence[int]) -> tuple[int, int]:
    """Return how many events came in those times, and how many of them had a visitor."""
    if not times:
        return 0, 0
    page: list[Accounted] = []
    async for each in store.accounted(min(times), max(times) + 1):
        page.append(each)
        if len(page) == MAX_OPENED:
            break
    return await asyncio.to_thread(_with_visitor, page, sealer)


def _with_visitor(page: Sequence[Accounted], sealer: Sealer) -> tuple[int, int]:
    events = stitched = 0
    for each in page:
        for sealed in without_fetches(each).events.values():
            try:
                event = decode_event(sealer.open(sealed, b"event"))
            except (SealError, msgspec.MsgspecError):
                continue
            events += 1
            stitched += event.visitor is not None
    return events, stitched


def _destinations(
    counts: Mapping[str, Counts],
    backlog: Mapping[str, Backlog],
    mappings: Mappings,
    breakers: Mapping[str, bool],
    now: int,
) -> tuple[Destination, ...]:
    nothing, empty = Counts(0, 0, 0, 0, 0), Backlog(0, 0, None)

    def health(name: str) -> Destination:
        waits = backlog.get(name, empty)
        return Destination(
            name=name,
            on=name in mappings.destinations or name == FETCH,
            resting=breakers.get(name, False),
            counts=counts.get(name, nothing),
            due=waits.due,
            waiting=waits.waiting,
            oldest=max(0, now - waits.oldest_due_at) if waits.oldest_due_at is not None else 0,
        )

    return tuple(map(health, sorted({*mappings.destinations, *counts})))

"""Reconcile: what a provider's own list has and the gateway missed comes in by the one way that webhooks come.

A provider yields its webhooks of a span of time. Each that the store does not know is taken in with the id and account
that its webhook has, so a webhook that arrives meanwhile, or afterwards, is the duplicate, and a payment that was
reported otherwise is claimed. To run it again is safe and cheap: what is known costs a look-up.

So there is no file that says how far it came: all that happened before the time that is told is done, and `--since`
that time goes on from there, on any machine.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from msgspec import Struct

from gateway.events import Webhook
from gateway.history import Beside, Table, worth
from gateway.intake import kept_request
from gateway.pacing import Pace, backoff
from gateway.sources import MalformedWebhook, Source, read_verified
from gateway.translate import Translation, translate

LONGEST = 30 * 86_400_000
"""How far back Stripe's list goes; and a third of the time that a claim on a payment is kept, in ms."""
TRIES = 8
"""Tries of one request; the pauses between them double from 2 s on, or are what the provider asks for."""
NAMING = 20
"""Webhooks that name one order and are looked through for it, newest first."""

T = TypeVar("T")


class Unreconcilable(Exception):
    """The provider cannot be read; the message says why and what to do."""


class TryLater(Exception):
    """The provider is busy or away. `pause` is what it asks for, in ms, or 0."""

    def __init__(self, why: str, pause: int = 0) -> None:
        super().__init__(why)
        self.pause = pause


class Found(Struct, frozen=True):
    """One webhook as the provider's list has it.

    `at` is where in time the reading stands, and all that happened before `done` was yielded already (both in ms).
    `names` is a subject that webhooks about it have, when it may have come under another id. `whole` fetches what the
    list leaves out, before it is taken in.
    """

    at: int
    done: int
    headers: Mapping[str, str]
    body: bytes
    names: tuple[str, str] | None = None
    whole: Callable[[], Awaitable[bytes]] | None = None


class Provider(Protocol):
    """One provider's list. `source` is the source whose webhooks it has."""

    @property
    def source(self) -> str:
        """The source that its webhooks come in by."""
        ...

    def webhooks(self, since: int, until: int) -> AsyncIterator[Found]:
        """Yield what happened from `since` to `until` (ms). Raises `Unreconcilable`."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class Courtesy:
    """Asks a provider: so many requests a second at the most, and again later when it says so."""

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`tell` hears why a request is repeated, and when."""
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._pace = Pace(1, per_second, clock())

    async def ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return the answer. Raises `Unreconcilable` once `TRIES` tries were told to come later."""
        tries = 0
        while True:
            while not self._pace.room(0, self._clock()):
                await self._sleep(max(1, self._pace.pause(self._clock())) / 1000)
            self._pace.began(1, self._clock())
            try:
                return await request()
            except TryLater as error:
                tries += 1
                if tries == TRIES:
                    raise Unreconcilable(f"{error}, {TRIES} times in a row: run it again later") from None
                pause = (error.pause or backoff(tries, self._uniform)) / 1000
                self._tell(f"{error}; again in {pause:.0f} s (try {tries + 1} of {TRIES})")
                await self._sleep(pause)


class Reconciled(Struct):
    """What was seen so far, by source, type and currency: `ours` is what the gateway has. `at`, `done`: as `Found`.

    `refused` are those that the mapping's `webhook:` block cannot read.
    """

    at: int
    done: int
    theirs: Table
    ours: Table
    new: int = 0
    known: int = 0
    refused: int = 0


async def reconcile(
    provider: Provider,
    gateway: Beside,
    since: int,
    until: int,
    *,
    take: bool,
    found: Reconciled,
    step: Callable[[Reconciled], object],
) -> None:
    """Compare the provider's list with the store, and `take` in what it lacks. `found` is true at every moment.

    Types that no rule mentions are left out. Raises `Unreconcilable` and `StoreUnavailable`.
    """
    source = gateway.mappings.sources[provider.source]
    async for each in provider.webhooks(since, until):
        try:
            webhook = read_verified(each.headers, each.body, source, until)
            if source.rules_for(webhook.type):
                await _one(each, webhook, source, gateway, found, take=take)
        except MalformedWebhook:
            found.refused += 1
        found.at, found.done = each.at, each.done
        step(found)


async def _one(
    each: Found, webhook: Webhook, source: Source, gateway: Beside, found: Reconciled, *, take: bool
) -> None:
    translation = _translated(webhook, source, gateway)
    currency, amount = worth(translation)
    key = (source.name, webhook.type, currency)
    found.theirs.add(key, amount)
    has = await gateway.has(webhook) or (
        each.names is not None and await _reported(each.names, translation, gateway, source)
    )
    if not has and take:
        body = await each.whole() if each.whole else each.body
        has = (await gateway.intake.take(source.name, each.headers, body)).receipt.duplicate
        found.new += not has
    if has:
        found.known += 1
        found.ours.add(key, amount)


def _translated(webhook: Webhook, source: Source, gateway: Beside) -> Translation:
    return translate(webhook, source, gateway.mappings.profiles, gateway.sealer.subject_key)


async def _reported(names: tuple[str, str], expected: Translation, gateway: Beside, source: Source) -> bool:
    """Tell whether stored webhooks that name it make all events that it would make: they have the same ids."""
    missing = {emission.event.id for emission in expected.emissions}
    for number in await gateway.store.naming([gateway.sealer.subject_key(*names)], limit=NAMING):
        stored = await gateway.store.webhook(number)
        if stored is None or stored.sealed is None or stored.source != source.name:
            continue
        kept = kept_request(stored, gateway.sealer)
        webhook = read_verified(kept.headers, kept.body, source, stored.received_at)
        missing -= {emission.event.id for emission in _translated(webhook, source, gateway).emissions}
        if not missing:
            return True
    return False

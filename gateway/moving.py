"""From one store to another: a file becomes a Redis, a Redis gets more partitions, or back.

What is sealed stays sealed: both stores are under one key. A webhook gets a number of its own in the target, so what
refers to a webhook does so by its duplicate key while it is on the way. Each webhook and each payment is adopted in one
atomic step and only once, so a copy that was cut off is finished by another one.

The order matters. States told and links come first, for those that they concern; then webhooks with their deliveries,
then payments, which name webhooks; last what was asked about data, as all that it is about must be there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

from msgspec import Struct, structs

from gateway.clock import now_ms
from gateway.deliveries import (
    CopiedPayment,
    CopiedWebhook,
    LinkPart,
    OpenRequest,
    State,
    StoreMismatch,
)
from gateway.sealing import Sealer
from gateway.settings import REDIS, Settings, SettingsError
from gateway.store.opening import Store, open_store, store_of
from gateway.store.redis import RedisStore

BATCH = 200
"""Things adopted at once."""
BATCH_BYTES = 4 * 1024 * 1024
"""Bytes, of webhooks that are large, from which on fewer are adopted at once."""

T = TypeVar("T")
Progress = Callable[[int, int], object]
"""Told how much is done, and of how much."""


class Origin(Protocol):
    """What is read of the store that is copied."""

    async def extent(self) -> int:
        """Return how many webhooks, payments, linked subjects and told states there are to be copied."""
        ...

    def copied(self) -> AsyncIterator[CopiedWebhook]:
        """Yield all webhooks, the first that came first."""
        ...

    def copied_payments(self) -> AsyncIterator[CopiedPayment]:
        """Yield all payments, the oldest first."""
        ...

    def copied_links(self) -> AsyncIterator[list[LinkPart]]:
        """Yield the parts of all links, subject by subject."""
        ...

    def copied_told(self) -> AsyncIterator[tuple[bytes, int]]:
        """Yield the objects whose state was told, and as of when."""
        ...

    async def asked(self) -> list[OpenRequest]:
        """Return the requests about data that are to be fulfilled, the oldest first."""
        ...

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, what ended lately included."""
        ...


class Target(Protocol):
    """What is asked of the store that it is copied to."""

    async def adopt(self, copied: CopiedWebhook) -> bool:
        """Store a webhook as it was kept, unless it is here already; return whether it was news."""
        ...

    async def adopt_payment(self, copied: CopiedPayment, now: int) -> None:
        """Make what was one payment one here too, with its claims; of two under one name the surer stays."""
        ...

    async def adopt_told(self, told: Sequence[tuple[bytes, int]]) -> None:
        """Note which states were told."""
        ...

    async def adopt_request(self, copied: OpenRequest) -> None:
        """Write a request about data down, unless it is or was written down here."""
        ...

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, what ended lately included."""
        ...

    async def link(self, parts: Sequence[LinkPart], now: int) -> frozenset[str]:
        """Store links; return the destinations that have work now."""
        ...


class Copied(Struct, frozen=True):
    """What was copied: webhooks and linked subjects that were new to the target; `known` webhooks it had."""

    webhooks: int
    links: int
    known: int


async def copy_store(settings: Settings, source: str, target: str, progress: Progress) -> Copied:
    """Copy the store at one address to that at another. No gateway may be using the source.

    GATEWAY_PARTITIONS is the target's; a Redis to copy from has as many as it has. Raises `SettingsError`,
    `StoreMismatch` and `StoreUnavailable`, after which the copy can be run again.
    """
    if source == target:
        raise SettingsError("a store cannot be copied to itself: name two")
    origin, destination = _at(settings, source), _at(settings, target)
    sealer = Sealer(_shared_key(origin, destination))
    async with AsyncExitStack() as opened:
        from_store = await _open_source(origin, sealer)
        opened.push_async_callback(from_store.close)
        to_store = await open_store(destination, sealer)
        opened.push_async_callback(to_store.close)
        return await copy(from_store, to_store, now_ms(), progress)


async def copy(source: Origin, target: Target, now: int, progress: Progress) -> Copied:
    """Copy all of an open store to another. Raises `StoreUnavailable`."""
    total, done, links, webhooks, known = await source.extent(), 0, 0, 0, 0

    def tell(number: int) -> None:
        nonlocal done
        done += number
        progress(done, max(total, done))

    async for told in _batches(source.copied_told()):
        await target.adopt_told(told)
        tell(len(told))
    async for subjects in _batches(source.copied_links()):
        links += await _link(target, subjects, now)
        tell(len(subjects))
    async for page in _batches(source.copied(), _size):
        news = await _together(target.adopt(_arriving(each)) for each in page)
        await _hear(source, target, [each for each, new in zip(page, news, strict=True) if new], now)
        webhooks += sum(news)
        known += len(page) - sum(news)
        tell(len(page))
    async for payments in _batches(source.copied_payments()):
        await _together(target.adopt_payment(each, now) for each in payments)
        tell(len(payments))
    for request in await source.asked():
        await target.adopt_request(request)
    return Copied(webhooks, links, known)


async def _link(target: Target, subjects: Sequence[list[LinkPart]], now: int) -> int:
    """Link what is not linked so in the target, as if somebody linked it now. Returns how many subjects."""
    known = await target.resolve([parts[0].key for parts in subjects])
    news = [parts for parts in subjects if any(part not in known.get(part.key, ()) for part in parts)]
    # Each by itself: a call tells of a limited number of subjects only.
    await _together(target.link(parts, now) for parts in news)
    return len(news)


async def _hear(source: Origin, target: Target, webhooks: Sequence[CopiedWebhook], now: int) -> None:
    """Let webhooks that wait for a link hear of one that only the target knows, as it was at work already."""
    waiting = list(dict.fromkeys(key for each in webhooks if each.came.unlinked for key in each.came.subjects))
    if waiting:
        here, there = await target.resolve(waiting), await source.resolve(waiting)
        news = [
            live
            for key, parts in here.items()
            if (live := [part for part in parts if part.expires_at > now and part not in there.get(key, ())])
        ]
        await _together(target.link(parts, now) for parts in news)


def _arriving(copied: CopiedWebhook) -> CopiedWebhook:
    """Return a webhook as it arrives: a lease holds in its own store only, so what is leased there is due here."""
    return structs.replace(
        copied,
        deliveries=tuple(
            structs.replace(each, state=State.DUE, due_at=0) if each.state == State.LEASED else each
            for each in copied.deliveries
        ),
    )


def _size(copied: CopiedWebhook) -> int:
    came = copied.came
    tried = sum(
        len(each.rendered or b"") + sum(len(attempt.response or b"") for attempt in each.attempts)
        for each in copied.deliveries
    )
    return len(came.sealed or b"") + sum(len(each.sealed) for each in came.events) + tried


async def _batches(found: AsyncIterator[T], size: Callable[[T], int] = lambda _: 0) -> AsyncIterator[list[T]]:
    batch: list[T] = []
    weight = 0
    async for each in found:
        batch.append(each)
        weight += size(each)
        if len(batch) == BATCH or weight >= BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


async def _together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Await all, so that they share transactions or round trips; what one raises is raised when all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for each in results:
        if isinstance(each, BaseException):
            raise each
    return [each for each in results if not isinstance(each, BaseException)]


# opening both


def _at(settings: Settings, address: str) -> Settings:
    if address == "sqlite:///" or not address.startswith(("sqlite:///", *REDIS)):
        raise SettingsError(
            f"`{address.partition('://')[0]}` is no store: write sqlite:///path/to/gateway.db or redis://host:6379/0"
        )
    return structs.replace(settings, store=address)


def _shared_key(source: Settings, target: Settings) -> bytes:
    """Return the key that both are under. Without GATEWAY_SECRET_KEY only stores in one folder share one."""
    if source.embedded and not source.store_path.exists():
        raise StoreMismatch(f"there is no store at {source.store_path}")
    key_file = source.store_path.with_name("gateway.key")
    beside = source.embedded and target.embedded and target.store_path.with_name("gateway.key") == key_file
    if not source.secret_key and source.embedded and not beside:
        raise SettingsError(
            "GATEWAY_SECRET_KEY is not set, and what is copied stays under the key that it was written under. "
            f"Set it, here and for the gateway that will serve the copy: GATEWAY_SECRET_KEY_FILE={key_file}"
        )
    return source.master_key()


async def _open_source(settings: Settings, sealer: Sealer) -> Store:
    store = store_of(settings, sealer)
    if isinstance(store, RedisStore):
        try:
            await store.connect(as_found=True)
        except BaseException:
            await store.close()
            raise
    return store

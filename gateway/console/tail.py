"""The live tail: what comes is told to whoever watches, and told again when something becomes of it.

One look a second at the store serves all who watch. Who was cut off is told anew what is newest, and a page replaces
the rows that it has: so nobody has to remember how far anybody was.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from gateway.archive import Archive, WebhookLine
from gateway.console.overview import Kept
from gateway.deliveries import StoreUnavailable, Wanted

ROWS = 15
LOOK_EVERY = 1.0
LOOK_BACK = 120_000
"""How long what came is looked at again, in ms: within it, most deliveries are settled."""
AT_ONCE = 100
"""Webhooks of one look: the newest of a store, and of Redis' partitions those that are shown at all."""
QUIET = 15.0
"""Seconds after which a stream says that it lives, so that no proxy closes it."""
MAX_LISTENERS = 20


class Tail:
    """Tells of webhooks."""

    def __init__(self, archive: Archive, clock: Callable[[], int]) -> None:
        self._archive = archive
        self._clock = clock
        self._recent: Kept[Sequence[WebhookLine]] = Kept(self._look, LOOK_EVERY)
        self._listeners = 0

    @property
    def is_full(self) -> bool:
        """Whether nobody more can listen."""
        return self._listeners >= MAX_LISTENERS

    async def newest(self) -> list[WebhookLine]:
        """Return the newest webhooks, the newest first. Raises `StoreUnavailable`."""
        page = await self._archive.webhooks(Wanted(), None, ROWS)
        return _in_order([*page.webhooks, *await self._look()])

    async def listen(self, is_open: Callable[[], Awaitable[bool]]) -> AsyncIterator[WebhookLine | None]:
        """Yield what came lately, the oldest first, each again when it changes; None as a sign of life.

        Ends when `is_open`, asked before each look, says no.
        """
        known: dict[int, WebhookLine] = {}
        quiet = QUIET  # the first sign of life comes at once
        self._listeners += 1
        try:
            while await is_open():
                if quiet >= QUIET:
                    quiet = 0.0
                    yield None
                now = {each.webhook: each for each in reversed(await self._seen())}
                news = [each for number, each in now.items() if known.get(number) != each]
                known = now or known
                for each in news:
                    quiet = 0.0
                    yield each
                await asyncio.sleep(LOOK_EVERY)
                quiet += LOOK_EVERY
        finally:
            self._listeners -= 1

    async def _seen(self) -> Sequence[WebhookLine]:
        try:
            return await self._recent.get()
        except StoreUnavailable:
            return ()

    async def _look(self) -> list[WebhookLine]:
        page = await self._archive.webhooks(Wanted(since=self._clock() - LOOK_BACK), None, AT_ONCE)
        return _in_order(page.webhooks)


def _in_order(webhooks: Sequence[WebhookLine]) -> list[WebhookLine]:
    """Return them by when they came, the newest first: a store of several partitions has an order of its own."""
    each = {each.webhook: each for each in webhooks}
    return sorted(each.values(), key=lambda each: (each.received_at, each.webhook), reverse=True)[:ROWS]

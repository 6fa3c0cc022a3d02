"""A replay that does not happen: what it would store is kept, and compared with what is stored."""

from collections.abc import Sequence

from gateway.deliveries import Acceptance, LinkPart, Receipt
from gateway.store.opening import Store


class Rehearsal:
    """Stands before a store for a replay that is not to happen: reads go through, and what would be stored is kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.accepted: Acceptance | None = None

    async def accept(self, acceptance: Acceptance) -> Receipt:
        """Refuse: only what is stored is rehearsed, and that is replayed. Raises `RuntimeError`."""
        raise RuntimeError(f"a rehearsal takes nothing in, and was given a webhook of {acceptance.source}")

    async def replay(self, webhook: int, acceptance: Acceptance, now: int) -> Receipt:  # noqa: ARG002
        """Keep what would be stored."""
        self.accepted = acceptance
        return Receipt(webhook, duplicate=False)

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys."""
        return await self._store.resolve(keys)

    async def order_of(self, keys: Sequence[bytes]) -> bytes | None:
        """Return what a payment is called."""
        return await self._store.order_of(keys)

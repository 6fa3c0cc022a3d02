"""What a store brings to the conformance suite: how to open it, and how it dies. It can override no test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gateway.deliveries import (
    Acceptance,
    Counts,
    Lease,
    LinkPart,
    Receipt,
    Settlement,
    StoredDelivery,
    StoredWebhook,
)
from gateway.store.sqlite import SqliteStore

FINGERPRINT = b"0123456789abcdef"


class Store(Protocol):
    """All that the gateway asks of a store, in one place: the users declare the parts that they need."""

    async def accept(self, acceptance: Acceptance) -> Receipt: ...
    async def replay(self, webhook: int, acceptance: Acceptance, now: int) -> Receipt: ...
    async def lease(self, destination: str, limit: int, now: int, until: int) -> tuple[list[Lease], int | None]: ...
    async def settle(self, settlements: Sequence[Settlement]) -> int: ...
    async def link(self, parts: Sequence[LinkPart], expires_at: int, now: int) -> frozenset[str]: ...
    async def resolve(self, keys: Sequence[bytes], now: int) -> dict[bytes, list[LinkPart]]: ...
    async def forget(self, keys: Sequence[bytes]) -> int: ...
    async def webhooks(self, *, before: int | None = None, limit: int = 50) -> list[StoredWebhook]: ...
    async def webhook(self, number: int) -> StoredWebhook | None: ...
    async def deliveries(self, webhook: int) -> list[StoredDelivery]: ...
    async def counts(self) -> dict[str, Counts]: ...
    async def purge(self, now: int, retention: int) -> int: ...
    async def close(self) -> None: ...


class Harness(Protocol):
    """One kind of store, with a place of its own for each test."""

    def __init__(self, folder: Path) -> None: ...

    async def open(self) -> Store:
        """Open the store, new or as it was left; the one opened before is gone, closed or not."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class SqliteHarness:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "gateway.db"
        self._store: SqliteStore | None = None

    async def open(self) -> Store:
        await self.close()
        self._store = SqliteStore.open(self._path, FINGERPRINT)
        return self._store

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None


HARNESSES: dict[str, type[Harness]] = {"sqlite": SqliteHarness}

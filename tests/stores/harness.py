"""What a store brings to the conformance suite: how to open it, and how it dies. It can override no test."""

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol
from uuid import uuid4

from redis.asyncio import Redis

from gateway.deliveries import (
    Acceptance,
    Accounted,
    Backlog,
    Counts,
    DataRequest,
    DeadGroup,
    Forgotten,
    FoundDelivery,
    FoundWebhook,
    Lease,
    LinkPart,
    OpenRequest,
    Place,
    Receipt,
    Revived,
    Settlement,
    StoredDelivery,
    StoredWebhook,
    Wanted,
    WantedDeliveries,
)
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from tests.stores.servers import shared

FINGERPRINT = b"0123456789abcdef"


class Store(Protocol):
    """All that the gateway asks of a store, in one place: the users declare the parts that they need."""

    async def accept(self, acceptance: Acceptance) -> Receipt: ...
    async def replay(self, webhook: int, acceptance: Acceptance, now: int) -> Receipt: ...
    async def keep(self, webhook: int, sealed: bytes) -> bool: ...
    async def lease(self, destination: str, limit: int, now: int, until: int) -> tuple[list[Lease], int | None]: ...
    async def settle(self, settlements: Sequence[Settlement]) -> int: ...
    async def link(self, parts: Sequence[LinkPart], now: int) -> frozenset[str]: ...
    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]: ...
    async def order_of(self, keys: Sequence[bytes]) -> bytes | None: ...
    async def ask(self, request: DataRequest, now: int) -> int: ...
    async def asked(self) -> list[OpenRequest]: ...
    async def fulfilled(self, number: int, now: int, outcome: str) -> None: ...
    async def naming(self, keys: Sequence[bytes], *, before: int | None = None, limit: int = 50) -> list[int]: ...
    async def forget(self, keys: Sequence[bytes]) -> Forgotten: ...
    async def forget_account(self, source: str, account: str) -> Forgotten: ...
    async def webhooks(self, *, before: int | None = None, limit: int = 50) -> list[StoredWebhook]: ...
    async def webhook(self, number: int) -> StoredWebhook | None: ...
    async def find(self, id: str) -> list[int]: ...
    async def deliveries(self, webhook: int) -> list[StoredDelivery]: ...
    async def search(
        self, wanted: Wanted, *, before: int | None = None, limit: int = 50
    ) -> tuple[list[FoundWebhook], int | None]: ...
    async def search_deliveries(
        self, wanted: WantedDeliveries, *, before: Place | None = None, limit: int = 50
    ) -> tuple[list[FoundDelivery], Place | None]: ...
    async def dead(self) -> list[DeadGroup]: ...
    async def retry(self, webhook: int, number: int, now: int) -> str | None: ...
    async def retry_dead(self, wanted: WantedDeliveries, now: int, *, before: Place | None, limit: int) -> Revived: ...
    def accounted(self, since: int, until: int) -> AsyncIterator[Accounted]: ...
    async def counts(self) -> dict[str, Counts]: ...
    async def backlog(self, now: int) -> dict[str, Backlog]: ...
    async def purge(self, now: int, retention: int) -> int: ...
    async def probe(self) -> str | None: ...
    async def close(self) -> None: ...


class Harness(Protocol):
    """One kind of store, with a place of its own for each test."""

    returns_leases: ClassVar[bool]
    """Whether to open the store returns leases to due at once, as nobody else can hold them. Else they run out."""

    def __init__(self, folder: Path) -> None: ...

    async def open(self) -> Store:
        """Open the store, new or as it was left; one opened before is closed first."""
        ...

    async def crash(self) -> Store:
        """Let the process die without closing anything, and open what it left."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class SqliteHarness:
    """A crash is the files as they lie while they are open, opened again: the log is not folded back."""

    returns_leases: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lives = 0
        self._store: SqliteStore | None = None

    @property
    def _path(self) -> Path:
        return self._folder / f"life-{self._lives}" / "gateway.db"

    async def open(self) -> Store:
        await self.close()
        self._store = SqliteStore.open(self._path, FINGERPRINT)
        return self._store

    async def crash(self) -> Store:
        left = self._path
        self._lives += 1
        self._path.parent.mkdir()
        for file in (left, left.with_name("gateway.db-wal")):
            shutil.copy(file, self._path.parent)
        return await self.open()

    async def close(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            await store.close()


class RedisHarness:
    """A crash is a client that vanishes; `redis/test_crashes.py` lets the server itself die."""

    returns_leases: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self._prefix = f"{folder.name}-{uuid4().hex}"
        self._stores: list[RedisStore] = []

    async def open(self) -> Store:
        await self.close()
        return await self._open()

    async def crash(self) -> Store:
        """Cut the connections; the store that had them is closed only at the end."""
        client = self._stores[-1]._calls.client
        assert isinstance(client, Redis)
        await client.connection_pool.disconnect()
        return await self._open()

    async def _open(self) -> Store:
        store = await RedisStore.open(shared().url, FINGERPRINT, prefix=self._prefix, answer_within=30.0)
        self._stores.append(store)
        return store

    async def close(self) -> None:
        stores, self._stores = self._stores, []
        for each in stores:
            await each.close()


HARNESSES: dict[str, type[Harness]] = {"sqlite": SqliteHarness, "redis": RedisHarness}
"""Every store that the suite runs on."""

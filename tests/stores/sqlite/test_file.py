"""What is the embedded store's alone: its file, its lock, its log."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.deliveries import NewDelivery, StoreMismatch, StoreUnavailable
from gateway.store.group_commit import CHECKPOINT_FRAMES
from gateway.store.sqlite import MIGRATIONS, SqliteStore
from tests.stores.reports import NOW, webhook

FINGERPRINT = b"0123456789abcdef"
SINK = NewDelivery("sink")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(path, FINGERPRINT)
    yield store
    await store.close()


async def test_a_full_disk_refuses_and_needs_no_restart(opened: SqliteStore) -> None:
    connection = opened._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own SQLITE_FULL, as from a full disk
    outcomes = await asyncio.gather(
        *(opened.accept(webhook(str(number), SINK)) for number in range(200)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert await opened.webhooks() == []
    connection.execute("PRAGMA max_page_count = 1000000")
    assert await opened.probe() is None
    assert not (await opened.accept(webhook("0", SINK))).duplicate


async def test_a_read_only_file_refuses_and_needs_no_restart(opened: SqliteStore) -> None:
    opened._writer._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="readonly"):
        await opened.accept(webhook("a", SINK))
    opened._writer._connection.execute("PRAGMA query_only = OFF")
    assert not (await opened.accept(webhook("a", SINK))).duplicate


async def test_one_faulty_operation_fails_alone(opened: SqliteStore) -> None:
    def faulty(_: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    outcomes = await asyncio.gather(
        opened.accept(webhook("a", SINK)),
        opened._writer.submit(faulty),
        opened.accept(webhook("b", SINK)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert [each.webhook for each in await opened.webhooks()] == [2, 1]


async def test_what_comes_together_is_committed_together(opened: SqliteStore, path: Path) -> None:
    begun = 0

    def count(statement: str) -> None:
        nonlocal begun
        begun += statement.startswith("BEGIN")

    opened._writer._connection.set_trace_callback(count)
    await asyncio.gather(*(opened.accept(webhook(str(number), SINK)) for number in range(100)))
    assert begun == 1


async def test_every_commit_waits_for_the_disk(opened: SqliteStore) -> None:
    connection = opened._writer._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_the_log_is_folded_back_under_load(opened: SqliteStore, path: Path) -> None:
    body = b"x" * 200_000
    written = 0
    while written < 5 * CHECKPOINT_FRAMES * 4096:
        connection = opened._writer._connection
        await opened._writer.submit(
            lambda c: c.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(str(i), body) for i in range(20)])
        )
        written += 20 * len(body)
    assert connection is opened._writer._connection
    assert path.with_name("gateway.db-wal").stat().st_size < 3 * CHECKPOINT_FRAMES * 4096


async def test_a_second_gateway_is_told_who_holds_the_file(opened: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreMismatch, match="in use by another gateway process"):
        SqliteStore.open(path, FINGERPRINT)


async def test_a_command_works_beside_the_gateway(opened: SqliteStore, path: Path) -> None:
    beside = SqliteStore.open(path, FINGERPRINT, exclusive=False)
    await beside.accept(webhook("a", SINK))
    await beside.close()
    leases, _ = await opened.lease("sink", 10, NOW, NOW + 1)
    assert len(leases) == 1


async def test_another_key_is_refused(opened: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreMismatch, match="another GATEWAY_SECRET_KEY"):
        SqliteStore.open(path, b"another 16 bytes", exclusive=False)


async def test_a_newer_schema_is_refused(opened: SqliteStore, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreMismatch, match="run the newer gateway again"):
        SqliteStore.open(path, FINGERPRINT, exclusive=False)

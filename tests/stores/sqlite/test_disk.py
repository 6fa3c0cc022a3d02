"""A disk that is full, read-only or damaged: what is asked of the store fails whole, and needs no restart to go on."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.deliveries import StoreUnavailable
from gateway.store import group_commit
from gateway.store.sqlite import SqliteStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import NOW, accept, key, part, simple


@pytest.fixture
def connection(opened: SqliteStore) -> sqlite3.Connection:
    """Return the writer's own: only through it can the disk's moods be had without a disk of one's own."""
    return opened._writer._connection


def fill_up(connection: sqlite3.Connection) -> None:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as from a full disk


async def test_a_full_disk_refuses_all_of_a_batch_and_needs_no_restart(
    opened: SqliteStore, connection: sqlite3.Connection
) -> None:
    fill_up(connection)
    outcomes = await asyncio.gather(
        *(opened.accept(simple(str(number))) for number in range(200)), return_exceptions=True
    )
    assert {str(outcome) for outcome in outcomes} == {"OperationalError: database or disk is full"}
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert await opened.webhooks() == []
    connection.execute("PRAGMA max_page_count = 1000000")
    assert await opened.probe() is None
    assert not (await opened.accept(simple("0"))).duplicate


async def test_what_was_stored_can_be_read_while_the_disk_is_full(
    opened: SqliteStore, connection: sqlite3.Connection
) -> None:
    await opened.link([part("user", "v")], NOW)
    (number,) = await accept(opened, simple("a"))
    fill_up(connection)
    assert (await opened.accept(simple("a"))).duplicate
    assert await opened.webhook(number) is not None
    assert key("user") in await opened.resolve([key("user")])


async def test_a_read_only_file_refuses_and_needs_no_restart(
    opened: SqliteStore, connection: sqlite3.Connection
) -> None:
    connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="attempt to write a readonly database"):
        await opened.accept(simple("a"))
    assert await opened.probe() == "OperationalError: attempt to write a readonly database"
    connection.execute("PRAGMA query_only = OFF")
    assert await opened.probe() is None
    assert not (await opened.accept(simple("a"))).duplicate


async def test_a_file_that_another_holds_refuses_and_needs_no_restart(opened: SqliteStore, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="database is locked"):
            await opened.accept(simple("a"))
    assert not (await opened.accept(simple("a"))).duplicate


async def test_a_damaged_file_is_an_unavailable_store_to_who_reads(path: Path) -> None:
    store = SqliteStore.open(path, FINGERPRINT)
    await accept(store, simple("a"))
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        pages = "SELECT rootpage FROM sqlite_schema WHERE name != 'meta' AND rootpage > 0"  # a trigger has none
        roots = [row[0] for row in connection.execute(pages)]
    store = SqliteStore.open(path, FINGERPRINT, exclusive=False)
    with path.open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)
    for read in (store.resolve([key("user")]), store.webhooks(), store.counts()):
        with pytest.raises(StoreUnavailable, match="malformed"):
            await read
    await store.close()


async def test_a_log_that_cannot_be_folded_back_fails_nobody(
    opened: SqliteStore, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was made; to call the store unavailable would be untrue, and a lease would be lost to its holder."""
    monkeypatch.setattr(group_commit, "CHECKPOINT_FRAMES", 0)

    def refuse_checkpoints(action: int, first: str | None, *_: str | None) -> int:
        return (
            sqlite3.SQLITE_DENY if (action, first) == (sqlite3.SQLITE_PRAGMA, "wal_checkpoint") else sqlite3.SQLITE_OK
        )

    connection.set_authorizer(refuse_checkpoints)
    receipts = [await opened.accept(simple(str(number))) for number in range(50)]
    assert not any(receipt.duplicate for receipt in receipts)

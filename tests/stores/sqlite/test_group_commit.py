"""Many callers share a commit that waits for the disk; a mistake stays with whoever made it; the log stays small."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.store.group_commit import CHECKPOINT_FRAMES
from gateway.store.sqlite import SqliteStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import NOW, key, part, simple


def count_commits(store: SqliteStore) -> Callable[[], int]:
    commits: list[str] = []
    store._writer._connection.set_trace_callback(
        lambda statement: commits.append(statement) if statement == "COMMIT" else None
    )
    return lambda: len(commits)


async def test_what_comes_together_is_committed_together(opened: SqliteStore) -> None:
    commits = count_commits(opened)
    await asyncio.gather(*(opened.accept(simple(str(number))) for number in range(100)))
    assert commits() == 1


async def test_what_comes_during_a_commit_shares_the_next(opened: SqliteStore) -> None:
    commits = count_commits(opened)

    async def sender(name: int) -> None:
        for number in range(10):
            await opened.accept(simple(f"{name} {number}"))

    await asyncio.gather(*(sender(name) for name in range(20)))
    assert commits() < 40  # 200 accepts


async def test_every_commit_waits_for_the_disk(opened: SqliteStore) -> None:
    connection = opened._writer._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_receipt_is_given_out_after_the_commit(opened: SqliteStore, path: Path) -> None:
    receipt = await opened.accept(simple("a"))
    other = sqlite3.connect(path)
    assert other.execute("SELECT webhook FROM webhook").fetchall() == [(receipt.webhook,)]
    other.close()


def divides_by_zero(_: sqlite3.Connection) -> None:
    raise ZeroDivisionError


def breaks_a_constraint(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO meta VALUES ('x', NULL)")


def binds_what_cannot_be_stored(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO meta VALUES ('x', ?)", (object(),))


def misspells(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT nothing FROM nowhere")


@pytest.mark.parametrize(
    ("faulty", "error"),
    [
        (divides_by_zero, ZeroDivisionError),
        (breaks_a_constraint, sqlite3.IntegrityError),
        (binds_what_cannot_be_stored, sqlite3.Error),
        (misspells, sqlite3.OperationalError),
    ],
)
async def test_one_faulty_operation_fails_alone(
    opened: SqliteStore, faulty: Callable[[sqlite3.Connection], None], error: type[Exception]
) -> None:
    before, failed, after = await asyncio.gather(
        opened.accept(simple("a")), opened._writer.submit(faulty), opened.accept(simple("b")), return_exceptions=True
    )
    assert isinstance(failed, error)
    assert [each.id for each in await opened.webhooks()] == ["b", "a"]
    assert not isinstance(before, BaseException)
    assert not isinstance(after, BaseException)
    assert await opened.probe() is None


async def test_a_caller_who_gave_up_disturbs_nobody(opened: SqliteStore) -> None:
    gone = asyncio.ensure_future(opened.accept(simple("gone")))
    stays = asyncio.ensure_future(opened.accept(simple("stays")))
    await asyncio.sleep(0)
    gone.cancel()
    assert not (await stays).duplicate
    assert not (await opened.accept(simple("next"))).duplicate


async def test_what_was_handed_in_is_stored_before_the_store_closes(path: Path) -> None:
    store = SqliteStore.open(path, FINGERPRINT)
    tasks = [asyncio.ensure_future(store.accept(simple(str(number)))) for number in range(20)]
    await asyncio.sleep(0)
    await store.close()
    receipts = await asyncio.gather(*tasks)
    assert sorted(receipt.webhook for receipt in receipts) == list(range(1, 21))


async def test_a_store_may_close_in_the_turn_in_which_it_was_read(path: Path) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    store = SqliteStore.open(path, FINGERPRINT)
    await store.resolve([key("user")])
    await store.close()
    await asyncio.sleep(0)
    assert complaints == []


async def test_the_log_is_folded_back_under_constant_load(opened: SqliteStore, path: Path) -> None:
    limit = CHECKPOINT_FRAMES * 4096
    body = b"x" * 1_000_000

    async def load(name: int) -> None:
        for _ in range(10 * limit // len(body) // 4):
            await opened._writer.submit(
                lambda connection: connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (str(name), body))
            )

    await asyncio.gather(*(load(name) for name in range(4)))
    assert path.with_name("gateway.db-wal").stat().st_size < 4 * limit


async def test_only_sealed_bytes_and_what_names_a_webhook_are_in_its_files(opened: SqliteStore, path: Path) -> None:
    await opened.accept(simple("evt_1"))
    await opened.link([part("ada@example.com", "sealed link")], NOW)
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"evt_1" in stored
    assert b"sealed link" in stored
    assert b"ada@example.com" not in stored

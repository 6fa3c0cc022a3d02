"""Who may open the file, under which key and schema, and what is said to whoever may not."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.deliveries import State, StoreMismatch
from gateway.store.sqlite import MIGRATIONS, SqliteStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import MINUTE, NOW, lease, simple, states


def version(path: Path, to: int | None = None) -> int:
    with closing(sqlite3.connect(path)) as connection:
        if to is not None:
            connection.execute(f"PRAGMA user_version = {to}")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
    assert isinstance(found, int)
    return found


async def test_an_empty_file_gets_the_schema(path: Path) -> None:
    path.touch()  # noqa: ASYNC240 -- nobody else is on this loop
    await SqliteStore.open(path, FINGERPRINT).close()
    assert version(path) == len(MIGRATIONS)


async def test_a_folder_is_made_for_a_new_file(tmp_path: Path) -> None:
    await SqliteStore.open(tmp_path / "a" / "b" / "gateway.db", FINGERPRINT).close()
    assert (tmp_path / "a" / "b" / "gateway.db").is_file()


async def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await SqliteStore.open(path, FINGERPRINT).close()
    script = "CREATE TABLE later (x INTEGER); CREATE TABLE webhook (x INTEGER);"
    monkeypatch.setattr("gateway.store.sqlite.MIGRATIONS", (*MIGRATIONS, script))
    with pytest.raises(StoreMismatch, match="webhook already exists"):
        SqliteStore.open(path, FINGERPRINT)
    monkeypatch.undo()
    store = SqliteStore.open(path, FINGERPRINT)
    assert not (await store.accept(simple("a"))).duplicate
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'later'").fetchone() is None
    assert version(path) == len(MIGRATIONS)


async def test_a_migration_keeps_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore.open(path, FINGERPRINT)
    await store.accept(simple("a"))
    await store.close()
    script = "ALTER TABLE webhook ADD COLUMN colour TEXT; CREATE TABLE later (x INTEGER);"
    monkeypatch.setattr("gateway.store.sqlite.MIGRATIONS", (*MIGRATIONS, script))
    store = SqliteStore.open(path, FINGERPRINT)
    assert [each.id for each in await store.webhooks()] == ["a"]
    await store.close()
    assert version(path) == len(MIGRATIONS) + 1


async def test_a_newer_schema_is_refused(path: Path) -> None:
    await SqliteStore.open(path, FINGERPRINT).close()
    newer = version(path, to=len(MIGRATIONS) + 1)
    with pytest.raises(StoreMismatch) as told:
        SqliteStore.open(path, FINGERPRINT)
    assert str(told.value) == (
        f"the store has schema {newer}, this gateway knows up to {newer - 1}: run the newer gateway again"
    )
    assert version(path) == newer


async def test_another_key_is_refused(path: Path) -> None:
    await SqliteStore.open(path, FINGERPRINT).close()
    with pytest.raises(StoreMismatch) as told:
        SqliteStore.open(path, b"another 16 bytes")
    assert str(told.value) == (
        f"{path} was written under another GATEWAY_SECRET_KEY. Set the key it was written under "
        "(beside an embedded store it is in gateway.key), or choose another GATEWAY_STORE."
    )
    await SqliteStore.open(path, FINGERPRINT).close()  # being refused holds nothing


async def test_a_second_gateway_is_told_who_holds_the_file(opened: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreMismatch) as told:
        SqliteStore.open(path, FINGERPRINT)
    assert str(told.value) == (
        f"{path} is in use by another gateway process. Stop that one, or give this one a GATEWAY_STORE of its own."
    )


async def test_a_command_works_beside_the_gateway_and_leaves_its_leases_alone(opened: SqliteStore, path: Path) -> None:
    held = (await opened.accept(simple("a"))).webhook
    await lease(opened)
    beside = SqliteStore.open(path, FINGERPRINT, exclusive=False)
    new = (await beside.accept(simple("b"))).webhook
    assert await states(beside, held, new) == [(State.LEASED, None), (State.DUE, None)]
    await beside.close()
    assert [each.webhook for each in await lease(opened, NOW + MINUTE - 1)] == [new]

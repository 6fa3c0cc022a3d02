"""What an earlier version kept is there after an upgrade, and goes on where it stood.

`written/` holds stores as they were left by the gateway of their time: `sqlite-N.sql` under schema N, `redis-1.json`
by the functions of its time, all after the same day (`fill`). Before a schema is changed, write one more with

    python -m tests.stores.test_upgrade tests/stores/written/sqlite-N.sql   # or redis-N.json
"""

import asyncio
import json
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gateway.deliveries import Attempt, NewDelivery, Settlement, State
from gateway.store.redis import SCHEMA, RedisStore
from gateway.store.sqlite import MIGRATIONS, SqliteStore
from tests.stores.harness import FINGERPRINT, Store
from tests.stores.reports import (
    DAY,
    DUE,
    DUPLICATE,
    MINUTE,
    NOW,
    accept,
    event,
    key,
    lease,
    linked,
    part,
    report,
    states,
)
from tests.stores.reports import webhook as told
from tests.stores.servers import Server

WRITTEN = Path(__file__).parent / "written"
FILES = sorted(WRITTEN.iterdir())
STOOD = {
    "sent": (State.SENT, None),
    "dead": (State.DEAD, "http_400"),
    "again": (State.DUE, "http_503"),
    "skipped": (State.SKIPPED, "no_consent"),
    "waits": (State.WAITING, "link"),
    "due": DUE,
}
"""How each webhook's delivery was left; another one, `leased`, was being sent."""


async def fill(store: Store) -> None:
    """Leave a delivery in each state, a payment, a link that was made and one that was learned from it."""

    async def settled(state: State, reason: str | None, due_at: int = 0, rendered: bytes | None = None) -> None:
        (leased,) = await lease(store, limit=1)
        tried = Attempt(NOW, 5, 200 if state is State.SENT else 503, reason or "ok", b"answer")
        await store.settle([Settlement(leased, state, reason, due_at, tried, rendered)])

    await accept(store, report("sent", "pi", "in"))
    await settled(State.SENT, None)
    await accept(store, told("dead", event("dead")))
    await settled(State.DEAD, "http_400")
    await accept(store, told("again", event("again")))
    await settled(State.DUE, "http_503", NOW + MINUTE, b"as sent")
    await store.find("sent")  # indexes what is there by now, so that an upgrade finds a part of it indexed
    await accept(store, told("skipped", event("skipped", NewDelivery("sink", "no_consent"))))
    await accept(store, told("leased", event("leased")))
    await lease(store)
    waits = event("waits", NewDelivery("sink", wait_until=NOW + 10 * MINUTE))
    await accept(store, told("waits", waits, subjects=("cart", "customer")), told("due", event("due")))
    await store.link([part("user", "visitor"), part("email", "visitor", by="user")], NOW)


@pytest.fixture(params=FILES, ids=lambda file: str(file.stem))
async def upgraded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Open what an earlier version wrote."""
    if request.param.suffix == ".sql":
        sqlite_as_written(request.param, tmp_path / "gateway.db")
        store = SqliteStore.open(tmp_path / "gateway.db", FINGERPRINT)
        yield store
        await store.close()
        return
    server = Server().start()
    with server.client() as client:
        redis_as_written(request.param, client)
    shared = await RedisStore.open(server.url, FINGERPRINT, answer_within=30.0)
    yield shared
    await shared.close()
    server.remove()


def sqlite_as_written(file: Path, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(file.read_text())


def redis_as_written(file: Path, client: "Redis") -> None:
    for name, (kind, value) in json.loads(file.read_text()).items():
        key = name.encode("latin-1")
        if kind == "string":
            client.set(key, value.encode("latin-1"))
        elif kind == "hash":
            client.hset(key, mapping={f.encode("latin-1"): v.encode("latin-1") for f, v in value.items()})
        elif kind == "zset":
            client.zadd(key, {member.encode("latin-1"): score for member, score in value.items()})
        else:
            assert kind == "set"
            client.sadd(key, *(each.encode("latin-1") for each in value))


def as_sqlite(path: Path) -> str:
    """Return a closed file as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return "\n".join([*connection.iterdump(), f"PRAGMA user_version = {version};", ""])


def as_json(client: "Redis") -> str:
    """Return all that a server holds; bytes are written as Latin-1."""

    def value(key: Any, kind: str) -> Any:
        if kind == "string":
            return text(client.get(key))
        if kind == "hash":
            return {text(field): text(each) for field, each in sorted(client.hgetall(key).items())}
        if kind == "zset":
            scores: Any = client.zrange(key, 0, -1, withscores=True)
            return {text(member): score for member, score in scores}
        return sorted(text(each) for each in client.smembers(key))

    def text(found: Any) -> str:
        return bytes(found).decode("latin-1")

    kinds = {key: text(client.type(key)) for key in sorted(client.keys("*"))}
    return json.dumps({text(key): [kind, value(key, kind)] for key, kind in kinds.items()}, indent=1) + "\n"


async def number(store: Store, id: str) -> int:
    (found,) = await store.find(id)
    return found


async def test_every_webhook_is_there_with_its_body(upgraded: Store) -> None:
    for id in (*STOOD, "leased"):
        kept = await upgraded.webhook(await number(upgraded, id))
        assert kept is not None
        assert (kept.id, kept.source, kept.received_at, bool(kept.sealed)) == (id, "stripe", NOW, True)


async def test_every_delivery_is_in_the_state_it_was_left_in(upgraded: Store) -> None:
    found = {id: (await states(upgraded, await number(upgraded, id)))[0] for id in STOOD}
    assert found == STOOD


async def test_what_a_try_sent_and_was_answered_is_there(upgraded: Store) -> None:
    (again,) = await upgraded.deliveries(await number(upgraded, "again"))
    assert [(each.status, each.outcome, each.response) for each in again.attempts] == [(503, "http_503", b"answer")]
    leased = {each.webhook: each for each in await lease(upgraded, NOW + MINUTE)}
    assert leased[again.webhook].rendered == b"as sent"


@pytest.mark.parametrize("id", [*STOOD, "leased"])
async def test_the_same_webhook_again_is_a_duplicate(upgraded: Store, id: str) -> None:
    assert (await upgraded.accept(told(id, event(id)))).duplicate


async def test_a_payment_that_counted_counts_no_second_time(upgraded: Store) -> None:
    (again,) = await accept(upgraded, report("later", "in", "another"))
    assert await states(upgraded, again) == [DUPLICATE]


async def test_links_lead_where_they_led(upgraded: Store) -> None:
    assert await linked(upgraded, "user") == {"": b"visitor"}
    assert await linked(upgraded, "email") == {"": b"visitor"}
    assert await linked(upgraded, "email", NOW + DAY) == {}


async def test_a_link_still_releases_what_waits_for_it(upgraded: Store) -> None:
    assert "sink" in await upgraded.link([part("cart", "browser")], NOW)
    assert await states(upgraded, await number(upgraded, "waits")) == [DUE]


async def test_what_was_due_or_on_its_way_is_delivered(upgraded: Store) -> None:
    taken = {each.webhook for each in await lease(upgraded, NOW + MINUTE)}
    assert taken == {await number(upgraded, id) for id in ("due", "leased", "again")}


async def test_each_delivery_is_counted(upgraded: Store) -> None:
    counts = (await upgraded.counts())["sink"]
    assert (counts.accepted, counts.sent, counts.skipped, counts.dead, counts.pending) == (7, 1, 1, 1, 4)


async def test_whoever_wants_to_be_forgotten_is_found_in_what_was_kept_before(upgraded: Store) -> None:
    assert (await upgraded.forget([key("cart")])).webhooks == 1
    kept = await upgraded.webhook(await number(upgraded, "waits"))
    assert kept is not None
    assert kept.sealed is None


def test_each_schema_has_a_store_that_was_written_under_it() -> None:
    schemas = {f"sqlite-{number}" for number in range(1, len(MIGRATIONS) + 1)}
    schemas |= {f"redis-{number}" for number in range(1, SCHEMA + 1)}
    assert {file.stem for file in FILES} == schemas, f"write what is missing as {__file__} says"


@pytest.mark.parametrize("file", [each for each in FILES if each.suffix == ".sql"], ids=lambda each: str(each.stem))
def test_a_schema_that_was_released_is_not_edited(file: Path, tmp_path: Path) -> None:
    sqlite_as_written(file, tmp_path / "written.db")
    with closing(sqlite3.connect(tmp_path / "made.db")) as made:
        for script in MIGRATIONS[: int(file.stem.partition("-")[2])]:
            made.executescript(script)
    assert tables(tmp_path / "made.db") == tables(tmp_path / "written.db")


def tables(path: Path) -> set[tuple[str, str]]:
    """Return what a file's schema is made of."""
    with closing(sqlite3.connect(path)) as connection:
        return set(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql NOTNULL"))


async def write(file: Path) -> None:
    """Write what this version leaves, for the tests of later ones."""
    if file.suffix == ".sql":
        with tempfile.TemporaryDirectory() as folder:
            embedded = SqliteStore.open(Path(folder) / "gateway.db", FINGERPRINT)
            await fill(embedded)
            await embedded.close()
            file.write_text(as_sqlite(Path(folder) / "gateway.db"))  # noqa: ASYNC240 -- nobody else is on this loop
        return
    server = Server().start()
    shared = await RedisStore.open(server.url, FINGERPRINT)
    await fill(shared)
    await shared.close()
    with server.client() as client:
        file.write_text(as_json(client))  # noqa: ASYNC240
    server.remove()


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))

"""`python -m tests.benchmarks stores [--large]`: what SQLite and Redis take in and give out, against their own limits.

The measured process runs on core 1, Redis on core 0. The limit of a store is measured in the same run, in turns with
it, so the ratios hold on any machine. Of the rounds the median counts.

* Of SQLite: one thread that only inserts, 32 webhooks a commit; the very rows that the store wrote, into the same
  tables, or as one row of the same size for each webhook.
* Of Redis: a client that calls the very function of the store with arguments packed beforehand, as many at once, over
  two connections or over one for each; the faster counts. What comes in together shares a sync of the append-only file.

A webhook here has a body of 5 KB, one event for two destinations, a claim under two keys, and names three subjects.
"""

import asyncio
import os
import selectors
import socket
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import hiredis
import uvloop
from msgspec import Struct

from gateway.deliveries import Acceptance, Attempt, LinkPart, NewClaim, NewDelivery, NewEvent, Settlement, State
from gateway.store.opening import Store
from gateway.store.redis import _VERSION, RedisStore, _acceptance
from gateway.store.sqlite import SqliteStore
from tests.benchmarks.report import Asked, Cell, Table, asked, show, step
from tests.benchmarks.servers import on_core
from tests.stores.servers import Server, free_port

CONCURRENT = 32
SPREADS = (2, CONCURRENT)
ACCEPTS = 3_200
ROUNDS = 3
BODY, EVENT = 5_000, 800
BACKLOGS = (1_000, 50_000)
LARGE = 1_000_000
DRAINED = 1_000
DRAINS = 25
LEASE = 100
SIZED = 5_000
NOW = 1_800_000_000_000
DAY = 86_400_000
FINGERPRINT = b"0123456789abcdef"
APPENDING = ("--save", "", "--appendonly", "yes", "--auto-aof-rewrite-percentage", "0", "--appendfsync")


def acceptance(number: int, destinations: Sequence[str] = ("sink", "other"), *, body: int = BODY) -> Acceptance:
    """Return a webhook of its own, as intake hands it to a store."""
    key = os.urandom
    return Acceptance(
        key=key(16),
        source="stripe",
        account="",
        type="checkout.session.completed",
        id=f"evt_{number:024}",
        occurred_at=NOW + number,
        received_at=NOW + number,
        test=False,
        mapping="0123456789abcdef",
        sealed=key(body),
        notes=b"[]",
        events=(
            NewEvent(
                id=key(16),
                sealed=key(EVENT),
                deliveries=tuple(NewDelivery(name) for name in destinations),
                claim=NewClaim((key(16), key(16)), "purchase", 0, key(60)),
                at=NOW + number,
            ),
        ),
        subjects=(key(16), key(16), key(16)),
        unlinked=True,
        teaches=True,
    )


# processes, each on a core of its own choice

Measured = Callable[..., tuple[int, float, float]]
"""Waits at a barrier until all are ready; returns how many it did, and when it began and ended."""


def rate(number: int, measured: Measured, *arguments: Any) -> float:
    """Return what so many processes did a second, all together."""
    context = get_context("spawn")
    barrier, results = context.Barrier(number), context.SimpleQueue()
    processes = [
        context.Process(target=_measure, args=(results, measured, barrier, *arguments, place))
        for place in range(number)
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
        if each.exitcode:
            raise RuntimeError("a measurement failed")
    done = [results.get() for _ in processes]
    return float(sum(each[0] for each in done) / (max(each[2] for each in done) - min(each[1] for each in done)))


def _measure(results: Any, measured: Measured, *arguments: Any) -> None:
    os.sched_setaffinity(0, {1})
    results.put(measured(*arguments))


@contextmanager
def redis(*settings: str, core: int = 0) -> Iterator[Server]:
    """Run a server on a core of its own while the block runs."""
    server = Server(*settings, port=free_port())
    try:
        with on_core(core):
            server.start()
        yield server
    finally:
        server.remove()


# accepts


async def _accept_all(store: Store, ready: Any, acceptances: Sequence[Acceptance]) -> tuple[int, float, float]:
    left = iter(acceptances)

    async def work() -> None:
        for each in left:
            assert not (await store.accept(each)).duplicate

    await store.accept(acceptance(0))  # connected, and the function known
    ready.wait()
    started = time.monotonic()
    await asyncio.gather(*(work() for _ in range(CONCURRENT)))
    ended = time.monotonic()
    await store.close()
    return len(acceptances), started, ended


def sqlite_accepts(ready: Any, path: str, number: int, _place: int) -> tuple[int, float, float]:
    async def run() -> tuple[int, float, float]:
        store = SqliteStore.open(Path(path), FINGERPRINT)
        return await _accept_all(store, ready, [acceptance(each) for each in range(number)])

    return uvloop.run(run())


def sqlite_same_rows(ready: Any, path: str, written: str, _place: int) -> tuple[int, float, float]:
    """Insert what another file holds, 32 webhooks a commit."""
    uvloop.run(SqliteStore.open(Path(path), FINGERPRINT).close())  # only for its tables
    with closing(sqlite3.connect(written)) as source:
        (first, last) = source.execute("SELECT min(webhook), max(webhook) FROM webhook").fetchone()
        commits = [
            [(_insert(table, rows), rows) for table in _TABLES if (rows := _rows(source, table, at))]
            for at in range(first, last + 1, CONCURRENT)
        ]
    return _insert_all(ready, path, commits, last - first + 1)


def sqlite_one_row(ready: Any, path: str, size: int, number: int, _place: int) -> tuple[int, float, float]:
    """Insert one row of that size for each webhook, 32 a commit."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE plain (webhook INTEGER PRIMARY KEY, bytes BLOB)")
    insert = "INSERT INTO plain (bytes) VALUES (?)"
    commits = [[(insert, [(os.urandom(size),) for _ in range(CONCURRENT)])] for _ in range(number // CONCURRENT)]
    return _insert_all(ready, path, commits, len(commits) * CONCURRENT)


_TABLES = {
    "webhook": "webhook",
    "seen": "webhook",
    "named": "webhook",
    "event": "webhook",
    "delivery": "webhook",
    "payment_key": "payment / 1000",
    "claim": "webhook",
    "subject": "webhook",
}
"""What an accept writes, and whose rows they are."""


def _rows(source: sqlite3.Connection, table: str, first: int) -> list[tuple[Any, ...]]:
    return source.execute(
        f"SELECT * FROM {table} WHERE {_TABLES[table]} BETWEEN ? AND ?",
        (first, first + CONCURRENT - 1),
    ).fetchall()


def _insert(table: str, rows: Sequence[tuple[Any, ...]]) -> str:
    return f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})"


def _insert_all(
    ready: Any, path: str, commits: Sequence[Sequence[tuple[str, list[tuple[Any, ...]]]]], number: int
) -> tuple[int, float, float]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        ready.wait()
        started = time.monotonic()
        for commit in commits:
            connection.execute("BEGIN IMMEDIATE")
            for sql, rows in commit:
                connection.executemany(sql, rows)
            connection.execute("COMMIT")
        return number, started, time.monotonic()


def redis_accepts(
    ready: Any, url: str, prefix: str, number: int, wait_aof: bool, _place: int
) -> tuple[int, float, float]:
    async def run() -> tuple[int, float, float]:
        acceptances = [acceptance(each) for each in range(number)]
        store = await RedisStore.open(url, FINGERPRINT, prefix=prefix, wait_aof=wait_aof, answer_within=30.0)
        return await _accept_all(store, ready, acceptances)

    return uvloop.run(run())


def redis_calls(
    ready: Any, port: int, prefix: str, number: int, connections: int, _place: int
) -> tuple[int, float, float]:
    """Call the function, so many calls at once, spread over so many connections."""
    tag = f"{{{prefix}.0}}".encode()
    command = ("FCALL", f"gateway_{_VERSION}_accept", 1, tag, FINGERPRINT)
    packed = iter([_packed((*command, *_acceptance(acceptance(each)))) for each in range(number)])
    answered = 0
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(connections):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            selector.register(connection, selectors.EVENT_READ, hiredis.Reader())
        ready.wait()
        started = time.monotonic()
        for key in selector.get_map().values():
            _call(key, islice(packed, CONCURRENT // connections))
        while answered < number:
            for key, _ in selector.select():
                key.data.feed(cast("socket.socket", key.fileobj).recv(65_536))
                answers = list(iter(key.data.gets, False))
                assert not any(isinstance(each, Exception) or each[1] for each in answers), answers
                answered += len(answers)
                _call(key, islice(packed, len(answers)))
        return number, started, time.monotonic()


def _packed(command: tuple[Any, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(command)
    return packed


def _call(key: selectors.SelectorKey, packed: Iterable[bytes]) -> None:
    cast("socket.socket", key.fileobj).sendall(b"".join(packed))


def accepts(number: int, rounds: int) -> Table:
    """Measure what stores take in, `number` webhooks a round."""
    rows: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows += _of_limit(_sqlite_accepts(Path(folder), number, rounds), "the same rows")
    for fsync in ("always", "everysec"):
        with redis(*APPENDING, fsync) as server:
            rows += _of_limit(_redis_accepts(server, fsync, number, rounds), "the bare function")
    return Table("accepts", f"Accepts: {CONCURRENT} at once", ("", "webhooks/s", "of the limit"), tuple(rows))


def _sqlite_accepts(folder: Path, number: int, rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds):
        step(f"accepts on SQLite, round {turn + 1} of {rounds}")
        written, same, one = (str(folder / f"{name}-{turn}.db") for name in ("store", "same", "one"))
        rates["SQLite"].append(rate(1, sqlite_accepts, written, number))
        rates["SQLite: the same rows, inserted plainly"].append(rate(1, sqlite_same_rows, same, written))
        size = Path(same).stat().st_size // number
        rates["SQLite: one row as large as those"].append(rate(1, sqlite_one_row, one, size, number))
        for file in folder.iterdir():
            file.unlink()
    return rates


def _redis_accepts(server: Server, fsync: str, number: int, rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = defaultdict(list)
    title = f"Redis, `appendfsync {fsync}`"
    for turn in range(rounds):
        step(f"accepts on {title}, round {turn + 1} of {rounds}")
        prefix = f"r{turn}"
        rates[f"{title}, one gateway"].append(rate(1, redis_accepts, server.url, prefix, number, False))
        rates[f"{title}, two gateways"].append(rate(2, redis_accepts, server.url, prefix, number // 2, False))
        bare = [rate(1, redis_calls, server.port, f"{prefix}c{each}", number, each) for each in SPREADS]
        for each, found in zip(SPREADS, bare, strict=True):
            rates[f"{title}: the bare function, {each} connections"].append(found)
        if fsync == "always":
            rates[f"{title}, `GATEWAY_WAIT_AOF`"].append(rate(1, redis_accepts, server.url, prefix, number, True))
        with server.client() as client:
            client.flushall()
    return rates


def _of_limit(rates: dict[str, list[float]], limit: str) -> list[tuple[Cell, ...]]:
    medians = {name: statistics.median(each) for name, each in rates.items()}
    most = max(each for name, each in medians.items() if limit in name)
    return [(name, each, each / most) for name, each in medians.items()]


# drain


class Backlog(Struct):
    """A store in which so many deliveries are due."""

    number: int
    store: Store
    numbers: Iterator[int]


async def filled(store: Store, number: int, made: Callable[[int], Acceptance], numbers: Iterator[int]) -> None:
    """Put so many webhooks into a store."""
    left = number
    while left:
        step = min(500, left)
        await asyncio.gather(*(store.accept(made(next(numbers))) for _ in range(step)))
        left -= step


def _due(number: int) -> Acceptance:
    return acceptance(number, ("sink",), body=100)


async def drained(store: Store, number: int) -> float:
    """Lease and settle, both in one turn as the delivery loop does; return deliveries a second."""
    now = NOW + 10 * DAY
    settled, held = 0, list[Settlement]()
    started = time.perf_counter()
    while settled < number:
        (leases, _), done = await asyncio.gather(
            store.lease("sink", min(LEASE, number - settled - len(held)), now, now + 60_000), store.settle(held)
        )
        settled += done
        held = [Settlement(each, State.SENT, None, 0, Attempt(now, 40, 200, "sent")) for each in leases]
        assert held or settled == number
    return number / (time.perf_counter() - started)


async def _drains(
    opened: Callable[[int], Coroutine[Any, Any, Store]], sizes: Sequence[int], rounds: int
) -> list[float]:
    backlogs = [Backlog(number, await opened(number), count()) for number in sizes]
    rates: dict[int, list[float]] = defaultdict(list)
    for each in backlogs:
        await filled(each.store, each.number, _due, each.numbers)
    for _ in range(rounds):
        for each in backlogs:
            rates[each.number].append(await drained(each.store, DRAINED))
            await filled(each.store, DRAINED, _due, each.numbers)
    for each in backlogs:
        assert (await each.store.counts())["sink"].pending == each.number
        await each.store.close()
    return [statistics.median(rates[number]) for number in sizes]


def sqlite_drains(results: Any, folder: str, sizes: Sequence[int], rounds: int) -> None:
    async def opened(number: int) -> Store:
        return SqliteStore.open(Path(folder) / f"{number}.db", FINGERPRINT)

    results.put(uvloop.run(_drains(opened, sizes, rounds)))


def redis_drains(results: Any, urls: dict[int, str], sizes: Sequence[int], rounds: int) -> None:
    async def opened(number: int) -> Store:
        return await RedisStore.open(urls[number], FINGERPRINT, answer_within=30.0)

    results.put(uvloop.run(_drains(opened, sizes, rounds)))


def drains(sizes: Sequence[int], rounds: int) -> Table:
    """Measure lease and settle, `DRAINED` deliveries a round, by how many are due."""
    rates: dict[str, list[float]] = {}
    step(f"drain on SQLite, {sizes[-1]:,} due")
    with tempfile.TemporaryDirectory() as folder:
        rates["SQLite"] = _apart(sqlite_drains, folder, sizes, rounds)
    step(f"drain on Redis, {sizes[-1]:,} due")
    with redis(*APPENDING, "everysec") as few, redis(*APPENDING, "everysec") as many:
        urls = dict(zip(sizes, (few.url, many.url), strict=True))
        rates["Redis, `appendfsync everysec`"] = _apart(redis_drains, urls, sizes, rounds)
    return Table(
        "drains",
        f"Drain: lease and settle {LEASE} at a time, deliveries/s by how many are due",
        ("", *(f"{number:,} due" for number in sizes), "ratio"),
        tuple((title, *each, each[-1] / each[0]) for title, each in rates.items()),
    )


def _apart(function: Callable[..., None], *arguments: Any) -> list[float]:
    """Run a function in a process of its own, on core 1."""
    context = get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_pinned, args=(function, results, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("a measurement failed")
    return cast("list[float]", results.get())


def _pinned(function: Callable[..., None], *arguments: Any) -> None:
    os.sched_setaffinity(0, {1})
    function(*arguments)


# sizes


def _bare(number: int) -> Acceptance:
    return acceptance(number, ())


def _two(number: int) -> Acceptance:
    return acceptance(number)


def _small(number: int) -> Acceptance:
    return acceptance(number, (), body=0)


Step = Callable[[Store], Coroutine[Any, Any, object]]


def _fill(made: Callable[[int], Acceptance]) -> Step:
    async def step(store: Store) -> None:
        await filled(store, SIZED, made, count())

    return step


async def _send(store: Store) -> None:
    now = NOW + DAY
    for name in ("sink", "other"):
        while leases := (await store.lease(name, 500, now, now + 60_000))[0]:
            attempt = Attempt(now, 40, 200, "sent")
            await store.settle([Settlement(each, State.SENT, None, 0, attempt) for each in leases])


async def _purge(store: Store) -> None:
    await store.purge(NOW + 40 * DAY, 30 * DAY)


async def _link(store: Store) -> None:
    def part() -> LinkPart:
        return LinkPart(os.urandom(16), "", os.urandom(130), NOW, NOW + 400 * DAY)

    for _ in range(0, SIZED, 500):
        await asyncio.gather(*(store.link([part()], NOW) for _ in range(500)))


Size = Callable[[], float]


async def _sizes(store: Store, size: Size) -> dict[str, float]:
    """Return bytes of each thing, from how much a store grows."""
    rows: dict[str, float] = {}
    steps: dict[str, Step] = {"bare": _fill(_bare), "two": _fill(_two), "sent": _send, "links": _link}
    before = size()
    for name, made in steps.items():
        await made(store)
        after = size()
        rows[name] = (after - before) / SIZED
        before = after
    return {
        f"a webhook with a body of {BODY:,} bytes, its event, its claim, three subjects": rows["bare"],
        "each delivery, due": (rows["two"] - rows["bare"]) / 2,
        "each delivery, sent at the first try": (rows["two"] + rows["sent"] - rows["bare"]) / 2,
        "a link: one subject, one product": rows["links"],
    }


async def _stub(store: Store, size: Size) -> float:
    """Return what is left of a webhook once retention took its body."""
    before = size()
    await filled(store, SIZED, _two, count())
    await _send(store)
    await _purge(store)
    return (size() - before) / SIZED


async def _redis_sizes() -> dict[str, float]:
    with redis("--save", "", "--appendonly", "no") as server, server.client() as client:

        def size() -> float:
            return sum(
                cast("int", client.memory_usage(key, samples=0)) for key in client.scan_iter(count=1_000)
            )  # of each key with its entry in the table of all keys

        store = await RedisStore.open(server.url, FINGERPRINT, prefix="sizes", answer_within=30.0)
        rows = await _sizes(store, size)
        other = await RedisStore.open(server.url, FINGERPRINT, prefix="stubs", answer_within=30.0)
        rows["what retention leaves of a webhook, for 90 days"] = await _stub(other, size)
        for each in (store, other):
            await each.close()
        return rows


async def _sqlite_sizes() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:

        def sized(path: Path) -> Size:
            def size() -> float:
                with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    (pages,) = connection.execute("PRAGMA page_count").fetchone()
                    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
                    return float((pages - free) * 4_096)

            return size

        path, stubs = Path(name) / "sizes.db", Path(name) / "stubs.db"
        store, other = SqliteStore.open(path, FINGERPRINT), SqliteStore.open(stubs, FINGERPRINT)
        rows = await _sizes(store, sized(path))
        rows["what retention leaves of a webhook, for 90 days"] = await _stub(other, sized(stubs))
        for each in (store, other):
            await each.close()
        return rows


def sizes() -> Table:
    """Measure what each thing takes of a store."""
    step("bytes on Redis and on SQLite")
    of_redis, of_sqlite = uvloop.run(_redis_sizes()), uvloop.run(_sqlite_sizes())
    rows = tuple((name, number, of_sqlite[name]) for name, number in of_redis.items())
    return Table("bytes", "Bytes", ("", "Redis, in memory", "SQLite, on disk"), rows)


def main(asked: Asked) -> list[Table]:
    """Measure accepts and drains; and, but for a quick run, bytes."""
    if asked.scale == "quick":
        return [accepts(320, 1), drains((1_000, 1_500), 1)]
    backlogs = (BACKLOGS[0], LARGE) if asked.scale == "large" else BACKLOGS
    return [accepts(ACCEPTS, ROUNDS), drains(backlogs, DRAINS), sizes()]


if __name__ == "__main__":
    show(main(asked()))

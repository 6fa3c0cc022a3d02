"""`python -m tests.benchmarks links [--large]`: what a link costs among ten thousand others, a million, ten million.

A link here is one subject's, to one visitor and session of one product: a row. The tables are filled past the store, in
the order in which links come, which is none by key; all that is measured goes through the store. Whatever its size, a
table's file is in the system's cache; of its pages SQLite itself keeps 32 MiB.

All sizes are measured in turns within one run, so that their ratios hold on any machine. Of the rounds the fastest
counts: each is of many keys, so what it leaves out is other work on the machine. Ten million take minutes, 3 GB of disk
and 3 GB of memory.
"""

import asyncio
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

import uvloop
from msgspec import Struct

from gateway.deliveries import LinkPart
from gateway.events import ProductIds, Visitor
from gateway.links import LINKS_FOR, seal_visitor
from gateway.sealing import Sealer
from gateway.store.sqlite import SqliteStore
from tests.benchmarks.report import Asked, Cell, Scale, Table, asked, show, step

SIZES: dict[Scale, tuple[int, ...]] = {
    "quick": (1_000, 2_000),
    "default": (10_000, 1_000_000),
    "large": (10_000, 1_000_000, 10_000_000),
}
ROUNDS = 9
CALLS = 2_000
KNOWN = 100_000
LINKS = 50
TOGETHER = 100
ROOM = 700
"""Bytes that each link may need on disk while its table is made."""
NOW = 1_800_000_000_000
SEALER = Sealer(b"k" * 32)
VISITOR = Visitor(
    {"": ProductIds("anon_11111111-1111-4111-8111-111111111111", "sess_22222222-2222-4222-8222-222222222222")}
)


class Links(Struct):
    """A store with so many links, some of whose keys are `known`. `size` is that of its file, in bytes."""

    links: int
    store: SqliteStore
    known: list[bytes]
    size: int
    took: float


def filled(path: Path, links: int) -> Links:
    """Make a store with so many links."""
    started = time.perf_counter()
    store = SqliteStore.open(path, SEALER.fingerprint())
    (part,) = seal_visitor(VISITOR, [b""], NOW, SEALER)
    draw = random.Random(links)
    known: list[bytes] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -4194304")
        connection.execute("BEGIN")  # one for all: each page is written once
        for start in range(0, links, 100_000):
            number = min(100_000, links - start)
            raw = draw.randbytes(16 * number)
            keys = sorted(raw[at : at + 16] for at in range(0, len(raw), 16))
            known += draw.sample(keys, number * min(KNOWN, links) // links)
            connection.executemany(
                "INSERT INTO link (key, part, sealed, linked_at, learned, expires_at) VALUES (?, ?, ?, ?, 0, ?)",
                [
                    (key, part.part, part.sealed, NOW - links + at, NOW - links + at + LINKS_FOR)
                    for at, key in enumerate(keys, start)
                ],
            )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Links(links, store, known, path.stat().st_size, time.perf_counter() - started)


Measured = Callable[[Links, random.Random], Awaitable[float]]
"""Returns microseconds of one call."""


def resolving(subjects: int, *, hit: bool) -> Measured:
    async def measured(table: Links, draw: random.Random) -> float:
        pick = draw.sample if hit else _unknown
        asked = [pick(table.known, subjects) for _ in range(CALLS)]
        found = 0
        started = time.perf_counter()
        for keys in asked:
            found += len(await table.store.resolve(keys))
            await asyncio.sleep(0)  # a turn of the loop for each, as for a webhook that comes alone
        took = time.perf_counter() - started
        assert found == (CALLS * subjects if hit else 0)
        return took / CALLS * 1e6

    return measured


def _unknown(_known: Sequence[bytes], number: int) -> list[bytes]:
    return [random.randbytes(16) for _ in range(number)]


def linking(together: int) -> Measured:
    async def measured(table: Links, _draw: random.Random) -> float:
        made = [_link() for _ in range(max(LINKS, 2 * together))]
        started = time.perf_counter()
        for at in range(0, len(made), together):
            await asyncio.gather(*(table.store.link(parts, NOW) for parts in made[at : at + together]))
        return (time.perf_counter() - started) / len(made) * 1e6

    return measured


def _link() -> list[LinkPart]:
    return seal_visitor(VISITOR, [random.randbytes(16)], NOW, SEALER)


ROWS: dict[str, Measured] = {
    "`resolve`, 1 subject, linked": resolving(1, hit=True),
    "`resolve`, 1 subject, unknown": resolving(1, hit=False),
    "`resolve`, 5 subjects, linked": resolving(5, hit=True),
    "`resolve`, 5 subjects, unknown": resolving(5, hit=False),
    "`link`, alone, on disk": linking(1),
    f"`link`, one of {TOGETHER} at once, on disk": linking(TOGETHER),
}


async def statements(table: Links, subjects: int) -> int:
    """Count what a `resolve` asks of SQLite, but for the transaction around it."""
    said: list[str] = []
    table.store._reader.set_trace_callback(said.append)
    await table.store.resolve(table.known[:subjects])
    table.store._reader.set_trace_callback(None)
    return sum(not text.startswith(("BEGIN", "ROLLBACK")) for text in said)


async def measure(sizes: Sequence[int], rounds: int, folder: Path) -> Table:
    tables = []
    for links in sizes:
        step(f"filling {links:,} links")
        tables.append(filled(folder / f"{links}.db", links))
    took: dict[tuple[str, int], list[float]] = {(row, table.links): [] for row in ROWS for table in tables}
    draw = random.Random(0)
    for row, measured in ROWS.items():
        step(row)
        for table in tables:
            await measured(table, draw)  # once unmeasured
        for _ in range(rounds):
            for table in tables:
                took[row, table.links].append(await measured(table, draw))
    rows: list[tuple[Cell, ...]] = []
    for row in ROWS:
        fastest = [min(took[row, table.links]) for table in tables]
        rows.append((f"{row}, µs", *fastest, fastest[-1] / fastest[0]))
    rows.append(("bytes a link on disk", *(each.size / each.links for each in tables), None))
    counts = ", ".join([f"{number} subjects: {await statements(tables[-1], number)}" for number in (1, 5, 16)])
    notes = (
        f"Statements of one `resolve` by its subjects: {counts}.",
        f"The largest table was filled in {tables[-1].took:,.0f} s.",
    )
    for table in tables:
        await table.store.close()
    columns = ("", *(f"{each.links:,} links" for each in tables), "ratio")
    return Table("links", "What a link costs, by how many there are", columns, tuple(rows), notes)


def main(asked: Asked) -> list[Table]:
    """Measure all sizes for which the disk has room."""
    with tempfile.TemporaryDirectory() as name:
        free = shutil.disk_usage(name).free
        fits = [links for links in SIZES[asked.scale] if links * ROOM < free]
        if len(fits) < len(SIZES[asked.scale]):
            step(f"{free / 1e9:,.0f} GB free on the disk of {name}: no room for {SIZES[asked.scale][-1]:,} links")
        return [uvloop.run(measure(fits, 1 if asked.scale == "quick" else ROUNDS, Path(name)))]


if __name__ == "__main__":
    show(main(asked()))

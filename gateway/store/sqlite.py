"""The embedded store: one SQLite file, one gateway process.

Invariants
----------
* What `accept` returned is on disk: `synchronous=FULL`, and results are given out after the commit
  (`group_commit`). The duplicate check, the webhook, its claims and its deliveries are one transaction.
* A delivery is in exactly one state. Pending ones are in the partial index `delivery_due`, whose `due_at` says when
  somebody may lease them: for a waiting one the end of the wait, for a leased one the end of the lease.
* A settlement counts only under the fence of its lease, so a worker that overslept cannot settle twice.
* Keys that were ever claimed together belong to one payment. A claim is owned by its webhook and its event's id, so
  that the same event, when replayed, finds its own claim and goes on. The id alone would not do: two webhooks that
  report one payment give their events the same id.

What a crash leaves: before COMMIT nothing, after it everything. Leases outlive the process that held them; as only
one gateway may hold the file (an advisory lock beside it), `open` returns them to due at once.

Layout
------
`webhook` is appended in order of arrival; so are `event` and `delivery`, whose keys begin with the webhook's number.
The duplicate check has a narrow table of its own (`seen`), as random keys into a wide one would touch a page for
every webhook. Which subjects a webhook names is appended to `named`, and put into the index `subject` in batches:
whoever asks the index brings it up to date first. So is `listed`, by which webhooks are found by id, type and source;
whoever looks goes through the few webhooks that came since as well, and writes nothing. With it goes `tally`, how many
deliveries are pending, sent, skipped and dead, which triggers then keep right. What waits for an operator (parked,
dead) has indexes that nothing else pays for. A payment's number is its first webhook's number times 1000, plus a
counter.

Retention: after `retention` a webhook's body, events, deliveries and attempts go; a stub and its claims stay for
`CLAIMS_FOR`, so that what a sender repeats late, or a reconciliation brings again, is still known.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from hashlib import blake2b
from itertools import count, groupby, takewhile
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from msgspec import Struct, msgpack, structs

from gateway.deliveries import (
    NEVER,
    STANDING,
    Acceptance,
    Accounted,
    Attempt,
    Backlog,
    CopiedClaim,
    CopiedDelivery,
    CopiedPayment,
    CopiedWebhook,
    Counts,
    DataRequest,
    DeadGroup,
    Forgotten,
    FoundDelivery,
    FoundWebhook,
    Lease,
    LinkPart,
    NewClaim,
    NewDelivery,
    NewEvent,
    OpenRequest,
    Place,
    Receipt,
    Revived,
    Settlement,
    SkipReason,
    State,
    StoredDelivery,
    StoredWebhook,
    StoreMismatch,
    StoreUnavailable,
    Wanted,
    WantedDeliveries,
)
from gateway.store.group_commit import GroupCommit

CLAIMS_FOR = 90 * 86_400_000
"""How long a webhook's duplicate key and a payment's claims are known, in ms. Stripe lists events for 30 days."""
PURGE_STEP = 500
"""Webhooks purged in one transaction: bounds how long a purge holds the writer."""
EXPIRED_FOR = 30 * 86_400_000
"""How long a link that has ended is kept, in ms, so that an event can say that it came too late for it."""
INDEX_EVERY = 256
"""Webhooks whose subjects are put into their index at once: sorted, they touch fewer pages than one by one."""
LIST_STEP = 2_000
"""Webhooks put into the index of lists in one transaction, when it is far behind."""
SCAN = 2_000
"""Webhooks or deliveries that one page of a list looks at: one that few fit is short, and says where to go on."""
SCAN_STEP = 500
"""Webhooks or deliveries that are read at once to see whether they fit."""
SLACK = 5_000
"""Milliseconds by which webhooks may have overtaken each other, or clocks been set back, where lists look by time."""
LOOKERS = 2
"""Connections that are kept for lists, each with a cache of its own."""
MAX_TOLD = 100
"""Subjects that one link is passed on to, and webhooks of each that hear of it."""
COPY_WEBHOOKS, COPY_ROWS = 20, 500
"""Webhooks, which may be large, and small things that are read at once when all is copied."""

NOT_LATE, LATE_WANTED, LATE = range(3)
"""Of a delivery: nobody asked; a link that comes too late is to be told of; it is what tells of one."""

MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE webhook (
        webhook INTEGER PRIMARY KEY, source TEXT NOT NULL, account TEXT NOT NULL, type TEXT NOT NULL, id TEXT NOT NULL,
        occurred_at INTEGER NOT NULL, received_at INTEGER NOT NULL, test INTEGER NOT NULL, mapping TEXT NOT NULL,
        key BLOB NOT NULL, notes BLOB NOT NULL, sealed BLOB
    );
    CREATE TABLE seen (key BLOB PRIMARY KEY, webhook INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE event (
        webhook INTEGER NOT NULL, number INTEGER NOT NULL, id BLOB NOT NULL, sealed BLOB NOT NULL,
        PRIMARY KEY (webhook, number)
    ) WITHOUT ROWID;
    CREATE TABLE delivery (
        webhook INTEGER NOT NULL, number INTEGER NOT NULL, event INTEGER NOT NULL, destination TEXT NOT NULL,
        state INTEGER NOT NULL, reason TEXT, due_at INTEGER NOT NULL, held_until INTEGER NOT NULL,
        attempts INTEGER NOT NULL, first_try_at INTEGER NOT NULL, fence INTEGER NOT NULL, rendered BLOB,
        PRIMARY KEY (webhook, number)
    ) WITHOUT ROWID;
    CREATE INDEX delivery_due ON delivery (destination, due_at) WHERE state < 10;
    CREATE TABLE attempt (
        webhook INTEGER NOT NULL, delivery INTEGER NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL,
        took INTEGER NOT NULL, status INTEGER NOT NULL, outcome TEXT NOT NULL, response BLOB,
        PRIMARY KEY (webhook, delivery, number)
    ) WITHOUT ROWID;
    CREATE TABLE waiting (
        key BLOB NOT NULL, webhook INTEGER NOT NULL, delivery INTEGER NOT NULL, PRIMARY KEY (key, webhook, delivery)
    ) WITHOUT ROWID;
    CREATE TABLE payment_key (key BLOB PRIMARY KEY, payment INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX payment_key_payment ON payment_key (payment);
    CREATE TABLE claim (
        payment INTEGER NOT NULL, name TEXT NOT NULL, event_id BLOB NOT NULL,
        webhook INTEGER NOT NULL, event INTEGER NOT NULL, held_until INTEGER NOT NULL,
        PRIMARY KEY (payment, name)
    ) WITHOUT ROWID;
    CREATE TABLE link (
        key BLOB NOT NULL, part TEXT NOT NULL, sealed BLOB NOT NULL, linked_at INTEGER NOT NULL,
        learned INTEGER NOT NULL, expires_at INTEGER NOT NULL, PRIMARY KEY (key, part)
    ) WITHOUT ROWID;
    CREATE INDEX link_expiry ON link (expires_at);
    """,
    """
    ALTER TABLE claim ADD COLUMN hold INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE claim ADD COLUMN order_id BLOB
    """,
    """
    CREATE TABLE named (
        webhook INTEGER PRIMARY KEY, waits INTEGER NOT NULL, teaches INTEGER NOT NULL, keys BLOB NOT NULL
    );
    CREATE TABLE subject (
        key BLOB NOT NULL, waits INTEGER NOT NULL, webhook INTEGER NOT NULL, PRIMARY KEY (key, waits, webhook)
    ) WITHOUT ROWID;
    INSERT INTO subject SELECT DISTINCT key, 1, webhook FROM waiting;
    DROP TABLE waiting;
    ALTER TABLE delivery ADD COLUMN late INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE link ADD COLUMN taught_by BLOB;
    CREATE TABLE request (
        number INTEGER PRIMARY KEY, asked_at INTEGER NOT NULL, kind TEXT NOT NULL, source TEXT NOT NULL,
        account TEXT NOT NULL, keys BLOB, done_at INTEGER NOT NULL, outcome TEXT NOT NULL
    );
    CREATE INDEX request_open ON request (number) WHERE done_at = 0
    """,
    """
    CREATE TABLE told (key BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
    ALTER TABLE delivery ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE delivery ADD COLUMN lane BLOB;
    CREATE INDEX delivery_lane ON delivery (destination, lane, at) WHERE lane NOT NULL AND state < 10
    """,
    """
    CREATE TABLE listed (key BLOB NOT NULL, webhook INTEGER NOT NULL, PRIMARY KEY (key, webhook)) WITHOUT ROWID;
    CREATE INDEX delivery_stuck ON delivery (state, webhook, number) WHERE state IN (4, 12);
    CREATE INDEX delivery_dead ON delivery (destination, reason, webhook, number) WHERE state = 12
    """,
    """
    DROP INDEX delivery_stuck;
    DROP INDEX delivery_dead;
    CREATE INDEX delivery_stuck ON delivery (state, webhook, number, destination, reason) WHERE state IN (4, 12);
    CREATE INDEX delivery_dead ON delivery (state, destination, reason, webhook, number) WHERE state = 12;
    DELETE FROM meta WHERE name = 'listed_to'; -- what is listed is tallied with it: both begin anew
    CREATE TABLE tally (
        destination TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL, number INTEGER NOT NULL,
        PRIMARY KEY (destination, state, reason)
    ) WITHOUT ROWID;
    CREATE TRIGGER delivery_made AFTER INSERT ON delivery
    WHEN new.webhook <= (SELECT value FROM meta WHERE name = 'listed_to') BEGIN
        INSERT INTO tally VALUES
            (new.destination, iif(new.state < 10, 1, new.state), iif(new.state = 12, ifnull(new.reason, ''), ''), 1)
        ON CONFLICT DO UPDATE SET number = number + 1;
    END;
    CREATE TRIGGER delivery_changed AFTER UPDATE OF state ON delivery
    WHEN (old.state > 9 OR new.state > 9) AND new.webhook <= (SELECT value FROM meta WHERE name = 'listed_to') BEGIN
        INSERT INTO tally VALUES
            (old.destination, iif(old.state < 10, 1, old.state), iif(old.state = 12, ifnull(old.reason, ''), ''), -1),
            (new.destination, iif(new.state < 10, 1, new.state), iif(new.state = 12, ifnull(new.reason, ''), ''), 1)
        ON CONFLICT DO UPDATE SET number = number + excluded.number;
    END;
    CREATE TRIGGER delivery_erased AFTER DELETE ON delivery
    WHEN old.webhook <= (SELECT value FROM meta WHERE name = 'listed_to') BEGIN
        INSERT INTO tally VALUES
            (old.destination, iif(old.state < 10, 1, old.state), iif(old.state = 12, ifnull(old.reason, ''), ''), -1)
        ON CONFLICT DO UPDATE SET number = number - 1;
    END;
    DROP INDEX delivery_due;
    CREATE INDEX delivery_due ON delivery (destination, due_at, state) WHERE state < 10
    """,
)
"""Each entry takes the schema one version up. Never edit one that was released: append."""


class _Claim(Struct, frozen=True):
    """A payment's claim under one name. `hold` (ms) says how sure its report is: the shorter the surer."""

    payment: int
    event_id: bytes
    webhook: int
    event: int
    held_until: int
    hold: int
    order: bytes | None


T = TypeVar("T")

_encode = msgpack.Encoder().encode
_KEYS = msgpack.Decoder(list[bytes])

_CLAIM = "payment, event_id, webhook, event, held_until, hold, order_id"
_LINK = "key, part, sealed, linked_at, expires_at, iif(learned, coalesce(taught_by, x''), NULL)"


class SqliteStore:
    """Outbox, Links and Archive over one file."""

    def __init__(self, path: Path, writer: GroupCommit, reader: sqlite3.Connection, lock: int | None) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader
        self._lock = lock
        self._lookers: list[sqlite3.Connection] = []
        self._caught_up = False

    @classmethod
    def open(cls, path: Path, fingerprint: bytes, *, exclusive: bool = True) -> "SqliteStore":
        """Open or create the file, bring its schema up to date, and return the leases of a dead process to due.

        `fingerprint` identifies the sealing key. `exclusive=False` is for commands beside a running gateway: they
        share the file and leave its leases alone. Raises `StoreMismatch` when another gateway holds the file, when
        it was written under another key or by a newer version, or when it cannot be opened.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path) if exclusive else None
        try:
            with closing(_connect(path)) as setup:
                setup.execute("PRAGMA journal_mode = WAL")
                _migrate(setup)
                _check_fingerprint(setup, fingerprint, path)
                if exclusive:
                    returned = (State.DUE, State.LEASED)
                    setup.execute("UPDATE delivery SET state = ?, due_at = 0 WHERE state = ?", returned)
            return cls(path, GroupCommit(path, _connect), _connect(path), lock)
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, sqlite3.DatabaseError):
                raise StoreMismatch(f"{path} cannot be opened as a store: {error}") from error
            raise

    async def close(self) -> None:
        """Store what was handed in and let go of the file."""
        await self._writer.close()
        await asyncio.sleep(0)  # the turn of the loop in which a `resolve` before this ends its read
        for each in (self._reader, *self._lookers):
            each.close()
        if self._lock is not None:
            os.close(self._lock)

    # Outbox: what intake and delivery need

    async def accept(self, acceptance: Acceptance) -> Receipt:
        """Store a webhook with all that follows from it, unless it is there already.

        Whoever gets the receipt may answer 2xx. Raises `StoreUnavailable` when nothing was stored.
        """
        return await self._writer.submit(lambda connection: _accept(connection, acceptance))

    async def replay(self, webhook: int, acceptance: Acceptance, now: int) -> Receipt:
        """Put what the mappings make of a stored webhook now beside what they made of it then.

        Deliveries that were sent or are pending stay; dead, skipped and parked ones of the same event start again.
        """
        return await self._writer.submit(lambda connection: _replay(connection, webhook, acceptance, now))

    async def keep(self, webhook: int, sealed: bytes) -> bool:
        """Put a webhook's request in its own place, with what was fetched for it. False when it is gone by now."""
        statement = "UPDATE webhook SET sealed = ? WHERE webhook = ? AND sealed NOT NULL"
        return await self._writer.submit(lambda writer: writer.execute(statement, (sealed, webhook)).rowcount == 1)

    async def order_of(self, keys: Sequence[bytes]) -> bytes | None:
        """Return what the payment that one of the keys belongs to is called, sealed. Raises `StoreUnavailable`."""
        marks = ",".join("?" * len(keys))
        rows = self._read_in_turn(
            "SELECT c.order_id FROM payment_key k JOIN claim c ON c.payment = k.payment "  # noqa: S608
            f"WHERE k.key IN ({marks}) AND c.order_id NOT NULL ORDER BY c.name != 'purchase', c.webhook LIMIT 1",
            keys,
        )
        order: bytes | None = rows[0][0] if rows else None
        return order

    async def lease(self, destination: str, limit: int, now: int, until: int) -> tuple[list[Lease], int | None]:
        """Take up to `limit` due deliveries until then. Also returns when the next one falls due (None: none)."""
        return await self._writer.submit(lambda connection: _lease(connection, destination, limit, now, until))

    async def settle(self, settlements: Sequence[Settlement]) -> int:
        """Record what became of leased deliveries. Returns how many were still held by their lease."""
        return await self._writer.submit(lambda connection: _settle(connection, settlements))

    # Links

    async def link(self, parts: Sequence[LinkPart], now: int) -> frozenset[str]:
        """Store links and tell them to the webhooks that named these subjects and found no visitor.

        Returns the destinations that have work now. A newer direct link replaces any; a learned one replaces only an
        older one that was learned from the same subject, or one that has ended.
        """
        return await self._writer.submit(lambda connection: _link(connection, parts, now))

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys, in one round trip; also what has ended lately.

        Raises `StoreUnavailable`.
        """
        marks = ",".join("?" * len(keys))
        rows = self._read_in_turn(
            f"SELECT {_LINK} FROM link WHERE key IN ({marks})",  # noqa: S608 -- constants
            keys,
        )
        found: dict[bytes, list[LinkPart]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(LinkPart(*row))
        return found

    # What people may ask about their data

    async def ask(self, request: DataRequest, now: int) -> int:
        """Write down what somebody asks about data, to be fulfilled. Returns its number."""
        return await self._writer.submit(lambda connection: _ask(connection, request, now))

    async def asked(self) -> list[OpenRequest]:
        """Return the requests about data that are to be fulfilled, the oldest first."""
        rows = await self._read(
            "SELECT number, asked_at, kind, source, account, keys FROM request WHERE done_at = 0 ORDER BY number", ()
        )
        return [
            OpenRequest(number, asked_at, DataRequest(kind, source, account, tuple(_KEYS.decode(keys))))
            for number, asked_at, kind, source, account, keys in rows
        ]

    async def fulfilled(self, number: int, now: int, outcome: str) -> None:
        """Close a request about data. What it was about is erased with it; `outcome` stays, and names nobody."""
        await self._writer.submit(
            lambda connection: connection.execute(
                "UPDATE request SET keys = NULL, done_at = ?, outcome = ? WHERE number = ?", (now, outcome, number)
            )
        )

    async def naming(self, keys: Sequence[bytes], *, before: int | None = None, limit: int = 50) -> list[int]:
        """Return the numbers of webhooks that name one of these subjects, newest first."""
        await self._writer.submit(_index)
        marks = ",".join("?" * len(keys))
        rows = await self._read(
            f"SELECT DISTINCT webhook FROM subject WHERE key IN ({marks}) AND webhook < ? "  # noqa: S608
            "ORDER BY webhook DESC LIMIT ?",
            (*keys, before if before is not None else 2**62, limit),
        )
        return [row[0] for row in rows]

    async def forget(self, keys: Sequence[bytes]) -> Forgotten:
        """Erase these subjects: their links, the webhooks that name them, and what was made of those.

        The other subjects that only those webhooks name lose what they had learned: it is the same person's. A link
        that somebody made for them stays, or whoever names another in an order and is forgotten would take it away.
        Claims stay, so that nothing counts twice. A delivery that is being sent right now may still arrive.
        """
        total, more = Forgotten(), bool(keys)
        while more:
            step, more = await self._writer.submit(lambda connection: _forget(connection, keys))
            total += step
        return total

    async def forget_account(self, source: str, account: str) -> Forgotten:
        """Erase all that came from one account of a source, as `forget` does, a step at a time."""
        total, after = Forgotten(), 0
        while True:
            step, after = await self._writer.submit(
                lambda connection, after=after: _forget_account(connection, source, account, after)  # type: ignore[misc]
            )
            total += step
            if not after:
                return total

    # Archive: what the console and the command line need

    async def webhooks(self, *, before: int | None = None, limit: int = 50) -> list[StoredWebhook]:
        """Return webhooks, newest first, without their bodies; `before` is the number to go on from."""
        rows = await self._read(
            "SELECT webhook, source, account, type, id, occurred_at, received_at, test, mapping, notes, NULL "
            "FROM webhook WHERE webhook < ? ORDER BY webhook DESC LIMIT ?",
            (before if before is not None else 2**62, limit),
        )
        return [_stored_webhook(row) for row in rows]

    async def webhook(self, number: int) -> StoredWebhook | None:
        """Return one webhook with its sealed body, or None. The body is None when retention took it."""
        rows = await self._read(
            "SELECT webhook, source, account, type, id, occurred_at, received_at, test, mapping, notes, sealed "
            "FROM webhook WHERE webhook = ?",
            (number,),
        )
        return _stored_webhook(rows[0]) if rows else None

    async def find(self, id: str) -> list[int]:
        """Return the numbers of the webhooks that their sender calls `id`, newest first."""
        found, _ = await self.search(Wanted(id=id), limit=50)
        return [each.webhook.webhook for each in found]

    async def deliveries(self, webhook: int) -> list[StoredDelivery]:
        """Return the deliveries of one webhook with their attempts."""
        return await self._read_with(lambda connection: _deliveries(connection, webhook))

    async def search(
        self, wanted: Wanted, *, before: int | None = None, limit: int = 50
    ) -> tuple[list[FoundWebhook], int | None]:
        """Return webhooks that fit, newest first, and the number to go on from (None: there are no more).

        A page that few fit may be short, or empty, and still not be the last.
        """
        if wanted.subjects:
            await self._writer.submit(_index)
        await self._catch_up()
        return await self._read_with(lambda connection: _search(connection, wanted, before, limit))

    async def search_deliveries(
        self, wanted: WantedDeliveries, *, before: Place | None = None, limit: int = 50
    ) -> tuple[list[FoundDelivery], Place | None]:
        """Return deliveries that fit, those of the newest webhooks first, and where to go on, as `search` does."""
        return await self._read_with(lambda connection: _search_deliveries(connection, wanted, before, limit))

    async def dead(self) -> list[DeadGroup]:
        """Return what is dead, by destination and reason."""
        await self._catch_up()
        return await self._read_with(_dead)

    async def retry(self, webhook: int, number: int, now: int) -> str | None:
        """Let a dead or parked delivery start again. Returns its destination, None when it is in no such state."""
        return await self._writer.submit(lambda connection: _retry(connection, webhook, number, now))

    async def retry_dead(self, wanted: WantedDeliveries, now: int, *, before: Place | None, limit: int) -> Revived:
        """Let dead deliveries of a destination, or that died for a reason, start again, a step at a time."""
        wanted = structs.replace(wanted, states=frozenset({State.DEAD}))
        return await self._writer.submit(lambda connection: _retry_dead(connection, wanted, now, before, limit))

    async def accounted(self, since: int, until: int) -> AsyncIterator[Accounted]:
        """Yield what became of each webhook that came in that time (`until` apart), the first that came first."""
        after, last = await self._read_with(lambda connection: _span(connection, since, until))
        while page := await self._read_with(
            lambda connection, after=after: _accounted(connection, after, last, since, until)  # type: ignore[misc]
        ):
            for each in page[1]:
                yield each
            after = page[0]

    async def counts(self) -> dict[str, Counts]:
        """Count deliveries by destination from their states."""
        await self._catch_up()
        return await self._read_with(_counts)

    async def backlog(self, now: int) -> dict[str, Backlog]:
        """Return how much waits for each destination that anything waits for."""
        await self._catch_up()
        return await self._read_with(lambda connection: _backlog(connection, now))

    async def _catch_up(self) -> None:
        """Bring the index of lists up to date where it is far behind, as after an upgrade: else nothing is written."""
        while not self._caught_up:
            self._caught_up = not await self._read_with(_is_far_behind)
            if not self._caught_up:
                await self._writer.submit(_list)

    async def purge(self, now: int, retention: int) -> int:
        """Erase what is older than `retention` ms, a step at a time. Returns how many webhooks lost their bodies."""
        purged = 0
        while True:
            looked_at, erased = await self._writer.submit(lambda connection: _purge(connection, now, retention))
            purged += erased
            if not looked_at:
                break
        await self._writer.submit(lambda connection: _purge_links(connection, now))
        return purged

    async def probe(self) -> str | None:
        """Say why the store cannot take writes, or None when it just took one."""
        if self._writer.failed is None:
            return None
        try:
            await self._writer.submit(_touch)
        except Exception as error:
            return str(error)
        return None

    async def warnings(self) -> list[str]:
        """Say what may lose data or hold up work some day: of a file that one process holds, nothing."""
        return []

    # Moving to another store: `gateway.moving` reads all of one, and has the other adopt it

    async def extent(self) -> int:
        """Return how many webhooks, payments, linked subjects and told states there are to be copied."""
        rows = await self._read(
            "SELECT (SELECT count(*) FROM webhook) + (SELECT count(DISTINCT payment) FROM payment_key) + "
            "(SELECT count(DISTINCT key) FROM link) + (SELECT count(*) FROM told)",
            (),
        )
        number: int = rows[0][0]
        return number

    async def copied(self) -> AsyncIterator[CopiedWebhook]:
        """Yield all webhooks, the first that came first."""
        await self._writer.submit(_index)
        after = 0
        while page := await self._read_with(lambda connection, after=after: _copied(connection, after)):  # type: ignore[misc]
            for _, each in page:
                yield each
            after = page[-1][0]

    async def copied_payments(self) -> AsyncIterator[CopiedPayment]:
        """Yield all payments, the oldest first."""
        after = 0
        while page := await self._read_with(lambda connection, after=after: _copied_payments(connection, after)):  # type: ignore[misc]
            for _, each in page:
                yield each
            after = page[-1][0]

    async def copied_links(self) -> AsyncIterator[list[LinkPart]]:
        """Yield the parts of all links, subject by subject."""
        after = b""
        while rows := await self._read(
            f"SELECT {_LINK} FROM link WHERE key IN (SELECT DISTINCT key FROM link WHERE key > ? ORDER BY key LIMIT ?) "  # noqa: S608
            "ORDER BY key",
            (after, COPY_ROWS),
        ):
            for _, parts in groupby((LinkPart(*row) for row in rows), attrgetter("key")):
                yield list(parts)
            after = rows[-1][0]

    async def copied_told(self) -> AsyncIterator[tuple[bytes, int]]:
        """Yield the objects whose state was told, and as of when."""
        after = b""
        while rows := await self._read(
            "SELECT key, at FROM told WHERE key > ? ORDER BY key LIMIT ?", (after, COPY_ROWS)
        ):
            for key, at in rows:
                yield key, at
            after = rows[-1][0]

    async def adopt(self, copied: CopiedWebhook) -> bool:
        """Store another store's webhook as it is there, unless it is here already. Returns whether it was news."""
        return await self._writer.submit(lambda connection: _adopt(connection, copied))

    async def adopt_payment(self, copied: CopiedPayment, now: int) -> None:
        """Make what was one payment there one here, with its claims; of two under one name the surer one stays.

        The webhooks that it speaks of must have been adopted.
        """
        await self._writer.submit(lambda connection: _adopt_payment(connection, copied, now))

    async def adopt_told(self, told: Sequence[tuple[bytes, int]]) -> None:
        """Note which states were told there."""
        await self._writer.submit(
            lambda connection: connection.executemany(
                "INSERT INTO told VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET at = max(at, excluded.at)", told
            )
        )

    async def adopt_request(self, copied: OpenRequest) -> None:
        """Write down what was asked about data there, unless it is or was written down here."""
        await self._writer.submit(lambda connection: _adopt_request(connection, copied))

    def _read_in_turn(self, sql: str, parameters: Sequence[object]) -> list[tuple]:  # type: ignore[type-arg]
        """Read on the loop's thread: a few lookups by primary key cost less than a hand-over.

        All that read in one turn of the loop share a transaction, as to begin and end one costs as much as the lookups.
        """
        try:
            if not self._reader.in_transaction:
                self._reader.execute("BEGIN")
                asyncio.get_running_loop().call_soon(self._reader.rollback)
            return self._reader.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    async def _read(self, sql: str, parameters: Iterable[object]) -> list[tuple]:  # type: ignore[type-arg]
        return await self._read_with(lambda connection: connection.execute(sql, tuple(parameters)).fetchall())

    async def _read_with(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Read on a thread and a connection of its own: a long list must not keep the loop.

        All statements of a query see the store as it was at the first of them.
        """

        def run() -> T:
            try:
                with self._looker() as connection:
                    connection.execute("BEGIN")
                    found = query(connection)
                    connection.rollback()
                    return found
            except sqlite3.DatabaseError as error:
                raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

        return await asyncio.to_thread(run)

    @contextmanager
    def _looker(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection. A few are kept, as what one has read of the file serves the next query as well."""
        connection = self._lookers.pop() if self._lookers else _connect(self._path)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if len(self._lookers) < LOOKERS:
            self._lookers.append(connection)
        else:
            connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0.25, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -32768")
    return connection


def _take_lock(path: Path) -> int:
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreMismatch(
            f"{path} is in use by another gateway process. Stop that one, or give this one a GATEWAY_STORE of its own."
        ) from None
    return lock


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        connection.rollback()
        raise StoreMismatch(
            f"the store has schema {version}, this gateway knows up to {len(MIGRATIONS)}: run the newer gateway again"
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        for statement in _statements(script):  # executescript would commit what came before
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
    connection.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; a trigger has semicolons of its own."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement:
        yield statement


def _check_fingerprint(connection: sqlite3.Connection, fingerprint: bytes, path: Path) -> None:
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('fingerprint', ?)", (fingerprint,))
    (stored,) = connection.execute("SELECT value FROM meta WHERE name = 'fingerprint'").fetchone()
    if stored != fingerprint:
        raise StoreMismatch(
            f"{path} was written under another GATEWAY_SECRET_KEY. Set the key it was written under "
            "(beside an embedded store it is in gateway.key), or choose another GATEWAY_STORE."
        )


def _touch(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('probe', x'00')")


# accept and replay


def _accept(connection: sqlite3.Connection, new: Acceptance) -> Receipt:
    known = connection.execute("SELECT webhook FROM seen WHERE key = ?", (new.key,)).fetchone()
    if known is not None:
        return Receipt(known[0], duplicate=True)
    webhook = _add_webhook(connection, new)
    if new.request is not None:
        _ask(connection, new.request, new.received_at)
    return _store_events(connection, webhook, new, new.received_at)


def _add_webhook(connection: sqlite3.Connection, new: Acceptance) -> int:
    webhook = connection.execute(
        "INSERT INTO webhook VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            new.source,
            new.account,
            new.type,
            new.id,
            new.occurred_at,
            new.received_at,
            int(new.test),
            new.mapping,
            new.key,
            new.notes,
            new.sealed,
        ),
    ).lastrowid
    assert webhook is not None  # noqa: S101 -- an INSERT into a rowid table has one
    connection.execute("INSERT INTO seen VALUES (?, ?)", (new.key, webhook))
    if new.subjects:
        connection.execute(
            "INSERT INTO named VALUES (?, ?, ?, ?)", (webhook, new.unlinked, new.teaches, _encode(new.subjects))
        )
        if not webhook % INDEX_EVERY:
            _index(connection)
    if not webhook % INDEX_EVERY:
        _list(connection)
    return webhook


def _store_events(
    connection: sqlite3.Connection,
    webhook: int,
    new: Acceptance,
    now: int,
    first_event: int = 0,
    first_delivery: int = 0,
    first_payment: int = 0,
) -> Receipt:
    payments = count(first_payment or webhook * 1000)
    numbers = count(first_delivery)
    due: set[str] = set()
    linked: bool | None = None
    for claim in new.bare_claims:
        _claim(connection, claim, None, next(payments), first_event, now)
    for event_number, event in enumerate(new.events, first_event):
        connection.execute("INSERT INTO event VALUES (?, ?, ?, ?)", (webhook, event_number, event.id, event.sealed))
        hold = event.claim.hold if event.claim else 0
        order = event.claim.order if event.claim else None
        owner = _Claim(next(payments), event.id, webhook, event_number, now + hold if hold else 0, hold, order)
        taken = event.claim is not None and not _claim(connection, event.claim, owner, owner.payment, first_event, now)
        stale = event.state_of is not None and _is_stale(connection, event.state_of, event.at)
        if linked is None and any(delivery.wait_until for delivery in event.deliveries):
            linked = _any_linked(connection, new.subjects, now)
        rows: list[tuple[object, ...]] = []
        for delivery in event.deliveries:
            skip = delivery.skip or ("duplicate_payment" if taken else "stale" if stale else None)
            row = _new_delivery(delivery, owner.held_until, skip=skip, linked=bool(linked), now=now)
            number = next(numbers)
            # Plain integers: sqlite3 asks every value of a type it does not know whether it can be adapted.
            late = LATE_WANTED if delivery.late and not taken and not stale else NOT_LATE
            rest = (late, event.at, delivery.lane)
            rows.append((webhook, number, event_number, delivery.destination, int(row[0]), *row[1:], *rest))
            if row[0] == State.DUE:
                due.add(delivery.destination)
        connection.executemany("INSERT INTO delivery VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, NULL, ?, ?, ?)", rows)
    if new.learned:
        due |= _link(connection, new.learned, now)
    return Receipt(webhook, duplicate=False, due=frozenset(due))


def _is_stale(connection: sqlite3.Connection, key: bytes, at: int) -> bool:
    """Note that the state of an object was told as of `at`; return whether a newer one was told before."""
    row = connection.execute("SELECT at FROM told WHERE key = ?", (key,)).fetchone()
    if row is not None and row[0] > at:
        return True
    connection.execute("INSERT OR REPLACE INTO told VALUES (?, ?)", (key, at))
    return False


def _new_delivery(
    delivery: NewDelivery, held_until: int, *, skip: SkipReason | None, linked: bool, now: int
) -> tuple[State, str | None, int, int]:
    """Return state, reason, due_at and held_until of a delivery as accepted."""
    if skip is not None:
        return State.SKIPPED, skip, 0, 0
    # A link that came between translation and this transaction must not be waited for: it is here already.
    wait_until = 0 if linked else delivery.wait_until
    due_at = max(held_until, wait_until, now)
    if due_at <= now:
        return State.DUE, None, now, 0
    return State.WAITING, "link" if wait_until > held_until else "hold", due_at, held_until


def _any_linked(connection: sqlite3.Connection, keys: Sequence[bytes], now: int) -> bool:
    return any(
        connection.execute("SELECT 1 FROM link WHERE key = ? AND expires_at > ? LIMIT 1", (key, now)).fetchone()
        for key in keys
    )


def _claim(
    connection: sqlite3.Connection, claim: NewClaim, owner: _Claim | None, payment: int, first_event: int, now: int
) -> bool:
    """Make the keys one payment and, for an event, claim it. Returns whether the event may go out.

    `first_event` is where the events of this acceptance begin: earlier ones of the same webhook are being replayed.
    """
    fresh = payment
    payment = _unite(connection, claim.keys, payment, now)
    if claim.name is None or owner is None:
        return True
    # Nobody can have claimed a payment that was unknown until now.
    if payment != fresh and not _may_claim(connection, payment, claim.name, owner, first_event, now):
        return False
    connection.execute(
        "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (payment, claim.name, owner.event_id, owner.webhook, owner.event, owner.held_until, owner.hold, owner.order),
    )
    return True


def _may_claim(
    connection: sqlite3.Connection, payment: int, name: str, owner: _Claim, first_event: int, now: int
) -> bool:
    row = connection.execute(
        f"SELECT {_CLAIM} FROM claim WHERE payment = ? AND name = ?",  # noqa: S608 -- a constant
        (payment, name),
    ).fetchone()
    if row is None:
        return True
    standing = _Claim(*row)
    if _same_event(standing, owner) and standing.event < first_event:
        return True  # its own, as it is being replayed
    if owner.hold >= standing.hold or not _yields(connection, standing, now):
        return False
    _supersede(connection, standing)
    return True


def _same_event(one: _Claim, other: _Claim) -> bool:
    return (one.webhook, one.event_id) == (other.webhook, other.event_id)


def _yields(connection: sqlite3.Connection, claim: _Claim, now: int) -> bool:
    """Whether a claim steps back for a surer one: its hold lasts, and nothing of it has gone out.

    Time alone does not tell: `now` is when the other webhook came in, and a lease may have begun since; and a replay
    holds anew what is already sent elsewhere.
    """
    if claim.held_until <= now:
        return False
    gone = connection.execute(
        "SELECT 1 FROM delivery d JOIN event e ON e.webhook = d.webhook AND e.number = d.event "
        "WHERE d.webhook = ? AND e.id = ? AND d.state NOT IN (?, ?) LIMIT 1",
        (claim.webhook, claim.event_id, State.WAITING, State.SKIPPED),
    ).fetchone()
    return gone is None


def _unite(connection: sqlite3.Connection, keys: tuple[bytes, ...], payment: int, now: int) -> int:
    """Make `keys`, and all that were ever claimed with any of them, one payment. Returns its number."""
    marks = ",".join("?" * len(keys))
    known = dict(connection.execute(f"SELECT key, payment FROM payment_key WHERE key IN ({marks})", keys).fetchall())  # noqa: S608
    if known:
        payments = set(known.values())
        payment = max(payments)  # the youngest number, as retention counts from it
        for other in payments - {payment}:
            connection.execute("UPDATE payment_key SET payment = ? WHERE payment = ?", (payment, other))
            _merge_claims(connection, other, payment, now)
    connection.executemany(
        "INSERT OR IGNORE INTO payment_key VALUES (?, ?)", [(key, payment) for key in keys if key not in known]
    )
    return payment


def _merge_claims(connection: sqlite3.Connection, other: int, payment: int, now: int) -> None:
    """Two payments turn out to be one: of two claims under one name the surer one stays."""
    select = f"SELECT name, {_CLAIM} FROM claim WHERE payment = ?"  # noqa: S608 -- a constant
    standing = {name: _Claim(*rest) for name, *rest in connection.execute(select, (payment,))}
    for name, *rest in connection.execute(select, (other,)).fetchall():
        claim = _Claim(*rest)
        if rival := standing.get(name):
            # What may have gone out stays, then what was held for less; among equals the earlier webhook wins.
            yields = {each: _yields(connection, each, now) for each in (claim, rival)}
            order = sorted((claim, rival), key=lambda each: (yields[each], each.hold, each.webhook, each.event))
            claim, loser = order
            if yields[loser] and not _same_event(claim, loser):
                _supersede(connection, loser)
        connection.execute(
            "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (payment, name, claim.event_id, claim.webhook, claim.event, claim.held_until, claim.hold, claim.order),
        )
    connection.execute("DELETE FROM claim WHERE payment = ?", (other,))


def _supersede(connection: sqlite3.Connection, claim: _Claim) -> None:
    connection.execute(
        "UPDATE delivery SET state = ?, reason = 'superseded', due_at = 0 "
        "WHERE webhook = ? AND state = ? AND event IN (SELECT number FROM event WHERE webhook = ? AND id = ?)",
        (State.SKIPPED, claim.webhook, State.WAITING, claim.webhook, claim.event_id),
    )


def _replay(connection: sqlite3.Connection, webhook: int, new: Acceptance, now: int) -> Receipt:
    """Store the new events, and let each new delivery take the place of one that did not get through."""
    if connection.execute("SELECT 1 FROM webhook WHERE webhook = ? AND sealed NOT NULL", (webhook,)).fetchone() is None:
        raise ValueError(f"webhook {webhook} has no body any more: retention took it, or somebody was forgotten")
    existing = connection.execute(
        "SELECT e.id, d.destination, d.number, d.state FROM delivery d "
        "JOIN event e ON e.webhook = d.webhook AND e.number = d.event WHERE d.webhook = ?",
        (webhook,),
    ).fetchall()
    settled = {(id, destination) for id, destination, _, state in existing if state in STANDING}
    events = tuple(
        structs.replace(event, deliveries=kept)
        for event in new.events
        if (kept := tuple(each for each in event.deliveries if (event.id, each.destination) not in settled))
    )
    renewed = {(event.id, each.destination) for event in events for each in event.deliveries}
    for id, destination, number, state in existing:
        if state not in STANDING and (id, destination) in renewed:
            connection.execute("DELETE FROM delivery WHERE webhook = ? AND number = ?", (webhook, number))
            connection.execute("DELETE FROM attempt WHERE webhook = ? AND delivery = ?", (webhook, number))
    (first_event,) = connection.execute(
        "SELECT coalesce(max(number), -1) + 1 FROM event WHERE webhook = ?", (webhook,)
    ).fetchone()
    first_delivery = max((number for _, _, number, _ in existing), default=-1) + 1
    connection.execute("UPDATE webhook SET mapping = ?, notes = ? WHERE webhook = ?", (new.mapping, new.notes, webhook))
    first_payment = _next_payment(connection, webhook)
    _rename(connection, webhook, new)
    replayed = structs.replace(new, events=events)
    return _store_events(connection, webhook, replayed, now, first_event, first_delivery, first_payment)


def _next_payment(connection: sqlite3.Connection, webhook: int) -> int:
    (last,) = connection.execute(
        "SELECT coalesce(max(payment), ?1 - 1) FROM payment_key WHERE payment BETWEEN ?1 AND ?1 + 999",
        (webhook * 1000,),
    ).fetchone()
    return int(last) + 1


def _rename(connection: sqlite3.Connection, webhook: int, new: Acceptance) -> None:
    """Let a webhook name whom it names under the mappings in force."""
    _index(connection)
    _unname(connection, webhook)
    if new.subjects:
        row = (webhook, new.unlinked, new.teaches, _encode(new.subjects))
        connection.execute("INSERT INTO named VALUES (?, ?, ?, ?)", row)
        named = [(key, new.unlinked, webhook) for key in new.subjects]
        connection.executemany("INSERT OR IGNORE INTO subject VALUES (?, ?, ?)", named)


# delivery


def _lease(
    connection: sqlite3.Connection, destination: str, limit: int, now: int, until: int
) -> tuple[list[Lease], int | None]:
    rows = connection.execute(
        "SELECT d.webhook, d.number, d.fence + 1, d.attempts, d.first_try_at, e.sealed, d.rendered, d.late = 2 "
        "FROM delivery d JOIN event e ON e.webhook = d.webhook AND e.number = d.event "
        "WHERE d.destination = ?1 AND d.due_at <= ?2 AND d.state < 10 AND (d.lane IS NULL OR NOT EXISTS ("
        "SELECT 1 FROM delivery o WHERE o.destination = ?1 AND o.lane = d.lane AND o.state < 10 "
        "AND (o.state = ?4 AND o.due_at > ?2 OR (o.at, o.webhook, o.number) < (d.at, d.webhook, d.number)) "
        "AND (o.webhook, o.number) != (d.webhook, d.number) AND o.due_at < ?5)) ORDER BY d.due_at LIMIT ?3",
        (destination, now, limit, int(State.LEASED), NEVER),
    ).fetchall()
    leases = [Lease(*row) for row in rows]
    connection.executemany(
        "UPDATE delivery SET state = ?, reason = NULL, due_at = ?, fence = ? WHERE webhook = ? AND number = ?",
        # Plain numbers: sqlite3 takes three times as long to bind an IntEnum.
        [(int(State.LEASED), until, each.fence, each.webhook, each.number) for each in leases],
    )
    # Was there room for more, then what is due by now waits for another of its lane, and its settlement tells us.
    (next_due,) = connection.execute(
        "SELECT min(due_at) FROM delivery WHERE destination = ? AND state < 10 AND due_at > ?",
        (destination, now if len(leases) < limit else -1),
    ).fetchone()
    return leases, next_due


def _settle(connection: sqlite3.Connection, settlements: Sequence[Settlement]) -> int:
    tries: list[tuple[object, ...]] = []
    outcomes: list[tuple[object, ...]] = []
    for each in settlements:
        lease, attempt = each.lease, each.attempt
        held = (lease.webhook, lease.number, lease.fence, int(State.LEASED))
        attempts, first_try_at = lease.attempts, lease.first_try_at
        if attempt is not None:
            attempts, first_try_at = attempts + 1, first_try_at or attempt.at
            answer = (attempt.at, attempt.took, attempt.status, attempt.outcome, attempt.response)
            tries.append((attempts, *answer, *held))
        why = each.reason or None
        outcomes.append((int(each.state), why, each.due_at, attempts, first_try_at, each.rendered, *held))
    # The attempts first, as an outcome ends the lease that both count under.
    connection.executemany(
        "INSERT OR REPLACE INTO attempt SELECT webhook, number, ?, ?, ?, ?, ?, ? FROM delivery "
        "WHERE webhook = ? AND number = ? AND fence = ? AND state = ?",
        tries,
    )
    return connection.executemany(
        "UPDATE delivery SET state = ?, reason = ?, due_at = ?, attempts = ?, first_try_at = ?, rendered = ? "
        "WHERE webhook = ? AND number = ? AND fence = ? AND state = ?",
        outcomes,
    ).rowcount


# links


def _store_links(connection: sqlite3.Connection, parts: Iterable[LinkPart], now: int) -> None:
    connection.executemany(
        "INSERT INTO link VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (key, part) DO UPDATE SET "
        "sealed = excluded.sealed, linked_at = excluded.linked_at, learned = excluded.learned, "
        "expires_at = excluded.expires_at, taught_by = excluded.taught_by "
        "WHERE link.expires_at <= ?8 OR link.learned AND NOT excluded.learned "
        "OR excluded.linked_at >= link.linked_at AND NOT link.learned AND NOT excluded.learned "
        "OR excluded.linked_at >= link.linked_at AND link.taught_by = excluded.taught_by",
        [
            (
                each.key,
                each.part,
                each.sealed,
                each.linked_at,
                each.taught_by is not None,
                each.expires_at,
                each.taught_by,
                now,
            )
            for each in parts
        ],
    )


def _link(connection: sqlite3.Connection, parts: Sequence[LinkPart], now: int) -> frozenset[str]:
    """Store links, and pass them on: a webhook that names one of these subjects says who else it is."""
    _store_links(connection, parts, now)
    _index(connection)
    released: set[str] = set()
    heard: set[bytes] = set()
    tell = deque(dict.fromkeys(part.key for part in parts))
    while tell and len(heard) < MAX_TOLD:
        key = tell.popleft()
        heard.add(key)
        rows = connection.execute(
            # A webhook of schema 2 or before is in the index alone.
            "SELECT s.webhook, ifnull(n.teaches, 0), n.keys FROM subject s LEFT JOIN named n ON n.webhook = s.webhook "
            "WHERE s.key = ? AND s.waits = 1 ORDER BY s.webhook DESC LIMIT ?",
            (key, MAX_TOLD),
        ).fetchall()
        for webhook, teaches, packed in rows:
            keys = _KEYS.decode(packed) if packed else [key]
            connection.executemany(
                "UPDATE subject SET waits = 0 WHERE key = ? AND waits = 1 AND webhook = ?",
                [(each, webhook) for each in keys],
            )
            released |= _release(connection, webhook, now)
            if teaches:
                tell += [each for each in keys if each not in heard and _teach(connection, key, each, now)]
    return frozenset(released)


def _teach(connection: sqlite3.Connection, teacher: bytes, key: bytes, now: int) -> bool:
    """Link `key` as `teacher` is, if it is not linked; a lesson goes back to whom somebody linked.

    Returns whether it was news.
    """
    if _any_linked(connection, [key], now):
        return False
    connection.execute(
        "INSERT OR REPLACE INTO link SELECT ?, part, sealed, linked_at, 1, expires_at, "
        "iif(learned AND length(taught_by), taught_by, key) FROM link "
        "WHERE key = ? AND expires_at > ?",
        (key, teacher, now),
    )
    return True


def _release(connection: sqlite3.Connection, webhook: int, now: int) -> set[str]:
    """Let a webhook's deliveries know that its visitor is known. Returns the destinations that have work now.

    What waits for a link waits no longer. What nobody took for want of a visitor is tried again. And for what has
    gone out without one, or may have, there is a late delivery where the destination wants it.
    """
    late = connection.execute(
        "INSERT INTO delivery SELECT webhook, "
        "(SELECT max(number) FROM delivery WHERE webhook = ?1) + row_number() OVER (ORDER BY number), "
        "event, destination, ?2, NULL, ?3, 0, 0, 0, 0, NULL, ?4, at, lane FROM delivery "
        "WHERE webhook = ?1 AND late = ?5 AND (state IN (?6, ?7, ?8, ?9) OR state = ?2 AND attempts > 0 "
        "OR state = ?10 AND reason = 'not_routed') "
        "RETURNING destination",
        (
            webhook,
            int(State.DUE),
            now,
            LATE,
            LATE_WANTED,
            int(State.LEASED),
            int(State.PARKED),
            int(State.SENT),
            int(State.DEAD),
            int(State.SKIPPED),
        ),
    ).fetchall()
    rows = connection.execute(
        "UPDATE delivery SET due_at = max(held_until, ?1), reason = iif(held_until > ?1, 'hold', NULL), "
        "state = iif(held_until > ?1, ?2, ?3) "
        "WHERE webhook = ?4 AND (state = ?2 OR state = ?5 AND reason = 'no_person') RETURNING destination, state",
        (now, int(State.WAITING), int(State.DUE), webhook, int(State.SKIPPED)),
    ).fetchall()
    connection.execute("UPDATE delivery SET late = ? WHERE webhook = ? AND late = ?", (NOT_LATE, webhook, LATE_WANTED))
    return {destination for destination, state in rows if state == State.DUE} | {row[0] for row in late}


def _index(connection: sqlite3.Connection) -> None:
    """Bring the index of subjects up to date."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'indexed_to'").fetchone()
    new = connection.execute(
        "SELECT webhook, waits, keys FROM named WHERE webhook > ? ORDER BY webhook", (row[0] if row else 0,)
    ).fetchall()
    if not new:
        return
    entries = sorted((key, waits, webhook) for webhook, waits, keys in new for key in _KEYS.decode(keys))
    connection.executemany("INSERT OR IGNORE INTO subject VALUES (?, ?, ?)", entries)
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('indexed_to', ?)", (new[-1][0],))


# lists


def _list_key(field: str, value: str) -> bytes:
    return blake2b(f"{field}\0{value}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


@lru_cache(4_096)
def _kind_keys(source: str, type: str) -> tuple[bytes, ...]:
    return _list_key("source", source), _list_key("type", type)


def _list_keys(source: str, type: str, id: str) -> tuple[bytes, ...]:
    """Return the keys under which a webhook is listed. Short: what is found by them is looked at again."""
    return (*_kind_keys(source, type), _list_key("id", id))


def _list(connection: sqlite3.Connection) -> None:
    """Bring the index and the tally of lists up to date, one step."""
    listed_to = _listed_to(connection)
    new = connection.execute(
        "SELECT webhook, source, type, id FROM webhook WHERE webhook > ? ORDER BY webhook LIMIT ?",
        (listed_to, LIST_STEP),
    ).fetchall()
    if not new:
        return
    entries = sorted((key, webhook) for webhook, *names in new for key in _list_keys(*names))
    connection.executemany("INSERT OR IGNORE INTO listed VALUES (?, ?)", entries)
    connection.executemany(
        "INSERT INTO tally VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number",
        [(*key, number) for key, number in _tally_of(connection, listed_to, new[-1][0]).items()],
    )
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('listed_to', ?)", (new[-1][0],))


def _listed_to(connection: sqlite3.Connection) -> int:
    """Return the last webhook that is in the index of lists, and whose deliveries are in the tally."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'listed_to'").fetchone()
    return row[0] if row else 0


def _is_far_behind(connection: sqlite3.Connection) -> bool:
    last = connection.execute("SELECT coalesce(max(webhook), 0) FROM webhook").fetchone()
    return bool(last[0] - _listed_to(connection) > LIST_STEP)


_Tally = dict[tuple[str, int, str], int]
"""How many, by destination, state (of all that is pending: 1) and the reason of what is dead."""


def _tally_of(connection: sqlite3.Connection, after: int, last: int) -> _Tally:
    """Count the deliveries of some webhooks."""
    rows = connection.execute(
        "SELECT destination, iif(state < 10, 1, state), iif(state = 12, ifnull(reason, ''), ''), count(*) "
        "FROM delivery WHERE webhook > ? AND webhook <= ? GROUP BY 1, 2, 3",
        (after, last),
    )
    return {(destination, state, reason): number for destination, state, reason, number in rows}


def _tally(connection: sqlite3.Connection) -> _Tally:
    """Count all deliveries: those that the tally has not got yet are few."""
    found = _tally_of(connection, _listed_to(connection), NEVER)
    for *key, number in connection.execute("SELECT destination, state, reason, number FROM tally WHERE number != 0"):
        destination, state, reason = key
        found[destination, state, reason] = found.get((destination, state, reason), 0) + number
    return found


def _counts(connection: sqlite3.Connection) -> dict[str, Counts]:
    states: dict[str, dict[int, int]] = {}
    for (destination, state, _), number in _tally(connection).items():
        mine = states.setdefault(destination, {})
        mine[state] = mine.get(state, 0) + number
    return {destination: Counts.of(mine) for destination, mine in states.items()}


def _backlog(connection: sqlite3.Connection, now: int) -> dict[str, Backlog]:
    found: dict[str, Backlog] = {}
    for (destination, state, _), pending in _tally(connection).items():
        if state < State.SENT:
            due = pending - _waiting(connection, destination, now, pending)
            (oldest,) = connection.execute(
                "SELECT min(due_at) FROM delivery WHERE state < 10 AND destination = ? AND due_at BETWEEN 1 AND ?",
                (destination, now),
            ).fetchone()
            found[destination] = Backlog(due, pending - due, oldest)
    return found


def _waiting(connection: sqlite3.Connection, destination: str, now: int, pending: int) -> int:
    """Count what is not due yet: that or what is due, whichever is few."""
    few = "SELECT count(*) FROM (SELECT 1 FROM delivery WHERE state < 10 AND destination = ? AND due_at {} ? LIMIT ?)"
    for limit in (SCAN, pending):
        for sign in (">", "<="):
            (number,) = connection.execute(few.format(sign), (destination, now, limit)).fetchone()
            if number < limit:
                return int(number if sign == ">" else pending - number)
    return pending  # all of them wait


def _dead(connection: sqlite3.Connection) -> list[DeadGroup]:
    groups: list[DeadGroup] = []
    for (destination, state, reason), number in sorted(_tally(connection).items()):
        if state == State.DEAD and number:
            ends = [
                connection.execute(
                    "SELECT webhook FROM delivery WHERE state = 12 AND destination = ? AND reason IS ? "  # noqa: S608
                    f"ORDER BY webhook {order} LIMIT 1",
                    (destination, reason or None),
                ).fetchone()[0]
                for order in ("ASC", "DESC")
            ]
            groups.append(DeadGroup(destination, reason, number, *ends))
    return groups


def _span(connection: sqlite3.Connection, since: int, until: int) -> tuple[int, int]:
    """Return numbers between which the webhooks are that came in that time: after the first, up to the last."""
    first: int
    last: int
    first, last = connection.execute(
        "SELECT coalesce((SELECT min(webhook) FROM webhook), 1), coalesce((SELECT max(webhook) FROM webhook), 0)"
    ).fetchone()

    def came_by(at: int) -> int:
        """Return the last number of those that came before `at`: they are in order of arrival, or nearly."""
        low, high = first - 1, last
        while low < high:
            middle = (low + high + 1) // 2
            number, received_at = connection.execute(
                "SELECT webhook, received_at FROM webhook WHERE webhook >= ? ORDER BY webhook LIMIT 1", (middle,)
            ).fetchone()
            if received_at < at:
                low = number
            else:
                high = middle - 1
        return low

    after = came_by(since - SLACK) if since > 0 else first - 1
    return after, came_by(until + SLACK) if until < NEVER else last


_STUCK = (State.PARKED, State.DEAD)
"""The states that have an index of their own."""


def _candidates(connection: sqlite3.Connection, wanted: Wanted, after: int, before: int, limit: int) -> list[int]:
    """Return webhooks between two numbers, newest first, from the index that says most."""
    between = "webhook > ? AND webhook < ? ORDER BY webhook DESC LIMIT ?"
    if wanted.subjects:
        sql = f"SELECT webhook FROM subject WHERE key = ? AND waits = ? AND {between}"  # noqa: S608 -- a constant
        named = {
            row[0]
            for key in wanted.subjects
            for waits in (0, 1)
            for row in connection.execute(sql, (key, waits, after, before, limit))
        }
        return sorted(named, reverse=True)[:limit]
    if wanted.id is None and len(wanted.states) == 1 and wanted.states.issubset(_STUCK):
        sql = f"SELECT DISTINCT webhook FROM delivery WHERE state IN (4, 12) AND state = ? AND {between}"  # noqa: S608
        return [row[0] for row in connection.execute(sql, (*map(int, wanted.states), after, before, limit))]
    each = (("id", wanted.id), ("type", wanted.type), ("source", wanted.source))
    named_by = next(((field, value) for field, value in each if value is not None), None)
    if named_by is None:
        sql = f"SELECT webhook FROM webhook WHERE {between}"  # noqa: S608
        return [row[0] for row in connection.execute(sql, (after, before, limit))]
    # Those that are in no index yet are few, and come first.
    field, value = named_by
    sql = f"SELECT webhook FROM webhook WHERE {field} = ? AND {between}"  # noqa: S608
    rows = connection.execute(sql, (value, max(after, _listed_to(connection)), before, limit)).fetchall()
    if (left := limit - len(rows)) > 0:
        sql = f"SELECT webhook FROM listed WHERE key = ? AND {between}"  # noqa: S608
        rows += connection.execute(sql, (_list_key(field, value), after, before, left)).fetchall()
    return [row[0] for row in rows]


def _search(
    connection: sqlite3.Connection, wanted: Wanted, before: int | None, limit: int
) -> tuple[list[FoundWebhook], int | None]:
    after, last = _span(connection, wanted.since, wanted.until)
    before = last + 1 if before is None else min(before, last + 1)
    found: list[FoundWebhook] = []
    looked_at, step = 0, limit + 1  # one more tells whether there are more
    while looked_at < SCAN:
        numbers = _candidates(connection, wanted, after, before, step)
        for each in _summaries(connection, numbers):
            if wanted.fits(each.webhook, each.states):
                if len(found) == limit:
                    return found, found[-1].webhook.webhook
                found.append(each)
        if len(numbers) < step:
            return found, None
        looked_at, before, step = looked_at + step, numbers[-1], SCAN_STEP
    return found, before


def _summaries(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[FoundWebhook]:
    marks = ",".join("?" * len(numbers))
    states: dict[int, dict[State, int]] = {}
    for webhook, state, number in connection.execute(
        f"SELECT webhook, state, count(*) FROM delivery WHERE webhook IN ({marks}) GROUP BY webhook, state",  # noqa: S608
        numbers,
    ):
        states.setdefault(webhook, {})[State(state)] = number
    rows = connection.execute(
        "SELECT webhook, source, account, type, id, occurred_at, received_at, test, mapping, notes, NULL "  # noqa: S608
        f"FROM webhook WHERE webhook IN ({marks}) ORDER BY webhook DESC",
        numbers,
    )
    return [FoundWebhook(_stored_webhook(row), states.get(row[0], {})) for row in rows]


def _deliveries(connection: sqlite3.Connection, webhook: int) -> list[StoredDelivery]:
    attempts = _attempts(connection, webhook)
    rows = connection.execute(
        "SELECT d.number, d.destination, e.sealed, d.state, d.reason, d.due_at FROM delivery d "
        "JOIN event e ON e.webhook = d.webhook AND e.number = d.event WHERE d.webhook = ? ORDER BY d.number",
        (webhook,),
    )
    return [
        StoredDelivery(
            webhook=webhook,
            number=number,
            destination=destination,
            event=event,
            state=State(state),
            reason=reason,
            due_at=due_at,
            attempts=tuple(attempts.get(number, ())),
        )
        for number, destination, event, state, reason, due_at in rows
    ]


def _attempts(connection: sqlite3.Connection, webhook: int) -> dict[int, list[Attempt]]:
    """Return the attempts of a webhook's deliveries, oldest first."""
    attempts: dict[int, list[Attempt]] = {}
    for delivery, *rest in connection.execute(
        "SELECT delivery, at, took, status, outcome, response FROM attempt WHERE webhook = ? ORDER BY delivery, number",
        (webhook,),
    ):
        attempts.setdefault(delivery, []).append(Attempt(*rest))
    return attempts


_DeliveryRow = tuple[int, int, str, int, str | None]
"""Webhook, number, destination, state, reason."""


def _delivery_rows(
    connection: sqlite3.Connection, wanted: WantedDeliveries, before: Place, limit: int
) -> list[_DeliveryRow]:
    """Return deliveries before a place, newest first, from the index that says most."""
    which, values = "", list[object]()
    if len(wanted.states) == 1 and wanted.states.issubset(_STUCK):
        (state,) = wanted.states
        which, values = "state IN (4, 12) AND state = ? AND ", [int(state)]
        if state == State.DEAD and wanted.destination is not None and wanted.reason is not None:
            which, values = "state = 12 AND destination = ? AND reason = ? AND ", [wanted.destination, wanted.reason]
    return connection.execute(
        "SELECT webhook, number, destination, state, reason FROM delivery "  # noqa: S608
        f"WHERE {which}(webhook, number) < (?, ?) ORDER BY webhook DESC, number DESC LIMIT ?",
        (*values, *before, limit),
    ).fetchall()


def _fitting(
    connection: sqlite3.Connection, wanted: WantedDeliveries, before: Place | None, limit: int
) -> tuple[list[_DeliveryRow], Place | None]:
    """Return up to `limit` deliveries that fit, before a place, and where to go on."""
    place = before or (NEVER, 0)
    fitting: list[_DeliveryRow] = []
    looked_at, step = 0, limit + 1
    while looked_at < SCAN:
        rows = _delivery_rows(connection, wanted, place, step)
        for row in rows:
            if wanted.fits(row[2], State(row[3]), row[4]):
                if len(fitting) == limit:
                    return fitting, fitting[-1][:2]
                fitting.append(row)
        if len(rows) < step:
            return fitting, None
        looked_at, place, step = looked_at + step, rows[-1][:2], SCAN_STEP
    return fitting, place


def _search_deliveries(
    connection: sqlite3.Connection, wanted: WantedDeliveries, before: Place | None, limit: int
) -> tuple[list[FoundDelivery], Place | None]:
    fitting, on = _fitting(connection, wanted, before, limit)
    return [_found_delivery(connection, *row) for row in fitting], on


def _found_delivery(
    connection: sqlite3.Connection, webhook: int, number: int, destination: str, state: int, reason: str | None
) -> FoundDelivery:
    event, due_at, attempts, source, type, id = connection.execute(
        "SELECT e.sealed, d.due_at, d.attempts, w.source, w.type, w.id FROM delivery d "
        "JOIN event e ON e.webhook = d.webhook AND e.number = d.event JOIN webhook w ON w.webhook = d.webhook "
        "WHERE d.webhook = ? AND d.number = ?",
        (webhook, number),
    ).fetchone()
    return FoundDelivery(
        webhook=webhook,
        number=number,
        destination=destination,
        event=event,
        state=State(state),
        reason=reason,
        due_at=due_at,
        attempts=attempts,
        source=source,
        type=type,
        id=id,
    )


_REVIVE = (
    "UPDATE delivery SET state = 2, reason = NULL, due_at = ?, held_until = 0, first_try_at = 0 "
    "WHERE webhook = ? AND number = ? AND state IN (4, 12) RETURNING destination"
)


def _retry(connection: sqlite3.Connection, webhook: int, number: int, now: int) -> str | None:
    row = connection.execute(_REVIVE, (now, webhook, number)).fetchone()
    return row[0] if row else None


def _retry_dead(
    connection: sqlite3.Connection, wanted: WantedDeliveries, now: int, before: Place | None, limit: int
) -> Revived:
    fitting, on = _fitting(connection, wanted, before, limit)
    for webhook, number, *_ in fitting:
        connection.execute(_REVIVE, (now, webhook, number)).fetchone()
    return Revived(len(fitting), frozenset(row[2] for row in fitting), on)


def _accounted(
    connection: sqlite3.Connection, after: int, last: int, since: int, until: int
) -> tuple[int, list[Accounted]] | None:
    """Return a step of webhooks up to a number, of those that came in that time, and the number to go on from."""
    rows = connection.execute(
        "SELECT webhook, source, notes, received_at FROM webhook WHERE webhook > ? AND webhook <= ? "
        "ORDER BY webhook LIMIT ?",
        (after, last, PURGE_STEP),
    ).fetchall()
    if not rows:
        return None
    span = (rows[0][0], rows[-1][0])
    events: dict[int, dict[bytes, bytes]] = {}
    ids: dict[Place, bytes] = {}
    for webhook, number, id, sealed in connection.execute(
        "SELECT webhook, number, id, sealed FROM event WHERE webhook BETWEEN ? AND ? ORDER BY webhook, number", span
    ):
        events.setdefault(webhook, {})[id] = sealed
        ids[webhook, number] = id
    deliveries: dict[int, list[tuple[bytes, str, State, str | None]]] = {}
    for webhook, event, destination, state, reason in connection.execute(
        "SELECT webhook, event, destination, state, reason FROM delivery WHERE webhook BETWEEN ? AND ? "
        "ORDER BY webhook, number",
        span,
    ):
        deliveries.setdefault(webhook, []).append((ids[webhook, event], destination, State(state), reason))
    return span[1], [
        Accounted(webhook, source, notes, events.get(webhook, {}), tuple(deliveries.get(webhook, ())))
        for webhook, source, notes, received_at in rows
        if since <= received_at < until
    ]


# what people may ask about their data


def _ask(connection: sqlite3.Connection, request: DataRequest, now: int) -> int:
    number = connection.execute(
        "INSERT INTO request VALUES (NULL, ?, ?, ?, ?, ?, 0, '')",
        (now, request.kind, request.source, request.account, _encode(request.keys)),
    ).lastrowid
    assert number is not None  # noqa: S101 -- an INSERT into a rowid table has one
    return number


def _forget(connection: sqlite3.Connection, keys: Sequence[bytes]) -> tuple[Forgotten, bool]:
    """Erase one step of what is known of these subjects. Also returns whether there may be more."""
    _index(connection)
    marks = ",".join("?" * len(keys))
    webhooks = connection.execute(
        f"SELECT DISTINCT webhook FROM subject WHERE key IN ({marks}) LIMIT ?",  # noqa: S608
        (*keys, PURGE_STEP),
    ).fetchall()
    erased = _erase(connection, [row[0] for row in webhooks])
    others = erased.names.difference(keys)
    links = _unlink(connection, keys) + _unlink(connection, [key for key in others if not _is_direct(connection, key)])
    return Forgotten(links, erased.bodies, erased.pending), len(webhooks) == PURGE_STEP


def _forget_account(connection: sqlite3.Connection, source: str, account: str, after: int) -> tuple[Forgotten, int]:
    """Erase one step of an account's webhooks. Also returns the number to go on from, 0 at the end.

    It looks at so many webhooks, whosever they are: the writer must not go through all of them at once.
    """
    _index(connection)
    window = connection.execute(
        "SELECT webhook, source = ? AND account = ? AND sealed NOT NULL FROM webhook WHERE webhook > ? "
        "ORDER BY webhook LIMIT ?",
        (source, account, after, PURGE_STEP),
    ).fetchall()
    erased = _erase(connection, [webhook for webhook, wanted in window if wanted])
    return Forgotten(_unlink(connection, erased.names), erased.bodies, erased.pending), window[-1][0] if window else 0


class _Erased(Struct, frozen=True):
    """What an erasure took: bodies, deliveries that had not gone out, and whom now no webhook names any more."""

    bodies: int
    pending: int
    names: frozenset[bytes]


def _erase(connection: sqlite3.Connection, webhooks: Sequence[int]) -> _Erased:
    names: set[bytes] = set()
    pending = bodies = 0
    for webhook in webhooks:
        row = connection.execute("SELECT keys FROM named WHERE webhook = ?", (webhook,)).fetchone()
        names.update(_KEYS.decode(row[0]) if row else ())
        (unsent,) = connection.execute(
            "SELECT count(*) FROM delivery WHERE webhook = ? AND state < ?", (webhook, int(State.SENT))
        ).fetchone()
        pending += unsent
        bodies += connection.execute(
            "UPDATE webhook SET sealed = NULL, notes = x'' WHERE webhook = ? AND sealed NOT NULL", (webhook,)
        ).rowcount
        first, last = webhook * 1000, webhook * 1000 + 999
        connection.execute("UPDATE claim SET order_id = NULL WHERE payment BETWEEN ? AND ?", (first, last))
    _erase_rows(connection, webhooks)
    named = "SELECT 1 FROM subject WHERE key = ? LIMIT 1"
    gone = frozenset(key for key in names if connection.execute(named, (key,)).fetchone() is None)
    return _Erased(bodies, pending, gone)


def _unlink(connection: sqlite3.Connection, keys: Iterable[bytes]) -> int:
    return sum(connection.execute("DELETE FROM link WHERE key = ?", (key,)).rowcount for key in keys)


def _is_direct(connection: sqlite3.Connection, key: bytes) -> bool:
    """Whether somebody linked this subject, as far as any of its parts goes."""
    row = connection.execute("SELECT 1 FROM link WHERE key = ? AND NOT learned LIMIT 1", (key,)).fetchone()
    return row is not None


def _erase_rows(connection: sqlite3.Connection, webhooks: Sequence[int]) -> None:
    """Erase what was made of webhooks, and whom they name."""
    for webhook in webhooks:
        _unname(connection, webhook)
    for table in ("attempt", "delivery", "event"):
        connection.executemany(f"DELETE FROM {table} WHERE webhook = ?", [(each,) for each in webhooks])  # noqa: S608


def _unname(connection: sqlite3.Connection, webhook: int) -> None:
    """Erase whom a webhook names, from the index as well."""
    for (keys,) in connection.execute("DELETE FROM named WHERE webhook = ? RETURNING keys", (webhook,)).fetchall():
        named = [(key, webhook) for key in _KEYS.decode(keys)]
        connection.executemany("DELETE FROM subject WHERE key = ? AND waits IN (0, 1) AND webhook = ?", named)


# retention


def _purge(connection: sqlite3.Connection, now: int, retention: int) -> tuple[int, int]:
    """Purge one step: bodies past retention, then stubs past `CLAIMS_FOR`. Returns how many it was and had bodies.

    Rows are in order of arrival, but for a clock that was set back and for webhooks that overtook each other: the
    first that is too young ends a step, as `purged_to` must not pass it.
    """
    row = connection.execute("SELECT value FROM meta WHERE name = 'purged_to'").fetchone()
    purged_to = row[0] if row else 0
    window = connection.execute(
        "SELECT webhook, received_at FROM webhook WHERE webhook > ? ORDER BY webhook LIMIT ?", (purged_to, PURGE_STEP)
    ).fetchall()
    old = [row[:1] for row in takewhile(lambda row: row[1] < now - retention, window)]
    _erase_rows(connection, [each[0] for each in old])
    erase = "UPDATE webhook SET sealed = NULL, notes = x'' WHERE webhook = ? AND sealed NOT NULL"
    erased = connection.executemany(erase, old).rowcount if old else 0
    if old:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('purged_to', ?)", (old[-1][0],))
    stubs = connection.execute(
        "SELECT webhook, key, source, type, id FROM (SELECT webhook, key, source, type, id, received_at, sealed "
        "FROM webhook ORDER BY webhook LIMIT ?) WHERE received_at < ? AND sealed IS NULL",
        (PURGE_STEP, now - max(retention, CLAIMS_FOR)),
    ).fetchall()
    for webhook, key, *names in stubs:
        first, last = webhook * 1000, webhook * 1000 + 999
        connection.execute("DELETE FROM payment_key WHERE payment BETWEEN ? AND ?", (first, last))
        connection.execute("DELETE FROM claim WHERE payment BETWEEN ? AND ?", (first, last))
        connection.execute("DELETE FROM seen WHERE key = ?", (key,))
        listed = [(each, webhook) for each in _list_keys(*names)]
        connection.executemany("DELETE FROM listed WHERE key = ? AND webhook = ?", listed)
        connection.execute("DELETE FROM webhook WHERE webhook = ?", (webhook,))
    if connection.execute("SELECT 1 FROM webhook LIMIT 1").fetchone() is None:
        # Numbers begin anew when no row is left.
        connection.execute("DELETE FROM meta WHERE name IN ('purged_to', 'indexed_to', 'listed_to')")
    return len(old) + len(stubs), erased


def _purge_links(connection: sqlite3.Connection, now: int) -> None:
    connection.execute("DELETE FROM link WHERE expires_at <= ?", (now - EXPIRED_FOR,))
    connection.execute("DELETE FROM told WHERE at < ?", (now - CLAIMS_FOR,))
    connection.execute("DELETE FROM tally WHERE number = 0")


# moving to another store


def _copied(connection: sqlite3.Connection, after: int) -> list[tuple[int, CopiedWebhook]]:
    """Return one page of webhooks, with their numbers."""
    rows = connection.execute(
        "SELECT w.webhook, key, source, account, type, id, occurred_at, received_at, test, mapping, notes, sealed, "
        "coalesce(n.keys, x'90'), coalesce(n.teaches, 0) FROM webhook w LEFT JOIN named n ON n.webhook = w.webhook "
        "WHERE w.webhook > ? ORDER BY w.webhook LIMIT ?",
        (after, COPY_WEBHOOKS),
    ).fetchall()
    return [(row[0], _copied_webhook(connection, *row)) for row in rows]


def _copied_webhook(
    connection: sqlite3.Connection,
    webhook: int,
    key: bytes,
    source: str,
    account: str,
    type: str,
    id: str,
    occurred_at: int,
    received_at: int,
    test: int,
    mapping: str,
    notes: bytes,
    sealed: bytes | None,
    named: bytes,
    teaches: int,
) -> CopiedWebhook:
    subjects = tuple(_KEYS.decode(named))
    waits = (
        connection.execute(
            "SELECT 1 FROM subject WHERE key = ? AND waits = 1 AND webhook = ?", (*subjects[:1], webhook)
        ).fetchone()
        if subjects
        else None
    )
    events = connection.execute("SELECT id, sealed FROM event WHERE webhook = ? ORDER BY number", (webhook,))
    came = Acceptance(
        key=key,
        source=source,
        account=account,
        type=type,
        id=id,
        occurred_at=occurred_at,
        received_at=received_at,
        test=bool(test),
        mapping=mapping,
        sealed=sealed,
        notes=notes,
        events=tuple(NewEvent(event_id, event, ()) for event_id, event in events),
        subjects=subjects,
        unlinked=waits is not None,
        teaches=bool(teaches),
    )
    attempts = _attempts(connection, webhook)
    rows = connection.execute(
        "SELECT number, event, destination, state, reason, due_at, held_until, first_try_at, late, at, lane, rendered "
        "FROM delivery WHERE webhook = ? ORDER BY number",
        (webhook,),
    )
    return CopiedWebhook(came, tuple(_copied_delivery(attempts.get(row[0], ()), *row) for row in rows))


def _copied_delivery(
    attempts: Iterable[Attempt],
    number: int,
    event: int,
    destination: str,
    state: int,
    reason: str | None,
    due_at: int,
    held_until: int,
    first_try_at: int,
    late: int,
    at: int,
    lane: bytes | None,
    rendered: bytes | None,
) -> CopiedDelivery:
    return CopiedDelivery(
        number=number,
        event=event,
        destination=destination,
        state=State(state),
        reason=reason,
        due_at=due_at,
        held_until=held_until,
        first_try_at=first_try_at,
        late=late,
        at=at,
        lane=lane,
        rendered=rendered,
        attempts=tuple(attempts),
    )


def _copied_payments(connection: sqlite3.Connection, after: int) -> list[tuple[int, CopiedPayment]]:
    """Return one page of payments, with their numbers."""
    rows = connection.execute(
        "SELECT p.payment, w.key, w.source, w.account FROM "
        "(SELECT DISTINCT payment FROM payment_key WHERE payment > ? ORDER BY payment LIMIT ?) p "
        "JOIN webhook w ON w.webhook = p.payment / 1000 ORDER BY p.payment",
        (after, COPY_ROWS),
    ).fetchall()
    page = []
    for payment, webhook, source, account in rows:
        keys = connection.execute("SELECT key FROM payment_key WHERE payment = ?", (payment,)).fetchall()
        claims = connection.execute(
            "SELECT c.name, c.event_id, coalesce(w.key, x''), c.event, c.held_until, c.hold, c.order_id FROM claim c "
            "LEFT JOIN webhook w ON w.webhook = c.webhook WHERE c.payment = ?",
            (payment,),
        )
        made = tuple(CopiedClaim(*each) for each in claims)
        page.append((payment, CopiedPayment(webhook, source, account, tuple(key for (key,) in keys), made)))
    return page


def _adopt(connection: sqlite3.Connection, copied: CopiedWebhook) -> bool:
    if connection.execute("SELECT 1 FROM seen WHERE key = ?", (copied.came.key,)).fetchone() is not None:
        return False
    webhook = _add_webhook(connection, copied.came)
    connection.executemany(
        "INSERT INTO event VALUES (?, ?, ?, ?)",
        [(webhook, number, each.id, each.sealed) for number, each in enumerate(copied.came.events)],
    )
    connection.executemany(
        "INSERT INTO delivery VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)",
        [
            (
                webhook,
                each.number,
                each.event,
                each.destination,
                int(each.state),
                each.reason,
                each.due_at,
                each.held_until,
                len(each.attempts),
                each.first_try_at,
                each.rendered,
                each.late,
                each.at,
                each.lane,
            )
            for each in copied.deliveries
        ],
    )
    connection.executemany(
        "INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (webhook, delivery.number, number, each.at, each.took, each.status, each.outcome, each.response)
            for delivery in copied.deliveries
            for number, each in enumerate(delivery.attempts, 1)
        ],
    )
    return True


def _adopt_payment(connection: sqlite3.Connection, copied: CopiedPayment, now: int) -> None:
    """Store the claims under a payment of their own, which is then united with what is known of its keys."""
    owner = connection.execute("SELECT webhook FROM seen WHERE key = ?", (copied.webhook,)).fetchone()
    if owner is None:
        return  # retention took its webhook here, and so the payment
    fresh = _next_payment(connection, owner[0])
    for claim in copied.claims:
        row = connection.execute("SELECT webhook FROM seen WHERE key = ?", (claim.webhook,)).fetchone()
        webhook = row[0] if row else 0  # no webhook has that number, and it goes before all others
        if not _is_claimed(connection, copied.keys, claim, webhook):
            connection.execute(
                "INSERT INTO claim VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (fresh, claim.name, claim.event_id, webhook, claim.event, claim.held_until, claim.hold, claim.order),
            )
    payment = _unite(connection, copied.keys, fresh, now)
    if payment != fresh:
        _merge_claims(connection, fresh, payment, now)


def _is_claimed(connection: sqlite3.Connection, keys: Sequence[bytes], claim: CopiedClaim, webhook: int) -> bool:
    """Whether the event has the claim already: then what is known of it here stays."""
    marks = ",".join("?" * len(keys))
    row = connection.execute(
        "SELECT 1 FROM payment_key k JOIN claim c ON c.payment = k.payment "  # noqa: S608
        f"WHERE c.name = ? AND c.event_id = ? AND c.webhook = ? AND k.key IN ({marks}) LIMIT 1",
        (claim.name, claim.event_id, webhook, *keys),
    ).fetchone()
    return row is not None


def _adopt_request(connection: sqlite3.Connection, copied: OpenRequest) -> None:
    request = copied.request
    known = connection.execute(
        "SELECT 1 FROM request WHERE asked_at = ? AND kind = ? AND source = ? AND account = ? "
        "AND (done_at > 0 OR keys = ?)",
        (copied.asked_at, request.kind, request.source, request.account, _encode(request.keys)),
    ).fetchone()
    if known is None:
        _ask(connection, request, copied.asked_at)


def _stored_webhook(row: tuple) -> StoredWebhook:  # type: ignore[type-arg]
    number, source, account, type, id, occurred_at, received_at, test, mapping, notes, sealed = row
    return StoredWebhook(
        webhook=number,
        source=source,
        account=account,
        type=type,
        id=id,
        occurred_at=occurred_at,
        received_at=received_at,
        test=bool(test),
        mapping=mapping,
        notes=notes,
        sealed=sealed,
    )

"""One SQLite writer for many callers: their work shares transactions, and nobody hears of it before it is on disk.

Callers hand in an operation, a function over the connection, and await its result. All operations that arrive
during one turn of the event loop, or while the previous commit is at work, run in one transaction on the loop's
thread: SQLite needs microseconds for each, less than handing them to another thread would cost in switches of the
interpreter lock. Only COMMIT, which waits for the disk, runs in the writer's own thread; the connection is never
used by both at once. Results are given out after the commit, so whoever sees one may answer 2xx.

If an operation fails, the transaction is rolled back: nothing of the batch is kept. When the cause is the disk or
the file, every caller of the batch gets `StoreUnavailable`; otherwise the operations run again one by one, so that
only the faulty one fails. The next batch starts afresh, so a full disk that has room again needs no restart.

The write-ahead log is folded back by a connection of its own (a checkpoint inside COMMIT is what makes p99 jump).
A passive checkpoint never catches up with a busy writer, so once it has moved the bulk, the writer finishes the
few pages that are left and restarts the log between two commits.
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gateway.deliveries import StoreUnavailable

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

MAX_BATCH = 512
"""Operations in one transaction: bounds how long the loop is busy between two commits."""
CHECKPOINT_FRAMES = 8_192
"""Pages in the write-ahead log (of 4 KiB: 32 MiB) at which it is folded back."""

_OPERATIONS_OWN = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
    }
)
"""Result codes that speak of what an operation asked for. All others speak of the disk, the file or its locks."""


class GroupCommit:
    """The only writer of a database. Use from one event loop; `close` waits for what was handed in."""

    def __init__(self, path: Path, connect: Callable[[Path], sqlite3.Connection]) -> None:
        self._connection = connect(path)
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # opens the log and its index
        self._checkpointer = connect(path)
        self._index = os.open(path.with_name(path.name + "-shm"), os.O_RDONLY)
        self._waiting: list[tuple[Operation[Any], asyncio.Future[Any]]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._folder = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._folding = False
        self._folded = False
        self.failed: str | None = None
        """Why the last batch failed, or None when it was stored."""

    def submit(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Run `operation` in the next transaction; the future resolves after that is on disk."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((operation, future))
        if self._idle.is_set():
            self._idle.clear()
            loop.call_soon(self._run, loop)
        return future

    async def close(self) -> None:
        """Store what was handed in, fold the log back and close the file."""
        await self._idle.wait()
        self._committer.shutdown()
        self._folder.shutdown()
        self._checkpointer.close()
        self._connection.close()
        os.close(self._index)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        try:
            results = self._execute([operation for operation, _ in batch])
        except Exception as error:
            self._roll_back()
            if _ails_the_file(error):
                self._fail(batch, error)
                self._next(loop)
            elif len(batch) == 1:
                self._reject(batch[0][1], error)
                self._next(loop)
            else:
                self._one_by_one(loop, batch)
        else:
            self._commit(loop, batch, results)

    def _execute(self, operations: list[Operation[Any]]) -> list[Any]:
        self._connection.execute("BEGIN IMMEDIATE")
        return [operation(self._connection) for operation in operations]

    def _commit(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Operation[Any], asyncio.Future[Any]]],
        results: list[Any],
    ) -> None:
        def committed(outcome: "asyncio.Future[None]") -> None:
            if (error := outcome.exception()) is not None:
                self._roll_back()
                self._fail(batch, error)
            else:
                self.failed = None
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():  # its caller may have been cancelled meanwhile
                        future.set_result(result)
            self._next(loop)

        loop.run_in_executor(self._committer, self._commit_in_thread).add_done_callback(committed)

    def _commit_in_thread(self) -> None:
        self._connection.execute("COMMIT")
        if self._folded:
            self._folded = False
            with suppress(sqlite3.DatabaseError):  # what was committed is stored, whether the log can be folded or not
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
        elif not self._folding and self._frames() > CHECKPOINT_FRAMES:
            self._folding = True
            self._folder.submit(self._fold)

    def _frames(self) -> int:
        """Return how many pages the log holds. The file's size does not tell: a restarted log is written over.

        Rule: SQLite, "WAL-mode File Format", section 2.1: `mxFrame` in the header of the index.
        """
        return int.from_bytes(os.pread(self._index, 4, 16), sys.byteorder)

    def _fold(self) -> None:
        try:
            self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._folded = True
        except sqlite3.DatabaseError:
            # Whatever ails the disk, the next write meets it as well and reports it to its caller.
            self._folded = False
        finally:
            self._folding = False

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting:
            loop.call_soon(self._run, loop)
        else:
            self._idle.set()

    def _one_by_one(
        self, loop: asyncio.AbstractEventLoop, batch: list[tuple[Operation[Any], asyncio.Future[Any]]]
    ) -> None:
        """Store the operations of a failed batch each by itself: rare, so it may block on the disk."""
        for operation, future in batch:
            try:
                (result,) = self._execute([operation])
                self._connection.execute("COMMIT")
            except Exception as error:
                self._roll_back()
                if _ails_the_file(error):
                    self._fail([(operation, future)], error)
                else:
                    self._reject(future, error)
            else:
                if not future.done():
                    future.set_result(result)
        self._next(loop)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()

    def _fail(self, batch: list[tuple[Operation[Any], asyncio.Future[Any]]], error: BaseException) -> None:
        self.failed = f"{type(error).__name__}: {error}"
        for _, future in batch:
            self._reject(future, StoreUnavailable(self.failed))

    @staticmethod
    def _reject(future: "asyncio.Future[Any]", error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)


def _ails_the_file(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # errors of the sqlite3 module itself, as of binding, have none
    return code is not None and code & 0xFF not in _OPERATIONS_OWN

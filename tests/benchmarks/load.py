"""A load generator that costs less than what it loads: raw HTTP/1.1 over 32 kept-alive connections."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import cast

import uvloop
from msgspec import Struct

CONNECTIONS = 32
WITHIN = 300.0


class Result(Struct, frozen=True):
    """What a run measured: how long it took, in seconds; answers a second; how long 99 % of them took, in ms."""

    took: float
    rate: float
    p99: float


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], finished: asyncio.Event, times: list[float], failed: list[bytes]):
        self._requests = requests
        self._finished = finished
        self._times = times
        self._failed = failed
        self._sent_at = 0.0
        self._answer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is one in all but name
        self._next()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not data.endswith(b"}"):  # head and body came apart
            return
        self._times.append(time.perf_counter() - self._sent_at)
        if not self._answer.startswith(b"HTTP/1.1 200"):
            self._failed.append(self._answer)
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._finished.set()
            return
        self._answer = b""
        self._sent_at = time.perf_counter()
        self._transport.write(request)


async def _run(port: int, requests: Sequence[bytes]) -> Result:
    loop = asyncio.get_running_loop()
    source, times, failed = iter(requests), list[float](), list[bytes]()
    events = [asyncio.Event() for _ in range(CONNECTIONS)]
    started = time.perf_counter()
    for event in events:
        await loop.create_connection(partial(_Connection, source, event, times, failed), "127.0.0.1", port)
    await asyncio.gather(*(event.wait() for event in events))
    took = time.perf_counter() - started
    times.sort()
    if failed:  # a server that refuses is quick
        raise RuntimeError(f"{len(failed)} of {len(times)} webhooks were refused: {failed[0]!r}")
    return Result(took, len(times) / took, times[int(len(times) * 0.99)] * 1000)


Load = Callable[[int, Sequence[bytes]], Result]
"""Sends each request once to a port, and measures. Raises `RuntimeError` when one is not answered with 200."""


@contextmanager
def sender(core: int) -> Iterator[Load]:
    """Keep a process that sends, pinned to a core, while the block runs."""
    with get_context("spawn").Pool(1, os.sched_setaffinity, (0, {core})) as pool:

        def load(port: int, requests: Sequence[bytes]) -> Result:
            return pool.apply(_load, (port, requests))

        yield load


def _load(port: int, requests: Sequence[bytes]) -> Result:
    return uvloop.run(asyncio.wait_for(_run(port, requests), WITHIN))

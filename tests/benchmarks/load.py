"""A load generator that costs less than what it loads: raw HTTP/1.1 over 32 kept-alive connections."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import uvloop
from msgspec import Struct

CONNECTIONS = 32


class Result(Struct, frozen=True):
    """What a run measured. `rate` is answers a second; `p99` is in ms."""

    rate: float
    p99: float
    failures: int


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], finished: asyncio.Event, times: list[float], failed: list[bytes]):
        self._requests = requests
        self._finished = finished
        self._times = times
        self._failed = failed
        self._sent_at = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is one in all but name
        self._next()

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"}"):  # head and body came apart
            return
        self._times.append(time.perf_counter() - self._sent_at)
        if data.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
            self._failed.append(data)
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._finished.set()
            return
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
    return Result(len(times) / took, times[int(len(times) * 0.99)] * 1000, len(failed))


def load(port: int, requests: Sequence[bytes], core: int) -> Result:
    """Send each request once, from this process pinned to `core`, and measure."""
    os.sched_setaffinity(0, {core})
    return uvloop.run(asyncio.wait_for(_run(port, requests), 120))


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return the bytes of one request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

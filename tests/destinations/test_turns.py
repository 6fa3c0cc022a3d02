"""What a loop holds ready while it sends: never more than may be sent in time, and nothing of it is lost or late."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from gateway.deliveries import Settlement, State
from gateway.delivery import LEASE, MARGIN, DeliveryLoop
from gateway.destinations import Destination
from gateway.pacing import FAILURES
from gateway.sending import HttpSender
from gateway.store.sqlite import SqliteStore
from tests.destinations.fakes import NOW
from tests.destinations.test_collectors import SEALER, acceptance
from tests.destinations.test_rendering import PLAIN, destination, event

EVENTS = 12


class Held:
    """A collector that answers a request only when it is told to, the oldest first."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._waiting: deque[asyncio.Future[int]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the loop is done, and its client has hung up
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                self.names.append(msgspec.json.decode(await reader.readexactly(length))["name"])
                answer = asyncio.get_running_loop().create_future()
                self._waiting.append(answer)
                writer.write(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % await answer)
        writer.close()

    def answer(self, status: int = 200) -> None:
        """Answer all that wait now."""
        while self._waiting:
            self._waiting.popleft().set_result(status)


class Turning:
    """A running loop over a store and a collector of its own, with the settlements that it handed in together."""

    def __init__(self, store: SqliteStore, collector: Held, to: Destination) -> None:
        self.store = store
        self.collector = collector
        self.now = NOW
        self.settled: list[int] = []
        self._sender = HttpSender(to.concurrency)
        self._settle = store.settle
        store.settle = self.settle  # type: ignore[method-assign]
        self.loop = DeliveryLoop("batching", lambda: to, store, SEALER, self._sender, lambda: self.now, lambda _l, h: h)
        self.task = asyncio.create_task(self.loop.run())

    async def settle(self, settlements: Sequence[Settlement]) -> int:
        held = await self._settle(settlements)
        self.settled.append(len(settlements))
        return held

    async def states(self) -> list[State]:
        return [each.state for each in await self.store.deliveries(1)]

    async def until(self, holds: Callable[[list[State]], bool]) -> list[State]:
        async with asyncio.timeout(30):
            while True:
                if holds(states := await self.states()):
                    return states
                await asyncio.sleep(0.01)

    async def stop(self) -> list[State]:
        """Stop, while the collector answers what is under way."""
        self.loop.stop()
        async with asyncio.timeout(30):
            while not self.task.done():
                self.collector.answer()
                await asyncio.sleep(0.01)
        await self.task
        return await self.states()

    async def close(self) -> None:
        await self.stop()
        await self._sender.close()


@asynccontextmanager
async def turning(folder: Path, concurrency: int) -> AsyncIterator[Turning]:
    collector, store = Held(), SqliteStore.open(folder / "g.db", SEALER.fingerprint())
    async with await asyncio.start_server(collector.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        to = structs.replace(destination(PLAIN, f"http://127.0.0.1:{port}/"), concurrency=concurrency)
        await store.accept(acceptance([event(number) for number in range(1, EVENTS + 1)], to))
        made = Turning(store, collector, to)
        try:
            yield made
        finally:
            await made.close()
            await store.close()


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_as_many_are_held_ready_as_are_under_way(tmp_path: Path, concurrency: int) -> None:
    async with turning(tmp_path, concurrency) as turned:
        await turned.until(lambda _: turned.collector.waiting == concurrency)
        states = await turned.until(lambda states: State.LEASED in states)
    assert states.count(State.LEASED) == 2 * concurrency


async def test_what_was_held_ready_when_it_stopped_is_due_at_once(tmp_path: Path) -> None:
    async with turning(tmp_path, 2) as turned:
        await turned.until(lambda _: turned.collector.waiting == 2)
        states = await turned.stop()
        deliveries = await turned.store.deliveries(1)
    assert states == [State.SENT] * 2 + [State.DUE] * (EVENTS - 2)
    assert all(each.due_at <= NOW and not each.attempts for each in deliveries[2:])


async def test_everything_goes_out_once_and_in_the_order_in_which_it_fell_due(tmp_path: Path) -> None:
    async with turning(tmp_path, 1) as turned:
        while len(turned.collector.names) < EVENTS:
            await turned.until(lambda _: turned.collector.waiting == 1)
            turned.collector.answer()
            await asyncio.sleep(0)
        await turned.until(lambda states: set(states) == {State.SENT})
    assert turned.collector.names == [f"event_{number}" for number in range(1, EVENTS + 1)]


async def test_a_destination_at_rest_holds_nothing_ready(tmp_path: Path) -> None:
    async with turning(tmp_path, 2) as turned:
        while len(turned.collector.names) < FAILURES or turned.collector.waiting:
            await turned.until(lambda _: turned.collector.waiting > 0)
            turned.collector.answer(500)
            await asyncio.sleep(0.05)
        states = await turned.until(lambda states: State.LEASED not in states)
        assert turned.loop.pace.pause(turned.now) > 0
    assert set(states) == {State.DUE}


async def test_what_was_held_ready_too_long_is_not_sent_under_a_lease_that_may_end(tmp_path: Path) -> None:
    async with turning(tmp_path, 2) as turned:
        await turned.until(lambda _: turned.collector.waiting == 2)
        await turned.until(lambda states: states.count(State.LEASED) == 4)
        turned.now += LEASE - MARGIN + 1
        turned.collector.answer()
        await turned.until(lambda _: turned.collector.waiting == 2)
        await turned.until(lambda _: sum(turned.settled) >= 4)
    assert turned.collector.names[2:4] == ["event_5", "event_6"]


async def test_answers_that_come_together_are_settled_together(tmp_path: Path) -> None:
    async with turning(tmp_path, 8) as turned:
        while State.DUE in await turned.states() or turned.collector.waiting:
            await turned.until(lambda _: turned.collector.waiting > 0)
            turned.collector.answer()
            await asyncio.sleep(0.01)
        await turned.until(lambda states: set(states) == {State.SENT})
    assert len(turned.settled) < sum(turned.settled) == EVENTS

"""What becomes of deliveries when a collector refuses, wants money, says nothing, or leaves meanwhile."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar import Litestar, Request, Response, post
from msgspec import structs

from gateway.deliveries import NEVER, State, StoredDelivery
from gateway.delivery import DeliveryLoop, DeliveryLoops
from gateway.destinations import Destination
from gateway.mappings import Mappings
from gateway.sending import HttpSender
from gateway.server import running
from gateway.store.sqlite import SqliteStore
from tests.destinations.fakes import NOW
from tests.destinations.test_collectors import SEALER, acceptance
from tests.destinations.test_rendering import BATCH, PLAIN, destination, event
from tests.destinations.test_sender import saying, serving

MINUTE = 60_000


def answering(answer: Callable[[Any], int]) -> Litestar:
    """A collector whose answer depends on what it gets."""

    @post("/sink", status_code=200)
    async def collect(request: Request[Any, Any, Any]) -> Response[str]:
        return Response("", status_code=answer(msgspec.json.decode(await request.body())))

    return Litestar([collect], openapi_config=None, logging_config=None)


class Turned:
    """A loop that is turned by hand, over a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore.open(folder / "g.db", SEALER.fingerprint())
        self.sender = HttpSender(8)
        self.now = NOW
        self.webhook = 0

    async def accept(self, to: Destination, number: int = 1) -> None:
        events = [event(each) for each in range(1, number + 1)]
        self.webhook = (await self.store.accept(acceptance(events, to))).webhook

    async def step(self, to: Destination) -> list[StoredDelivery]:
        loop = DeliveryLoop("batching", lambda: to, self.store, SEALER, self.sender, lambda: self.now, lambda _l, h: h)
        await loop.step()
        return await self.store.deliveries(self.webhook)


@pytest.fixture
async def turned(tmp_path: Path) -> AsyncIterator[Turned]:
    made = Turned(tmp_path)
    yield made
    await made.sender.close()
    await made.store.close()


@pytest.mark.parametrize("bad", [{"event_3"}, {"event_1", "event_7"}, set()])
async def test_a_batch_that_is_refused_whole_is_split_until_the_bad_ones_are_alone(
    turned: Turned, bad: set[str]
) -> None:
    def answer(body: Any) -> int:
        return 400 if bad & {each["name"] for each in body["events"]} else 200

    with running(answering(answer)) as url:
        to = structs.replace(destination(BATCH, f"{url}/sink"), max_bytes=10_000, max_events=8)
        await turned.accept(to, 8)
        states = [each.state for each in await turned.step(to)]
    assert states == [State.DEAD if f"event_{number}" in bad else State.SENT for number in range(1, 9)]


async def test_a_wrong_address_is_no_reason_to_split(turned: Turned) -> None:
    requests: list[Any] = []

    def answer(body: Any) -> int:
        requests.append(body)
        return 404

    with running(answering(answer)) as url:
        to = structs.replace(destination(BATCH, f"{url}/sink"), max_bytes=10_000, max_events=8)
        await turned.accept(to, 8)
        states = {each.state for each in await turned.step(to)}
    assert (states, len(requests)) == ({State.DEAD}, 1)


async def test_a_slow_split_gives_back_what_it_has_no_time_for_and_sends_nothing_twice(turned: Turned) -> None:
    taken: list[str] = []

    def answer(body: Any) -> int:
        turned.now += 12_000  # a lease lasts a minute
        names = [each["name"] for each in body["events"]]
        if "event_5" in names:
            return 400
        taken.extend(names)
        return 200

    with running(answering(answer)) as url:
        to = structs.replace(destination(BATCH, f"{url}/sink"), max_bytes=10_000, max_events=8)
        await turned.accept(to, 8)
        first = [each.state for each in await turned.step(to)]
        for _ in range(4):
            deliveries = await turned.step(to)
    assert State.DUE in first
    assert [each.state for each in deliveries] == [State.SENT] * 4 + [State.DEAD] + [State.SENT] * 3
    assert sorted(taken) == sorted(f"event_{number}" for number in range(1, 9) if number != 5)


async def test_a_quota_parks_and_is_asked_again_however_long_it_takes(turned: Turned) -> None:
    answers = [402, 402, 402, 200]
    with running(answering(lambda _: answers.pop(0))) as url:
        to = destination(f"{PLAIN}park: {{on: [402], for: 1d}}\nretry: {{on: [5xx], for: 1h}}\n", f"{url}/sink")
        await turned.accept(to)
        for _ in range(3):
            (parked,) = await turned.step(to)
            assert (parked.state, parked.reason) == (State.PARKED, "http_402")
            assert parked.due_at == turned.now + 24 * 60 * MINUTE
            turned.now = parked.due_at
        (sent,) = await turned.step(to)
    assert (sent.state, len(sent.attempts)) == (State.SENT, 4)


@pytest.mark.parametrize(
    ("keys", "state"),
    [
        ("", State.DUE),
        ("uncertain: park\n", State.PARKED),
        ("uncertain: park\ndedup: {field: id, window: 24h}\n", State.DUE),
    ],
)
async def test_a_silence_parks_only_where_a_second_try_could_count_twice(
    turned: Turned, keys: str, state: State
) -> None:
    async with serving(saying(b"")) as url:
        to = destination(PLAIN + keys, url)
        await turned.accept(to)
        (delivery,) = await turned.step(to)
    assert delivery.state == state
    assert (delivery.due_at == NEVER) == (state == State.PARKED)
    assert str(delivery.reason).startswith("uncertain: " if state == State.PARKED else "network")


async def test_a_silence_parks_when_the_collector_has_forgotten_the_first_try(turned: Turned) -> None:
    async with serving(saying(b"")) as url:
        to = destination(f"{PLAIN}uncertain: park\ndedup: {{field: id, window: 1m}}\n", url)
        await turned.accept(to)
        states = []
        for _ in range(8):
            (delivery,) = await turned.step(to)
            states.append(delivery.state)
            if delivery.state == State.PARKED:
                break
            turned.now = delivery.due_at
    assert states[-1] == State.PARKED
    assert turned.now <= NOW + MINUTE


async def test_a_refused_connection_was_never_sent_and_is_tried_again(turned: Turned) -> None:
    to = destination(f"{PLAIN}uncertain: park\n", "http://127.0.0.1:9/")
    await turned.accept(to)
    (delivery,) = await turned.step(to)
    assert delivery.state == State.DUE


async def test_an_event_that_is_too_old_is_skipped(turned: Turned) -> None:
    to = destination(f"{PLAIN}max_age: 72h\n", "http://127.0.0.1:9/")
    await turned.accept(to)
    turned.now += 73 * 60 * MINUTE
    (delivery,) = await turned.step(to)
    assert (delivery.state, delivery.reason, delivery.attempts) == (State.SKIPPED, "too_old", ())


class Gate:
    """A collector that holds every request until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.held = threading.Semaphore(0)
        self.seen = 0

    def app(self) -> Litestar:
        @post("/sink", status_code=200)
        async def collect() -> None:
            self.seen += 1
            self.held.release()
            await asyncio.to_thread(self.opened.wait, 20)

        return Litestar([collect], openapi_config=None, logging_config=None)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.held.acquire, timeout=20)


def in_force(*destinations: Destination) -> Mappings:
    return Mappings({}, {each.name: each for each in destinations}, {}, ())


async def test_a_stop_waits_for_what_is_under_way_even_in_a_loop_that_left(tmp_path: Path) -> None:
    gate, now = Gate(), [NOW]
    store = SqliteStore.open(tmp_path / "g.db", SEALER.fingerprint())
    with running(gate.app()) as url:
        to = destination(PLAIN, f"{url}/sink")
        mappings = [in_force(to)]
        loops = DeliveryLoops(lambda: mappings[0], store, SEALER, lambda: now[0], lambda _low, high: high)
        loops.follow()
        webhook = (await store.accept(acceptance([event(1)], to))).webhook
        loops.wake(frozenset({"batching"}))
        await gate.wait()
        mappings[0] = in_force(structs.replace(to, concurrency=2))  # another limit: another loop
        loops.follow()
        mappings[0] = in_force()  # and none at all
        loops.follow()
        stopping = asyncio.create_task(loops.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        gate.opened.set()
        await stopping
        (delivery,) = await store.deliveries(webhook)
    alive = [task.get_name() for task in asyncio.all_tasks() if "batching" in task.get_name()]
    await store.close()
    assert (delivery.state, gate.seen, alive) == (State.SENT, 1, [])


async def test_a_newcomer_does_not_wait_for_one_that_leaves(tmp_path: Path) -> None:
    gate = Gate()
    store = SqliteStore.open(tmp_path / "g.db", SEALER.fingerprint())
    sent: list[Any] = []

    def answer(body: Any) -> int:
        sent.append(body)
        return 200

    with running(gate.app()) as slow, running(answering(answer)) as quick:
        leaving = destination(PLAIN, f"{slow}/sink")
        coming = structs.replace(destination(PLAIN, f"{quick}/sink"), name="coming")
        mappings = [in_force(leaving)]
        loops = DeliveryLoops(lambda: mappings[0], store, SEALER, lambda: NOW, lambda _low, high: high)
        loops.follow()
        await store.accept(acceptance([event(1)], leaving))
        loops.wake(frozenset({"batching"}))
        await gate.wait()
        mappings[0] = in_force(coming)
        loops.follow()
        await store.accept(structs.replace(acceptance([event(2)], coming), key=b"another webhook."))
        loops.wake(frozenset({"coming"}))
        for _ in range(500):
            if sent:
                break
            await asyncio.sleep(0.01)
        assert len(sent) == 1
        gate.opened.set()
        await loops.stop()
    await store.close()


async def test_nothing_starts_once_it_was_stopped(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "g.db", SEALER.fingerprint())
    to = destination(PLAIN, "http://127.0.0.1:9/")
    loops = DeliveryLoops(lambda: in_force(to), store, SEALER, lambda: NOW, lambda _low, high: high)
    await loops.stop()
    loops.follow()
    assert loops.stopped() == []
    assert not [task for task in asyncio.all_tasks() if "batching" in task.get_name()]
    await store.close()

"""Promises 4 to 6: each try under the same key with the same bytes, nothing dropped without reason, nobody held up."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.deliveries import Acceptance, NewDelivery, NewEvent, State, StoredDelivery
from gateway.delivery import DeliveryLoop
from gateway.destinations import Destination
from gateway.events import Event, ProductIds, Visitor, encode_event
from gateway.links import seal_visitor
from gateway.mappings import bundled, load_mappings
from gateway.sealing import Sealer
from gateway.sending import USER_AGENT, HttpSender
from gateway.server import running
from gateway.store.sqlite import SqliteStore
from gateway.translate import event_key
from tests.promises.collector import Collector

NOW = 1_800_000_000_000
HOUR = 3_600_000
SEALER = Sealer(b"k" * 32)
EVENT = Event(
    id="5868e43f-a182-5e8f-8458-7e7b346969d9",
    name="purchase",
    at=NOW,
    properties={"order_id": "1"},
    source="stripe",
    webhook_id="evt_1",
    type="t",
    rule="r",
)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def destination_at(url: str) -> Destination:
    variables = {"WEBHOOK_URL": url, "WEBHOOK_SECRET": "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ="}
    return load_mappings(bundled(), variables.get).destinations["webhook"]


class Outgoing:
    """One destination's loop, turned by hand, and what becomes of one event."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.sender = HttpSender(4)
        self.webhook = 0
        self.destination = destination_at("http://127.0.0.1:9/nobody")

    async def accept(self, event: Event = EVENT) -> None:
        delivery = NewDelivery("webhook")
        acceptance = Acceptance(
            key=event_key(event.id),
            source="stripe",
            account="",
            type="t",
            id="evt_1",
            occurred_at=NOW,
            received_at=self.clock.now,
            test=False,
            mapping="m",
            sealed=b"",
            notes=b"[]",
            events=(NewEvent(event_key(event.id), SEALER.seal(encode_event(event), b"event"), (delivery,)),),
        )
        self.webhook = (await self.store.accept(acceptance)).webhook

    async def step(self) -> StoredDelivery:
        loop = DeliveryLoop(
            "webhook", lambda: self.destination, self.store, SEALER, self.sender, self.clock, lambda _low, high: high
        )
        await loop.step()
        (delivery,) = await self.store.deliveries(self.webhook)
        return delivery


@pytest.fixture
async def outgoing(tmp_path: Path) -> AsyncIterator[Outgoing]:
    store = SqliteStore.open(tmp_path / "gateway.db", SEALER.fingerprint())
    outgoing = Outgoing(store, Clock())
    await outgoing.accept()
    yield outgoing
    await outgoing.sender.close()
    await store.close()


@pytest.fixture
def scripted(outgoing: Outgoing, request: pytest.FixtureRequest) -> Iterator[Collector]:
    collector = Collector(request.param)
    with running(collector.app()) as url:
        outgoing.destination = destination_at(f"{url}/sink")
        yield collector


def answers(*given: tuple[int, dict[str, str]] | int) -> pytest.MarkDecorator:
    script = [(each, {}) if isinstance(each, int) else each for each in given]
    return pytest.mark.parametrize("scripted", [script], indirect=True)


@answers(500, 429, 408, 200)
async def test_every_try_carries_the_same_key_and_the_same_bytes(outgoing: Outgoing, scripted: Collector) -> None:
    for _ in range(4):
        delivery = await outgoing.step()
        outgoing.clock.now += HOUR
    assert delivery.state == State.SENT
    assert [attempt.status for attempt in delivery.attempts] == [500, 429, 408, 200]
    assert {(headers["idempotency-key"], body) for headers, body in scripted.requests} == {
        (EVENT.id, scripted.requests[0][1])
    }


@answers(500, 200)
async def test_a_later_try_sends_what_the_first_sent_though_the_mapping_changed(
    outgoing: Outgoing, scripted: Collector
) -> None:
    await outgoing.step()
    outgoing.destination = msgspec.structs.replace(outgoing.destination, event=lambda _document, _scope: {"new": True})
    outgoing.clock.now += HOUR
    await outgoing.step()
    assert scripted.requests[0][1] == scripted.requests[1][1]


@answers(400)
async def test_a_4xx_is_dead_at_once_with_its_answer_kept(outgoing: Outgoing, scripted: Collector) -> None:
    delivery = await outgoing.step()
    assert (delivery.state, delivery.reason) == (State.DEAD, "http_400")
    kept = delivery.attempts[0].response
    assert kept is not None
    assert SEALER.open(kept, b"response") == b"answer"


@answers((503, {"retry-after": "7200"}), 200)
async def test_retry_after_is_honoured(outgoing: Outgoing, scripted: Collector) -> None:
    delivery = await outgoing.step()
    assert (delivery.state, delivery.due_at - NOW) == (State.DUE, 7_200_000)
    assert delivery.reason == "http_503"


@answers(*[500] * 200)
async def test_it_gives_up_after_three_days_with_the_reason(outgoing: Outgoing, scripted: Collector) -> None:
    while (delivery := await outgoing.step()).state == State.DUE:
        outgoing.clock.now = delivery.due_at
    assert (delivery.state, delivery.reason) == (State.DEAD, "gave up: http_500")
    assert outgoing.clock.now - NOW <= 3 * 24 * HOUR
    assert outgoing.clock.now - NOW > 2.9 * 24 * HOUR


async def test_a_collector_that_is_not_there_is_tried_again(outgoing: Outgoing) -> None:
    delivery = await outgoing.step()
    reason = "network: the connection was refused: nothing listens on this port"
    assert (delivery.state, delivery.reason) == (State.DUE, reason)


@answers(302)
async def test_a_redirect_is_not_followed(outgoing: Outgoing, scripted: Collector) -> None:
    delivery = await outgoing.step()
    assert (delivery.state, delivery.reason) == (State.DEAD, "http_302")


@answers(200)
async def test_it_goes_out_under_our_own_name(outgoing: Outgoing, scripted: Collector) -> None:
    await outgoing.step()
    assert scripted.requests[0][0]["user-agent"] == USER_AGENT


@answers(200, 200)
async def test_a_link_that_came_after_the_webhook_still_counts(outgoing: Outgoing, scripted: Collector) -> None:
    user, customer = SEALER.subject_key("user", "42"), SEALER.subject_key("stripe_customer", "cus_1")
    late = msgspec.structs.replace(
        EVENT, id="00000000-0000-5000-8000-000000000001", subjects={"user": user, "stripe_customer": customer}
    )
    await outgoing.accept(late)
    visitor = Visitor({"": ProductIds("anon_1")})
    await outgoing.store.link(seal_visitor(visitor, [user], NOW, SEALER), NOW)
    await outgoing.step()
    (body,) = scripted.wait_for(1, lambda body: body["data"]["id"] == late.id)
    assert (body["data"]["visitor_id"], body["data"]["linked_by"]) == ("anon_1", "user")
    assert customer in await outgoing.store.resolve([customer])  # and it taught the other subject


async def test_what_the_file_cannot_write_is_dead_with_the_reason(outgoing: Outgoing) -> None:
    outgoing.destination = msgspec.structs.replace(
        outgoing.destination, event=lambda _document, _scope: {"x": "\ud800"}
    )
    delivery = await outgoing.step()
    assert delivery.state == State.DEAD
    assert delivery.reason is not None
    assert delivery.reason.startswith("unrenderable: destination `webhook` cannot write event `purchase`")


async def test_what_cannot_be_opened_is_dead_with_the_reason(outgoing: Outgoing) -> None:
    loop = DeliveryLoop(
        "webhook",
        lambda: outgoing.destination,
        outgoing.store,
        Sealer(b"x" * 32),
        outgoing.sender,
        outgoing.clock,
        lambda _low, high: high,
    )
    await loop.step()
    (delivery,) = await outgoing.store.deliveries(outgoing.webhook)
    assert delivery.state == State.DEAD
    assert str(delivery.reason).startswith("unreadable: this event cannot be opened")


async def test_counts_balance(outgoing: Outgoing) -> None:
    await outgoing.step()
    counts = (await outgoing.store.counts())["webhook"]
    assert counts.accepted == counts.sent + counts.skipped + counts.pending + counts.dead == 1

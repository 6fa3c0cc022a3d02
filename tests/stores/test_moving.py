"""What is copied from one store to another is the same there, and goes on as if it had never moved."""

import asyncio
import sqlite3
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from msgspec import structs

from gateway.deliveries import (
    NEVER,
    Acceptance,
    Attempt,
    CopiedWebhook,
    DataRequest,
    LinkPart,
    NewDelivery,
    NewEvent,
    OpenRequest,
    Settlement,
    State,
    StoreMismatch,
    StoreUnavailable,
)
from gateway.moving import Copied, copy, copy_store
from gateway.sealing import Sealer, parse_key
from gateway.settings import Settings, SettingsError, load_settings
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from tests.stores.harness import FINGERPRINT, HARNESSES, Store
from tests.stores.reports import (
    DAY,
    DUE,
    DUPLICATE,
    MINUTE,
    NOW,
    SINK,
    SUPERSEDED,
    accept,
    event,
    key,
    lease,
    linked,
    part,
    report,
    settle,
    simple,
    states,
    tie,
    webhook,
)
from tests.stores.servers import Server, shared
from tests.stores.test_model import SUBJECTS, StoreAndModel, picks

WAITS = NewDelivery("sink", wait_until=NOW + 10 * MINUTE, late=True)
HELD = (State.WAITING, "hold")


class Pair:
    """A store and another one that it moves to."""

    def __init__(self, source: Store, target: Store) -> None:
        self.source = source
        self.target = target

    async def move(self, now: int = NOW) -> Copied:
        return await copy(self.source, self.target, now, lambda done, total: None)


@pytest.fixture(params=product(HARNESSES, HARNESSES), ids="-to-".join)
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    source, target = (HARNESSES[kind](tmp_path / place) for kind, place in zip(request.param, "ab", strict=True))
    yield Pair(await source.open(), await target.open())
    await source.close()
    await target.close()


async def number_of(store: Store, id: str) -> int:
    (found,) = await store.find(id)
    return found


async def seen(store: Store) -> list[object]:
    """Return all that the console shows of each webhook, oldest first, but for its number."""
    found: list[object] = []
    for listed in reversed(await store.webhooks(limit=1000)):
        kept = await store.webhook(listed.webhook)
        assert kept is not None
        found.append(structs.replace(kept, webhook=0))
        found += [structs.replace(each, webhook=0) for each in await store.deliveries(listed.webhook)]
    return found


async def try_it(store: Store, outcome: State, **how: Any) -> None:
    """Lease the one delivery that is due and try it, with an answer and what was sent."""
    (leased,) = await lease(store)
    tried = Attempt(NOW, 5, 503, "why", b"answer")
    await store.settle([Settlement(leased, outcome, "why", attempt=tried, rendered=b"as sent", **how)])


async def fill(store: Store) -> None:
    """Leave something in each state that there is."""
    await accept(store, simple("gone out"))
    await settle(store, State.SENT)
    await accept(store, simple("dead"))
    await settle(store, State.DEAD)
    await accept(store, simple("parked"))
    await try_it(store, State.PARKED, due_at=NEVER)
    await accept(store, simple("again"))
    await try_it(store, State.DUE, due_at=NOW + MINUTE)
    await accept(store, simple("skipped", skip="no_consent"), webhook("nothing"), report("held", "pi", hold=MINUTE))
    await accept(store, webhook("waits", event("waits", WAITS, NewDelivery("other")), subjects=("user", "cart")))
    await store.link([part("email", "linked"), part("email", "elsewhere", product="nexly")], NOW)


async def test_each_webhook_and_delivery_is_the_same_there(pair: Pair) -> None:
    await fill(pair.source)
    assert await pair.move() == Copied(webhooks=8, links=1, known=0)
    assert await seen(pair.target) == await seen(pair.source)
    assert await pair.target.counts() == await pair.source.counts()
    assert await pair.target.resolve([key("email")]) == await pair.source.resolve([key("email")])


async def test_what_subjects_a_webhook_names_is_known_there(pair: Pair) -> None:
    await fill(pair.source)
    await pair.move()
    assert await pair.target.naming([key("cart")]) == [await number_of(pair.target, "waits")]
    assert (await pair.target.forget([key("user")])).webhooks == 1


async def test_a_second_copy_finds_all_there(pair: Pair) -> None:
    await fill(pair.source)
    await pair.source.ask(DataRequest("forget", "stripe", "", (key("user"),)), NOW)
    await pair.move()
    before = await seen(pair.target)
    assert await pair.move() == Copied(webhooks=0, links=0, known=8)
    assert await seen(pair.target) == before
    assert len(await pair.target.asked()) == 1


async def test_what_the_target_did_since_stays(pair: Pair) -> None:
    await fill(pair.source)
    await pair.move()
    await settle(pair.target, State.SENT, NOW + MINUTE + 1) if False else None
    leases = await lease(pair.target, NOW + 2 * MINUTE)
    await pair.target.settle([Settlement(each, State.SENT) for each in leases])
    await pair.target.link([part("email", "newer", NOW + 1)], NOW + 1)
    before = await seen(pair.target)
    await pair.move(NOW + 2 * MINUTE)
    assert await seen(pair.target) == before
    assert (await linked(pair.target, "email"))[""] == b"newer"


async def test_a_copy_that_was_cut_off_is_finished_by_the_next(pair: Pair) -> None:
    await fill(pair.source)
    await accept(pair.source, *(report(f"more {each}", f"pi {each}") for each in range(250)))
    adopted: list[CopiedWebhook] = []
    wanted = pair.target.adopt

    async def fails_at_the_ninth(copied: CopiedWebhook) -> bool:
        adopted.append(copied)
        if len(adopted) > 9:
            raise StoreUnavailable("the network is gone")
        return await wanted(copied)

    pair.target.adopt = fails_at_the_ninth  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await pair.move()
    pair.target.adopt = wanted  # type: ignore[method-assign]
    assert (await pair.move()).known == 9
    assert await seen(pair.target) == await seen(pair.source)
    assert await states(pair.target, *await accept(pair.target, report("late", "pi 7"))) == [DUPLICATE]


async def test_a_webhook_that_comes_again_is_a_duplicate_there(pair: Pair) -> None:
    await accept(pair.source, simple("a"))
    await accept(pair.target, simple("older"))  # so that the numbers differ
    await pair.move()
    receipt = await pair.target.accept(simple("a", NOW + DAY))
    assert receipt.duplicate
    assert receipt.webhook == await number_of(pair.target, "a")


async def test_a_payment_counts_once_there(pair: Pair) -> None:
    await accept(pair.source, report("a", "pi", order=b"order 1"), report("b", "ch"), tie("ab", "pi", "in"))
    await accept(pair.target, simple("older"))
    await pair.move()
    assert await states(pair.target, *await accept(pair.target, report("again", "in"), report("b again", "ch"))) == [
        DUPLICATE,
        DUPLICATE,
    ]
    assert await pair.target.order_of([key("in")]) == b"order 1"


async def test_what_is_on_hold_steps_back_there_for_a_surer_report(pair: Pair) -> None:
    await accept(pair.source, report("held", "pi", hold=MINUTE))
    await accept(pair.target, simple("older", skip="no_consent"))
    await pair.move()
    surer = await accept(pair.target, report("surer", "pi"))
    assert await states(pair.target, await number_of(pair.target, "held"), *surer) == [SUPERSEDED, DUE]


async def test_what_is_on_hold_goes_out_there_when_its_time_has_come(pair: Pair) -> None:
    await accept(pair.source, report("held", "pi", hold=MINUTE))
    await pair.move()
    assert await lease(pair.target, NOW + MINUTE - 1) == []
    assert len(await lease(pair.target, NOW + MINUTE)) == 1


async def test_a_report_that_is_surer_than_the_one_it_took_the_place_of_stays_so(pair: Pair) -> None:
    await accept(pair.source, report("held", "pi", hold=2 * MINUTE), report("surer", "pi", hold=MINUTE))
    await pair.move()
    after = await accept(pair.target, report("less sure", "pi", hold=2 * MINUTE), report("surest", "pi"))
    assert await states(pair.target, *after) == [DUPLICATE, DUE]
    assert await states(pair.target, await number_of(pair.target, "surer")) == [SUPERSEDED]


async def test_a_link_releases_there_what_waited_here(pair: Pair) -> None:
    await accept(pair.source, webhook("waits", event("waits", WAITS), subjects=("user", "cart")))
    await pair.move()
    assert await lease(pair.target) == []
    assert await pair.target.link([part("cart", "v-1")], NOW) == {"sink"}
    assert len(await lease(pair.target)) == 1
    assert await linked(pair.target, "user") == {"": b"v-1"}


async def test_a_link_that_comes_too_late_is_told_of_there(pair: Pair) -> None:
    await accept(pair.source, webhook("a", event("a", NewDelivery("sink", late=True)), subjects=("user",)))
    await settle(pair.source, State.SENT)
    await pair.move()
    assert await pair.target.link([part("user", "v-1")], NOW) == {"sink"}
    (told,) = await lease(pair.target)
    assert told.late


async def test_what_tells_of_a_late_link_still_does_there(pair: Pair) -> None:
    await accept(pair.source, webhook("a", event("a", NewDelivery("sink", late=True)), subjects=("user",)))
    await settle(pair.source, State.SENT)
    await pair.source.link([part("user", "v-1")], NOW)
    await pair.move()
    (told,) = await lease(pair.target)
    assert told.late
    assert await pair.target.link([part("user", "v-2", NOW + 1)], NOW + 1) == frozenset()  # nobody waits any more


async def test_a_link_that_only_the_target_knows_is_heard_by_what_comes(pair: Pair) -> None:
    await accept(pair.source, webhook("waits", event("waits", WAITS), subjects=("user",)))
    await pair.target.link([part("user", "v-1")], NOW)
    await pair.move()
    assert await states(pair.target, await number_of(pair.target, "waits")) == [DUE]


async def test_lessons_stay_lessons_and_go_where_they_came_from(pair: Pair) -> None:
    learned = [part("customer", "taught", by="user"), structs.replace(part("order", "carried"), taught_by=b"")]
    await pair.source.link(learned, NOW)
    await pair.move()
    assert await pair.target.resolve([key("customer"), key("order")]) == {each.key: [each] for each in learned}
    await pair.target.link([part("customer", "direct")], NOW)
    assert await linked(pair.target, "customer") == {"": b"direct"}


async def test_what_was_being_sent_is_due_there(pair: Pair) -> None:
    await accept(pair.source, simple("a"))
    await lease(pair.source)
    await pair.move()
    (again,) = await lease(pair.target)
    assert again.event == b"sealed a"


async def test_a_try_there_continues_the_tries_here(pair: Pair) -> None:
    await accept(pair.source, simple("a"))
    await try_it(pair.source, State.DUE, due_at=NOW)
    await pair.move()
    (again,) = await lease(pair.target)
    assert (again.attempts, again.first_try_at, again.rendered) == (1, NOW, b"as sent")
    await pair.target.settle([Settlement(again, State.SENT, attempt=Attempt(NOW + 1, 5, 200, "sent"))])
    (delivery,) = await pair.target.deliveries(again.webhook)
    assert [each.status for each in delivery.attempts] == [503, 200]


async def test_a_lane_keeps_its_order_there(pair: Pair) -> None:
    lane = NewDelivery("sink", lane=key("ada"))
    for id, at in (("second", NOW), ("first", NOW - MINUTE), ("third", NOW + 1)):
        await accept(pair.source, webhook(id, NewEvent(key(id), id.encode(), (lane,), at=at)))
    await pair.move()
    order = []
    for _ in range(3):
        (front,) = await lease(pair.target)
        order.append(front.event)
        await pair.target.settle([Settlement(front, State.SENT)])
    assert order == [b"first", b"second", b"third"]


async def test_what_was_told_of_an_object_is_not_told_anew_there(pair: Pair) -> None:
    def tells(id: str, at: int) -> Acceptance:
        return webhook(id, NewEvent(key(id), b"sealed", (SINK,), at=at, state_of=key("subscription")))

    await accept(pair.source, tells("new", NOW))
    await accept(pair.target, tells("older", NOW - MINUTE))
    await pair.move()
    await pair.move()
    after = await accept(pair.target, tells("old", NOW - 1), tells("newest", NOW))
    assert await states(pair.target, *after) == [(State.SKIPPED, "stale"), DUE]


async def test_what_is_asked_about_data_is_asked_there_once(pair: Pair) -> None:
    person = DataRequest("forget", "stripe", "acme", (key("user"), key("email")))
    await pair.source.ask(person, NOW)
    await pair.source.fulfilled(await pair.source.ask(DataRequest("export", "stripe", "acme"), NOW), NOW, "done")
    await pair.move()
    (open_,) = await pair.target.asked()
    assert open_ == OpenRequest(open_.number, NOW, person)
    await pair.target.fulfilled(open_.number, NOW + 1, "done")
    await pair.move()
    assert await pair.target.asked() == []


async def test_a_replay_there_sends_what_had_died_here(pair: Pair) -> None:
    await accept(pair.source, report("a", "pi"))
    await settle(pair.source, State.DEAD)
    await accept(pair.target, simple("older", skip="no_consent"))
    await pair.move()
    number = await number_of(pair.target, "a")
    receipt = await pair.target.replay(number, report("a", "pi", at=NOW + 1), NOW + 1)
    assert receipt.due == {"sink"}
    assert await states(pair.target, number) == [DUE]
    assert await states(pair.target, *await accept(pair.target, report("b", "pi"))) == [DUPLICATE]


async def test_deliveries_after_a_replay_arrive_under_their_numbers(pair: Pair) -> None:
    (number,) = await accept(pair.source, webhook("a", event("a", SINK, NewDelivery("other"))))
    await settle(pair.source, State.DEAD)
    await pair.source.replay(number, webhook("a", event("a", SINK, NewDelivery("other"))), NOW)
    await pair.move()
    assert await seen(pair.target) == await seen(pair.source)
    moved = await pair.target.deliveries(await number_of(pair.target, "a"))
    assert [each.number for each in moved] == [1, 2]


async def test_a_webhook_past_retention_arrives_as_a_stub_with_its_claims(pair: Pair) -> None:
    await accept(pair.source, report("a", "pi"))
    await pair.source.purge(NOW + 2 * DAY, DAY)
    await pair.move(NOW + 2 * DAY)
    (stub,) = await pair.target.webhooks()
    kept = await pair.target.webhook(stub.webhook)
    assert kept is not None
    assert kept.sealed is None
    assert (await pair.target.accept(report("a", "pi"))).duplicate
    assert await states(pair.target, *await accept(pair.target, report("b", "pi", at=NOW + 2 * DAY))) == [DUPLICATE]


async def test_retention_goes_on_there(pair: Pair) -> None:
    await accept(pair.source, report("a", "pi"), report("b", "ch", at=NOW + DAY))
    await pair.move()
    assert await pair.target.purge(NOW + 2 * DAY, DAY + MINUTE) == 1
    assert await pair.target.purge(NOW + 95 * DAY, DAY) == 1
    assert await pair.target.webhooks() == []
    assert await states(pair.target, *await accept(pair.target, report("c", "pi", at=NOW + 95 * DAY))) == [DUE]


async def test_a_payment_that_both_know_is_one_and_what_is_held_steps_back(pair: Pair) -> None:
    await accept(pair.source, report("held", "pi", "in", hold=MINUTE))
    (surer,) = await accept(pair.target, report("surer", "pi"))
    await pair.move()
    assert await states(pair.target, surer, await number_of(pair.target, "held")) == [DUE, SUPERSEDED]
    assert await states(pair.target, *await accept(pair.target, report("third", "in"))) == [DUPLICATE]
    await pair.move()
    assert await states(pair.target, surer) == [DUE]


async def test_progress_reaches_its_end(pair: Pair) -> None:
    await fill(pair.source)
    told: list[tuple[int, int]] = []
    await copy(pair.source, pair.target, NOW, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 8

"""What is copied from one store to another is the same there, and goes on as if it had never moved."""

import asyncio
import sqlite3
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast
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
    NewClaim,
    NewDelivery,
    NewEvent,
    OpenRequest,
    Settlement,
    State,
    StoreMismatch,
    StoreUnavailable,
)
from gateway.moving import BATCH, Copied, Origin, Target, copy, copy_store
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
from tests.stores.servers import Cluster, shared
from tests.stores.test_model import StoreAndModel

WAITS = NewDelivery("sink", wait_until=NOW + 10 * MINUTE, late=True)


class Movable(Store, Origin, Target, Protocol):
    """A store that can be copied from and to."""


class Pair:
    """A store and another one that it moves to."""

    def __init__(self, source: Store, target: Store) -> None:
        self.source = cast("Movable", source)
        self.target = cast("Movable", target)

    async def move(self, now: int = NOW) -> Copied:
        return await copy(self.source, self.target, now, lambda *_: None)


@pytest.fixture(params=product(HARNESSES, HARNESSES), ids="-to-".join)
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    source, target = (HARNESSES[kind](tmp_path / place) for kind, place in zip(request.param, "ab", strict=True))
    yield Pair(await source.open(), await target.open())
    await source.close()
    await target.close()


def named(subject: str) -> dict[str, Any]:
    """Return what makes a webhook name somebody whom nobody linked."""
    return {"subjects": (key(subject),), "unlinked": True}


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
    leases = await lease(pair.target, NOW + 2 * MINUTE)
    await pair.target.settle([Settlement(each, State.SENT) for each in leases])
    await pair.target.link([part("email", "newer", NOW + 1)], NOW + 1)
    before = await seen(pair.target)
    await pair.move(NOW + 2 * MINUTE)
    assert await seen(pair.target) == before
    assert (await linked(pair.target, "email"))[""] == b"newer"


async def test_a_copy_that_was_cut_off_is_finished_by_the_next(pair: Pair) -> None:
    await fill(pair.source)
    await asyncio.gather(*(pair.source.accept(report(f"more {each}", f"pi {each}")) for each in range(BATCH + 20)))
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


async def test_two_payments_of_one_webhook_stay_two(pair: Pair) -> None:
    claims = [NewClaim((key(each),), "purchase") for each in ("pi", "ch")]
    await accept(pair.source, webhook("two", *(event(f"{n}", claim=each) for n, each in enumerate(claims))))
    await pair.move()
    after = await accept(pair.target, report("a", "pi"), report("b", "ch"), report("c", "pi", "ch", name="refund"))
    assert await states(pair.target, *after) == [DUPLICATE, DUPLICATE, DUE]


async def test_what_a_forgotten_payment_was_called_does_not_come_back(pair: Pair) -> None:
    await accept(pair.source, structs.replace(report("a", "pi", order=b"order 1"), **named("user")))
    await pair.move()
    await pair.target.forget([key("user")])
    await pair.move()
    assert await pair.target.order_of([key("pi")]) is None
    assert await states(pair.target, *await accept(pair.target, report("b", "pi"))) == [DUPLICATE]


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


async def test_what_did_not_wait_for_a_link_does_not_wait_there(pair: Pair) -> None:
    new = webhook("a", event("a", NewDelivery("sink", "no_person")), subjects=("user",))
    await accept(pair.source, structs.replace(new, unlinked=False))
    await pair.move()
    assert await pair.target.link([part("user", "v-1")], NOW) == frozenset()


async def test_what_a_link_releases_there_is_still_on_hold(pair: Pair) -> None:
    await accept(pair.source, structs.replace(report("a", "pi", hold=MINUTE, to=(WAITS,)), **named("user")))
    await pair.move()
    assert await pair.target.link([part("user", "v-1")], NOW) == frozenset()
    assert await states(pair.target, await number_of(pair.target, "a")) == [(State.WAITING, "hold")]


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


async def test_what_the_target_told_later_is_not_told_as_earlier(pair: Pair) -> None:
    def tells(id: str, at: int) -> Acceptance:
        return webhook(id, NewEvent(key(id), b"sealed", (SINK,), at=at, state_of=key("subscription")))

    await accept(pair.source, tells("old", NOW))
    await accept(pair.target, tells("newer", NOW + MINUTE))
    await pair.move()
    assert await states(pair.target, *await accept(pair.target, tells("late", NOW + 1))) == [(State.SKIPPED, "stale")]


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


# numbers of partitions, and whose key it is


@asynccontextmanager
async def partitioned(partitions: int) -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(shared().url, FINGERPRINT, prefix=f"m{uuid4().hex}", partitions=partitions)
    yield store
    await store.close()


async def test_webhooks_of_several_partitions_arrive_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    target = SqliteStore.open(tmp_path / "gateway.db", FINGERPRINT)
    async with partitioned(4) as source:
        made = (webhook(f"{n}", event(f"{n}"), account=f"account {n * 7 % 12}", at=NOW + n) for n in range(60))
        await accept(source, *made)
        await copy(source, target, NOW, lambda *_: None)
        assert [each.id for each in await target.webhooks(limit=100)] == [f"{n}" for n in reversed(range(60))]
        assert await target.counts() == await source.counts()
    await target.close()


async def test_a_redis_may_get_more_partitions() -> None:
    def tells(account: str, at: int) -> Acceptance:
        told = NewEvent(key(account), b"sealed", (SINK,), at=at, state_of=key(account))
        return webhook(f"tells {at}", told, account=account)

    accounts = [f"account {n}" for n in range(12)]
    async with partitioned(2) as source, partitioned(5) as target:
        for each in accounts:
            payment = structs.replace(report(f"of {each}", each), account=each, key=key(each))
            await accept(source, tells(each, NOW), payment)
            await source.ask(DataRequest("forget_account", "stripe", each), NOW)
        copied = await copy(source, target, NOW, lambda *_: None)
        assert copied == Copied(webhooks=24, links=0, known=0)
        for each in accounts:
            again = structs.replace(report(f"again {each}", each), account=each, key=key(f"again {each}"))
            assert await states(target, *await accept(target, tells(each, NOW - 1), again)) == [
                (State.SKIPPED, "stale"),
                DUPLICATE,
            ]
        assert sorted(each.request.account for each in await target.asked()) == sorted(accounts)


async def test_a_cluster_is_copied_from_all_its_nodes(tmp_path: Path) -> None:
    cluster, back = Cluster(), SqliteStore.open(tmp_path / "gateway.db", FINGERPRINT)
    subjects = [f"subject {n}" for n in range(30)]
    async with partitioned(1) as source:
        await asyncio.gather(*(source.accept(webhook(each, event(each), account=each)) for each in subjects))
        await source.link([part(each, "v") for each in subjects], NOW)
        spread = await RedisStore.open(cluster.url, FINGERPRINT, partitions=8, answer_within=30.0)
        for here, there in ((source, spread), (spread, back)):
            assert await copy(here, there, NOW, lambda *_: None) == Copied(webhooks=30, links=30, known=0)
        assert await back.counts() == await source.counts()
        await spread.close()
    await back.close()
    cluster.remove()


SECRET = urlsafe_b64encode(bytes(32)).decode()
OTHER = urlsafe_b64encode(bytes(31) + b"1").decode()


def redis_of_its_own() -> str:
    """Return the address of an empty database."""
    with shared().client() as client:
        client.execute_command("SELECT", 9)
        client.flushdb()
    return f"{shared().url}?db=9"


def set_to(**values: str) -> Settings:
    return load_settings({"GATEWAY_SECRET_KEY": SECRET, **values})


async def embedded(folder: Path, secret: str = SECRET) -> str:
    """Return the address of a file with one webhook."""
    store = SqliteStore.open(folder / "gateway.db", Sealer(parse_key(secret)).fingerprint())
    await accept(store, simple("a"))
    await store.close()
    return f"sqlite:///{folder}/gateway.db"


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def copied(settings: Settings, source: str, target: str) -> Copied:
    return await copy_store(settings, source, target, lambda *_: None)


async def test_a_file_becomes_a_redis_and_a_file_again(tmp_path: Path) -> None:
    source, redis = await embedded(tmp_path), redis_of_its_own()
    assert (await copied(set_to(GATEWAY_PARTITIONS="3"), source, redis)).webhooks == 1
    # A Redis that is copied has as many partitions as it has, whatever the settings say.
    assert (await copied(set_to(), redis, f"sqlite:///{tmp_path}/new/gateway.db")).webhooks == 1
    with sqlite3.connect(tmp_path / "new" / "gateway.db") as connection:
        assert connection.execute("SELECT id FROM webhook").fetchall() == [("a",)]


async def test_stores_under_different_keys_are_not_mixed(tmp_path: Path) -> None:
    source, redis = await embedded(tmp_path), redis_of_its_own()
    await copied(set_to(), source, redis)
    other = await embedded(tmp_path / "other", OTHER)
    with pytest.raises(StoreMismatch, match="another GATEWAY_SECRET_KEY"):
        await copied(set_to(), other, redis)
    with pytest.raises(StoreMismatch, match="another GATEWAY_SECRET_KEY"):
        await copied(set_to(GATEWAY_SECRET_KEY=OTHER), other, redis)


async def test_a_key_beside_the_file_must_be_named_for_the_copy(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text(SECRET)
    source, redis = await embedded(tmp_path), redis_of_its_own()
    with pytest.raises(SettingsError, match=f"GATEWAY_SECRET_KEY_FILE={tmp_path}/gateway.key"):
        await copied(load_settings({}), source, redis)
    named = load_settings({"GATEWAY_SECRET_KEY_FILE": f"{tmp_path}/gateway.key"})
    assert (await copied(named, source, redis)).webhooks == 1
    assert (await copied(load_settings({}), source, f"sqlite:///{tmp_path}/beside.db")).webhooks == 1


async def test_a_store_that_a_gateway_holds_is_not_copied(tmp_path: Path) -> None:
    source = await embedded(tmp_path)
    held = SqliteStore.open(tmp_path / "gateway.db", Sealer(parse_key(SECRET)).fingerprint())
    with pytest.raises(StoreMismatch, match="in use"):
        await copied(set_to(), source, redis_of_its_own())
    await held.close()


async def test_what_is_no_store_is_not_copied(tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/to.db"
    with pytest.raises(StoreMismatch, match="there is no store"):
        await copied(set_to(), f"sqlite:///{tmp_path}/nothing.db", target)
    with pytest.raises(StoreMismatch, match="there is no store"):
        await copied(set_to(), redis_of_its_own(), target)
    with pytest.raises(SettingsError, match="`mysql` is no store"):
        await copied(set_to(), "mysql://user:secret@host/db", target)
    with pytest.raises(SettingsError, match="to itself"):
        await copied(set_to(), target, target)
    assert files(tmp_path) == []


# any day, with moves


class MovingStoreAndModel(StoreAndModel):
    """Now and then all moves to another store, and the days go on there."""

    moves = 0

    @precondition(lambda self: self.model.webhooks)
    @rule(kind=st.sampled_from(sorted(HARNESSES)), twice=st.booleans())
    def move(self, kind: str, twice: bool) -> None:
        self.moves += 1
        folder = Path(self.folder.name) / f"move-{self.moves}"
        folder.mkdir()
        harness = HARNESSES[kind](folder)
        source, target = cast("Movable", self.store), cast("Movable", self.run(harness.open()))
        copied = self.run(copy(source, target, self.now, lambda *_: None))
        assert (copied.webhooks, copied.known) == (len(self.model.webhooks), 0)
        if twice:
            again = self.run(copy(source, target, self.now, lambda *_: None))
            assert (again.webhooks, again.known) == (0, len(self.model.webhooks))
        self.run(self.harness.close())
        self.harness, self.store = harness, target
        self._renumber()
        self._agree()

    def _renumber(self) -> None:
        """Let the model call webhooks by their new numbers, and know of no lease."""
        model, numbers = self.model, {0: 0}
        for number, each in model.webhooks.items():
            receipt = self.run(self.store.accept(each.acceptance))
            assert receipt.duplicate
            numbers[number] = receipt.webhook
        model.webhooks = {numbers[number]: each for number, each in model.webhooks.items()}
        for delivery in model.deliveries.values():
            delivery.webhook, delivery.fence = numbers[delivery.webhook], 0
            if delivery.state == State.LEASED:
                delivery.state, delivery.due_at = State.DUE, 0
        model.deliveries = {(each.webhook, each.number): each for each in model.deliveries.values()}
        for payment in model.payments:
            payment.born = numbers[payment.born]
            for claim in payment.claims.values():
                claim.webhook = numbers.get(claim.webhook, 0)
        model.returns_leases = type(self.harness).returns_leases
        self.leases = []


@pytest.mark.parametrize("store", HARNESSES)
def test_a_store_that_moves_does_what_its_model_does(store: str) -> None:
    budget = settings(
        max_examples=10,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )
    machine = type("MovingStoreAndModel", (MovingStoreAndModel,), {"harness_type": HARNESSES[store]})
    run_state_machine_as_test(machine, settings=budget)

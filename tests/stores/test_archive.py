"""Lists answer from indexes: what fits comes newest first, page by page, nothing twice; what is dead starts again."""

from uuid import uuid4

import pytest
from msgspec import structs

from gateway.deliveries import (
    Acceptance,
    Attempt,
    DeadGroup,
    FoundDelivery,
    NewDelivery,
    Settlement,
    State,
    Wanted,
    WantedDeliveries,
)
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from tests.stores.harness import FINGERPRINT, Harness
from tests.stores.reports import DAY, DUE, MINUTE, NOW, accept, event, key, lease, settle, simple, states, webhook
from tests.stores.servers import shared

Store = SqliteStore | RedisStore
EVERY = WantedDeliveries()
DEAD = WantedDeliveries(states=frozenset({State.DEAD}))


@pytest.fixture
async def store(harness: Harness) -> Store:
    opened = await harness.open()
    assert isinstance(opened, SqliteStore | RedisStore)
    return opened


async def found(store: Store, limit: int = 2, **wanted: object) -> list[str]:
    """Return the ids of all that fit, gone through page by page."""
    ids: list[str] = []
    before: int | None = None
    while True:
        page, on = await store.search(Wanted(**wanted), before=before, limit=limit)  # type: ignore[arg-type]
        assert len(page) <= limit
        ids += [each.webhook.id for each in page]
        if on is None:
            return ids
        assert before is None or on < before
        before = on


async def listed(store: Store, wanted: WantedDeliveries, limit: int = 2) -> list[FoundDelivery]:
    deliveries: list[FoundDelivery] = []
    before = None
    while True:
        page, on = await store.search_deliveries(wanted, before=before, limit=limit)
        deliveries += page
        if on is None:
            return deliveries
        assert before is None or on < before
        before = on


async def died(store: Store, id: str, reason: str, destination: str = "sink") -> int:
    (number,) = await accept(store, webhook(id, event(id, NewDelivery(destination))))
    (leased,) = await lease(store, destination=destination)
    await store.settle([Settlement(leased, State.DEAD, reason, attempt=Attempt(NOW, 5, 400, reason))])
    return number


def typed(id: str, type: str, at: int = NOW) -> Acceptance:
    return webhook(id, event(id), type=type, at=at)


async def test_all_come_newest_first_and_each_once(store: Store) -> None:
    await accept(store, *(simple(str(each)) for each in range(7)))
    assert await found(store) == ["6", "5", "4", "3", "2", "1", "0"]
    assert await found(store, limit=7) == await found(store, limit=1)


async def test_an_empty_store_has_one_empty_page(store: Store) -> None:
    assert await store.search(Wanted()) == ([], None)
    assert await store.search_deliveries(EVERY) == ([], None)
    assert await store.dead() == []


async def test_webhooks_are_found_by_type_and_source(store: Store) -> None:
    await accept(store, *(typed(str(each), "paid" if each % 3 else "made") for each in range(9)))
    assert await found(store, type="made") == ["6", "3", "0"]
    assert await found(store, type="made", source="stripe") == ["6", "3", "0"]
    assert await found(store, source="shopify") == await found(store, type="nothing") == []
    assert len(await found(store, source="stripe")) == 9


async def test_webhooks_are_found_by_the_id_that_several_may_share(store: Store) -> None:
    await accept(store, typed("a", "paid"), typed("b", "paid"), typed("a", "made"))
    assert await found(store, id="a") == ["a", "a"]
    assert await found(store, id="a", type="made") == ["a"]
    assert await found(store, id="c") == []


async def test_webhooks_are_found_by_whom_they_name(store: Store) -> None:
    await accept(store, *(webhook(str(each), event(str(each)), subjects=("ada",)) for each in range(5)), simple("x"))
    assert await found(store, subjects=(key("ada"),)) == ["4", "3", "2", "1", "0"]
    assert await found(store, subjects=(key("ada"),), type="other") == []


async def test_webhooks_are_found_by_when_they_came(store: Store) -> None:
    await accept(store, *(simple(str(each), at=NOW + each * DAY) for each in range(6)))
    assert await found(store, since=NOW + 2 * DAY, until=NOW + 4 * DAY) == ["3", "2"]
    assert await found(store, since=NOW + 5 * DAY) == ["5"]
    assert await found(store, until=NOW + 1) == ["0"]
    assert await found(store, until=NOW) == []


async def test_a_clock_that_was_set_back_a_little_hides_nothing(store: Store) -> None:
    times = [0, 3_000, 500, 3_100, 4_000]
    await accept(store, *(simple(str(each), at=NOW + at) for each, at in enumerate(times)))
    assert await found(store, since=NOW + 3_000) == ["4", "3", "1"]


@pytest.mark.parametrize("outcome", [State.SENT, State.DEAD, State.PARKED, State.SKIPPED, State.DUE])
async def test_webhooks_are_found_by_the_state_of_a_delivery(store: Store, outcome: State) -> None:
    await accept(store, simple("a"))
    await settle(store, outcome, due_at=NOW + DAY)
    await accept(store, webhook("b"))
    assert await found(store, states=frozenset({outcome})) == ["a"]
    (page, _) = await store.search(Wanted(id="a"))
    assert page[0].states == {outcome: 1}


async def test_webhooks_are_found_by_a_rule_that_failed(store: Store) -> None:
    await accept(store, simple("a"))
    failed = simple("b")
    await accept(store, structs.replace(failed, notes=b'[{"rule":"r","error":"e"}]'))
    assert await found(store, failed=True) == ["b"]


async def test_a_page_that_few_fit_says_where_to_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SCAN", 5), ("SCAN_STEP", 2)):
        monkeypatch.setattr(f"gateway.store.sqlite.{name}", value)
        monkeypatch.setattr(f"gateway.store.redis.{name}", value)
    await accept(store, typed("first", "made"), *(simple(str(each)) for each in range(12)))
    page, on = await store.search(Wanted(states=frozenset({State.SENT})), limit=2)
    assert page == []
    assert on is not None
    assert await found(store, until=NOW + 1, type="made") == ["first"]
    assert len(await listed(store, WantedDeliveries(reason="no"))) == 0
    assert len(await listed(store, EVERY)) == 13


async def test_webhooks_with_several_dead_deliveries_fill_all_pages(store: Store) -> None:
    three = tuple(NewDelivery(name) for name in ("sink", "other", "third"))
    for each in range(7):
        await accept(store, webhook(str(each), event(str(each), *three)))
    for name in ("sink", "other", "third"):
        dead = [Settlement(leased, State.DEAD, "why") for leased in await lease(store, destination=name)]
        await store.settle(dead)
    for limit in (1, 2, 3):
        assert await found(store, limit, states=DEAD.states) == ["6", "5", "4", "3", "2", "1", "0"]
    assert len(await listed(store, DEAD)) == 21


async def test_one_id_that_very_many_share_is_gone_through_page_by_page(store: Store) -> None:
    await accept(store, *(webhook("same", account=str(each)) for each in range(300)), simple("other"))
    assert await found(store, limit=50, id="same") == ["same"] * 300
    await store.purge(NOW + 100 * DAY, DAY)
    assert await found(store, id="same") == []


async def test_deliveries_come_with_what_they_are_of(store: Store) -> None:
    (number,) = await accept(store, webhook("a", event("a", NewDelivery("one"), NewDelivery("two", "no_consent"))))
    two, one = await listed(store, EVERY)
    assert (one.webhook, one.number, one.destination, one.state, one.event) == (
        number,
        0,
        "one",
        State.DUE,
        b"sealed a",
    )
    assert (two.number, two.reason, two.source, two.type, two.id) == (1, "no_consent", "stripe", "t", "a")


async def test_deliveries_are_found_by_destination_state_and_reason(store: Store) -> None:
    for each in range(4):
        await died(store, f"{each}", "http_400" if each % 2 else "http_410")
    await died(store, "other", "http_400", "other")
    await accept(store, simple("due"))
    assert [each.id for each in await listed(store, DEAD)] == ["other", "3", "2", "1", "0"]
    wanted = WantedDeliveries(destination="sink", states=DEAD.states, reason="http_400")
    assert [each.id for each in await listed(store, wanted)] == ["3", "1"]
    assert [each.id for each in await listed(store, WantedDeliveries(destination="other"))] == ["other"]
    assert [each.id for each in await listed(store, WantedDeliveries(states=frozenset({State.DUE})))] == ["due"]


async def test_the_dead_are_counted_by_destination_and_reason(store: Store) -> None:
    first = await died(store, "a", "http_400")
    last = await died(store, "b", "http_400")
    other = await died(store, "c", "http_400", "other")
    assert sorted(await store.dead(), key=lambda each: each.destination) == [
        DeadGroup("other", "http_400", 1, other, other),
        DeadGroup("sink", "http_400", 2, first, last),
    ]


@pytest.mark.parametrize("outcome", [State.DEAD, State.PARKED])
async def test_a_retry_starts_a_delivery_again_and_keeps_its_attempts(store: Store, outcome: State) -> None:
    (number,) = await accept(store, simple("a"))
    await settle(store, outcome, due_at=NOW + DAY)
    assert await store.retry(number, 0, NOW + MINUTE) == "sink"
    assert await states(store, number) == [DUE]
    (again,) = await lease(store, NOW + MINUTE)
    assert (again.attempts, again.first_try_at) == (1, 0)
    assert await store.settle([Settlement(again, State.SENT)]) == 1
    assert (await store.counts())["sink"].sent == 1


@pytest.mark.parametrize("outcome", [State.SENT, State.SKIPPED, State.DUE])
async def test_only_what_is_dead_or_parked_is_retried(store: Store, outcome: State) -> None:
    (number,) = await accept(store, simple("a"))
    await settle(store, outcome, due_at=NOW + DAY)
    before = await store.deliveries(number)
    assert await store.retry(number, 0, NOW) is None
    assert await store.retry(number, 7, NOW) is None
    assert await store.retry(number + 1024, 0, NOW) is None
    assert await store.deliveries(number) == before


async def test_what_is_retried_is_no_longer_among_the_dead_until_it_dies_again(store: Store) -> None:
    number = await died(store, "a", "http_400")
    await store.retry(number, 0, NOW)
    assert (await store.dead(), await listed(store, DEAD)) == ([], [])
    await settle(store, State.DEAD)
    assert [(each.reason, each.number) for each in await store.dead()] == [("why", 1)]


async def test_the_dead_are_retried_a_step_at_a_time(store: Store) -> None:
    for each in range(5):
        await died(store, str(each), "http_400")
    await died(store, "kept", "http_410")
    wanted = WantedDeliveries(destination="sink", reason="http_400")
    done, before, steps = 0, None, 0
    while steps == 0 or before is not None:
        revived = await store.retry_dead(wanted, NOW, before=before, limit=2)
        done, before, steps = done + revived.number, revived.before, steps + 1
        assert revived.due <= {"sink"}
    assert (done, steps) == (5, 3)
    assert [(each.reason, each.number) for each in await store.dead()] == [("http_410", 1)]
    assert len(await lease(store)) == 5


async def test_whatever_dies_again_while_all_are_retried_is_not_retried_for_ever(store: Store) -> None:
    for each in range(4):
        await died(store, str(each), "http_400")
    before, steps = None, 0
    while steps == 0 or before is not None:
        before = (await store.retry_dead(EVERY, NOW, before=before, limit=1)).before
        steps += 1
        for leased in await lease(store):
            await store.settle([Settlement(leased, State.DEAD, "http_400")])
    assert steps <= 5
    assert (await store.counts())["sink"].dead == 4


async def test_a_replay_a_purge_and_who_is_forgotten_leave_no_dead_behind(store: Store) -> None:
    replayed = await died(store, "a", "http_400")
    await store.replay(replayed, simple("a"), NOW)
    assert await store.dead() == []
    (named,) = await accept(store, webhook("b", event("b"), subjects=("ada",)))
    for each in await lease(store):
        await store.settle([Settlement(each, State.DEAD, "gone")])
    await store.forget([key("ada")])
    assert [each.webhook for each in await listed(store, DEAD)] == [replayed]
    await store.purge(NOW + 2 * DAY, DAY)
    assert (await store.dead(), await listed(store, DEAD), await found(store, states=DEAD.states)) == ([], [], [])
    assert named != replayed


async def test_what_retention_took_for_good_is_listed_no_more(store: Store) -> None:
    await accept(store, typed("old", "made"), typed("new", "made", NOW + 100 * DAY))
    assert await found(store, type="made") == ["new", "old"]
    await store.purge(NOW + 100 * DAY, DAY)
    assert await found(store, type="made") == await found(store) == ["new"]
    assert await found(store, id="old") == []


async def test_each_webhook_of_a_time_is_accounted_for_once(store: Store) -> None:
    await accept(store, *(simple(str(each), at=NOW + each * MINUTE) for each in range(4)))
    (last,) = await accept(store, webhook("two", event("x", NewDelivery("a"), NewDelivery("b", "no_consent")), at=NOW))
    accounts = [each async for each in store.accounted(NOW + MINUTE, NOW + 3 * MINUTE)]
    assert [each.deliveries for each in accounts] == [
        ((key("event 1"), "sink", State.DUE, None),),
        ((key("event 2"), "sink", State.DUE, None),),
    ]
    (two,) = [each async for each in store.accounted(NOW, NOW + DAY) if each.webhook == last]
    assert two.events == {key("event x"): b"sealed x"}
    assert two.deliveries[1] == (key("event x"), "b", State.SKIPPED, "no_consent")


async def test_a_crash_keeps_what_lists_answer_from(harness: Harness) -> None:
    store = await harness.open()
    assert isinstance(store, SqliteStore | RedisStore)
    await died(store, "a", "http_400")
    again = await harness.crash()
    assert isinstance(again, SqliteStore | RedisStore)
    assert await found(again, type="t", id="a") == ["a"]
    assert [each.number for each in await again.dead()] == [1]


async def spread(ids: list[str]) -> RedisStore:
    """Return a store of three partitions with webhooks in all of them: those of an account are in one."""
    prefix = f"lists-{uuid4().hex}"
    store = await RedisStore.open(shared().url, FINGERPRINT, partitions=3, prefix=prefix, answer_within=30.0)
    numbers = await accept(store, *(webhook(id, event(id), account=f"account {id}") for id in ids))
    assert len({number % 1024 for number in numbers}) == 3
    return store


async def test_lists_of_several_partitions_miss_nothing_and_repeat_nothing() -> None:
    ids = [str(each) for each in range(20)]
    store = await spread(ids)
    for leased in await lease(store):
        await store.settle([Settlement(leased, State.DEAD, "http_400")])
    assert sorted(await found(store, limit=3), key=int) == ids
    assert sorted(await found(store, limit=3, type="t", states=DEAD.states), key=int) == ids
    assert sorted((each.id for each in await listed(store, DEAD, limit=3)), key=int) == ids
    assert sorted((each.id for each in await listed(store, EVERY, limit=3)), key=int) == ids
    assert [each.number for each in await store.dead()] == [20]
    assert len([each async for each in store.accounted(NOW, NOW + 1)]) == 20
    done, before = 0, None
    while done == 0 or before is not None:
        revived = await store.retry_dead(EVERY, NOW, before=before, limit=4)
        done, before = done + revived.number, revived.before
    assert (done, await store.dead()) == (20, [])
    await store.close()


async def test_a_partition_that_few_fit_holds_back_what_comes_after_it_in_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.store.redis.SCAN", 2)
    ids = [str(each) for each in range(20)]
    store = await spread(ids)
    sent = set()
    for leased in await lease(store):
        state = State.SENT if leased.webhook % 1024 == 1 else State.DEAD
        sent |= {leased.webhook} if state == State.SENT else set()
        await store.settle([Settlement(leased, state)])
    assert len(await found(store, limit=50, states=frozenset({State.SENT, State.DUE}))) == len(sent) > 1
    listed_ids = await listed(store, WantedDeliveries(states=frozenset({State.SENT})), limit=50)
    assert len(listed_ids) == len(sent)
    await store.close()

"""The server dies at any instant: with `appendfsync always`, or `wait_aof`, what was answered is there afterwards."""

import asyncio

import pytest

from gateway.deliveries import Settlement, State, StoreUnavailable
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.redis.test_recovery import patiently, until
from tests.stores.reports import MINUTE, NOW, accept, lease, report, simple, states
from tests.stores.servers import Server


@pytest.mark.parametrize(
    ("fsync", "wait_aof", "senders", "each"), [("always", False, 10, 30), ("everysec", True, 100, 2)]
)
async def test_nothing_accepted_is_missing_after_the_server_died_under_load(
    fsync: str, wait_aof: bool, senders: int, each: int
) -> None:
    server = Server("--appendonly", "yes", "--appendfsync", fsync, "--save", "").start()
    store = await RedisStore.open(server.url, FINGERPRINT, wait_aof=wait_aof, answer_within=10.0)
    answered: list[int] = []

    async def send(sender: int) -> None:
        for number in range(each):
            receipt = await patiently(store, simple(f"{sender} {number}"))
            answered.append(receipt.webhook)

    async def some_are_answered() -> bool:
        return len(answered) >= senders * each // 4

    sent = asyncio.gather(*(send(sender) for sender in range(senders)))
    await until(some_are_answered)
    server.kill()
    server.start(wait=False)
    await sent
    assert len(set(answered)) == senders * each
    assert sorted(each.webhook for each in await store.webhooks(limit=1000)) == sorted(answered)
    assert (await store.counts())["sink"].pending == senders * each
    await store.close()
    server.remove()


async def test_claims_leases_and_settlements_outlive_the_server(server: Server, opened: RedisStore) -> None:
    numbers = await accept(opened, report("a", "pi", "in"), simple("b"))
    held = {each.webhook: each for each in await lease(opened)}
    await opened.settle([Settlement(held[numbers[0]], State.SENT)])
    server.kill()
    server.start()
    assert await states(opened, *numbers) == [(State.SENT, None), (State.LEASED, None)]
    assert await states(opened, *await accept(opened, report("c", "in"))) == [(State.SKIPPED, "duplicate_payment")]
    (again,) = await lease(opened, NOW + MINUTE)
    assert await opened.settle([Settlement(held[numbers[1]], State.SENT)]) == 0
    assert await opened.settle([Settlement(again, State.SENT)]) == 1


async def test_while_the_server_is_away_nothing_is_accepted(server: Server, opened: RedisStore) -> None:
    server.kill()
    outcomes = await asyncio.gather(*(opened.accept(simple(str(n))) for n in range(50)), return_exceptions=True)
    assert {type(each) for each in outcomes} == {StoreUnavailable}
    assert "it cannot be reached" in (await opened.probe() or "")
    server.start()
    assert await opened.probe() is None
    assert await opened.webhooks() == []


async def test_who_waits_for_the_disk_of_a_server_without_one_is_told(server: Server) -> None:
    store = await RedisStore.open(server.url, FINGERPRINT, wait_aof=True)
    with server.client() as client:
        client.config_set("appendonly", "no")
    with pytest.raises(StoreUnavailable, match=r"WAITAOF|append"):
        await store.accept(simple("a"))
    await store.close()

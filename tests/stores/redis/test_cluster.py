"""A cluster of three: partitions and links spread over the nodes, and are found where they are moved to."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.crc import key_slot

from gateway.deliveries import NewDelivery, Settlement, State, StoreUnavailable
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.redis.test_recovery import patiently, until
from tests.stores.reports import DAY, DUE, NOW, accept, event, key, lease, linked, part, states, webhook
from tests.stores.servers import Cluster

ACCOUNTS = tuple(f"account {number}" for number in range(24))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.remove()


@pytest.fixture
async def store(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[RedisStore]:
    prefix = request.node.name.replace("_", "-")
    store = await RedisStore.open(cluster.url, FINGERPRINT, prefix=prefix, partitions=8, answer_within=10.0)
    yield store
    await store.close()


def slot_of(store: RedisStore, partition: int) -> int:
    return key_slot(store._tags[partition])


async def test_what_belongs_together_is_together_and_the_rest_is_spread(store: RedisStore) -> None:
    waits = NewDelivery("sink", wait_until=NOW + DAY)
    made = (webhook(each, event(each, waits), account=each, subjects=("user", each)) for each in ACCOUNTS)
    receipts = await asyncio.gather(*(store.accept(each) for each in made))
    numbers = [each.webhook for each in receipts]
    assert await store.link([part("user", "v")], NOW) == {"sink"}
    assert await states(store, *numbers) == [DUE] * len(ACCOUNTS)
    assert [await linked(store, each) for each in ACCOUNTS] == [{"": b"v"}] * len(ACCOUNTS)
    leased = await lease(store)
    assert await store.settle([Settlement(each, State.SENT) for each in leased]) == len(ACCOUNTS)
    assert len(await store.resolve([key(each) for each in ("user", *ACCOUNTS)])) == len(ACCOUNTS) + 1


async def test_nodes_serve_different_partitions(store: RedisStore) -> None:
    assert len({slot_of(store, partition) * 3 // 16_384 for partition in range(8)}) == 3
    assert await store.probe() is None


async def test_functions_are_loaded_on_every_node_that_lost_them(cluster: Cluster, store: RedisStore) -> None:
    for node in cluster.nodes:
        with node.client() as client:
            client.function_flush()
    await asyncio.gather(*(store.accept(webhook(each, account=each)) for each in ACCOUNTS))
    assert len(await store.webhooks(limit=100)) == len(ACCOUNTS)


async def test_a_slot_that_moves_is_followed(cluster: Cluster, store: RedisStore) -> None:
    (number,) = await accept(store, webhook("a", event("a"), account="moving"))
    slot = slot_of(store, number % 1024)
    origin = slot * 3 // 16_384
    cluster.move(slot, origin, (origin + 1) % 3)
    assert (await store.accept(webhook("a", event("a"), account="moving"))).duplicate
    assert await states(store, number) == [DUE]
    assert [each.webhook for each in await lease(store)] == [number]


async def test_a_node_that_dies_takes_only_its_own_away_until_it_is_back(cluster: Cluster, store: RedisStore) -> None:
    await asyncio.gather(*(store.accept(webhook(each, account=each)) for each in ACCOUNTS))
    for node in cluster.nodes:
        with node.client() as client:
            client.config_set("cluster-require-full-coverage", "no")
    cluster.nodes[2].kill()
    outcomes = await asyncio.gather(
        *(store.accept(webhook(f"{each} again", account=each)) for each in ACCOUNTS), return_exceptions=True
    )
    assert {type(each) for each in outcomes if isinstance(each, BaseException)} == {StoreUnavailable}
    assert any(not isinstance(each, BaseException) for each in outcomes)
    cluster.nodes[2].start()

    async def well() -> bool:
        return await store.probe() is None

    await until(well)
    for each in ACCOUNTS:
        await patiently(store, webhook(f"{each} again", account=each))
    assert await store.warnings() != []


async def test_work_is_told_across_nodes(cluster: Cluster, store: RedisStore) -> None:
    woken: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    follower = asyncio.create_task(store.follow(woken.put_nowait))

    async def heard() -> bool:
        account = str(asyncio.get_running_loop().time())
        await store.accept(webhook(account, event(account), account=account))
        return not woken.empty()

    await until(heard)
    assert await woken.get() == {"sink"}
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)

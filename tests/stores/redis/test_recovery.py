"""Whatever ails the server, callers are told so in words, and it goes on without anybody's help."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.deliveries import Acceptance, Receipt, Settlement, State, StoreUnavailable
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import NOW, accept, event, lease, part, simple, states, webhook
from tests.stores.servers import PATIENCE, Proxy, Server, free_port


async def patiently(store: RedisStore, acceptance: Acceptance) -> Receipt:
    """Do as a sender does: send again until it is taken."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await store.accept(acceptance)
            except StoreUnavailable:
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.01)


async def test_functions_that_were_lost_are_loaded_again(server: Server, opened: RedisStore) -> None:
    await accept(opened, simple("a"))
    with server.client() as client:
        client.function_flush()
    receipts = await asyncio.gather(*(opened.accept(simple(id)) for id in "ab"))
    assert [each.duplicate for each in receipts] == [True, False]


async def test_an_emptied_server_is_taken_for_a_new_one_that_is_ours(server: Server, opened: RedisStore) -> None:
    await accept(opened, simple("a"))
    with server.client() as client:
        client.flushall()
        client.function_flush()
    assert not (await opened.accept(simple("a"))).duplicate
    assert len(await lease(opened)) == 1
    assert await opened.purge(NOW, 0) == 0
    with server.client() as client:
        assert client.hget("{gw.0}:meta", "fingerprint") == FINGERPRINT


async def test_a_lease_from_before_it_was_emptied_settles_nothing_of_another_webhook(
    server: Server, opened: RedisStore
) -> None:
    await accept(opened, simple("lost"))
    (held,) = await lease(opened)
    with server.client() as client:
        client.flushall()
    (number,) = await accept(opened, simple("new"))
    (leased,) = await lease(opened)
    assert (held.webhook, held.number, held.fence) == (leased.webhook, leased.number, leased.fence)
    assert await opened.settle([Settlement(held, State.SENT)]) == 0
    assert await states(opened, number) == [(State.LEASED, None)]


async def test_connections_that_are_cut_lose_nothing_and_double_nothing(server: Server, opened: RedisStore) -> None:
    async def cut() -> None:
        with server.client() as client:
            for _ in range(20):
                client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0)

    receipts, _ = await asyncio.gather(
        asyncio.gather(*(patiently(opened, simple(str(number))) for number in range(500))), cut()
    )
    assert len({each.webhook for each in receipts}) == 500
    assert (await opened.counts())["sink"].pending == 500


async def test_a_webhook_whose_answer_was_lost_is_stored_once_and_its_work_is_told(server: Server) -> None:
    async with Proxy(server) as proxy:
        store = await RedisStore.open(f"redis://127.0.0.1:{proxy.port}", FINGERPRINT)
        proxy.loses_answers = True
        receipt = await store.accept(webhook("a", event("a"), learned=(part("user", "v"),)))
        assert receipt.due == {"sink"}
        assert len(await lease(store)) == 1
        assert (await store.resolve([part("user", "v").key])).keys() == {part("user", "v").key}
        await store.close()


async def test_a_lease_whose_answer_was_lost_is_over_when_it_runs_out(server: Server) -> None:
    async with Proxy(server) as proxy:
        store = await RedisStore.open(f"redis://127.0.0.1:{proxy.port}", FINGERPRINT)
        await accept(store, simple("a"))
        proxy.loses_answers = True
        assert await lease(store) == []
        assert len(await lease(store, NOW + 60_000)) == 1
        await store.close()


async def test_a_server_that_does_not_answer_is_told_of_in_time(server: Server) -> None:
    store = await RedisStore.open(server.url, FINGERPRINT, answer_within=0.2)
    server.pause()
    with pytest.raises(StoreUnavailable, match="did not answer in time"):
        await store.accept(simple("a"))
    server.resume()
    assert not (await patiently(store, simple("b"))).duplicate
    await store.close()


async def test_a_full_server_refuses_webhooks_and_still_sends_what_it_has(server: Server, opened: RedisStore) -> None:
    (number,) = await accept(opened, simple("a"))
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="it is full"):
            await opened.accept(simple("b"))
        assert "it is full" in (await opened.probe() or "")
        for each in await lease(opened):
            assert await opened.settle([Settlement(each, State.SENT)]) == 1
        assert await states(opened, number) == [(State.SENT, None)]
        assert await opened.purge(NOW + 1, 0) == 1
        client.config_set("maxmemory", "0")
    assert await opened.probe() is None
    assert not (await opened.accept(simple("b"))).duplicate


async def test_what_is_refused_has_left_nothing(server: Server, opened: RedisStore) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable):
            await opened.accept(simple("a"))
        with pytest.raises(StoreUnavailable):
            await opened.link([part("user", "v")], NOW)
        client.config_set("maxmemory", "0")
    assert (await opened.webhooks(), await opened.counts(), await lease(opened)) == ([], {}, [])


async def test_a_replica_is_told_of_and_taken_again_when_it_is_promoted(server: Server, opened: RedisStore) -> None:
    await accept(opened, simple("a"))
    with server.client() as client:
        client.replicaof("127.0.0.1", str(free_port()))
        with pytest.raises(StoreUnavailable, match="it is a replica and takes no writes"):
            await opened.accept(simple("b"))
        client.replicaof("NO", "ONE")
    assert (await opened.accept(simple("a"))).duplicate
    assert not (await opened.accept(simple("b"))).duplicate


async def test_a_server_that_cannot_save_is_told_of(tmp_path: Path) -> None:
    server = Server("--save", "3600 1", "--dbfilename", "dump.rdb").start()
    store = await RedisStore.open(server.url, FINGERPRINT)
    with server.client() as client:
        folder = Path(client.config_get("dir")["dir"])
        (folder / "dump.rdb").mkdir()
        client.bgsave()

        async def failed() -> bool:
            return bool(client.info("persistence")["rdb_last_bgsave_status"] == "err")

        await until(failed)
        with pytest.raises(StoreUnavailable, match="cannot save to its disk"):
            await store.accept(simple("a"))
        client.config_set("stop-writes-on-bgsave-error", "no")
    assert not (await store.accept(simple("a"))).duplicate
    await store.close()
    server.remove()


async def test_too_few_replicas_are_told_of(server: Server, opened: RedisStore) -> None:
    with server.client() as client:
        client.config_set("min-replicas-to-write", "1")
        with pytest.raises(StoreUnavailable, match="too few replicas follow it"):
            await opened.accept(simple("a"))
        client.config_set("min-replicas-to-write", "0")
    assert not (await opened.accept(simple("a"))).duplicate


async def test_a_server_that_is_loading_is_told_of_and_waited_for() -> None:
    settings = ("--save", "", "--appendonly", "no", "--loading-process-events-interval-bytes", "1024")
    server = Server(*settings, "--key-load-delay", "0").start()
    store = await RedisStore.open(server.url, FINGERPRINT)
    await accept(store, *(simple(str(number)) for number in range(200)))
    with server.client() as client:
        client.save()
    server.kill()
    server.start("--key-load-delay", "20000", wait=False)
    told: set[str] = set()
    async with asyncio.timeout(PATIENCE):
        while not any("loading its data" in each for each in told):
            told.add(await store.probe() or "")
    with server.client() as client:
        client.config_set("key-load-delay", "0")
    assert (await patiently(store, simple("0"))).duplicate
    await store.close()
    server.remove()


async def test_work_of_another_process_is_told(server: Server, opened: RedisStore) -> None:
    other = await RedisStore.open(server.url, FINGERPRINT)
    woken: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    follower = asyncio.create_task(other.follow(woken.put_nowait))

    async def heard() -> bool:
        await opened.accept(simple(str(asyncio.get_running_loop().time())))
        return not woken.empty()

    await until(heard)
    assert await woken.get() == {"sink"}
    with server.client() as client:
        client.client_kill_filter(_type="pubsub")
    while not woken.empty():
        woken.get_nowait()
    await until(heard)  # it listens again
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    await other.close()

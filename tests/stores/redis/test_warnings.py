"""What may lose data some day is named before it does."""

import pytest

from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.servers import Proxy, Server


async def test_a_server_that_persists_and_never_evicts_is_no_worry(opened: RedisStore) -> None:
    assert await opened.warnings() == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"appendonly": "no"}, "keeps nothing on disk"),
        ({"appendonly": "no", "save": "3600 1"}, "writes no append-only file"),
        ({"appendfsync": "no"}, "appendfsync is no"),
        ({"maxmemory-policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru"),
        ({"maxmemory-policy": "volatile-ttl"}, "maxmemory-policy is volatile-ttl"),
        ({"min-replicas-to-write": "2"}, "0 replicas follow it, and it refuses writes below 2"),
    ],
)
async def test_what_is_set_so_that_it_may_lose_data_is_named(
    server: Server, opened: RedisStore, settings: dict[str, str], told: str
) -> None:
    with server.client() as client:
        for name, value in settings.items():
            client.config_set(name, value)
    (warning,) = await opened.warnings()
    assert told in warning


async def test_a_clock_that_differs_is_named(
    server: Server, opened: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    real = time.time
    monkeypatch.setattr("gateway.store.redis.time.time", lambda: real() + 60)
    (warning,) = await opened.warnings()
    assert "behind this machine's" in warning


async def test_what_cannot_be_asked_is_no_answer(server: Server) -> None:
    async with Proxy(server) as proxy:
        store = await RedisStore.open(f"redis://127.0.0.1:{proxy.port}", FINGERPRINT)
    server.kill()
    from gateway.deliveries import StoreUnavailable

    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await store.warnings()
    await store.close()

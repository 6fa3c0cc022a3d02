"""Sentinel: the primary dies, a replica takes over, and the store follows by itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.deliveries import StoreUnavailable
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.redis.conftest import DURABLE
from tests.stores.redis.test_recovery import patiently
from tests.stores.reports import simple
from tests.stores.servers import Server, eventually, free_port


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[str, Server, Server]]:
    """Return a Sentinel set's address, its primary and its replica."""
    primary = Server(*DURABLE, "--repl-diskless-sync-delay", "0", port=free_port()).start()
    replica = Server(*DURABLE, "--replicaof", f"127.0.0.1 {primary.port}", port=free_port()).start()
    eventually(lambda: _info(primary, "connected_slaves") == 1 and _info(replica, "master_link_status") == "up")
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n"
    )
    sentinel = Server(port=free_port())
    sentinel.start_sentinel(config)
    eventually(lambda: _known_replicas(sentinel) == 1)
    yield f"redis+sentinel://127.0.0.1:{sentinel.port}/main", primary, replica
    for each in (sentinel, primary, replica):
        each.remove()


def _info(server: Server, field: str) -> object:
    with server.client() as client:
        return client.info("replication").get(field)


def _known_replicas(sentinel: Server) -> int:
    with sentinel.client() as client:
        return len(client.execute_command("SENTINEL", "REPLICAS", "main"))


async def test_a_failover_is_followed_and_what_was_replicated_is_known(watched: tuple[str, Server, Server]) -> None:
    url, primary, replica = watched
    store = await RedisStore.open(url, FINGERPRINT, answer_within=2.0)
    assert not (await store.accept(simple("before"))).duplicate
    eventually(lambda: _info(primary, "slave0")["lag"] == 0 and _offsets_agree(primary, replica))  # type: ignore[index]
    primary.kill()
    with pytest.raises(StoreUnavailable):
        await store.accept(simple("during"))
    assert not (await patiently(store, simple("after"))).duplicate
    assert (await store.accept(simple("before"))).duplicate
    assert _info(replica, "role") == "master"
    await store.close()


def _offsets_agree(primary: Server, replica: Server) -> bool:
    return _info(primary, "master_repl_offset") == _info(replica, "slave_repl_offset")


async def test_a_service_that_sentinel_does_not_know_is_told_of(watched: tuple[str, Server, Server]) -> None:
    with pytest.raises(StoreUnavailable, match="No master found for 'other'"):
        await RedisStore.open(watched[0].removesuffix("main") + "other", FINGERPRINT)


async def test_a_primary_that_takes_writes_alone_is_a_worry(watched: tuple[str, Server, Server]) -> None:
    store = await RedisStore.open(watched[0], FINGERPRINT)
    (warning,) = await store.warnings()
    assert "min-replicas-to-write is 0" in warning
    await store.close()

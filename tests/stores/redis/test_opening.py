"""Which servers are taken, under which key and layout, and what is said to whoever may not; no secret is."""

import pytest

from gateway.deliveries import StoreMismatch, StoreUnavailable
from gateway.store.redis import SCHEMA, RedisStore
from gateway.store.redis_calls import parse_address
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import simple
from tests.stores.servers import Proxy, Server, binary, free_port


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("redis://localhost", "redis://localhost:6379"),
        ("redis://user:s%40crt@h:7000/3", "redis://h:7000"),
        ("rediss://:s%40crt@[::1]:7000", "rediss://::1:7000"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock"),
        ("redis+sentinel://:s%40crt@a,b:26380/main/4", "redis+sentinel://a:26379,b:26380/main"),
        ("rediss+cluster://u:s%40crt@a:1,b:2?ssl_ca_certs=/ca.pem", "rediss+cluster://a:1,b:2"),
    ],
)
def test_an_address_is_read_whole_and_printed_without_its_password(url: str, printed: str) -> None:
    address = parse_address(url)
    assert str(address) == printed
    assert address.password.reveal() == ("s@crt" if "crt" in url else "")
    assert "crt" not in repr(address)


def test_an_address_keeps_what_it_says() -> None:
    address = parse_address("redis+sentinel://user:pw@a,b:26380/main/4?sentinel_password=p")
    assert (address.hosts, address.service, address.db) == ((("a", 26379), ("b", 26380)), "main", 4)
    assert (address.username, address.options) == ("user", (("sentinel_password", "p"),))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://:secret@h", "`http://` is no Redis"),
        ("redis://:secret@", "names its hosts as host:port"),
        ("redis://:secret@h:port", "names its hosts as host:port"),
        ("redis://:secret@h/name", "db of a Redis address is a number"),
        ("redis+sentinel://:secret@h", "asked for a service by its name"),
        ("redis+cluster://:secret@h/1", "no numbered databases"),
        ("redis://:secret@h?socket_timeout=1", "`socket_timeout` is no option"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as told:
        parse_address(url)
    assert "secret" not in str(told.value)


async def test_another_key_is_refused(server: Server, opened: RedisStore) -> None:
    with pytest.raises(StoreMismatch, match="written under another GATEWAY_SECRET_KEY"):
        await RedisStore.open(server.url, b"another 16 bytes")


async def test_another_number_of_partitions_is_refused(server: Server, opened: RedisStore) -> None:
    with pytest.raises(StoreMismatch, match=r"with GATEWAY_PARTITIONS=1, .* set it to 1 again"):
        await RedisStore.open(server.url, FINGERPRINT, partitions=4)


async def test_a_newer_schema_is_refused(server: Server, opened: RedisStore) -> None:
    with server.client() as client:
        client.hset("{gw.0}:meta", "schema", str(SCHEMA + 1))
    with pytest.raises(StoreMismatch, match=f"has schema {SCHEMA + 1}, this gateway knows up to {SCHEMA}"):
        await RedisStore.open(server.url, FINGERPRINT)


@pytest.mark.parametrize(("wait_aof", "needs"), [(False, "needs 7.0 or later"), (True, "it must be 7.2 or later")])
async def test_an_old_server_is_refused(server: Server, wait_aof: bool, needs: str) -> None:
    with server.client() as client:
        version = client.info("server")["redis_version"]
    old = ("6.2." if not wait_aof else "7.0.").ljust(len(version), "0")[: len(version)]
    async with Proxy(server, says=(f"redis_version:{version}".encode(), f"redis_version:{old}".encode())) as proxy:
        with pytest.raises(StoreMismatch, match=needs):
            await RedisStore.open(f"redis://127.0.0.1:{proxy.port}", FINGERPRINT, wait_aof=wait_aof)


async def test_a_server_that_is_not_there_is_named() -> None:
    port = free_port()
    with pytest.raises(StoreUnavailable, match=f"redis://127.0.0.1:{port}: it cannot be reached"):
        await RedisStore.open(f"redis://:secret@127.0.0.1:{port}", FINGERPRINT)


@pytest.mark.parametrize("credentials", ["", ":wrong-secret@", "nobody:wrong-secret@"])
async def test_who_has_no_password_is_told_and_nothing_is_told_of_it(credentials: str) -> None:
    server = Server("--requirepass", "right-secret", "--save", "", port=free_port()).start()
    with pytest.raises(StoreUnavailable, match="password") as told:
        await RedisStore.open(f"redis://{credentials}127.0.0.1:{server.port}", FINGERPRINT)
    assert "secret" not in str(told.value)
    store = await RedisStore.open(f"redis://:right-secret@127.0.0.1:{server.port}", FINGERPRINT)
    await store.close()
    server.remove()


ALLOWED = "~{gw* &{gw* +@read +@write +@connection +fcall +function|load +publish +subscribe +info +time"


async def test_a_user_with_no_more_than_it_needs_can_do_everything_but_look_at_settings(server: Server) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "gateway", "on", ">pw", *ALLOWED.split())
    async with Proxy(server) as proxy:
        store = await RedisStore.open(f"redis://gateway:pw@127.0.0.1:{proxy.port}", FINGERPRINT)
        assert not (await store.accept(simple("a"))).duplicate
        assert await store.probe() is None
        assert any("does not show its settings" in each for each in await store.warnings())
        await store.close()


async def test_a_user_who_may_not_is_told_so(server: Server) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "gateway", "on", ">pw", *ALLOWED.replace("gw", "other").split())
    async with Proxy(server) as proxy:
        with pytest.raises(StoreUnavailable, match=r"ACL|permission"):
            await RedisStore.open(f"redis://gateway:pw@127.0.0.1:{proxy.port}", FINGERPRINT)


async def test_two_gateways_with_their_own_prefixes_do_not_see_each_other(server: Server, opened: RedisStore) -> None:
    other = await RedisStore.open(server.url, b"another 16 bytes", prefix="staging")
    await opened.accept(simple("a"))
    assert (await other.webhooks(), await other.counts()) == ([], {})
    assert not (await other.accept(simple("a"))).duplicate
    await other.close()


def test_the_program_is_a_server() -> None:
    assert binary()

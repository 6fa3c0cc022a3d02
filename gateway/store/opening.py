"""Which store the settings name: one file, or a Redis that several gateways share."""

from typing import TYPE_CHECKING, TypeAlias

from gateway.sealing import Sealer
from gateway.settings import Settings, SettingsError
from gateway.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from gateway.store.redis import RedisStore

Store: TypeAlias = "SqliteStore | RedisStore"


def store_of(settings: Settings, sealer: Sealer, *, exclusive: bool = True) -> Store:
    """Return the store. One on Redis is not connected yet: `connect` it on the loop that uses it.

    `exclusive=False` is for commands beside a running gateway. Raises `SettingsError` for an address that is
    none, and `StoreMismatch` for a file that cannot be used.
    """
    if settings.embedded:
        return SqliteStore.open(settings.store_path, sealer.fingerprint(), exclusive=exclusive)
    from gateway.store.redis import RedisStore  # noqa: PLC0415 -- takes 0.3 s, which one file need not pay

    try:
        return RedisStore.at(
            settings.store, sealer.fingerprint(), partitions=settings.partitions, wait_aof=settings.wait_aof
        )
    except ValueError as error:
        raise SettingsError(f"GATEWAY_STORE: {error}") from None


async def open_store(settings: Settings, sealer: Sealer, *, exclusive: bool = True) -> Store:
    """Return the store, ready. Raises `SettingsError`, `StoreMismatch` and `StoreUnavailable`."""
    store = store_of(settings, sealer, exclusive=exclusive)
    if not isinstance(store, SqliteStore):
        try:
            await store.connect()
        except BaseException:
            await store.close()
            raise
    return store

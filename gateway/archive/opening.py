"""The archive beside a gateway that runs, for the command line."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.archive.archive import Archive
from gateway.clock import now_ms
from gateway.intake import Intake
from gateway.mappings import Mappings, load_mappings
from gateway.privacy import Privacy
from gateway.sealing import Sealer
from gateway.settings import Settings
from gateway.store.opening import open_store


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Archive]:
    """Open the archive beside a running gateway.

    Raises `SettingsError`, `StoreMismatch` and `StoreUnavailable`; what needs the mappings raises `MappingErrors`.
    """
    loaded: list[Mappings] = []

    def mappings() -> Mappings:
        if not loaded:
            loaded.append(load_mappings(settings.mappings, settings.environment))
        return loaded[0]

    sealer = Sealer(settings.master_key())
    store = await open_store(settings, sealer, exclusive=False)
    forward_tests = settings.test_events == "forward"

    def nobody(_: frozenset[str]) -> None:
        """The gateway that serves this store looks for work of others by itself."""

    intake = Intake(store, sealer, mappings, now_ms, nobody, forward_tests=forward_tests)
    privacy = Privacy(store, sealer, settings.exports, now_ms)
    try:
        yield Archive(store, sealer, mappings, intake, privacy, nobody, now_ms, forward_tests=forward_tests)
    finally:
        await store.close()

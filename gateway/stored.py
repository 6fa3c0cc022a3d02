"""What a store holds, looked at and replayed by commands beside a running gateway."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from gateway.clock import now_ms
from gateway.deliveries import Forgotten, StoredDelivery, StoredWebhook, StoreMismatch
from gateway.intake import Intake, KeptRequest, kept_request
from gateway.links import KnownLink, known, resolve
from gateway.mappings import load_mappings
from gateway.privacy import Privacy
from gateway.sealing import Sealer
from gateway.settings import Settings
from gateway.store.opening import open_store


class StoredRequests:
    """What a store holds of webhooks, to be looked at beside a running gateway. Use it as a context manager.

    Opening raises `SettingsError`, `StoreMismatch` and `StoreUnavailable`.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.embedded and not settings.store_path.exists():
            raise StoreMismatch(f"there is no store at {settings.store_path}: set GATEWAY_STORE to the gateway's")
        self._sealer = Sealer(settings.master_key())
        self._exports = settings.exports
        self._runner = asyncio.Runner()
        try:
            self._store = self._runner.run(open_store(settings, self._sealer, exclusive=False))
        except BaseException:
            self._runner.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._store.close())
        self._runner.close()

    def called(self, id: str) -> Iterator[tuple[StoredWebhook, KeptRequest]]:
        """Yield the webhooks that their sender calls `id`, newest first, but for those that retention took."""
        yield from self._opened(self._runner.run(self._store.find(id)))

    def newest(self, limit: int) -> Iterator[tuple[StoredWebhook, KeptRequest]]:
        """Yield the newest webhooks, but for those that retention took."""
        before = None
        while limit > 0 and (page := self._runner.run(self._store.webhooks(before=before, limit=min(limit, 100)))):
            before, limit = page[-1].webhook, limit - len(page)
            yield from self._opened(each.webhook for each in page)

    def linked(self, subjects: Mapping[str, str]) -> dict[str, Mapping[str, str] | None]:
        """Return the visitor ids, by product, that each of these subjects (name and value) is linked to, or None."""
        found: dict[str, Mapping[str, str] | None] = {}
        for name, value in subjects.items():
            key = self._sealer.subject_key(name, value)
            parts = self._runner.run(self._store.resolve([key]))
            resolution = resolve({name: key}, None, parts, self._sealer, now_ms())
            ids = resolution.visitor.ids if resolution.visitor else None
            found[name] = None if ids is None else {product: each.visitor_id or "" for product, each in ids.items()}
        return found

    def links(self, subjects: Mapping[str, str]) -> dict[str, list[KnownLink]]:
        """Return what each of these subjects (name and value) is linked to, part by part, or was lately."""
        found: dict[str, list[KnownLink]] = {}
        for name, value in subjects.items():
            key = self._sealer.subject_key(name, value)
            parts = self._runner.run(self._store.resolve([key])).get(key, [])
            found[name] = [known(part, self._sealer) for part in parts]
        return found

    def forget(self, subjects: Mapping[str, str]) -> Forgotten:
        """Erase these subjects. Raises `ValueError` for a value that is none of its kind, and `StoreUnavailable`."""
        privacy = Privacy(self._store, self._sealer, self._exports, now_ms)
        return self._runner.run(privacy.forget(subjects))

    def deliveries(self, webhook: int) -> list[StoredDelivery]:
        """Return what became of a webhook's events."""
        return self._runner.run(self._store.deliveries(webhook))

    def _opened(self, numbers: Iterable[int]) -> Iterator[tuple[StoredWebhook, KeptRequest]]:
        for number in numbers:
            webhook = self._runner.run(self._store.webhook(number))
            if webhook is not None and webhook.sealed is not None:
                yield webhook, kept_request(webhook, self._sealer)


async def replay_stored(settings: Settings, id: str) -> int:
    """Replay the stored webhooks that their sender calls `id`, beside a running gateway. Returns how many there were.

    Raises `SettingsError`, `MappingErrors`, `StoreMismatch` and `StoreUnavailable`.
    """
    mappings = load_mappings(settings.mappings, settings.environment)
    sealer = Sealer(settings.master_key())
    store = await open_store(settings, sealer, exclusive=False)
    forward_tests = settings.test_events == "forward"
    # Nobody to wake: the gateway that serves this store looks for work of others by itself.
    intake = Intake(store, sealer, lambda: mappings, now_ms, lambda _: None, forward_tests=forward_tests)
    replayed = 0
    try:
        for number in await store.find(id):
            stored = await store.webhook(number)
            if stored is not None and stored.sealed is not None:
                await intake.replay(stored)
                replayed += 1
    finally:
        await store.close()
    return replayed

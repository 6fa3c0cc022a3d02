"""The composition root: reads as the start-up order, and its reverse as the stop. The only place that wires things."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Self

import structlog
from litestar import Litestar, Response, Router, get
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException, NotAuthorizedException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin
from litestar.plugins.prometheus import PrometheusController
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE
from litestar.types import Scope

from gateway.browser import Linking, link_routes
from gateway.deliveries import Forgotten, StoredDelivery, StoredWebhook, StoreMismatch, StoreUnavailable
from gateway.delivery import DeliveryLoops
from gateway.intake import Intake, KeptRequest, kept_request
from gateway.link_script import script_route
from gateway.links import KnownLink, known, resolve
from gateway.mappings import load_mappings
from gateway.privacy import Privacy
from gateway.reloading import MappingsInForce
from gateway.sealing import Sealer, Secret
from gateway.settings import Settings
from gateway.store.sqlite import SqliteStore
from gateway.webhooks import webhooks_route

LINKS_PER_MINUTE = 120
"""Requests to /link that one client address may make."""
HOUSEKEEPING = 600.0
"""Seconds between two rounds of retention."""

_LOG = structlog.get_logger(__name__)


def now_ms() -> int:
    """The wall clock, in ms."""
    return time.time_ns() // 1_000_000


def create_app(
    settings: Settings,
    clock: Callable[[], int] = now_ms,
    uniform: Callable[[float, float], float] = random.uniform,
    *,
    deliver: bool = True,
    watch: bool = False,
) -> Litestar:
    """Build the gateway. It holds the store from here until its lifespan ends.

    With `deliver=False` it only takes webhooks in; what is due waits for a gateway that delivers. With `watch` an
    edit of the mappings takes their place; without, `app.state.mappings.ask()` has them read again.

    Raises `SettingsError`, `MappingErrors` and `StoreMismatch` with what to do about each.
    """
    mappings = MappingsInForce(settings.mappings, settings.environment)
    sealer = Sealer(settings.master_key())
    store = SqliteStore.open(settings.store_path, sealer.fingerprint())

    deliveries = DeliveryLoops(mappings, store, sealer, clock, uniform)
    privacy = Privacy(store, sealer, settings.exports, clock)
    forward_tests = settings.test_events == "forward"
    intake = Intake(store, sealer, mappings, clock, deliveries.wake, forward_tests=forward_tests, asked=privacy.wake)
    linking = Linking(
        store,
        privacy,
        sealer,
        lambda: mappings.current.subjects,
        settings.link_secret,
        frozenset(settings.link_origins),
        clock,
        deliveries.wake,
    )

    keepers: dict[str, asyncio.Task[None]] = {}

    def follow_mappings() -> None:
        if deliver:
            deliveries.follow()

    @asynccontextmanager
    async def running(app: Litestar) -> AsyncIterator[None]:
        follow_mappings()
        keepers.update(
            retention=asyncio.create_task(_keep_house(app, store, settings.retention, clock)),
            mappings=asyncio.create_task(mappings.follow(follow_mappings, watch=watch)),
            privacy=asyncio.create_task(privacy.follow()),
        )
        now = mappings.current
        _LOG.info("started", sources=list(now.sources), destinations=list(now.destinations), store=settings.store)
        if not now.destinations:
            _LOG.warning("no_destination_is_on", next_step="`gateway check` says which settings turn one on")
        try:
            yield
        finally:
            for keeper in keepers.values():
                keeper.cancel()
            await asyncio.gather(*keepers.values(), return_exceptions=True)
            await deliveries.stop()
            await store.close()
            _LOG.info("stopped")

    origins = list(settings.link_origins)
    return Litestar(
        route_handlers=[
            webhooks_route(intake, settings.max_body),
            *link_routes(linking, LINKS_PER_MINUTE),
            script_route(),
            *health_routes(store, mappings, deliveries, keepers),
            *(
                [Router("/", route_handlers=[PrometheusController], guards=[_operators_only(settings.admin_token)])]
                if settings.admin_token
                else []
            ),
        ],
        state=State({"mappings": mappings}),
        lifespan=[running],
        plugins=[ProblemDetailsPlugin(ProblemDetailsConfig(exception_to_problem_detail_map={HTTPException: _problem}))],
        cors_config=CORSConfig(allow_origins=origins, allow_methods=["POST"], allow_headers=["content-type"])
        if origins
        else None,
        after_exception=[_log_failure],
        openapi_config=None,
        logging_config=None,
    )


async def _log_failure(error: Exception, scope: Scope) -> None:
    """A failure that nobody foresaw is answered 500; it must not go unseen."""
    if not isinstance(error, HTTPException):
        _LOG.error("request_failed", path=scope["path"], exc_info=error)


def _operators_only(token: Secret) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]:
    """Return a guard that lets only requests with the admin token through."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.matches(credentials.strip()):
            raise NotAuthorizedException(detail="this needs `Authorization: Bearer` with the GATEWAY_ADMIN_TOKEN")

    return guard


def _problem(error: HTTPException) -> ProblemDetailsException:
    return ProblemDetailsException(
        status_code=error.status_code,
        title=HTTPStatus(error.status_code).phrase,
        detail=error.detail,
        headers=error.headers,
    )


class StoredRequests:
    """What a store holds of webhooks, to be looked at beside a running gateway. Use it as a context manager.

    Opening raises `SettingsError` and `StoreMismatch`.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.store_path.exists():
            raise StoreMismatch(f"there is no store at {settings.store_path}: set GATEWAY_STORE to the gateway's")
        self._sealer = Sealer(settings.master_key())
        self._exports = settings.exports
        self._runner = asyncio.Runner()
        self._store = SqliteStore.open(settings.store_path, self._sealer.fingerprint(), exclusive=False)

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

    Raises what `create_app` raises, and `StoreUnavailable`.
    """
    mappings = load_mappings(settings.mappings, settings.environment)
    sealer = Sealer(settings.master_key())
    store = SqliteStore.open(settings.store_path, sealer.fingerprint(), exclusive=False)
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


def health_routes(
    store: SqliteStore,
    mappings: MappingsInForce,
    deliveries: DeliveryLoops,
    keepers: Mapping[str, "asyncio.Task[None]"],
) -> list[HTTPRouteHandler]:
    """Return /livez, which says that the process answers, and /readyz, which says whether it can do its work."""

    @get("/livez", sync_to_thread=False)
    def livez() -> dict[str, bool]:
        return {"alive": True}

    @get("/readyz")
    async def readyz() -> Response[dict[str, object]]:
        stopped = [*deliveries.stopped(), *(name for name, keeper in keepers.items() if keeper.done())]
        checks = {
            "store": await store.probe() or "ok",
            "workers": f"stopped: {', '.join(stopped)}" if stopped else "ok",
        }
        ready = all(state == "ok" for state in checks.values())
        # A broken edit is not in force: the gateway does its work under the mappings from before it.
        told = "ok" if mappings.problem is None else f"an edit is not in force: {mappings.problem}"
        return Response(
            {"ready": ready, "checks": checks | {"mappings": told}},
            status_code=HTTP_200_OK if ready else HTTP_503_SERVICE_UNAVAILABLE,
        )

    return [livez, readyz]


async def _keep_house(app: Litestar, store: SqliteStore, retention: int, clock: Callable[[], int]) -> None:
    """Apply retention, and forget the clients that the rate limit knew."""
    while True:
        try:
            if purged := await store.purge(clock(), retention):
                _LOG.info("purged", webhooks=purged)
            await app.stores.get("rate_limit").delete_expired()  # type: ignore[attr-defined]
        except StoreUnavailable as error:
            _LOG.warning("store_unavailable", during="retention", error=str(error))
        await asyncio.sleep(HOUSEKEEPING)

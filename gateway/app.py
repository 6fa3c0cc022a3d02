"""The composition root: reads as the start-up order, and its reverse as the stop. The only place that wires things."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin
from litestar.types import ControllerRouterHandler, Scope

from gateway.alerts import Alerts
from gateway.browser import Linking, link_routes
from gateway.clock import now_ms
from gateway.console.access import Operators
from gateway.deliveries import StoreUnavailable
from gateway.delivery import DeliveryLoops
from gateway.fetching import Fetching
from gateway.health import StoreDoubts, health_routes, stopped_workers
from gateway.intake import Intake
from gateway.link_script import script_route
from gateway.privacy import Privacy
from gateway.reloading import MappingsInForce
from gateway.sealing import Sealer
from gateway.settings import Settings, SettingsError
from gateway.signatures import prepare
from gateway.store.opening import Store, store_of
from gateway.store.sqlite import SqliteStore
from gateway.telemetry import Metrics, StoreView, metrics_route
from gateway.tracing import Tracing, TracingMissing, tracing_of
from gateway.webhooks import webhooks_route

if TYPE_CHECKING:
    from gateway.store.redis import RedisStore

LINKS_PER_MINUTE = 120
"""Requests to /link that one client address may make."""
CONNECT_AGAIN = 1.0
"""Seconds between two tries to connect at the start."""
STOP_WITHIN = 5.0
"""Seconds that what runs beside the requests gets to end; then the deliveries under way are finished all the same."""
HOUSEKEEPING = 600.0
"""Seconds between two rounds of retention."""

_LOG = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    clock: Callable[[], int] = now_ms,
    uniform: Callable[[float, float], float] = random.uniform,
    *,
    receive: bool = True,
    deliver: bool = True,
    watch: bool = False,
    address: str | None = None,
) -> Litestar:
    """Build the gateway. It holds the store from here until its lifespan ends.

    With `deliver=False` it only takes webhooks in; what is due waits for a gateway that delivers. With `receive=False`
    it only delivers, and answers nothing but how it is. With `watch` an edit of the mappings takes their place;
    without, `app.state.mappings.ask()` has them read again. `address` is where it will be served, for its log.

    Raises `SettingsError`, `MappingErrors` and `StoreMismatch` with what to do about each.
    """
    mappings = MappingsInForce(settings.mappings, settings.environment)
    sealer = Sealer(settings.master_key())
    tracing = _tracing(settings)
    store = store_of(settings, sealer)
    doubts = StoreDoubts(store)

    metrics = Metrics()
    deliveries = DeliveryLoops(mappings, store, sealer, clock, uniform, metrics, tracing)
    view = StoreView(store, mappings, lambda: mappings.problem is not None, deliveries.breakers, clock)
    privacy = Privacy(store, sealer, settings.exports, clock)
    forward_tests = settings.test_events == "forward"

    def wake(destinations: frozenset[str]) -> None:
        deliveries.wake(destinations)
        fetching.wake(destinations)

    intake = Intake(
        store,
        sealer,
        mappings,
        clock,
        wake,
        forward_tests=forward_tests,
        asked=privacy.wake,
        metrics=metrics,
        tracing=tracing,
    )
    fetching = Fetching(store, sealer, intake, lambda: mappings.current.fetches, clock, uniform, metrics)
    linking = Linking(
        store,
        privacy,
        sealer,
        lambda: mappings.current.subjects,
        mappings.all_read.wait,
        settings.link_secret,
        frozenset(settings.link_origins),
        clock,
        deliveries.wake,
    )

    operators = Operators(settings.admin_token, clock)

    def operating() -> list[ControllerRouterHandler]:
        """Return what operators look into and repair the gateway with."""
        # 0.3 s of imports, which a gateway without a token need not pay.
        from gateway.archive import Archive  # noqa: PLC0415
        from gateway.console.api import operator_routes  # noqa: PLC0415
        from gateway.console.pages import console_route  # noqa: PLC0415
        from gateway.console.session import Sessions  # noqa: PLC0415

        archive = Archive(store, sealer, mappings, intake, privacy, wake, clock, forward_tests=forward_tests)
        return [
            *operator_routes(archive, operators, settings.environment, lambda: mappings.problem),
            console_route(
                store,
                archive,
                operators,
                Sessions(settings.admin_token, sealer, clock),
                sealer,
                mappings,
                settings.mappings,
                settings.environment,
                deliveries.breakers,
                clock,
            ),
        ]

    keepers: dict[str, asyncio.Task[None]] = {}

    def alerts() -> Alerts:
        return Alerts(
            settings.alert_webhook,
            socket.gethostname(),
            store,
            metrics,
            mappings,
            deliveries.breakers,
            lambda: doubts.known,
            lambda: mappings.problem,
            lambda: stopped_workers(deliveries, keepers),
            clock,
            None if isinstance(store, SqliteStore) else store,  # of several gateways one speaks
        )

    def follow_mappings() -> None:
        if deliver:
            deliveries.follow()

    @asynccontextmanager
    async def running(_app: Litestar) -> AsyncIterator[None]:
        if not isinstance(store, SqliteStore):
            await _connect(store)
            keepers["wake-ups"] = asyncio.create_task(store.follow(wake))
        follow_mappings()
        keepers.update(
            retention=asyncio.create_task(_keep_house(store, settings.retention, clock)),
            mappings=asyncio.create_task(mappings.follow(follow_mappings, watch=watch)),
            privacy=asyncio.create_task(privacy.follow()),
            doubts=asyncio.create_task(doubts.follow()),
        )
        if settings.admin_token:  # without one nobody can ask for metrics
            keepers["metrics"] = asyncio.create_task(view.follow())
        if deliver:
            keepers["fetching"] = asyncio.create_task(fetching.follow())
        if settings.alert_webhook:
            keepers["alerts"] = asyncio.create_task(alerts().follow())
        now = mappings.current
        ahead = asyncio.create_task(asyncio.to_thread(prepare, [each.verification for each in now.sources.values()]))
        sources = [name for name, each in now.sources.items() if each.verification.keys]  # the others refuse everything
        where = {"address": address} if address else {}
        _LOG.info("started", **where, sources=sources, destinations=list(now.destinations), store=settings.store_shown)
        if not now.destinations:
            _LOG.warning("no_destination_is_on", next_step="`gateway check` says which settings turn one on")
        try:
            yield
        finally:
            for keeper in keepers.values():
                keeper.cancel()
            await asyncio.wait({ahead, *keepers.values()}, timeout=STOP_WITHIN)
            await deliveries.stop()
            await store.close()
            if tracing is not None:
                await tracing.close()
            _LOG.info("stopped")

    origins = list(settings.link_origins)
    taking_in = [
        webhooks_route(intake, settings.max_body, metrics, mappings.all_read.wait),
        *link_routes(linking, LINKS_PER_MINUTE),
        script_route(),
    ]
    return Litestar(
        route_handlers=[
            *(taking_in if receive else ()),
            *health_routes(store, doubts, mappings, deliveries, keepers),
            *(
                [Router("/", route_handlers=[metrics_route(metrics, view)], guards=[operators.guard])]
                if settings.admin_token
                else []
            ),
            *(operating() if settings.admin_token and receive else ()),
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


def _tracing(settings: Settings) -> Tracing | None:
    try:
        return tracing_of(settings.environment)
    except TracingMissing as error:
        raise SettingsError(str(error)) from None


async def _log_failure(error: Exception, scope: Scope) -> None:
    """A failure that nobody foresaw is answered 500; it must not go unseen."""
    if not isinstance(error, HTTPException):
        _LOG.error("request_failed", path=scope["path"], exc_info=error)


def _problem(error: HTTPException) -> ProblemDetailsException:
    return ProblemDetailsException(
        status_code=error.status_code,
        title=HTTPStatus(error.status_code).phrase,
        detail=error.detail,
        headers=error.headers,
    )


async def _connect(store: "RedisStore") -> None:
    """Connect, patiently: a gateway that is started with its Redis, or during a failover, needs no operator."""
    while True:
        try:
            await store.connect()
        except StoreUnavailable as error:
            _LOG.warning("store_unavailable", during="start", error=str(error))
            await asyncio.sleep(CONNECT_AGAIN)
        else:
            return


async def _keep_house(store: Store, retention: int, clock: Callable[[], int]) -> None:
    """Apply retention."""
    while True:
        try:
            if purged := await store.purge(clock(), retention):
                _LOG.info("purged", webhooks=purged)
        except StoreUnavailable as error:
            _LOG.warning("store_unavailable", during="retention", error=str(error))
        await asyncio.sleep(HOUSEKEEPING)

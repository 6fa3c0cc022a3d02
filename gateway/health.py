"""Whether the process lives (/livez), can do its work (/readyz), and what may hold it up some day."""

import asyncio
from collections.abc import Mapping

import structlog
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE

from gateway.deliveries import StoreUnavailable
from gateway.delivery import DeliveryLoops
from gateway.reloading import MappingsInForce
from gateway.store.opening import Store

LOOK_AGAIN = 60.0
"""Seconds between two looks at how the store is set up."""

_LOG = structlog.get_logger(__name__)


class StoreDoubts:
    """What may lose data or hold up work some day, as of the last look: no persistence, an eviction policy, clocks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.known: list[str] = []

    async def follow(self) -> None:
        """Look every minute, until cancelled; what is new is logged."""
        while True:
            try:
                found = await self._store.warnings()
            except StoreUnavailable:
                found = self.known  # that it is down is /readyz's to say
            for each in found:
                if each not in self.known:
                    _LOG.warning("store_doubtful", doubt=each)
            self.known = found
            await asyncio.sleep(LOOK_AGAIN)


def stopped_workers(deliveries: DeliveryLoops, keepers: Mapping[str, "asyncio.Task[None]"]) -> list[str]:
    """Return who has ended though it should run."""
    return [*deliveries.stopped(), *(name for name, keeper in keepers.items() if keeper.done())]


def health_routes(
    store: Store,
    doubts: StoreDoubts,
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
        stopped = stopped_workers(deliveries, keepers)
        checks = {
            "store": await store.probe() or "ok",
            "workers": f"stopped: {', '.join(stopped)}" if stopped else "ok",
        }
        ready = all(state == "ok" for state in checks.values())
        # A broken edit is not in force: the gateway does its work under the mappings from before it.
        told = "ok" if mappings.problem is None else f"an edit is not in force: {mappings.problem}"
        return Response(
            {"ready": ready, "checks": checks | {"mappings": told}, "warnings": doubts.known},
            status_code=HTTP_200_OK if ready else HTTP_503_SERVICE_UNAVAILABLE,
        )

    return [livez, readyz]

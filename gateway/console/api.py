"""The operator API, `/api/v1`: what the archive holds, and its repairs, as JSON. The pages and commands do the same.

Every error is a problem document. Each change is one line of the audit log.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, Router, delete, get, post
from litestar.exceptions import ClientException, HTTPException, NotFoundException, ServiceUnavailableException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import FromQuery, JSONBody, PathParameter, QueryParameter
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from gateway import __version__
from gateway.archive import (
    MAX_PAGE,
    MAX_RETRIED,
    Accuracy,
    Archive,
    DeadGroups,
    DeliveryPage,
    Linked,
    Missing,
    Refused,
    Replayed,
    Retried,
    Setup,
    StateName,
    Unclear,
    WebhookPage,
    WebhookState,
    WebhookWay,
    states_of,
    subjects_of,
)
from gateway.console.access import Operators
from gateway.deliveries import Forgotten, StoreUnavailable, WantedDeliveries
from gateway.webhooks import RETRY_AFTER, Problem

PATH = "/api/v1"
MAX_REQUEST = 16_384
MAX_NUMBER = 1 << 52
"""The largest number of a webhook that is looked up: larger ones do not fit into every store."""
MAX_VALUE = 512

AnyRequest = Request[object, object, object]  # type: ignore[type-var]
Text = Annotated[str | None, QueryParameter(max_length=MAX_VALUE)]
Number = Annotated[int, PathParameter(ge=1, le=MAX_NUMBER)]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)]


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead deliveries to retry: all, or those of a destination or reason. `after` goes on from the last call."""

    destination: str | None = None
    reason: str | None = None
    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_RETRIED)] = MAX_RETRIED


class Whom(Struct, frozen=True, forbid_unknown_fields=True):
    """Who is to be forgotten: values by the subject's name."""

    subjects: Annotated[dict[str, Annotated[str, msgspec.Meta(max_length=MAX_VALUE)]], msgspec.Meta(max_length=20)]


def operator_routes(
    archive: Archive,
    operators: Operators,
    variables: Callable[[str], str | None],
    problem: Callable[[], str | None],
) -> list[ControllerRouterHandler]:
    """Return the API. `variables` are the settings that mappings name; `problem`: what is wrong with an edit."""
    router = Router(
        PATH,
        route_handlers=[
            *_lists(archive),
            *_one_webhook(archive, operators),
            *_dead(archive, operators),
            *_links(archive, operators),
            *_numbers(archive, variables, problem),
        ],
        guards=[operators.guard],
        exception_handlers={HTTPException: _refused},
        request_max_body_size=MAX_REQUEST,
        cache_control=None,
        security=[{"operator": []}],
    )
    made: list[bytes] = []  # when it is first asked for, as it takes longer than all else at the start

    @get(f"{PATH}/openapi.json", guards=[operators.guard], sync_to_thread=False)
    def openapi() -> Response[bytes]:
        if not made:
            made.append(msgspec.json.encode(_document(router)))
        return Response(made[0], media_type="application/vnd.oai.openapi+json")

    return [router, openapi]


def _document(router: Router) -> dict[str, Any]:
    """Return the OpenAPI document of these routes alone."""
    described = Litestar(
        route_handlers=[router],
        openapi_config=OpenAPIConfig(
            title="Webhook translation gateway",
            version=__version__,
            description="What operators see of webhooks and deliveries, and how they repair them.",
            render_plugins=[JsonRenderPlugin()],
            components=Components(security_schemes={"operator": SecurityScheme("http", scheme="bearer")}),
        ),
        logging_config=None,  # else it would turn on others' logs, which tell addresses with secrets in them
    )
    return described.openapi_schema.to_schema()


_RESPONSES = {
    int(status): ResponseSpec(
        Problem, description=status.phrase, media_type="application/problem+json", generate_examples=False
    )
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}


# the routes


def _lists(archive: Archive) -> list[ControllerRouterHandler]:
    @get("/webhooks", responses=_RESPONSES, summary="Webhooks, newest first")
    async def webhooks(
        id: Text = None,
        source: Text = None,
        type: Text = None,
        subject: Text = None,
        since: Text = None,
        until: Text = None,
        in_state: Annotated[WebhookState | None, QueryParameter(name="state")] = None,
        after: Text = None,
        limit: Limit = 50,
    ) -> WebhookPage:
        with _answering():
            wanted = archive.wanted(
                id=id, source=source, type=type, subject=subject, since=since, until=until, state=in_state
            )
            return await archive.webhooks(wanted, after, limit)

    @get("/deliveries", responses=_RESPONSES, summary="Deliveries, those of the newest webhooks first")
    async def deliveries(
        destination: Text = None,
        in_state: Annotated[StateName | None, QueryParameter(name="state")] = None,
        reason: Text = None,
        after: Text = None,
        limit: Limit = 50,
    ) -> DeliveryPage:
        wanted = WantedDeliveries(destination=destination, states=states_of(in_state), reason=reason)
        with _answering():
            return await archive.deliveries(wanted, after, limit)

    @get("/dead", responses=_RESPONSES, summary="What is dead, by destination and reason")
    async def dead() -> DeadGroups:
        with _answering():
            return await archive.dead()

    return [webhooks, deliveries, dead]


def _one_webhook(archive: Archive, operators: Operators) -> list[ControllerRouterHandler]:
    @get("/webhooks/{number:int}", responses=_RESPONSES, summary="All that became of one webhook")
    async def webhook(number: Number, reveal: FromQuery[bool] = False) -> WebhookWay:
        if reveal:
            operators.did("reveal", 1, webhook=number)
        with _answering():
            return await archive.webhook(number, reveal=reveal)

    @post(
        "/webhooks/{number:int}/replay",
        responses=_RESPONSES,
        status_code=200,
        summary="Translate it again",
    )
    async def replay(number: Number, dry_run: FromQuery[bool] = False) -> Replayed:
        with _answering():
            if dry_run:
                return await archive.rehearse(number)
            replayed = await archive.replay(number)
        operators.did("replay", 1, webhook=number)
        return replayed

    @post(
        "/deliveries/{webhook:int}/{number:int}/retry",
        responses=_RESPONSES,
        status_code=200,
        summary="Retry a delivery",
    )
    async def retry(webhook: Number, number: Annotated[int, PathParameter(ge=0, le=MAX_NUMBER)]) -> Retried:
        with _answering():
            retried = await archive.retry(webhook, number)
        operators.did("retry", 1, webhook=webhook, delivery=number)
        return retried

    return [webhook, replay, retry]


def _dead(archive: Archive, operators: Operators) -> list[ControllerRouterHandler]:
    @post("/dead/retry", responses=_RESPONSES, status_code=200, summary="Retry what is dead, step by step")
    async def retry_dead(data: JSONBody[Which]) -> Retried:
        with _answering():
            retried = await archive.retry_dead(data.destination, data.reason, data.after, data.limit)
        operators.did("retry_dead", retried.retried, destination=data.destination, reason=data.reason)
        return retried

    return [retry_dead]


def _links(archive: Archive, operators: Operators) -> list[ControllerRouterHandler]:
    @get("/links", responses=_RESPONSES, summary="What a subject is linked to")
    async def links(subject: Annotated[str, QueryParameter(max_length=MAX_VALUE)]) -> list[Linked]:
        with _answering():
            return await archive.links(subjects_of([subject]))

    @delete("/links", responses=_RESPONSES, status_code=200, summary="Erase all that is kept of a person")
    async def forget(data: JSONBody[Whom]) -> Forgotten:
        if not data.subjects:
            raise ClientException(detail="there is no subject to forget: send `subjects`")
        with _answering():
            forgotten = await archive.forget(data.subjects)
        operators.did("forget", forgotten.webhooks, links=forgotten.links, pending=forgotten.pending)
        return forgotten

    return [links, forget]


def _numbers(
    archive: Archive, variables: Callable[[str], str | None], problem: Callable[[], str | None]
) -> list[ControllerRouterHandler]:
    @get("/accuracy", responses=_RESPONSES, summary="Whether what arrived is what was paid, in one day (UTC)")
    async def accuracy(day: FromQuery[date | None] = None) -> Accuracy:
        with _answering():
            return await archive.accuracy(day or datetime.now(UTC).date())

    @get("/setup", responses=_RESPONSES, sync_to_thread=False, summary="What is on, what is missing, and the next step")
    def setup() -> Setup:
        return archive.setup(variables, problem())

    return [accuracy, setup]


# errors


def _problem(status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> Response[Problem]:
    return Response(
        Problem(status.phrase, status, detail),
        status_code=status,
        media_type="application/problem+json",
        headers=headers,
    )


@contextmanager
def _answering() -> Iterator[None]:
    """Say in HTTP's words what the archive cannot do."""
    try:
        yield
    except Missing as error:
        raise NotFoundException(detail=str(error)) from None
    except Refused as error:
        raise HTTPException(status_code=HTTPStatus.CONFLICT, detail=str(error)) from None
    except Unclear as error:
        raise ClientException(detail=str(error)) from None
    except StoreUnavailable:
        retry_after = {"Retry-After": RETRY_AFTER.decode()}
        raise ServiceUnavailableException(
            detail="the store cannot be read now; ask again later", headers=retry_after
        ) from None


def _refused(_request: AnyRequest, error: HTTPException) -> Response[Problem]:
    detail = error.detail
    if isinstance(error.extra, list):  # which parameters were wrong, and why; never what was sent
        wrong = [
            f"{each['key']}: {each['message']}" for each in error.extra if isinstance(each, dict) and "key" in each
        ]
        detail = "; ".join(wrong) or detail
    return _problem(HTTPStatus(error.status_code), detail, error.headers)

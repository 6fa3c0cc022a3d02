"""Collectors as strict as their documentation lets us be: what they do not know, they refuse.

They keep what they accept. Where a real collector drops what it cannot take (nested values of Nexly's `cdata`), so do
they, and what is left shows in `kept`.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from litestar import Litestar, Request, Response, post
from msgspec import UNSET, Meta, Struct, UnsetType

APP_ID = "app_1"
INGEST_KEY = "nx_test_key"
API_KEY = "dk_test_key"
ORIGIN = "nexly-node://server"

_BOTS = re.compile(r"^$|httpx|python|curl|bot|crawl", re.IGNORECASE)
_Text = Annotated[str, Meta(min_length=1)]
_MaybeText = str | UnsetType


class _NexlyContext(Struct, forbid_unknown_fields=True):
    path: _MaybeText = UNSET
    url: _MaybeText = UNSET
    visitor_id: _Text | UnsetType = UNSET
    session_id: _Text | UnsetType = UNSET
    utm_source: _MaybeText = UNSET
    utm_medium: _MaybeText = UNSET
    utm_campaign: _MaybeText = UNSET
    utm_content: _MaybeText = UNSET
    utm_term: _MaybeText = UNSET
    gclid: _MaybeText = UNSET
    gad_source: _MaybeText = UNSET
    gad_campaignid: _MaybeText = UNSET
    fbclid: _MaybeText = UNSET
    msclkid: _MaybeText = UNSET
    ttclid: _MaybeText = UNSET
    li_fat_id: _MaybeText = UNSET
    yclid: _MaybeText = UNSET
    mc_cid: _MaybeText = UNSET
    ref: _MaybeText = UNSET


class _NexlyBody(Struct, forbid_unknown_fields=True):
    app_id: str
    api_token: str
    event_name: _Text
    event_type: Literal["pageview", "engagement", "custom", "navigation"]
    context: _NexlyContext
    data: dict[str, Any]
    client: Literal["web", "react", "next", "rn-ios", "rn-android", "rn-web", "node"]
    path: _Text | UnsetType = UNSET
    cdata: Annotated[dict[str, Any], Meta(min_length=1)] | UnsetType = UNSET


class _DatalyrContext(Struct, forbid_unknown_fields=True):
    library: Literal["@datalyr/api"]
    version: Literal["1.3.1"]
    source: Literal["api"]
    schema_version: Literal[1]


class _DatalyrBody(Struct, forbid_unknown_fields=True, rename="camel"):
    anonymous_id: _Text
    event_id: Annotated[str, Meta(min_length=1, max_length=256)]
    event: _Text
    properties: dict[str, Any]
    context: _DatalyrContext
    timestamp: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
    user_id: _Text | UnsetType = UNSET


class Refused(Exception):
    """What a collector does not take, with its status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Fake:
    """One collector. `slot` is where this version of Nexly takes properties."""

    def __init__(self, slot: str = "data") -> None:
        self.slot = slot
        self.kept: list[dict[str, Any]] = []

    def app(self) -> Litestar:
        """Return the collector: POST /v1/collect is Nexly's, POST /track is Datalyr's."""

        @post("/v1/collect")
        async def nexly(request: Request[Any, Any, Any]) -> Response[str]:
            return self._answer(self._nexly, dict(request.headers), await request.body())

        @post("/track")
        async def datalyr(request: Request[Any, Any, Any]) -> Response[str]:
            return self._answer(_datalyr, dict(request.headers), await request.body())

        return Litestar([nexly, datalyr], openapi_config=None, logging_config=None)

    def _answer(self, read: Any, headers: dict[str, str], body: bytes) -> Response[str]:
        try:
            _check_client(headers)
            self.kept.append(read(headers, body))
        except Refused as refused:
            return Response(str(refused), status_code=refused.status)
        except msgspec.DecodeError as error:
            return Response(str(error), status_code=400)
        return Response("", status_code=200)

    def _nexly(self, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        if headers.get("origin") != ORIGIN:
            raise Refused(403, "the origin is not on the app's list")
        given = msgspec.json.decode(body, type=_NexlyBody)
        if (given.app_id, given.api_token) != (APP_ID, INGEST_KEY):
            raise Refused(401, "unauthorized")
        if given.path != (given.context.path or UNSET):
            raise Refused(400, "path is a copy of context.path, and absent when that is empty")
        if self.slot == "cdata" and given.data:
            raise Refused(400, "data is reserved")
        if self.slot == "data" and given.cdata is not UNSET:
            raise Refused(400, "unknown field cdata")
        kept: dict[str, Any] = msgspec.json.decode(body)
        if given.cdata is not UNSET:
            kept["cdata"] = {name: value for name, value in kept["cdata"].items() if _is_flat(value)}
        return kept


def _check_client(headers: dict[str, str]) -> None:
    if _BOTS.search(headers.get("user-agent", "")):
        raise Refused(403, "a bot")
    if headers.get("content-type") != "application/json":
        raise Refused(415, "not JSON")


def _is_flat(value: object) -> bool:
    return isinstance(value, str | int | float)


def _datalyr(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    if headers.get("x-api-key") != API_KEY:
        raise Refused(401, "unauthorized")
    given = msgspec.json.decode(body, type=_DatalyrBody)
    properties = given.properties
    if properties.get("anonymous_id") != given.anonymous_id:
        raise Refused(400, "properties.anonymous_id is a copy of anonymousId")
    if given.event.startswith("$"):
        wanted = {"$identify": None, "$group": "groupId", "$pageview": "name", "$alias": "newUserId"}
        if given.event not in wanted or wanted[given.event] not in {None, *properties}:
            raise Refused(400, "not as a special event is")
    if "value" in properties and not _is_money(properties):
        raise Refused(400, "value is a number of major units, beside its currency")
    return dict(msgspec.json.decode(body))


def _is_money(properties: dict[str, Any]) -> bool:
    value, currency = properties["value"], properties.get("currency", "")
    return type(value) in {int, float} and re.fullmatch("[A-Z]{3}", str(currency)) is not None

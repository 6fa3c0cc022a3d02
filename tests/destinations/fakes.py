"""Collectors as strict as their documentation lets us be: what they do not know, they refuse.

They keep what they accept. Where a real collector drops what it cannot take (nested values of Nexly's `cdata`), so do
they, and what is left shows in `kept`. Where a real one forgets a repeated event, so do they.
"""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from litestar import Litestar, Request, Response, post
from msgspec import UNSET, Meta, Struct, UnsetType

APP_ID = "app_1"
INGEST_KEY = "nx_test_key"
API_KEY = "dk_test_key"
ORIGIN = "nexly-node://server"
DATABUDDY_KEY = "dbdy_test_key"
WEBSITE = "site_1"
LAYERSYNC_SECRET = "ls_test_secret"
LAYERSYNC_SITE = "site_1"
PUBLIC_KEY = "pk_live_test"
NOW = 1_800_000_000_000

HOUR = 3_600_000

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


class _DatabuddyEvent(Struct, forbid_unknown_fields=True, rename="camel"):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    timestamp: int
    properties: dict[Annotated[str, Meta(max_length=128)], Any]
    event_id: Annotated[str, Meta(min_length=1, max_length=512)]
    namespace: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET
    anonymous_id: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    anonymize_visitor_ids: bool | Literal["auto"] | UnsetType = UNSET
    profile_id: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType = UNSET
    session_id: Annotated[str, Meta(max_length=256, pattern="^[A-Za-z0-9_-]+$")] | UnsetType = UNSET
    website_id: str | UnsetType = UNSET
    source: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class _DatabuddyProfile(Struct, forbid_unknown_fields=True, rename="camel"):
    profile_id: Annotated[str, Meta(pattern=r"^\S(.*\S)?$", max_length=128)]
    website_id: str
    traits: Annotated[dict[str, str | int | float | bool | None], Meta(max_length=50)] | UnsetType = UNSET
    anonymous_id: Annotated[str, Meta(min_length=1, max_length=128)] | UnsetType = UNSET


_Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _LayerSyncPerson(Struct, forbid_unknown_fields=True):
    em: _Hash | UnsetType = UNSET
    ph: _Hash | UnsetType = UNSET
    fn: _Hash | UnsetType = UNSET
    ln: _Hash | UnsetType = UNSET
    external_id: _Text | UnsetType = UNSET
    user_agent: _Text | UnsetType = UNSET
    fbp: _Text | UnsetType = UNSET
    fbc: _Text | UnsetType = UNSET
    ga: _Text | UnsetType = UNSET
    gclid: _Text | UnsetType = UNSET
    ttclid: _Text | UnsetType = UNSET
    epik: _Text | UnsetType = UNSET
    sccid: _Text | UnsetType = UNSET
    scid: _Text | UnsetType = UNSET
    rdtcid: _Text | UnsetType = UNSET
    twclid: _Text | UnsetType = UNSET
    lfid: _Text | UnsetType = UNSET


class _LayerSyncContent(Struct, forbid_unknown_fields=True):
    id: str
    quantity: float
    item_price: float


class _LayerSyncValues(Struct):
    value: float | UnsetType = UNSET
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | UnsetType = UNSET
    order_id: _Text | UnsetType = UNSET
    contents: list[_LayerSyncContent] | UnsetType = UNSET
    content_ids: list[str] | UnsetType = UNSET
    num_items: int | UnsetType = UNSET


class _LayerSyncMeta(Struct, forbid_unknown_fields=True):
    sdk: Annotated[str, Meta(pattern=r"^.+@\d+\.\d+\.\d+$")]
    queued_at_ms: Annotated[int, Meta(ge=946_684_800_000)]
    attempts: Annotated[int, Meta(ge=0)]


class _LayerSyncBody(Struct, forbid_unknown_fields=True):
    site_id: str
    event_id: Annotated[str, Meta(pattern="^[a-z]+_[0-9a-f]{16}$")]
    event_name: _Text
    event_time: int
    event_source_url: str
    action_source: Literal["website"]
    user_data: _LayerSyncPerson
    custom_data: dict[str, Any]
    client_meta: _LayerSyncMeta


class _AnalyseEvent(Struct, forbid_unknown_fields=True):
    event_name: _Text
    anonymous_id: _Text
    timestamp: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
    referrer_domain: str
    properties: dict[str, Any]
    person_id: _Text | UnsetType = UNSET
    session_id: _Text | UnsetType = UNSET
    url: str | UnsetType = UNSET
    path: str | UnsetType = UNSET
    hostname: str | UnsetType = UNSET
    referrer: str | UnsetType = UNSET
    utm_source: str | UnsetType = UNSET
    utm_medium: str | UnsetType = UNSET
    utm_campaign: str | UnsetType = UNSET
    utm_term: str | UnsetType = UNSET
    utm_content: str | UnsetType = UNSET


class _AnalyseBody(Struct, forbid_unknown_fields=True, rename="camel"):
    public_key: str
    events: Annotated[list[_AnalyseEvent], Meta(min_length=1, max_length=100)]


class _AnalyseMoney(Struct):
    amount: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | UnsetType = UNSET


class _AnalyseCheckout(_AnalyseMoney):
    payment_type: Literal["one_time", "subscription"] | UnsetType = UNSET
    billing_interval: Literal["month", "year", "week"] | UnsetType = UNSET
    checkout_id: _Text | UnsetType = UNSET
    items_count: Annotated[int, Meta(ge=1)] | UnsetType = UNSET


class _AnalyseFinished(_AnalyseCheckout, kw_only=True):
    payment_type: Literal["one_time", "subscription"]
    checkout_id: _Text
    amount: Annotated[int, Meta(ge=0)]
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]


class _AnalyseCancelled(_AnalyseCheckout, kw_only=True):
    reason: Literal["user_abandoned", "payment_failed", "validation_error", "other"]


class _AnalyseTrialEnded(Struct):
    converted: bool


class _AnalyseSubscriptionCancelled(Struct):
    reason: Literal["user_request", "payment_failed", "admin", "other"]
    payment_type: Literal["one_time", "subscription"] | UnsetType = UNSET


_ANALYSE_STANDARD: dict[str, type[Struct]] = {
    "checkout_started": _AnalyseCheckout,
    "checkout_finished": _AnalyseFinished,
    "checkout_cancelled": _AnalyseCancelled,
    "trial_ended": _AnalyseTrialEnded,
    "subscription_cancelled": _AnalyseSubscriptionCancelled,
}
_LAYERSYNC_PREFIXES = {
    "page_view": "pv",
    "purchase": "pur",
    "refund": "ref",
    "begin_checkout": "bc",
    "add_to_cart": "atc",
    "add_payment_info": "api",
    "lead": "lead",
    "sign_up": "su",
    "complete_registration": "creg",
    "contact": "ct",
}
_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The SHA-256 of the empty text, which is nobody."""


class Refused(Exception):
    """What a collector does not take, with its status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Fake:
    """All collectors, each at its path. `slot` is where this version of Nexly takes properties, `now` the time in ms.

    `kept` is what they count, `answers` the status of every answer; `quota` is how many events Databuddy's account may
    still send.
    """

    def __init__(self, slot: str = "data", now: Callable[[], int] = lambda: NOW) -> None:
        self.slot = slot
        self.kept: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.quota = 1_000_000
        self._now = now
        self._seen: dict[str, int] = {}

    def app(self) -> Litestar:
        """Return the collectors; Databuddy's paths are under /databuddy, because Datalyr has /track too."""

        @post("/v1/collect")
        async def nexly(request: Request[Any, Any, Any]) -> Response[bytes]:
            return self._note(self._answer(self._nexly, dict(request.headers), await request.body()))

        @post("/track")
        async def datalyr(request: Request[Any, Any, Any]) -> Response[bytes]:
            return self._note(self._answer(self._datalyr, dict(request.headers), await request.body()))

        @post(["/databuddy/track", "/databuddy/identify"])
        async def databuddy(request: Request[Any, Any, Any]) -> Response[bytes]:
            read = self._databuddy_profile if request.url.path.endswith("/identify") else self._databuddy
            return self._note(self._answer_as_databuddy(read, dict(request.headers), await request.body()))

        @post("/api/v1/events/browser")
        async def layersync(request: Request[Any, Any, Any]) -> Response[bytes]:
            return self._note(self._answer(self._layersync, dict(request.headers), await request.body()))

        @post("/v1/batch")
        async def analyse(request: Request[Any, Any, Any]) -> Response[bytes]:
            return self._note(self._answer(_analyse, dict(request.headers), await request.body()))

        handlers = [nexly, datalyr, databuddy, layersync, analyse]
        return Litestar(handlers, openapi_config=None, logging_config=None)

    def _note(self, answer: Response[bytes]) -> Response[bytes]:
        self.answers.append(answer.status_code or 200)
        return answer

    def _answer(self, read: Any, headers: dict[str, str], body: bytes) -> Response[bytes]:
        try:
            _check_client(headers)
            self.kept += read(headers, body)
        except Refused as refused:
            return Response(str(refused).encode(), status_code=refused.status)
        except msgspec.DecodeError as error:
            return Response(str(error).encode(), status_code=400)
        return Response(b"", status_code=200)

    def _answer_as_databuddy(self, read: Any, headers: dict[str, str], body: bytes) -> Response[bytes]:
        if _BOTS.search(headers.get("user-agent", "")):
            return Response(b"", status_code=204)
        try:
            answer = read(headers, body)
        except Refused as refused:
            return _databuddy_error(refused.status, str(refused))
        except msgspec.DecodeError as error:
            return _databuddy_error(400, str(error))
        return Response(msgspec.json.encode({"status": "success", **answer}), status_code=200)

    def _is_new(self, key: str, window: int) -> bool:
        """Say whether an event is not known, or forgotten since; remember it from now on."""
        now = self._now()
        if key in self._seen and now < self._seen[key] + window:
            return False
        self._seen[key] = now
        return True

    def _databuddy(self, headers: dict[str, str], body: bytes) -> dict[str, object]:
        _check_databuddy(headers, body)
        given = msgspec.json.decode(body, type=_DatabuddyEvent | list[_DatabuddyEvent])
        events = given if isinstance(given, list) else [given]
        if not 0 < len(events) <= 100:
            raise Refused(400, "a batch has 1 to 100 events")
        for event in events:
            if not 946_684_800_000 <= event.timestamp <= self._now() + HOUR:
                raise Refused(400, "timestamp is outside the accepted range")
            if len(event.properties) > 50:
                raise Refused(400, "too many properties")
            if len(msgspec.json.encode(event.properties).decode()) > 32_768:
                raise Refused(400, "properties are too large")
            if event.website_id not in {WEBSITE, UNSET}:
                raise Refused(404, "no such website")
        if len(events) > self.quota:
            raise Refused(402, "the quota is used up")
        self.quota -= len(events)
        plain = msgspec.json.decode(body)
        for event, each in zip(events, plain if isinstance(plain, list) else [plain], strict=True):
            if self._is_new(f"databuddy {event.event_id}", 24 * HOUR):
                self.kept.append(each)
        return {"type": "custom_event", "count": len(events)}

    def _databuddy_profile(self, headers: dict[str, str], body: bytes) -> dict[str, object]:
        _check_databuddy(headers, body)
        given = msgspec.json.decode(body, type=_DatabuddyProfile)
        if given.website_id != WEBSITE:
            raise Refused(404, "no such website")
        if len(msgspec.json.encode(given.traits or {})) > 2048:
            raise Refused(400, "traits are too large")
        self.kept.append(msgspec.json.decode(body))
        return {"type": "identify"}

    def _layersync(self, headers: dict[str, str], body: bytes) -> Iterator[dict[str, Any]]:
        if headers.get("x-layersync-api-key") != LAYERSYNC_SECRET:
            raise Refused(401, "unauthorized")
        given = msgspec.json.decode(body, type=_LayerSyncBody)
        if not given.site_id == headers.get("x-layersync-site-id") == LAYERSYNC_SITE:
            raise Refused(401, "no such site")
        if given.event_id.partition("_")[0] != _LAYERSYNC_PREFIXES.get(given.event_name, "evt"):
            raise Refused(400, "event_id does not have the prefix of its event")
        if not 946_684_800 <= given.event_time <= (self._now() + HOUR) // 1000:
            raise Refused(400, "event_time is not in seconds, or not in the past")
        person = given.user_data
        if _NOTHING in {person.em, person.ph, person.fn, person.ln}:
            raise Refused(400, "the hash of nothing")
        _check_layersync_values(given.custom_data)
        return iter([msgspec.json.decode(body)] if self._is_new(f"layersync {given.event_id}", 168 * HOUR) else [])

    def _datalyr(self, headers: dict[str, str], body: bytes) -> Iterator[dict[str, Any]]:
        read = _datalyr(headers, body)
        return iter([read] if self._is_new(f"datalyr {read['eventId']}", 6 * HOUR) else [])

    def _nexly(self, headers: dict[str, str], body: bytes) -> list[dict[str, Any]]:
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
        return [kept]


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
        wanted = {"$identify": set(), "$group": {"groupId"}, "$pageview": {"name"}, "$alias": {"userId", "previousId"}}
        if given.event not in wanted or not wanted[given.event] <= properties.keys():
            raise Refused(400, "not as a special event is")
    if "value" in properties and not _is_money(properties):
        raise Refused(400, "value is a number of major units, beside its currency")
    return dict(msgspec.json.decode(body))


def _is_money(properties: dict[str, Any]) -> bool:
    value, currency = properties["value"], properties.get("currency", "")
    return type(value) in {int, float} and re.fullmatch("[A-Z]{3}", str(currency)) is not None


def _check_databuddy(headers: dict[str, str], body: bytes) -> None:
    if headers.get("content-type") != "application/json":
        raise Refused(400, "not JSON")
    if headers.get("authorization") != f"Bearer {DATABUDDY_KEY}":
        raise Refused(401, "no credentials")
    if "origin" in headers:
        raise Refused(403, "a browser's origin")
    if len(body) >= 1_000_000:
        raise Refused(413, "the body is too large")


def _databuddy_error(status: int, message: str) -> Response[bytes]:
    retryable = status in {408, 425, 429} or status >= 500
    body = {"success": False, "status": "error", "error": message, "code": status, "retryable": retryable}
    return Response(msgspec.json.encode(body), status_code=status)


def _check_layersync_values(values: dict[str, Any]) -> None:
    given = msgspec.convert(values, _LayerSyncValues)
    if values.keys() & {"email", "phone", "first_name", "last_name"}:
        raise Refused(400, "personal data that is not hashed")
    if "items" in values:
        raise Refused(400, "items are written as contents")
    contents = [] if given.contents is UNSET else given.contents
    ids = [] if given.content_ids is UNSET else given.content_ids
    if [each.id for each in contents] != ids or given.num_items != (len(ids) or UNSET):
        raise Refused(400, "content_ids and num_items do not agree with contents")


def _analyse(headers: dict[str, str], body: bytes) -> list[dict[str, Any]]:
    given = msgspec.json.decode(body, type=_AnalyseBody)
    if given.public_key != PUBLIC_KEY:
        raise Refused(401, "unauthorized")
    for event in given.events:
        if event.event_name.startswith("$") and (event.event_name != "$identify" or event.person_id is UNSET):
            raise Refused(400, "not as a reserved event is")
        if event.event_name == "pageview" and event.url is UNSET:
            raise Refused(400, "a page view has a url")
        if event.properties.keys() & {"email", "$email", "name", "$name", "phone"}:
            raise Refused(400, "personal data in properties")
        msgspec.convert(event.properties, _ANALYSE_STANDARD.get(event.event_name, _AnalyseMoney))
    return list(msgspec.json.decode(body)["events"])

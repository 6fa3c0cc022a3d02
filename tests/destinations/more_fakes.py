"""More collectors, as strict as their HTTP references let us be: what those do not name, these refuse.

They answer as the real ones do: some refuse a whole batch, some name the bad events, some say yes and drop. What counts
is in `kept`; an event that comes twice counts once where the real one deduplicates.
"""

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from litestar import Litestar, Request, Response, post
from msgspec import UNSET, Meta, Struct, UnsetType

KEY = "key_test"
BASIC = "Basic " + b64encode(f"{KEY}:".encode()).decode()
DOMAIN = "shop.example"
WEBSITE = "6f2b7a3c-8d1e-4f5a-9b6c-7d8e9f0a1b2c"
INVALID_IDS = {"anonymous", "anon", "nil", "none", "null", "n/a", "na", "undefined", "unknown", "0", "-1", "{}", "[]"}

HOUR = 3_600_000
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_BOTS = re.compile(r"^$|bot|crawl|curl|httpx|python|^[\w .\-]+/v?\d[\d.]*$|^mozilla/\d\.\d \(compatible", re.IGNORECASE)
_Text = Annotated[str, Meta(min_length=1)]
_Maybe = _Text | UnsetType
_Id = Annotated[str, Meta(pattern=_UUID)]
_Iso = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
_Ms = Annotated[int, Meta(ge=10**12, lt=10**13)]
_Properties = dict[str, Any]


class _Strict(Struct, forbid_unknown_fields=True, omit_defaults=True):
    pass


class _Library(_Strict):
    name: Literal["gateway"]


class _Page(_Strict):
    url: _Text
    path: _Maybe = UNSET


class _SegmentContext(_Strict):
    library: _Library
    page: _Page | UnsetType = UNSET


class _SegmentEvent(_Strict, rename="camel"):
    type: Literal["track", "identify", "group", "page"]
    message_id: Annotated[str, Meta(min_length=1, max_length=99)]
    timestamp: _Iso
    context: _SegmentContext
    user_id: _Maybe = UNSET
    anonymous_id: _Maybe = UNSET
    event: _Maybe = UNSET
    name: _Maybe = UNSET
    group_id: _Maybe = UNSET
    traits: _Properties | UnsetType = UNSET
    properties: _Properties | UnsetType = UNSET


class _SegmentBody(_Strict, rename="camel"):
    write_key: str
    batch: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=2500)]


class _PosthogEvent(_Strict):
    uuid: _Id
    event: _Text
    distinct_id: Annotated[str, Meta(min_length=1, max_length=200)]
    timestamp: _Iso
    properties: _Properties


class _PosthogBody(_Strict):
    api_key: str
    historical_migration: Literal[False]
    batch: Annotated[list[_PosthogEvent], Meta(min_length=1)]


class _MixpanelEvent(_Strict):
    event: _Text
    properties: _Properties


class _MixpanelUser(_Strict):
    token: str = msgspec.field(name="$token")
    distinct_id: _Text = msgspec.field(name="$distinct_id")
    set: _Properties = msgspec.field(name="$set")


class _MixpanelGroup(_Strict):
    token: str = msgspec.field(name="$token")
    group_key: _Text = msgspec.field(name="$group_key")
    group_id: _Text = msgspec.field(name="$group_id")
    set: _Properties = msgspec.field(name="$set")


class _AmplitudeEvent(_Strict):
    event_type: _Text
    insert_id: _Text
    time: _Ms
    library: _Text
    user_id: str | UnsetType = UNSET
    device_id: str | UnsetType = UNSET
    session_id: _Ms | UnsetType = UNSET
    revenue: float | UnsetType = UNSET
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | UnsetType = UNSET
    productId: _Maybe = UNSET  # noqa: N815 -- as it is on the wire
    revenueType: _Maybe = UNSET  # noqa: N815
    event_properties: _Properties | UnsetType = UNSET
    user_properties: _Properties | UnsetType = UNSET


class _AmplitudeOptions(_Strict):
    min_id_length: Annotated[int, Meta(ge=1)] = 5


class _AmplitudeBody(_Strict):
    api_key: str
    events: Annotated[list[msgspec.Raw], Meta(min_length=1)]
    options: _AmplitudeOptions = msgspec.field(default_factory=_AmplitudeOptions)


class _Revenue(_Strict):
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]
    amount: float


class _PlausibleBody(_Strict):
    name: Annotated[str, Meta(min_length=1, max_length=120)]
    url: Annotated[str, Meta(pattern="^https?://[^/]", max_length=2000)]
    domain: _Text
    interactive: bool = True
    props: dict[Annotated[str, Meta(max_length=300)], str | int | float | bool] = {}
    revenue: _Revenue | UnsetType = UNSET


class _UmamiPayload(_Strict):
    website: _Id
    url: Annotated[str, Meta(pattern="^(/|https?://)")]
    name: Annotated[str, Meta(pattern=r"^[^=+\-@\t\r]", max_length=50)] | UnsetType = UNSET
    title: _Maybe = UNSET
    hostname: _Maybe = UNSET
    id: _Maybe = UNSET
    timestamp: Annotated[int, Meta(lt=10**11)] | UnsetType = UNSET
    data: _Properties | UnsetType = UNSET


class _UmamiBody(_Strict):
    type: Literal["event", "identify"]
    payload: _UmamiPayload


class Refused(Exception):
    """What a collector does not take, with its status and answer."""

    def __init__(self, status: int, answer: object) -> None:
        super().__init__(str(answer))
        self.status, self.answer = status, answer


class Collectors:
    """All of them, each under its own path. `now` is their clock, in ms."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.answers: list[int] = []
        self.kept: dict[str, dict[str, Any]] = {}

    def app(self) -> Litestar:
        """Return the collectors: their own paths, under `/segment`, `/posthog` and so on."""

        def at(path: str, read: Callable[[dict[str, str], bytes], tuple[int, object]]) -> Any:
            @post(path)
            async def collect(request: Request[Any, Any, Any]) -> Response[Any]:
                status, answer = _answer(read, dict(request.headers), await request.body())
                self.answers.append(status)
                return Response(msgspec.json.encode(answer), status_code=status, media_type="application/json")

            return collect

        routes = [
            at("/segment/v1/batch", self._segment),
            at("/posthog/batch", self._posthog),
            at("/mixpanel/import", self._mixpanel),
            at("/mixpanel/engage", self._mixpanel_users),
            at("/mixpanel/groups", self._mixpanel_groups),
            at("/amplitude/2/httpapi", self._amplitude),
            at("/plausible/api/event", self._plausible),
            at("/umami/api/send", self._umami),
        ]
        return Litestar(routes, openapi_config=None, logging_config=None, request_max_body_size=None)

    def _keep(self, id: str, event: object) -> None:
        self.kept.setdefault(id, msgspec.to_builtins(event))

    def _segment(self, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        given = msgspec.json.decode(body, type=_SegmentBody)
        if not given.write_key == headers.get("x-write-key") == KEY:
            raise Refused(401, {"success": False, "message": "write key"})
        _check(len(body) <= 500_000 and all(len(bytes(each)) <= 32_000 for each in given.batch), "too large")
        events = [msgspec.json.decode(each, type=_SegmentEvent) for each in given.batch]
        for event in events:
            _check(event.user_id is not UNSET or event.anonymous_id is not UNSET, "no_user_anon_id")
            _check((event.type == "track") == (event.event is not UNSET), "event is what a track has")
            _check((event.type == "group") == (event.group_id is not UNSET), "groupId is what a group has")
            _check(event.type in {"track", "page"} or event.properties is UNSET, "properties of track and page")
            _check(event.type in {"identify", "group"} or event.traits is UNSET, "traits of identify and group")
            properties = event.properties if isinstance(event.properties, dict) else {}
            _check_money(properties, "value", "revenue", "total", "tax", "shipping", "discount")
            products = properties.get("products", [])
            _check(all("product_id" in each for each in products if "item_id" in each), "products have a product_id")
        for event in events:
            self._keep(event.message_id, event)
        return 200, {"success": True}

    def _posthog(self, _headers: dict[str, str], body: bytes) -> tuple[int, object]:
        given = msgspec.json.decode(body, type=_PosthogBody)
        if given.api_key != KEY:
            raise Refused(401, "API key is not valid")
        _check(len(body) <= 20_000_000, "too large")
        for event in given.batch:
            _check(event.distinct_id.lower() not in INVALID_IDS, "an illegal distinct id")
            _check(event.properties.get("$geoip_disable") is True, "the gateway's address is no buyer's")
            if event.event == "$groupidentify":
                _check({"$group_type", "$group_key", "$group_set"} <= event.properties.keys(), "not a group")
            elif event.event in {"$identify", "$set"}:
                _check(isinstance(event.properties.get("$set"), dict), "nothing to set")
            else:
                _check_money(event.properties, "value", "total", "tax", "shipping", "discount")
        for event in given.batch:
            self._keep(event.uuid, event)
        return 200, {"status": 1}

    def _mixpanel(self, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        if headers.get("authorization") != BASIC:
            raise Refused(401, {"code": 401, "error": "Invalid credentials", "status": "Unauthorized"})
        if len(body) > 2_000_000:
            raise Refused(413, {"code": 413, "error": "request exceeds max limit of 2 MB"})
        events = msgspec.json.decode(body, type=Annotated[list[_MixpanelEvent], Meta(max_length=2000)])
        failed: list[dict[str, object]] = []
        for index, event in enumerate(events):
            wrong = self._wrong_with(event.properties)
            if wrong:
                insert_id = event.properties.get("$insert_id")
                failed.append({"index": index, "insert_id": insert_id, "field": wrong, "message": "invalid"})
            else:
                self._keep(event.properties["$insert_id"], event)
        answer = {"num_records_imported": len(events) - len(failed), "failed_records": failed}
        if failed:
            return 400, answer | {"code": 400, "error": "some data points failed validation", "status": "Bad Request"}
        return 200, {"code": 200, "num_records_imported": len(events), "status": "OK"}

    def _wrong_with(self, properties: _Properties) -> str | None:
        time, insert_id = properties.get("time"), str(properties.get("$insert_id", ""))
        if type(time) is not int or not 31_536_000_000 <= time <= self.now + HOUR:
            return "properties.time"
        if not re.fullmatch("[A-Za-z0-9-]{1,36}", insert_id) or insert_id in INVALID_IDS:
            return "properties.$insert_id"
        if properties.get("distinct_id", "anon") in INVALID_IDS:
            return "properties.distinct_id"
        if len(properties) > 254 or not _is_money(properties, "value", "total", "tax", "shipping", "discount"):
            return "properties"
        return None

    def _mixpanel_users(self, _headers: dict[str, str], body: bytes) -> tuple[int, object]:
        users = msgspec.json.decode(body, type=list[_MixpanelUser])
        if any(each.token != KEY for each in users):
            return 200, {"status": 0, "error": "$token, missing or empty"}
        for each in users:
            self._keep(f"user {each.distinct_id}", each)
        return 200, {"status": 1, "error": ""}

    def _mixpanel_groups(self, _headers: dict[str, str], body: bytes) -> tuple[int, object]:
        groups = msgspec.json.decode(body, type=list[_MixpanelGroup])
        if any(each.token != KEY for each in groups):
            return 200, {"status": 0, "error": "$token, missing or empty"}
        for each in groups:
            self._keep(f"group {each.group_id}", each)
        return 200, {"status": 1, "error": ""}

    def _amplitude(self, _headers: dict[str, str], body: bytes) -> tuple[int, object]:
        given = msgspec.json.decode(body, type=_AmplitudeBody)
        if given.api_key != KEY:
            raise Refused(400, {"code": 400, "error": f"Invalid API key: {given.api_key}"})
        if len(body) > 1_000_000 or len(given.events) > 2000:
            raise Refused(413, {"code": 413, "error": "Payload too large"})
        bad: list[int] = []
        short: list[int] = []
        events: list[_AmplitudeEvent] = []
        for index, raw in enumerate(given.events):
            try:
                event = msgspec.json.decode(raw, type=_AmplitudeEvent)
                _check_amplitude(event)
            except (msgspec.ValidationError, Refused):
                bad.append(index)
                continue
            ids = [each for each in (event.user_id, event.device_id) if isinstance(each, str)]
            if not ids or any(len(each) < given.options.min_id_length for each in ids):
                short.append(index)
            events.append(event)
        if bad or short:
            why = {"events_with_invalid_fields": {"event": bad}} if bad else {}
            why |= {"events_with_invalid_id_lengths": {"user_id": short}} if short else {}
            return 400, {"code": 400, "error": "Request missing required field", **why}
        for event in events:
            self._keep(event.insert_id, event)
        return 200, {"code": 200, "events_ingested": len(events), "payload_size_bytes": len(body)}

    def _plausible(self, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        given = msgspec.json.decode(body, type=_PlausibleBody)
        _check(len(given.props) <= 30, "too many props")
        _check(given.name != "engagement", "a reserved name")
        if given.domain == DOMAIN and not _BOTS.search(headers.get("user-agent", "")):
            self._keep(str(len(self.kept)), given)
        return 202, "ok"

    def _umami(self, headers: dict[str, str], body: bytes) -> tuple[int, object]:
        given = msgspec.json.decode(body, type=_UmamiBody)
        payload = given.payload
        _check(payload.website == WEBSITE, "Website not found.")
        if isinstance(payload.data, dict):
            _check_money(payload.data, "value", "revenue", "total", "tax", "shipping", "discount")
        if isinstance(payload.timestamp, int):
            _check(payload.timestamp * 1000 <= self.now + HOUR, "a time that is to come")
        if _BOTS.search(headers.get("user-agent", "")):
            return 200, {"beep": "boop"}
        self._keep(str(len(self.kept)), given)
        return 200, {"cache": "x", "sessionId": "s", "visitId": "v"}


def _answer(
    read: Callable[[dict[str, str], bytes], tuple[int, object]], headers: dict[str, str], body: bytes
) -> tuple[int, object]:
    if headers.get("content-type") != "application/json":
        return 400, "not JSON"
    try:
        return read(headers, body)
    except Refused as refused:
        return refused.status, refused.answer
    except msgspec.DecodeError as error:
        return 400, {"error": str(error)}


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise Refused(400, {"error": otherwise})


def _check_money(properties: _Properties, *names: str) -> None:
    _check(_is_money(properties, *names), "money is a number of major units, beside its currency")


def _is_money(properties: _Properties, *names: str) -> bool:
    there = [properties[name] for name in names if name in properties]
    currency = re.fullmatch("[A-Z]{3}", str(properties.get("currency", "")))
    return all(type(each) in {int, float} for each in there) and (not there or currency is not None)


def _check_amplitude(event: _AmplitudeEvent) -> None:
    for id in (event.user_id, event.device_id):
        _check(id is UNSET or str(id).lower() not in INVALID_IDS, "an invalid id")
    reserved = {"[Amplitude] Start Session", "[Amplitude] End Session", "[Amplitude] Revenue"}
    _check(event.event_type not in reserved, "a reserved name")
    _check((event.event_type == "$identify") == (event.user_properties is not UNSET), "user_properties of $identify")
    _check(event.revenue is UNSET or event.currency is not UNSET, "revenue without a currency")
    properties = event.event_properties if isinstance(event.event_properties, dict) else {}
    _check_money(properties, "value", "total", "tax", "shipping", "discount")

"""Advertising platforms as strict as their reference pages: what those do not name, they refuse.

They answer as the real ones do, with two exceptions. GA4 itself takes everything with 204; here it refuses what its
validation server would complain of. And Meta names the field in a sentence of its own.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from litestar import Litestar, Request, Response, post
from msgspec import UNSET, Meta, Struct, UnsetType

MEASUREMENT_ID, API_SECRET = "G-TEST1", "ga4_test_secret"
PIXEL, META_TOKEN = "1234567890", "meta_test_token"
PIXEL_CODE, TIKTOK_TOKEN = "CTEST123", "tiktok_test_token"

Text = Annotated[str, Meta(min_length=1)]
Short = Annotated[str, Meta(min_length=1, max_length=100)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Hashes = Annotated[list[Hash], Meta(min_length=1)]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$")]
Seconds = Annotated[int, Meta(ge=1_000_000_000, le=9_999_999_999)]
Url = Annotated[str, Meta(pattern="^https?://")]
Consent = Literal["GRANTED", "DENIED"]
Number = int | float


class _Strict(Struct, forbid_unknown_fields=True):
    pass


# Google Analytics 4: "Measurement Protocol protocol reference", "Send user-provided data", "Recommended events"


class _Ga4Consent(_Strict):
    ad_user_data: Consent | UnsetType = UNSET
    ad_personalization: Consent | UnsetType = UNSET


class _Ga4Person(_Strict):
    sha256_email_address: Hashes | UnsetType = UNSET
    sha256_phone_number: Hashes | UnsetType = UNSET


class _Ga4Event(_Strict):
    name: Annotated[str, Meta(pattern="^(?!firebase_|ga_|google_|gtag)[A-Za-z][A-Za-z0-9_]{0,39}$")]
    params: Annotated[dict[str, Any], Meta(max_length=25)]


class Ga4Body(_Strict):
    """The body of a GA4 request."""

    client_id: Annotated[str, Meta(pattern=r"^\d+\.\d+$")]
    timestamp_micros: Annotated[int, Meta(ge=10**15, lt=10**16)]
    events: Annotated[list[_Ga4Event], Meta(min_length=1, max_length=25)]
    user_id: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    user_data: _Ga4Person | UnsetType = UNSET
    consent: _Ga4Consent | UnsetType = UNSET


class _Ga4Purchase(Struct):
    transaction_id: Short
    value: Number
    currency: Currency


class _Ga4Item(Struct):
    item_id: Short | UnsetType = UNSET
    item_name: Short | UnsetType = UNSET
    quantity: Number | UnsetType = UNSET
    price: Number | UnsetType = UNSET


# Meta: "Server Event Parameters", "Customer Information Parameters", "Standard Parameters"


class _MetaPerson(_Strict):
    em: Hashes | UnsetType = UNSET
    ph: Hashes | UnsetType = UNSET
    fn: Hashes | UnsetType = UNSET
    ln: Hashes | UnsetType = UNSET
    ct: Hashes | UnsetType = UNSET
    st: Hashes | UnsetType = UNSET
    zp: Hashes | UnsetType = UNSET
    country: Hashes | UnsetType = UNSET
    external_id: Hashes | UnsetType = UNSET
    fbp: Annotated[str, Meta(pattern=r"^fb\.[0-9]\.\d{13}\.\d+$")] | UnsetType = UNSET
    fbc: Annotated[str, Meta(pattern=r"^fb\.[0-9]\.\d{13}\..+$")] | UnsetType = UNSET
    client_user_agent: Text | UnsetType = UNSET
    client_ip_address: Text | UnsetType = UNSET
    subscription_id: Text | UnsetType = UNSET


class _MetaContent(_Strict):
    id: Text
    quantity: Number | UnsetType = UNSET
    item_price: Number | UnsetType = UNSET


class _MetaCustom(_Strict):
    value: Number | UnsetType = UNSET
    currency: Currency | UnsetType = UNSET
    order_id: Text | UnsetType = UNSET
    content_type: Literal["product"] | UnsetType = UNSET
    content_ids: list[Text] | UnsetType = UNSET
    contents: list[_MetaContent] | UnsetType = UNSET


class _MetaEvent(_Strict):
    event_name: Text
    event_time: Seconds
    event_id: Text
    action_source: Literal[
        "email", "website", "app", "phone_call", "chat", "physical_store", "system_generated", "other"
    ]
    user_data: _MetaPerson
    custom_data: _MetaCustom
    event_source_url: Url | UnsetType = UNSET


class MetaBody(_Strict):
    """The body of a request to Meta."""

    data: Annotated[list[_MetaEvent], Meta(min_length=1, max_length=1000)]
    access_token: str
    test_event_code: Text | UnsetType = UNSET


# TikTok: "Events API 2.0", "Supported parameters"


class _TikTokPerson(_Strict):
    email: Hash | UnsetType = UNSET
    phone: Hash | UnsetType = UNSET
    external_id: Hash | UnsetType = UNSET
    ttclid: Text | UnsetType = UNSET
    ttp: Text | UnsetType = UNSET
    user_agent: Text | UnsetType = UNSET
    ip: Text | UnsetType = UNSET


class _TikTokContent(_Strict):
    content_id: Text
    content_name: Text | UnsetType = UNSET
    quantity: int | UnsetType = UNSET
    price: Number | UnsetType = UNSET


class _TikTokProperties(_Strict):
    value: Number | UnsetType = UNSET
    currency: Currency | UnsetType = UNSET
    order_id: Text | UnsetType = UNSET
    content_type: Literal["product", "product_group"] | UnsetType = UNSET
    contents: list[_TikTokContent] | UnsetType = UNSET


class _TikTokPage(_Strict):
    url: Url


class _TikTokEvent(_Strict):
    event: Text
    event_time: Seconds
    event_id: Text
    user: _TikTokPerson
    properties: _TikTokProperties
    page: _TikTokPage | UnsetType = UNSET


class TikTokBody(_Strict):
    """The body of a request to TikTok."""

    event_source: Literal["web"]
    event_source_id: str
    data: Annotated[list[_TikTokEvent], Meta(min_length=1, max_length=1000)]
    test_event_code: Text | UnsetType = UNSET


class Refused(Exception):
    """What a platform does not take, with its code."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


Check = Callable[[Request[Any, Any, Any], bytes], object]


class AdsFake:
    """All three platforms. They answer with the codes in `failing` first; what they accept then is in `kept`."""

    def __init__(self, failing: list[int] | None = None) -> None:
        self.kept: list[dict[str, Any]] = []
        self.failing = failing or []

    def app(self) -> Litestar:
        """Return the platforms, each at its own path."""

        @post("/mp/collect")
        async def ga4(request: Request[Any, Any, Any]) -> Response[Any]:
            refused = self._refusal(_ga4, request, await request.body(), 400)
            return Response(None, status_code=204) if refused is None else Response(str(refused), status_code=400)

        @post("/v25.0/{pixel:str}/events")
        async def meta(request: Request[Any, Any, Any]) -> Response[Any]:
            refused = self._refusal(_meta, request, await request.body(), 100)
            if refused is None:
                return Response({"events_received": 1, "messages": [], "fbtrace_id": "A1"}, status_code=200)
            error = {"message": str(refused), "type": "OAuthException", "code": refused.code, "fbtrace_id": "A1"}
            if refused.code == 33:  # is a subcode
                error |= {"code": 100, "error_subcode": 33}
            return Response({"error": error}, status_code=400)

        @post("/open_api/v1.3/event/track/")
        async def tiktok(request: Request[Any, Any, Any]) -> Response[Any]:
            refused = self._refusal(_tiktok, request, await request.body(), 40002)
            code, message = (0, "OK") if refused is None else (refused.code, str(refused))
            return Response({"code": code, "message": message, "request_id": "R1", "data": {}}, status_code=200)

        return Litestar([ga4, meta, tiktok], openapi_config=None, logging_config=None)

    def _refusal(self, check: Check, request: Request[Any, Any, Any], body: bytes, wrong: int) -> Refused | None:
        if self.failing:
            return Refused(self.failing.pop(0), "not now")
        if request.headers.get("content-type") != "application/json":
            return Refused(wrong, "not JSON")
        try:
            check(request, body)
        except Refused as refused:
            return refused
        except msgspec.DecodeError as error:
            return Refused(wrong, str(error))
        self.kept.append(msgspec.json.decode(body))
        return None


def _ga4(request: Request[Any, Any, Any], body: bytes) -> None:
    if (request.query_params.get("measurement_id"), request.query_params.get("api_secret")) != (
        MEASUREMENT_ID,
        API_SECRET,
    ):
        raise Refused(401, "another stream")
    for event in msgspec.json.decode(body, type=Ga4Body).events:
        for name, value in event.params.items():
            _check_ga4_param(name, value)
        if event.name in {"purchase", "refund"}:
            msgspec.convert(event.params, _Ga4Purchase)
        if "value" in event.params and "currency" not in event.params:
            raise Refused(400, "a value needs its currency")


def _check_ga4_param(name: str, value: object) -> None:
    if re.fullmatch(r"(?!_|firebase_|ga_|google_|gtag)[A-Za-z][A-Za-z0-9_]{0,39}", name) is None:
        raise Refused(400, f"{name} is no name")
    if name == "session_id" and re.fullmatch(r"\d+", str(value)) is None:
        raise Refused(400, "no session of gtag.js")
    if name == "items":
        msgspec.convert(value, list[_Ga4Item])
    elif not isinstance(value, str | int | float) or (isinstance(value, str) and len(value) > 100):
        raise Refused(400, f"{name} is no short text and no number")


def _meta(request: Request[Any, Any, Any], body: bytes) -> None:
    given = msgspec.json.decode(body, type=MetaBody)
    if given.access_token != META_TOKEN:
        raise Refused(190, "Invalid OAuth access token")
    if request.path_params["pixel"] != PIXEL:
        raise Refused(33, "Object does not exist, or cannot be loaded due to missing permissions")
    for event in given.data:
        person = event.user_data
        if all(each is UNSET for each in (person.em, person.ph, person.external_id, person.fbp, person.fbc)):
            raise Refused(100, "not enough customer information parameters")
        if event.event_name == "Purchase" and UNSET in {event.custom_data.value, event.custom_data.currency}:
            raise Refused(100, "a purchase needs its value and currency")


def _tiktok(request: Request[Any, Any, Any], body: bytes) -> None:
    if request.headers.get("access-token") != TIKTOK_TOKEN:
        raise Refused(40105, "Access token is incorrect or has been revoked.")
    given = msgspec.json.decode(body, type=TikTokBody)
    if given.event_source_id != PIXEL_CODE:
        raise Refused(40001, "no permission for this pixel")
    for event in given.data:
        if event.user == _TikTokPerson():
            raise Refused(40002, "user: nothing to match by")
        if event.event in {"Purchase", "CompletePayment"} and UNSET in {
            event.properties.value,
            event.properties.currency,
        }:
            raise Refused(40002, "a purchase needs its value and currency")

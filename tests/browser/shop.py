"""An hour of a small shop: linked visitors, payments and refunds; one collector refuses some, and one is down."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, post
from litestar.params import FromPath

from gateway.mappings import bundled, sample, sample_headers
from gateway.server import running
from gateway.signatures import VerifySpec, compile_verification, sign
from tests.promises.console import TOKEN, Console
from tests.promises.served import LINK_SECRET, Served, document_of, encoded

MINUTES = 60
SHOPIFY_SECRET = "shopify_of_the_tests"
SHOPIFY = compile_verification(
    VerifySpec(
        scheme="hmac",
        secrets=SHOPIFY_SECRET,
        header="X-Shopify-Hmac-Sha256",
        algorithm="sha256",
        encoding="base64",
        payload="{body}",
    )
)
BACKEND = {"authorization": f"Bearer {LINK_SECRET}"}


def collectors() -> Litestar:
    """Return four collectors: two take all, one refuses refunds, and one is down."""

    @post("/{name:str}", status_code=200)
    async def collect(name: FromPath[str], request: Request[Any, Any, Any]) -> Response[dict[str, object]]:
        body = await request.body()
        if name == "analyse":
            return Response({"error": "upstream is being upgraded"}, status_code=503)
        if name == "sink" and b'"refund"' in body:
            return Response({"error": "unknown event type `refund`"}, status_code=422)
        return Response({"ok": True})

    @post("/analyse/v1/batch", status_code=503)
    async def down() -> dict[str, object]:
        return {"error": "upstream is being upgraded"}

    return Litestar([collect, down], openapi_config=None, logging_config=None)


@contextmanager
def an_hour(folder: Path, **environment: str) -> Iterator[Served]:
    """Serve a gateway with the hour behind it; its clock is right at the end."""
    with running(collectors()) as sink:
        served = Served(
            folder,
            GATEWAY_ADMIN_TOKEN=TOKEN,
            GATEWAY_MAPPINGS=str(bundled()),
            SHOPIFY_WEBHOOK_SECRET=SHOPIFY_SECRET,
            NEXLY_APP_ID="app_shop",
            NEXLY_INGEST_KEY="nx_shop",
            NEXLY_COLLECT_URL=f"{sink}/nexly",
            DATALYR_API_KEY="dk_shop",
            DATALYR_HOST=f"{sink}/datalyr",
            ANALYSE_KEY="pk_shop",
            ANALYSE_HOST=f"{sink}/analyse",
            WEBHOOK_URL=f"{sink}/sink",
            WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=",
            **environment,
        )
        served.ahead = -MINUTES * 60_000
        with served.up():
            _trade(served)
            yield served


def _trade(served: Served) -> None:
    chance = random.Random(7)
    paid: list[tuple[str, str]] = []
    for minute in range(MINUTES):
        served.ahead = (minute - MINUTES + 1) * 60_000
        for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 4, 5 if minute > MINUTES // 2 else 2))):
            number = 1000 + len(paid)
            user = f"user_{chance.randrange(100, 400)}"
            if chance.random() < 0.85:
                served.link(
                    {"subjects": {"user": user}, "visitor_id": _visitor(chance), "session_id": f"s-{number}"}, BACKEND
                )
            kind = chance.random()
            if kind < 0.7 or len(paid) < 5:
                paid.append(_checkout(served, number, user, chance))
            elif kind < 0.85:
                _order(served, number, chance)
                paid.append(("", ""))
            elif kind < 0.93:
                _refund(served, number, *next(each for each in paid if each[0]))
                paid.append(("", ""))
            else:
                document = document_of("customer.created")
                _stamp(document, served, f"evt_1SN{number}Customer")
                document["data"]["object"] |= {
                    "id": f"cus_SN{number}",
                    "email": f"customer-{number}@example.com",
                    "phone": None,
                }
                document["data"]["object"]["metadata"] = {}
                served.post(encoded(document))
                paid.append(("", ""))
    _settled(served)


def _visitor(chance: random.Random) -> str:
    return f"vis_{chance.getrandbits(80):020x}"


def _stamp(document: Any, served: Served, id: str) -> None:
    document["id"] = id
    document["created"] = document["data"]["object"]["created"] = served.now() // 1000 - 2


def _checkout(served: Served, number: int, user: str, chance: random.Random) -> tuple[str, str]:
    document = document_of("checkout.session.completed")
    session = document["data"]["object"]
    _stamp(document, served, f"evt_1SN{number}Checkout")
    session["id"], session["payment_intent"] = f"cs_live_a1{number}Checkout", f"pi_3SN{number}Paid"
    session["client_reference_id"], session["customer"] = user, f"cus_SN{user[5:]}"
    session["customer_details"] |= {"email": f"{user}@example.com", "phone": None}
    session["metadata"]["order_id"] = f"ORD-{number}"
    session["amount_total"] = chance.choice((1900, 2900, 4900, 7900, 12900))
    session["amount_subtotal"] = session["amount_total"]
    session["currency"] = chance.choice(("usd", "usd", "eur"))
    served.post(encoded(document))
    return session["payment_intent"], f"ORD-{number}"


def _refund(served: Served, number: int, intent: str, order: str) -> None:
    document = document_of("refund.created")
    _stamp(document, served, f"evt_1SN{number}Refund")
    refund = document["data"]["object"]
    refund["id"], refund["payment_intent"] = f"re_3SN{number}", intent
    refund["charge"] = f"ch_3SN{order[4:]}"
    served.post(encoded(document))


def _order(served: Served, number: int, chance: random.Random) -> None:
    body = sample(bundled(), "shopify", "orders.paid")
    assert body is not None
    order = msgspec.json.decode(body)
    order["id"], order["name"], order["order_number"] = 5012345670000 + number, f"#{number}", number
    order["email"] = order["contact_email"] = order["customer"]["email"] = f"customer-{number}@example.com"
    order["customer"]["id"], order["phone"], order["customer"]["phone"] = 7012345670000 + number, None, None
    order["note_attributes"] = []
    order["cart_token"], order["checkout_token"] = (
        f"hWN2{chance.getrandbits(96):024x}",
        f"{chance.getrandbits(128):032x}",
    )
    if chance.random() < 0.7:
        served.link({"subjects": {"shopify_cart": order["cart_token"]}, "visitor_id": _visitor(chance)}, BACKEND)
    made = encoded(order)
    headers = sample_headers(bundled(), "shopify", "orders.paid", made, served.now() / 1000)
    headers |= {"X-Shopify-Event-Id": f"{chance.getrandbits(128):032x}"} | sign(SHOPIFY, made, served.now() / 1000)
    served.post(made, headers, "shopify")


def _settled(served: Served) -> None:
    """Wait until all but what is for the collector that is down has been sent."""
    console = Console(served)
    console.sign_in()
    console.until("/dead", "Retry all")

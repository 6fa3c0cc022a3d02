"""Who wants to be forgotten is, whoever asks for them; who wants to know what is kept gets it; nobody else asks."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.mappings import bundled, minified, sample
from gateway.signatures import VerifySpec, compile_verification, sign
from tests.promises.collector import WITHIN
from tests.promises.served import LINK_SECRET, Served, payment

SHOP = "demo-shop.myshopify.com"
BACKEND = {"authorization": f"Bearer {LINK_SECRET}"}
EMMY = "emmy.beispiel@example.com"


@pytest.fixture
def shop(tmp_path: Path) -> Served:
    return Served(tmp_path, SHOPIFY_WEBHOOK_SECRET="s", GATEWAY_EXPORTS=str(tmp_path / "exports"))


def send(served: Served, name: str, topic: str, domain: str = SHOP, secret: str = "s") -> httpx.Response:
    body = sample(bundled(), "shopify", name)
    assert body is not None
    body = minified(body)
    key = compile_verification(
        VerifySpec(scheme="hmac", secrets=secret, header="X-Shopify-Hmac-Sha256", encoding="base64", payload="{body}")
    )
    headers = {"X-Shopify-Topic": topic, "X-Shopify-Shop-Domain": domain, "X-Shopify-Event-Id": f"{name} {domain}"}
    return served.post(body, headers | sign(key, body, 0), "shopify")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fulfilled(served: Served) -> bool:
    return served.rows("SELECT count(*) FROM request WHERE done_at = 0") == [(0,)]


def kept(served: Served) -> int:
    """Return how many webhooks still have their bodies."""
    (number,) = served.rows("SELECT count(*) FROM webhook WHERE sealed NOT NULL")[0]
    return int(number)


def test_a_shops_customer_is_erased_with_all_that_they_bought(shop: Served) -> None:
    with shop.up(deliver=False):
        shop.link({"visitor_id": "v", "subjects": {"shopify_customer": "7012345678901"}}, BACKEND)
        assert send(shop, "orders.paid", "orders/paid").is_success
        assert send(shop, "customers.redact", "customers/redact").status_code == 200
        until(lambda: fulfilled(shop) and kept(shop) == 0)
    left = shop.contents()
    assert {name: left[name] for name in ("event", "delivery", "link", "named", "subject")} == dict.fromkeys(
        ("event", "delivery", "link", "named", "subject"), 0
    )
    assert shop.rows("SELECT kind, keys FROM request") == [("forget", None)]


def test_the_request_itself_is_not_kept(shop: Served) -> None:
    with shop.up(deliver=False):
        send(shop, "customers.redact", "customers/redact")
        until(lambda: fulfilled(shop))
        assert kept(shop) == 0
        assert send(shop, "customers.redact", "customers/redact").json()["duplicate"]


def test_a_shop_that_is_gone_takes_its_own_data_along_and_nobody_elses(shop: Served) -> None:
    with shop.up(deliver=False):
        send(shop, "orders.paid", "orders/paid")
        send(shop, "orders.paid", "orders/paid", "other-shop.myshopify.com")
        assert kept(shop) == 2
        send(shop, "shop.redact", "shop/redact", "other-shop.myshopify.com")  # names the first shop in its body
        send(shop, "shop.redact", "shop/redact")
        until(lambda: kept(shop) == 2 and fulfilled(shop))
    accounts = shop.rows("SELECT DISTINCT account FROM webhook WHERE sealed NOT NULL")
    assert accounts == [("other-shop.myshopify.com",)]


@pytest.mark.parametrize("name", ["customers.redact", "customers.data_request", "shop.redact"])
def test_a_forged_request_is_401_and_does_nothing(shop: Served, name: str) -> None:
    with shop.up(deliver=False):
        send(shop, "orders.paid", "orders/paid")
        assert send(shop, name, name.replace(".", "/"), secret="guessed").status_code == 401
        assert (kept(shop), shop.rows("SELECT * FROM request")) == (1, [])


def test_another_topic_on_a_signed_body_erases_nothing(shop: Served) -> None:
    with shop.up(deliver=False):
        send(shop, "orders.create", "orders/create")
        for topic in ("shop/redact", "customers/redact", "customers/data_request"):
            assert send(shop, "orders.paid", topic).is_success
        assert shop.rows("SELECT * FROM request") == []


def test_a_customer_gets_all_that_is_kept_of_them(shop: Served, tmp_path: Path) -> None:
    with shop.up(deliver=False):
        send(shop, "orders.paid", "orders/paid")
        shop.link({"visitor_id": "v", "subjects": {"shopify_customer": "7012345678901"}}, BACKEND)
        send(shop, "customers.data_request", "customers/data_request")
        until(lambda: fulfilled(shop))
    (file,) = (tmp_path / "exports").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    links = [each["link"] for each in lines if "link" in each]
    (order,) = [each for each in lines if "body" in each]
    assert {"visitor_id": "v"} in [each["ids"].get("") for each in links]
    assert (order["type"], order["body"]["customer"]["email"]) == ("orders/paid", EMMY)
    assert file.stat().st_mode & 0o077 == 0


def test_a_request_outlives_the_gateway_that_took_it(shop: Served) -> None:
    with shop.up(deliver=False):
        send(shop, "orders.paid", "orders/paid")
    shop.rows("SELECT 1")
    with shop.up(deliver=False):
        send(shop, "shop.redact", "shop/redact")
    with shop.up(deliver=False):
        until(lambda: fulfilled(shop))
    assert kept(shop) == 0


def test_a_backend_may_ask_and_is_told_how_much_it_was(shop: Served) -> None:
    with shop.up(deliver=False):
        shop.link({"visitor_id": "v", "subjects": {"user": "user_42"}}, BACKEND)
        shop.post(payment(1))
        asked = httpx.request("DELETE", f"{shop.url}/links", json={"subjects": {"user": "user_42"}}, headers=BACKEND)
        assert (asked.status_code, asked.json()["webhooks"]) == (200, 1)
        assert asked.json()["links"] >= 1
        assert kept(shop) == 0


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        pytest.param({}, {"subjects": {"user": "user_42"}}, 401, id="no secret"),
        pytest.param({"origin": "https://shop.example"}, {"token": "x"}, 401, id="a page"),
        pytest.param({"authorization": "Bearer guess"}, {"subjects": {"user": "user_42"}}, 401, id="wrong secret"),
        pytest.param(BACKEND, {}, 400, id="nobody"),
        pytest.param(BACKEND, {"subjects": {"email": "no address"}}, 400, id="no email"),
        pytest.param(BACKEND, {"subjects": {"user": ""}}, 400, id="empty"),
    ],
)
def test_nobody_else_may(shop: Served, headers: dict[str, str], body: object, status: int) -> None:
    with shop.up(deliver=False):
        shop.post(payment(1))
        asked = httpx.request("DELETE", f"{shop.url}/links", json=body, headers=headers)
        assert (asked.status_code, kept(shop)) == (status, 1)


def test_the_command_shows_and_forgets(shop: Served) -> None:
    run = CliRunner()
    with shop.up(deliver=False):
        shop.link({"ids": {"nexly": {"visitor_id": "v-1"}}, "subjects": {"user": "user_42"}}, BACKEND)
        shop.post(payment(1))
        shown = run.invoke(
            main, ["links", "show", "user=user_42", "stripe_customer=cus_SGatewayAda42"], env=shop.environment
        )
        assert shown.exit_code == 0, shown.output
        assert shown.output.count("v-1") == 2
        assert "linked" in shown.output
        assert "learned" in shown.output
        forgot = run.invoke(main, ["forget", "--subject", "user=user_42"], env=shop.environment)
        assert forgot.output.startswith("erased 5 links and 1 webhooks; 0 deliveries"), forgot.output
        gone = run.invoke(main, ["links", "show", "user=user_42"], env=shop.environment)
        assert (gone.exit_code, "nobody linked it" in gone.output) == (1, True)
    assert run.invoke(main, ["forget", "--subject", "user"], env=shop.environment).exit_code == 2

"""What operators may see and repair over HTTP: only with the token, nobody's personal data unless it is asked for."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from structlog.testing import capture_logs

from gateway.identity import PiiGuard
from gateway.mappings import bundled
from gateway.masking import MASK, Folded
from gateway.server import running
from tests.mapping.people import personal_data_of
from tests.mapping.strange import JSON, NAMES, SAMPLES
from tests.promises.collector import Collector
from tests.promises.served import LINK_SECRET, Served, document_of, encoded, payment
from tests.stores.servers import Server

TOKEN = "operators_of_the_tests_0123456789abcdef"
PATIENCE = 30.0
ADA = "ada.muster@example.com"


HTTP = httpx.Client(verify=False, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))


class Operator:
    """Asks a gateway as an operator does."""

    def __init__(self, served: Served, token: str = TOKEN) -> None:
        self._url = f"{served.url}/api/v1"
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        return HTTP.request(method, f"{self._url}{path}", headers=self._headers, **how)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.ask("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: object = None, status: int = 200, **query: bool) -> Any:
        answer = self.ask("POST", path, params=query, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def states(self) -> dict[str, int]:
        """Return how many deliveries are in which state."""
        found: dict[str, int] = {}
        for each in self.get("/deliveries", limit=200)["deliveries"]:
            found[each["state"]] = found.get(each["state"], 0) + 1
        return found

    def until(self, holds: Callable[["Operator"], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds(self):
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.02)


@pytest.fixture
def served(served: Served) -> Served:
    served.environment["GATEWAY_ADMIN_TOKEN"] = TOKEN
    return served


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a gateway that is up, with seven payments sent: for tests that change nothing."""
    collector = Collector()
    with running(collector.app()) as sink:
        served = Served(
            tmp_path_factory.mktemp("shown"),
            GATEWAY_ADMIN_TOKEN=TOKEN,
            WEBHOOK_URL=f"{sink}/sink",
            WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=",
        )
        with served.up():
            for number in range(7):
                assert served.post(payment(number)).is_success
            Operator(served).until(lambda operator: operator.states() == {"sent": 7})
            yield served


@pytest.fixture
def operator(shown: Served) -> Operator:
    return Operator(shown)


# who may


def test_without_a_token_configured_the_api_is_off(tmp_path: Path) -> None:
    with Served(tmp_path).up(deliver=False) as served:
        for path in ("/webhooks", "/openapi.json", "/dead"):
            answer = Operator(served).ask("GET", path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("token", ["", "guessed", TOKEN[:-1], TOKEN + "x"])
def test_without_the_token_every_route_is_401_with_a_problem(shown: Served, operator: Operator, token: str) -> None:
    shown.ahead += 120_000  # what was guessed before is forgotten
    paths = operator.get("/openapi.json")["paths"]
    stranger = Operator(shown, token)
    for path, methods in list(paths.items())[:9]:
        url = path.removeprefix("/api/v1").replace("{number}", "1").replace("{webhook}", "1")
        for method in methods:
            answer = stranger.ask(method, url)
            if answer.status_code != 429:
                assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json"), url
    shown.ahead += 120_000


def test_who_guesses_is_not_listened_to_for_a_minute(served: Served) -> None:
    with served.up(deliver=False):
        stranger, operator = Operator(served, "guessed"), Operator(served)
        assert [stranger.ask("GET", "/dead").status_code for _ in range(11)] == [401] * 10 + [429]
        refused = operator.ask("GET", "/dead")
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60
        served.ahead += 60_000
        assert operator.get("/dead") == {"number": 0, "groups": []}


def test_who_has_the_token_is_never_counted(operator: Operator) -> None:
    assert {operator.ask("GET", "/dead").status_code for _ in range(15)} == {200}


# what is shown


def test_webhooks_come_newest_first_page_by_page(operator: Operator) -> None:
    ids: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = operator.get("/webhooks", limit=3, **after)
        ids += [each["id"] for each in page["webhooks"]]
        if page["after"] is None:
            break
        after = {"after": page["after"]}
    assert ids == [f"evt_{number}" for number in reversed(range(7))]


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ({"id": "evt_3"}, 1),
        ({"type": "checkout.session.completed"}, 7),
        ({"source": "shopify"}, 0),
        ({"subject": "user:user_42"}, 7),
        ({"subject": "user:somebody"}, 0),
        ({"since": "1h"}, 7),
        ({"until": "2026-01-01"}, 0),
        ({"since": "2020-01-01T00:00:00+02:00", "state": "sent"}, 7),
        ({"state": "pending"}, 0),
        ({"state": "failed"}, 0),
    ],
)
def test_webhooks_are_found_by_what_is_asked(operator: Operator, query: dict[str, str], number: int) -> None:
    assert len(operator.get("/webhooks", **query)["webhooks"]) == number


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/webhooks", {"since": "yesterday"}),
        ("/webhooks", {"since": "2026-13-01"}),
        ("/webhooks", {"until": "2026-10-26T99:00:00Z"}),
        ("/webhooks", {"subject": "user"}),
        ("/webhooks", {"subject": "email:nobody"}),
        ("/webhooks", {"after": "x"}),
        ("/webhooks", {"limit": "0"}),
        ("/webhooks", {"state": "lost"}),
        ("/deliveries", {"after": "7"}),
        ("/deliveries", {"after": "1.x"}),
        ("/links", {}),
        ("/accuracy", {"day": "today"}),
    ],
)
def test_what_cannot_be_read_is_a_problem_that_says_so(operator: Operator, path: str, query: dict[str, str]) -> None:
    answer = operator.ask("GET", path, params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert len(answer.json()["detail"]) > 10


@pytest.mark.parametrize("path", ["/webhooks/999", "/webhooks/4503599627370496", "/nothing"])
def test_what_is_not_there_is_a_problem(operator: Operator, path: str) -> None:
    answer = operator.ask("GET", path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_webhook_shows_its_whole_way(operator: Operator) -> None:
    way = operator.get("/webhooks/1")
    assert [each["name"] for each in way["events"]] == ["purchase"]
    (delivery,) = way["deliveries"]
    assert (delivery["state"], delivery["event_id"]) == ("sent", way["events"][0]["id"])
    (attempt,) = delivery["attempts"]
    assert attempt["status"] == 200
    assert attempt["took"] >= 0
    assert way["request"]["body"]["data"]["object"]["id"] == "cs_0"
    assert {"rule": "checkout finished without payment", "skip": "filtered"} in way["notes"]


def test_a_webhook_is_masked_unless_it_is_revealed(shown: Served, operator: Operator) -> None:
    masked = json.dumps(operator.get("/webhooks/1")).lower()
    assert "example.com" not in masked
    assert operator.get("/webhooks/1")["request"]["headers"]["stripe-signature"] == MASK
    with capture_logs() as logs:
        revealed = operator.get("/webhooks/1", reveal=True)
    assert revealed["request"]["body"] == json.loads(payment(0))
    (told,) = [each for each in logs if each["event"] == "operator_did"]
    assert (told["what"], told["webhook"], len(told["by"])) == ("reveal", 1, 8)
    assert TOKEN not in str(logs)


@pytest.mark.parametrize("file", SAMPLES, ids=NAMES)
def test_no_sample_shows_who_it_is_about(file: Path) -> None:
    # Without a guard, as if no mapping knew where the person stands.
    shown = msgspec.json.encode(Folded(PiiGuard({})).masked(msgspec.json.decode(file.read_bytes())))
    assert [each for each in (*personal_data_of(file), b"@example.com") if each in shown.lower()] == []


@settings(max_examples=60)
@given(document=JSON, place=st.sampled_from(["email", "Phone", "shipping_address", "customer-name", "ip"]))
def test_nothing_is_shown_of_what_stands_under_a_name_of_persons(document: Any, place: str) -> None:
    masked = Folded(PiiGuard({})).masked({place: {"inside": ADA, "more": [document, "Ada", 49151123456]}})
    shown = json.dumps(masked)
    assert ADA not in shown
    assert "Ada" not in shown
    assert "49151123456" not in shown


@pytest.mark.parametrize(
    "text", ["Ada", "ada.muster", "+49 151 123456", "0151123456", "12 High Street", "10.1.2.3", ADA]
)
def test_a_text_that_may_be_a_persons_is_hidden_wherever_it_stands(text: str) -> None:
    assert Folded(PiiGuard({})).masked({"whatever": text, "custom": [text]}) == {"whatever": MASK, "custom": [MASK]}


@pytest.mark.parametrize("name", ["total_tax", "amount_tax", "tax_amount", "current_total_tax"])
def test_amounts_of_tax_are_shown_and_numbers_of_who_pays_it_are_not(name: str) -> None:
    assert Folded(PiiGuard({})).masked({name: 950}) == {name: 950}
    for private in ("tax_id", "tax", "tax_number", "taxId"):
        assert Folded(PiiGuard({})).masked({private: 950_123_456}) == {private: MASK}


def test_a_key_that_says_who_somebody_is_is_hidden() -> None:
    assert Folded(PiiGuard({})).masked({ADA: 1, "015112345678": 2}) == {f"{MASK}0": 1, f"{MASK}1": 2}


def test_a_huge_webhook_is_folded(served: Served) -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"]["metadata"] = {f"k{number}": number for number in range(50_000)}
    with served.up(deliver=False):
        assert served.post(encoded(document)).is_success
        way = Operator(served).get("/webhooks/1")
    assert way["request"]["folded"] >= 49_000
    assert len(json.dumps(way)) < 50_000


# repairs


def test_a_dead_delivery_is_retried_and_arrives(served: Served, collector: Collector) -> None:
    collector.answer((400, {}))
    with served.up():
        operator = Operator(served)
        served.post(payment(1))
        operator.until(lambda it: it.states() == {"dead": 1})
        assert operator.get("/dead")["groups"][0] | {"oldest": 0, "newest": 0} == {
            "destination": "webhook",
            "reason": "http_400",
            "number": 1,
            "oldest": 0,
            "newest": 0,
        }
        with capture_logs() as logs:
            assert operator.post("/deliveries/1/0/retry") == {"retried": 1, "after": None}
        assert [each["what"] for each in logs if each["event"] == "operator_did"] == ["retry"]
        operator.until(lambda it: it.states() == {"sent": 1})
        assert operator.post("/deliveries/1/0/retry", status=409)["status"] == 409
        assert operator.post("/deliveries/1/9/retry", status=404)["status"] == 404
    assert len(collector.requests) == 2


def test_the_dead_are_retried_by_reason_a_bounded_number_a_call(served: Served, collector: Collector) -> None:
    collector.answer(*[(400, {})] * 3, (410, {}))
    with served.up():
        operator = Operator(served)
        for number in range(4):
            served.post(payment(number))
            operator.until(lambda it, number=number: it.states() == {"dead": number + 1})  # type: ignore[misc]
        body = {"destination": "webhook", "reason": "http_400", "limit": 2}
        first = operator.post("/dead/retry", body)
        assert first["retried"] == 2
        assert operator.post("/dead/retry", body | {"after": first["after"]}) == {"retried": 1, "after": None}
        operator.until(lambda it: it.states() == {"sent": 3, "dead": 1})


def changed(folder: Path) -> Path:
    """Return a copy of the bundled mappings that calls a Stripe payment's coupon otherwise."""
    shutil.copytree(bundled(), folder)
    file = folder / "sources" / "stripe.yaml"
    text = file.read_text()
    assert "emit: purchase" in text
    file.write_text(text.replace("checkout_id:", "session:"))
    return folder


def test_a_dry_run_tells_the_difference_and_changes_nothing(served: Served, tmp_path: Path) -> None:
    with served.up(deliver=False):
        served.post(payment(1))
    with served.up(deliver=False, GATEWAY_MAPPINGS=str(changed(tmp_path / "mappings"))):
        operator = Operator(served)
        before = operator.get("/webhooks/1")
        told = operator.post("/webhooks/1/replay", dry_run=True)
        assert "  event 1, properties.session: nothing -> cs_1" in told["difference"]["events"]
        assert told["difference"]["deliveries"] == []  # it is due already, and so stays as it is
        assert operator.get("/webhooks/1") == before


def test_a_replay_sends_what_was_skipped_while_its_destination_was_off(served: Served, collector: Collector) -> None:
    with served.up(WEBHOOK_URL=""):
        served.post(payment(1))
    with served.up():
        operator = Operator(served)
        planned = operator.post("/webhooks/1/replay", dry_run=True)["difference"]["deliveries"]
        assert planned == [{"event": "purchase", "destination": "webhook", "now": "nothing", "then": "due"}]
        assert operator.states() == {}
        assert operator.post("/webhooks/1/replay")["due"] == ["webhook"]
        assert len(collector.wait_for(1)) == 1


def test_a_subject_is_looked_up_and_forgotten(served: Served) -> None:
    with served.up(deliver=False):
        operator = Operator(served)
        backend = {"authorization": f"Bearer {LINK_SECRET}"}
        served.link({"visitor_id": "v", "subjects": {"user": "user_42"}}, backend)
        served.post(payment(1))
        (found,) = operator.get("/links", subject="user:user_42")
        assert found["links"][0]["visitor_id"] == "v"
        with capture_logs() as logs:
            forgotten = operator.ask("DELETE", "/links", json={"subjects": {"user": "user_42"}}).json()
        assert forgotten["webhooks"] == 1
        assert operator.get("/links", subject="user:user_42") == [{"subject": "user", "links": []}]
        assert "user_42" not in str(logs)
        assert operator.ask("DELETE", "/links", json={"subjects": {}}).status_code == 400


@pytest.mark.parametrize("name", ["us\0er", "\0", "email"])
def test_a_subject_that_can_be_none_is_a_problem_and_no_failure(operator: Operator, name: str) -> None:
    answer = operator.ask("DELETE", "/links", json={"subjects": {name: "x"}})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


# numbers


def test_a_days_money_balances_or_says_what_is_missing(served: Served, collector: Collector) -> None:
    with served.up(WEBHOOK_URL=""):
        served.post(payment(1))
    collector.answer((400, {}))
    with served.up():
        operator = Operator(served)
        for number in (2, 3, 3):
            served.post(payment(number))
        operator.until(lambda it: it.states() == {"sent": 1, "dead": 1})
        told = operator.get("/accuracy")
    (line,) = told["destinations"]
    numbers = {name: line[name] for name in ("events", "accepted", "sent", "dead", "pending", "missing", "balances")}
    assert numbers == {
        "events": 3,
        "accepted": 2,
        "sent": 1,
        "dead": 1,
        "pending": 0,
        "missing": 1,
        "balances": False,
    }
    (money,) = line["money"]
    assert (money["event"], money["currency"], money["number"], money["seen"]) == ("purchase", "USD", 3, "330.00")
    assert (money["sent"], money["dead"], money["missing"]) == ("110.00", "110.00", "110.00")


def test_a_day_without_webhooks_accounts_for_nothing(operator: Operator) -> None:
    told = operator.get("/accuracy", day="2020-02-02")
    assert (told["webhooks"], told["cut"], told["sources"], told["destinations"]) == (0, False, [], [])


def test_more_than_can_be_opened_is_cut_and_says_so(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.archive.accuracy.MAX_ACCOUNTED", 3)
    told = operator.get("/accuracy")
    assert (told["webhooks"], told["cut"]) == (3, True)
    assert told["sources"][0]["events"] == 3


def test_setup_says_what_is_on_and_what_is_missing(operator: Operator) -> None:
    things = {(each["kind"], each["name"]): each for each in operator.get("/setup")["things"]}
    assert things["source", "stripe"]["on"]
    assert things["source", "shopify"]["missing"] == ["SHOPIFY_WEBHOOK_SECRET"]
    assert "401" in things["source", "shopify"]["next_step"]
    assert things["destination", "nexly"]["missing"] == ["NEXLY_APP_ID", "NEXLY_INGEST_KEY"]
    assert things["destination", "webhook"]["on"]


# whatever comes


def test_when_the_store_is_down_it_is_503(tmp_path: Path) -> None:
    server = Server().start()
    key = "b3BlcmF0b3JzIG9mIHRoZSB0ZXN0cyAzMiBieXRlcyE="
    served = Served(tmp_path, GATEWAY_STORE=server.url, GATEWAY_SECRET_KEY=key, GATEWAY_ADMIN_TOKEN=TOKEN)
    with served.up(deliver=False):
        operator = Operator(served)
        assert operator.get("/webhooks") == {"webhooks": [], "after": None}
        server.kill()
        answer = operator.ask("GET", "/webhooks")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.headers["content-type"] == "application/problem+json"
    server.remove()


def test_describing_the_api_turns_on_no_log_of_others(served: Served) -> None:
    names = ("", "httpx", "uvicorn.access", "litestar")
    with served.up(deliver=False):
        before = [(list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in names]
        Operator(served).get("/openapi.json")
        assert [(list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in names] == before


def test_the_description_is_of_these_routes_alone(operator: Operator) -> None:
    paths = operator.get("/openapi.json")["paths"]
    assert all(path.startswith("/api/v1/") for path in paths)
    assert len(paths) >= 10


def test_whatever_is_asked_nothing_fails_and_every_answer_is_as_described(shown: Served, operator: Operator) -> None:
    schema = schemathesis.openapi.from_dict(operator.get("/openapi.json"))
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    headers = {"authorization": f"Bearer {TOKEN}"}
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    for operation in operations:

        @settings(max_examples=15, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(base_url=shown.url, headers=headers, checks=checks)

        ask()
    assert len(operations) == 11

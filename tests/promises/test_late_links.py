"""A link may come after the payment: what waits goes at once, what went is followed by who it was, never paid twice."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.deliveries import State
from gateway.events import Event, decode_event
from gateway.sealing import Sealer, load_or_create_key
from gateway.server import running
from tests.promises.collector import WITHIN, Collector
from tests.promises.served import LINK_SECRET, Served, document_of, encoded, payment

BACKEND = {"authorization": f"Bearer {LINK_SECRET}"}
ANON = {"ids": {"datalyr": {"visitor_id": "anon_1"}}}
USER = ANON | {"subjects": {"user": "user_42"}}
YEAR = 365 * 86_400_000


@pytest.fixture
def datalyr(collector: Collector, tmp_path: Path) -> Iterator[Served]:
    with running(collector.app()) as url:
        yield Served(tmp_path, DATALYR_API_KEY="k", DATALYR_HOST=f"{url}/sink")


def guest(number: int) -> bytes:
    """A payment of somebody who has no account: the session names a customer, but no user."""
    document = document_of("checkout.session.completed")
    session = document["data"]["object"]
    document["id"], session["id"], session["payment_intent"] = f"evt_{number}", f"cs_{number}", f"pi_{number}"
    session["client_reference_id"] = None
    session["metadata"] = {}
    return encoded(document)


def renewal() -> bytes:
    """A renewal that knows the customer and nobody else."""
    document = document_of("checkout.session.completed")
    session = document["data"]["object"]
    document["id"], session["id"], session["payment_intent"] = "evt_renewal", "cs_renewal", "pi_renewal"
    session["client_reference_id"] = session["customer_details"] = session["customer_email"] = None
    session["metadata"] = {}
    return encoded(document)


def test_a_late_link_identifies_the_user_and_pays_nothing_again(datalyr: Served, collector: Collector) -> None:
    with datalyr.up():
        datalyr.post(payment(1))
        (bought,) = collector.wait_for(1)
        assert datalyr.link(USER, BACKEND).status_code == 204
        _, told = collector.wait_for(2)
        datalyr.link(USER, BACKEND)
        datalyr.post(payment(2))
        names = [each["event"] for each in collector.wait_for(3)]
    assert (bought["event"], bought["userId"]) == ("purchase", "user_42")
    assert (told["event"], told["userId"], told["anonymousId"]) == ("$identify", "user_42", "anon_1")
    assert told["properties"] == {"anonymous_id": "anon_1"}
    assert told["eventId"] != bought["eventId"]
    assert names == ["purchase", "$identify", "purchase"]


def test_without_a_user_the_made_up_visitor_is_aliased_to_the_real_one(datalyr: Served, collector: Collector) -> None:
    with datalyr.up():
        datalyr.post(guest(1))
        (bought,) = collector.wait_for(1)
        datalyr.link(ANON | {"subjects": {"stripe_customer": "cus_SGatewayAda42"}}, BACKEND)
        _, told = collector.wait_for(2)
    assert told["event"] == "$alias"
    assert told["properties"]["previousId"] == bought["anonymousId"]
    assert (told["properties"]["userId"], told["anonymousId"]) == ("anon_1", "anon_1")


def test_what_nobody_took_for_want_of_a_visitor_goes_out_when_the_link_comes(
    collector: Collector, tmp_path: Path
) -> None:
    with running(collector.app()) as url:
        served = Served(tmp_path, AMPLITUDE_API_KEY="k", AMPLITUDE_HOST=url)  # answers 404 there: it was asked
        with served.up():
            served.post(guest(1))
            until(served, "SELECT state, reason FROM delivery", [(State.SKIPPED, "no_person")])
            subjects = {"stripe_customer": "cus_SGatewayAda42"}
            served.link({"ids": {"amplitude": {"visitor_id": "device-1"}}, "subjects": subjects}, BACKEND)
            until(served, "SELECT state, reason FROM delivery", [(State.DEAD, "http_404")])


def until(served: Served, sql: str, wanted: list[tuple[object, ...]]) -> None:
    deadline = time.monotonic() + WITHIN
    while (rows := served.rows(sql)) != wanted:
        assert time.monotonic() < deadline, rows
        time.sleep(0.02)


def test_who_the_unlinked_payments_name_is_learned_from_a_late_link(datalyr: Served, collector: Collector) -> None:
    with datalyr.up():
        datalyr.post(payment(1))
        collector.wait_for(1)
        datalyr.link(USER, BACKEND)
        until(datalyr, "SELECT state FROM delivery", [(State.SENT,)] * 2)  # a lease that runs out is sent again
        datalyr.ahead = YEAR
        datalyr.post(renewal())
        *_, renewed = collector.wait_for(3)
    assert (renewed["event"], renewed["anonymousId"]) == ("purchase", "anon_1")


@pytest.mark.parametrize(
    ("body", "linked", "why"),
    [
        pytest.param(payment(1), {}, "unknown_subject", id="nobody linked them"),
        pytest.param(renewal(), USER, "unknown_subject", id="somebody else was linked"),
        pytest.param(payment(1), USER, None, id="linked"),
    ],
)
def test_each_event_says_who_led_to_its_visitor_or_why_nobody_did(
    datalyr: Served, body: bytes, linked: dict[str, object], why: str | None
) -> None:
    with datalyr.up(deliver=False):
        if linked:
            datalyr.link(linked, BACKEND)
        datalyr.post(body)
    event = stored_event(datalyr)
    assert (event.unlinked, event.visitor.linked_by if event.visitor else None) == (why, None if why else "user")


def test_a_link_that_has_ended_is_a_reason_of_its_own(datalyr: Served) -> None:
    with datalyr.up(deliver=False):
        datalyr.link(USER, BACKEND)
        datalyr.ahead = 401 * 86_400_000
        datalyr.post(payment(1))
    assert stored_event(datalyr).unlinked == "expired"


def test_a_link_that_is_used_lasts_longer(datalyr: Served) -> None:
    with datalyr.up(deliver=False):
        datalyr.link(USER, BACKEND)
        for months in (10, 20, 30):
            datalyr.ahead = months * 30 * 86_400_000
            datalyr.post(payment(months))
    assert stored_event(datalyr).unlinked is None


def test_the_stitch_rate_is_a_metric_for_operators_alone(datalyr: Served) -> None:
    with datalyr.up(deliver=False, GATEWAY_ADMIN_TOKEN="admin token of the tests 0123456789"):
        datalyr.post(payment(1))
        refused = [datalyr.get("/metrics"), httpx.get(f"{datalyr.url}/metrics", headers={"authorization": "Bearer x"})]
        told = httpx.get(
            f"{datalyr.url}/metrics", headers={"authorization": "Bearer admin token of the tests 0123456789"}
        ).text
    assert [each.status_code for each in refused] == [401, 401]
    labels = 'linked_by="",rule="checkout paid",source="stripe",unlinked="unknown_subject"'
    assert f"gateway_events_total{{{labels}}}" in told
    with datalyr.up(deliver=False):
        assert datalyr.get("/metrics").status_code == 404


def stored_event(served: Served) -> Event:
    key = load_or_create_key(served.path.with_name("gateway.key"))
    (sealed,) = served.rows("SELECT sealed FROM event ORDER BY webhook DESC LIMIT 1")[0]
    return decode_event(Sealer(key).open(sealed, b"event"))

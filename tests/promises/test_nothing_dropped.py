"""Promise 5: nothing is dropped without a stored reason, and what was dropped can be replayed."""

import asyncio
from pathlib import Path
from shutil import copytree
from typing import Any

from gateway.deliveries import State
from gateway.mappings import bundled
from gateway.settings import load_settings
from gateway.stored import replay_stored
from tests.promises.collector import Collector
from tests.promises.served import Served, document_of, encoded, payment

DELIVERIES = "SELECT destination, state, reason FROM delivery ORDER BY webhook, number"


def test_a_filtered_webhook_says_which_rule_filtered_it(served: Served) -> None:
    document = document_of("payment_intent.succeeded")
    document["data"]["object"]["amount_received"] = 0
    with served.up(deliver=False):
        assert served.post(encoded(document)).status_code == 200
        assert served.notes() == [{"rule": "bare payment", "skip": "filtered"}]
        assert served.rows(DELIVERIES) == []


def test_a_test_event_is_skipped_and_forwarded_when_asked_for(served: Served, collector: Collector) -> None:
    with served.up():
        served.post(encoded(document_of("checkout.session.completed") | {"livemode": False}))
        assert served.rows(DELIVERIES) == [("webhook", State.SKIPPED, "test_event")]
    with served.up(GATEWAY_TEST_EVENTS="forward"):
        served.post(payment(1))
        collector.wait_for(1)
        served.post(encoded(document_of("refund.created") | {"livemode": False}))
        (refund,) = collector.wait_for(1, lambda body: body["type"] == "refund")
    assert refund["data"]["test"] is True
    assert len(collector.requests) == 2


def test_a_property_with_personal_data_is_refused_and_the_note_does_not_repeat_it(served: Served) -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"]["metadata"]["order_id"] = "order of ADA@example.com"
    with served.up(deliver=False):
        assert served.post(encoded(document)).status_code == 200
        note = "a property contains the email; hash it, or say `allow_pii: true`"
        assert {"rule": "checkout paid", "skip": "pii_leak", "error": note} in served.notes()  # type: ignore[operator]
        assert served.rows(DELIVERIES) == []


def test_a_destination_that_needs_a_person_skips_with_the_reason(served: Served) -> None:
    document = document_of("refund.created")
    document["data"]["object"]["metadata"] = {}
    with served.up(DATALYR_API_KEY="dk", DATALYR_HOST="http://127.0.0.1:9/nobody", WEBHOOK_SECRET=""):
        served.post(encoded(document))
        assert served.post(payment(1)).is_success
    with served.up(deliver=False):
        states = {(state, reason) for _, state, reason in served.rows(DELIVERIES)}
    assert states
    assert all(state != State.SKIPPED or reason for state, reason in states)
    assert all(state != State.DEAD or reason for state, reason in states)


def test_a_webhook_that_a_broken_mapping_met_is_delivered_once_the_mapping_is_mended(
    served: Served, collector: Collector, tmp_path: Path
) -> None:
    copytree(bundled(), tmp_path / "mappings")
    file = tmp_path / "mappings/sources/stripe.yaml"
    good = file.read_text()
    file.write_text(good.replace("emit: refund\n", "emit: refund\n    at: data.object\n"))
    served.environment["GATEWAY_MAPPINGS"] = str(tmp_path / "mappings")
    with served.up():
        answer = served.post(encoded(document_of("refund.created")))
        assert answer.status_code == 200
        notes: Any = served.notes()
        (note,) = notes
        assert note["rule"] == "refund"
        assert note["error"]
    file.write_text(good)
    with served.up():
        settings = load_settings(served.environment)
        assert asyncio.run(replay_stored(settings, answer.json()["id"])) == 1
        (refund,) = collector.wait_for(1)
        assert asyncio.run(replay_stored(settings, answer.json()["id"])) == 1
        served.post(payment(1))
        collector.wait_for(1, lambda body: body["type"] == "purchase")
    assert refund["type"] == "refund"
    assert len(collector.requests) == 2  # the second replay sent nothing again


def test_what_was_unmapped_is_replayed_once_a_rule_maps_it(
    served: Served, collector: Collector, tmp_path: Path
) -> None:
    copytree(bundled(), tmp_path / "mappings")
    served.environment["GATEWAY_MAPPINGS"] = str(tmp_path / "mappings")
    with served.up():
        answer = served.post(b'{"id":"evt_new","type":"some.new.type"}')
        assert (answer.status_code, served.notes()) == (200, [{"skip": "unmapped"}])
    file = tmp_path / "mappings/sources/stripe.yaml"
    file.write_text(file.read_text() + "\n  - {on: some.new.type, emit: something_new}\n")
    with served.up():
        assert asyncio.run(replay_stored(load_settings(served.environment), "evt_new")) == 1
        assert [body["type"] for body in collector.wait_for(1)] == ["something_new"]


def test_a_delivery_that_died_is_sent_when_replayed(served: Served, collector: Collector) -> None:
    collector.answer((400, {}))
    with served.up():
        answer = served.post(payment(1))
        collector.wait_for(1)
    assert served.rows(DELIVERIES) == [("webhook", State.DEAD, "http_400")]
    with served.up():
        asyncio.run(replay_stored(load_settings(served.environment), answer.json()["id"]))
        first, second = collector.wait_for(2)
    assert first == second
    assert served.rows(DELIVERIES) == [("webhook", State.SENT, None)]
    keys = {headers["idempotency-key"] for headers, _ in collector.requests}
    assert len(keys) == 1

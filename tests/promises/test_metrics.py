"""What /metrics tells is what happened, under labels that no sender can choose."""

import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import create_app
from gateway.deliveries import NEVER, Backlog, NewDelivery, Settlement, State
from gateway.mappings import bundled, load_mappings
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import VerifySpec, compile_verification, sign
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from gateway.telemetry import Metrics, StoreView, Tally
from tests.promises.collector import Collector
from tests.promises.served import SECRET, Served, document_of, encoded, payment
from tests.stores.harness import FINGERPRINT, HARNESSES
from tests.stores.reports import DAY, MINUTE, NOW, event, simple, webhook
from tests.stores.servers import Server, shared

TOKEN = "admin token of the tests 0123456789"
BEARER = {"authorization": f"Bearer {TOKEN}"}
WITHIN = 30.0
Series = dict[str, float]


def scrape(served: Served, **headers: str) -> str:
    answer = httpx.get(f"{served.url}/metrics", headers={**BEARER, **headers})
    assert answer.status_code == 200, answer.text
    return answer.text


def read(text: str) -> Series:
    """Return the samples of a scrape as `name{label=value,…}`, the labels in order."""
    return {
        f"{sample.name}{{{','.join(f'{name}={sample.labels[name]}' for name in sorted(sample.labels))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def series(served: Served, name: str) -> Series:
    """Return the series of one name, by their labels."""
    found = read(scrape(served))
    return {key[len(name) + 1 : -1]: value for key, value in found.items() if key.startswith(f"{name}{{")}


def wait_for(served: Served, name: str, holds: Callable[[Series], bool]) -> Series:
    deadline = time.monotonic() + WITHIN
    while not holds(found := series(served, name)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


@contextmanager
def scraped(served: Served, *, deliver: bool = False, **environment: str) -> Iterator[Served]:
    with served.up(deliver=deliver, GATEWAY_ADMIN_TOKEN=TOKEN, **environment):
        yield served


def of_type(type: str, number: int) -> bytes:
    document = document_of("checkout.session.completed")
    document["id"], document["type"] = f"evt_{number}", type
    return encoded(document)


# Webhooks


def test_each_webhook_counts_once_by_what_came_of_it(served: Served) -> None:
    with scraped(served):
        for body in (payment(1), payment(2), payment(2)):
            assert served.post(body).is_success
        assert served.post(payment(3)[:-1]).status_code == 400
        assert served.post(payment(3), {"stripe-signature": "x"}).status_code == 401
        found = series(served, "gateway_webhooks_total")
    assert found == {
        "outcome=accepted,source=stripe,type=checkout.session.completed": 2,
        "outcome=duplicate,source=stripe,type=checkout.session.completed": 1,
        "outcome=malformed,source=stripe,type=": 1,
        "outcome=refused,source=stripe,type=": 1,
    }


def test_no_sender_can_make_a_label(served: Served) -> None:
    with scraped(served):
        for number in range(6):
            assert served.post(of_type(f"invented.{number}", number)).is_success
            assert served.post(payment(number), source=f"invented-{number}").status_code == 404
        found = series(served, "gateway_webhooks_total")
        assert "invented" not in scrape(served)
    assert found == {"outcome=accepted,source=stripe,type=other": 6, "outcome=unknown_source,source=,type=": 6}


def test_a_type_that_a_pattern_means_counts_under_the_pattern(served: Served, tmp_path: Path) -> None:
    shutil.copytree(bundled(), tmp_path / "mappings")
    file = tmp_path / "mappings/sources/stripe.yaml"
    file.write_text(file.read_text() + "  - {on: any.*, emit: anything}\n")
    with scraped(served, GATEWAY_MAPPINGS=str(tmp_path / "mappings")):
        for number, type in enumerate(["any.one", "any.other", "any.*", "charge.refunded"]):
            assert served.post(of_type(type, number)).is_success
        found = series(served, "gateway_webhooks_total")
    assert found["outcome=accepted,source=stripe,type=any.*"] == 3
    assert sum(found.values()) == 4


def test_a_body_that_is_not_read_to_its_end_is_counted(served: Served) -> None:
    with scraped(served, GATEWAY_MAX_BODY="1024"):
        assert served.post(payment(1)).status_code == 413
        assert series(served, "gateway_webhooks_total") == {"outcome=too_large,source=stripe,type=": 1}


def test_a_failed_verification_counts_by_its_reason(served: Served) -> None:
    wrong = sign(compile_verification(VerifySpec(scheme="stripe", secrets="whsec_wrong")), payment(1), time.time())
    with scraped(served):
        for headers in ({}, {"stripe-signature": "x"}, wrong, wrong):
            assert served.post(payment(1), headers).status_code == 401
        found = series(served, "gateway_verification_failures_total")
        assert series(served, "gateway_accept_seconds_count") == {}
    assert found == {
        "reason=missing_signature,source=stripe": 1,
        "reason=malformed_signature,source=stripe": 1,
        "reason=mismatch,source=stripe": 2,
    }


def test_a_secret_that_signs_nothing_any_more_shows_as_zero(served: Served) -> None:
    with scraped(served, STRIPE_WEBHOOK_SECRET=f"whsec_rotated_out,{SECRET}"):
        for number in range(3):
            assert served.post(payment(number)).is_success
        found = series(served, "gateway_verified_total")
        assert "whsec_" not in scrape(served)
    assert found == {"secret=1,source=stripe": 0, "secret=2,source=stripe": 3}


def test_translation_and_acceptance_are_timed_once_a_webhook(served: Served) -> None:
    with scraped(served):
        for number in (1, 2, 2):
            assert served.post(payment(number)).is_success
        found = read(scrape(served))
    assert found["gateway_translation_seconds_count{source=stripe}"] == 3
    assert found["gateway_accept_seconds_count{source=stripe}"] == 3
    took = found["gateway_accept_seconds_sum{source=stripe}"]
    assert took > found["gateway_translation_seconds_sum{source=stripe}"] > 0


# Deliveries


def test_deliveries_count_by_outcome_and_attempts_by_status(served: Served, collector: Collector) -> None:
    collector.answer((400, {}), (302, {}), (200, {}))
    with scraped(served, deliver=True):
        for number in range(3):
            assert served.post(payment(number)).is_success
            collector.wait_for(number + 1)
        found = wait_for(served, "gateway_deliveries_total", lambda found: sum(found.values()) >= 3)
        assert found["destination=webhook,outcome=sent"] == 1
        assert found["destination=webhook,outcome=dead"] >= 1
        assert series(served, "gateway_attempt_seconds_count") == {
            f"destination=webhook,status={each}": 1 for each in ("2xx", "3xx", "4xx")
        }


def test_an_open_breaker_shows_and_so_does_one_that_is_closed(served: Served, collector: Collector) -> None:
    collector.answer(*[(500, {})] * 20)
    with scraped(served, deliver=True):
        assert series(served, "gateway_breaker_open") == {"destination=webhook": 0}
        for number in range(6):
            assert served.post(payment(number)).is_success
        wait_for(served, "gateway_breaker_open", lambda found: found == {"destination=webhook": 1})
        assert series(served, "gateway_deliveries_total")["destination=webhook,outcome=failed"] >= 5


def test_what_is_skipped_at_once_counts_as_skipped(served: Served) -> None:
    document = document_of("checkout.session.completed")
    document["livemode"] = False
    with scraped(served):
        assert served.post(encoded(document)).is_success
        assert series(served, "gateway_deliveries_total") == {"destination=webhook,outcome=skipped": 1}


def test_the_queue_and_its_oldest_delivery_show(served: Served) -> None:
    with scraped(served):  # nothing delivers: what is due stays so
        assert served.post(payment(1)).is_success
        assert served.post(payment(2)).is_success
    served.ahead += 90_000
    with scraped(served):
        wait_for(served, "gateway_queue_deliveries", lambda found: found.get("destination=webhook,state=due") == 2)
        assert 90 <= series(served, "gateway_queue_oldest_seconds")["destination=webhook"] < 90 + WITHIN
        held = wait_for(served, "gateway_stored_deliveries", bool)
    assert held == {f"destination=webhook,state={each}": 2.0 * (each == "pending") for each in STATES}


STATES = ("sent", "skipped", "pending", "dead")


def test_a_queue_that_is_empty_shows_as_zero(served: Served) -> None:
    with scraped(served):
        found = wait_for(served, "gateway_queue_deliveries", bool)
        assert found == {"destination=webhook,state=due": 0, "destination=webhook,state=waiting": 0}
        assert series(served, "gateway_queue_oldest_seconds") == {"destination=webhook": 0}


# The store's side


@pytest.fixture(params=HARNESSES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteStore | RedisStore]:
    harness = HARNESSES[request.param](tmp_path)
    store = await harness.open()
    assert isinstance(store, SqliteStore | RedisStore)
    yield store
    await harness.close()


async def test_a_backlog_tells_what_is_due_from_what_waits(store: SqliteStore | RedisStore) -> None:
    assert await store.backlog(NOW) == {}
    for number in range(4):
        await store.accept(simple(str(number), at=NOW + number))
    await store.accept(
        webhook("waits", event("waits", NewDelivery("sink", wait_until=NOW + DAY), NewDelivery("other")))
    )
    await store.accept(simple("skipped", skip="no_person"))
    assert await store.backlog(NOW + 5) == {"sink": Backlog(4, 1, NOW), "other": Backlog(1, 0, NOW)}


async def test_what_is_leased_retried_or_parked_waits_until_its_time(store: SqliteStore | RedisStore) -> None:
    for number in range(4):
        await store.accept(simple(str(number), at=NOW + number))
    leases, _ = await store.lease("sink", 4, NOW + 5, NOW + MINUTE)
    assert await store.backlog(NOW + 5) == {"sink": Backlog(0, 4, None)}
    assert await store.backlog(NOW + 2 * MINUTE) == {"sink": Backlog(4, 0, NOW + MINUTE)}
    outcomes = [(State.SENT, 0), (State.DUE, NOW + DAY), (State.PARKED, NEVER), (State.DUE, 0)]
    await store.settle([Settlement(each, state, "why", at) for each, (state, at) in zip(leases, outcomes, strict=True)])
    assert await store.backlog(NOW + 6) == {"sink": Backlog(1, 2, None)}
    assert await store.backlog(NOW + DAY + 1) == {"sink": Backlog(2, 1, NOW + DAY)}


async def test_several_partitions_have_one_backlog(tmp_path: Path) -> None:
    store = await RedisStore.open(shared().url, FINGERPRINT, prefix=f"backlog-{uuid4().hex}", partitions=4)
    try:
        for number in range(12):
            await store.accept(webhook(str(number), event(str(number)), at=NOW + number, account=str(number)))
        assert await store.backlog(NOW + 5) == {"sink": Backlog(6, 6, NOW)}
    finally:
        await store.close()


async def test_what_a_store_held_is_not_shown_while_it_is_away() -> None:
    mappings = load_mappings(bundled(), {"WEBHOOK_URL": "http://sink", "WEBHOOK_SECRET": "whsec_c2VjcmV0"}.get)
    server = Server().start()
    store = await RedisStore.open(server.url, FINGERPRINT)
    view = StoreView(store, lambda: mappings, lambda: False, dict, lambda: NOW)
    try:
        await store.accept(simple("a"))
        await view.look_at_backlog()
        await view.look_at_counts()
        assert shown(view)["gateway_queue_deliveries"] > 0
        assert shown(view)["gateway_store_seen"] == 1
        server.kill()
        await view.look_at_backlog()
        await view.look_at_counts()
        gone = ("gateway_store_seen", "gateway_queue_deliveries", "gateway_stored_deliveries")
        assert [shown(view)[name] for name in gone] == [0, 0, 0]
    finally:
        await store.close()
        server.remove()


def shown(view: StoreView) -> dict[str, float]:
    """Return the sum of each gauge's samples."""
    return {family.name: sum(each.value for each in family.samples) for family in view.collect()}


# What is in force, and who tells it


def test_the_mapping_in_force_shows_and_so_does_an_edit_that_is_not(served: Served, tmp_path: Path) -> None:
    shutil.copytree(bundled(), tmp_path / "mappings")
    file = tmp_path / "mappings/sources/stripe.yaml"
    app = create_app(
        load_settings(
            served.environment | {"GATEWAY_MAPPINGS": str(tmp_path / "mappings"), "GATEWAY_ADMIN_TOKEN": TOKEN}
        )
    )
    with running(app) as served.url:
        version = app.state.mappings().sources["stripe"].version
        assert series(served, "gateway_mapping_info")[f"kind=source,name=stripe,version={version}"] == 1
        assert series(served, "gateway_mapping_refused") == {"": 0}
        good = file.read_text()
        file.write_text(good + "nonsense: true\n")
        app.state.mappings.ask()
        wait_for(served, "gateway_mapping_refused", lambda found: found == {"": 1})
        file.write_text(good + "# edited\n")
        app.state.mappings.ask()
        wait_for(served, "gateway_mapping_refused", lambda found: found == {"": 0})
        now = series(served, "gateway_mapping_info")
    assert len([each for each in now if "name=stripe," in each]) == 1
    assert f"kind=source,name=stripe,version={version}" not in now


def test_two_gateways_in_one_process_count_apart(served: Served, tmp_path: Path) -> None:
    other = Served(tmp_path / "other")
    with scraped(served), scraped(other):
        for number in range(3):
            assert served.post(payment(number)).is_success
        assert other.post(payment(1)).is_success
        label = "outcome=accepted,source=stripe,type=checkout.session.completed"
        assert [series(each, "gateway_webhooks_total")[label] for each in (served, other)] == [3, 1]


def test_a_scraper_gets_the_format_that_it_asks_for(served: Served) -> None:
    with scraped(served):
        assert served.post(payment(1)).is_success
        plain, other = scrape(served), scrape(served, accept="application/openmetrics-text; version=1.0.0")
    names = {family.name for family in open_metrics(other)}  # type: ignore[no-untyped-call]
    assert names >= {"gateway_webhooks", "gateway_queue_deliveries", "gateway_accept_seconds", "process_cpu_seconds"}
    assert other.endswith("# EOF\n")
    assert "# EOF" not in plain


def test_a_status_that_no_collector_should_send_makes_no_label() -> None:
    metrics = Metrics()
    for status in (0, 200, 299, 999, 7):
        metrics.attempted("sink", status, 0.1)
    found = {
        sample.labels["status"]: sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "gateway_attempt_seconds_count"
    }
    assert found == {"none": 1, "2xx": 2, "other": 2}


# What promtool would say


def test_every_metric_is_told_explained_and_named_as_prometheus_wants_it(served: Served) -> None:
    with scraped(served):
        assert served.post(payment(1)).is_success
        assert served.post(payment(1), {"stripe-signature": "x"}).status_code == 401
        wait_for(served, "gateway_queue_deliveries", bool)
        text = scrape(served)
    families = list(text_string_to_metric_families(text))
    assert len(families) == len({family.name for family in families}) > 20
    for family in families:
        assert family.documentation, family.name
        assert family.type in {"counter", "gauge", "histogram", "info"}, family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name), family.name
        assert not re.search(r"_(total|count|sum|bucket|milliseconds|ms|minutes)$", family.name), family.name
        if family.name.startswith("gateway_"):
            assert family.documentation.endswith("."), family.name
    for name in re.findall(r"^# TYPE (\S+) counter$", text, re.MULTILINE):
        assert name.endswith("_total")


def test_no_series_is_told_twice_and_each_histogram_adds_up(served: Served) -> None:
    with scraped(served):
        for number in range(3):
            assert served.post(payment(number)).is_success
        text = scrape(served)
    samples = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(samples) == len(set(samples))
    found = read(text)
    buckets = [value for key, value in found.items() if key.startswith("gateway_accept_seconds_bucket{")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["gateway_accept_seconds_bucket{le=+Inf,source=stripe}"] == 3


def test_a_rule_of_any_name_leaves_the_scrape_readable(served: Served, tmp_path: Path) -> None:
    for kept in ("sources/stripe.yaml", "destinations/webhook.yaml"):
        (tmp_path / "mappings" / kept).parent.mkdir(parents=True)
        shutil.copy(bundled() / kept, tmp_path / "mappings" / kept)
    name = 'a "quoted"\\\n# TYPE nonsense'
    file = tmp_path / "mappings/sources/stripe.yaml"
    file.write_text(file.read_text() + f"  - {{on: any.*, emit: anything, name: {json.dumps(name)}}}\n")
    with scraped(served, GATEWAY_MAPPINGS=str(tmp_path / "mappings")):
        assert served.post(of_type("any.one", 1)).is_success
        rules = {
            sample.labels["rule"]
            for family in text_string_to_metric_families(scrape(served))
            for sample in family.samples
            if sample.name == "gateway_events_total"
        }
    assert name in rules


def test_whatever_a_signed_sender_chooses_the_series_stay_as_many(served: Served) -> None:
    with scraped(served):
        for number in range(2):
            assert served.post(chosen(number)).is_success
        before = sum(len(series(served, name)) for name in LABELLED)
        assert before >= len(LABELLED)
        for number in range(2, 12):
            assert served.post(chosen(number)).is_success
        assert sum(len(series(served, name)) for name in LABELLED) == before


LABELLED = (
    "gateway_webhooks_total",
    "gateway_events_total",
    "gateway_verified_total",
    "gateway_accept_seconds_count",
)


def chosen(number: int) -> bytes:
    """Return a payment with something of its own wherever a sender may write something."""
    document = msgspec.json.decode(payment(number))
    session = document["data"]["object"]
    session["client_reference_id"] = session["customer"] = f"chosen_{number}"
    session["metadata"] |= {f"key_{number}": "x", "user_id": f"user_{number}"}
    session["currency"] = ("usd", "eur", "sek")[number % 3]
    return encoded(document | {"account": f"acct_{number}", "api_version": f"v{number}"})


def test_a_tally_counts_what_alerts_are_judged_by() -> None:
    metrics = Metrics()
    stripe = load_mappings(bundled(), {"STRIPE_WEBHOOK_SECRET": "whsec_a,whsec_b"}.get).sources["stripe"]
    metrics.verified(stripe, 1)
    metrics.verified(stripe, 0)
    for reason in ("mismatch", "mismatch", "missing_signature"):
        metrics.refused("stripe", reason)
    assert metrics.tally() == Tally(verified={"stripe": 2}, forged={"stripe": 2})

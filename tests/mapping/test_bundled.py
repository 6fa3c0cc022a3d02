"""What the bundled mappings make of the bundled samples."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings

from gateway.dry_run import events_of
from gateway.events import decode_event, encode_event
from gateway.mapping_tests import MappingTest, load_tests, run_test
from gateway.mappings import bundled, sample_headers
from gateway.sources import MalformedWebhook
from gateway.translate import Translation
from tests.mapping.people import MAPPINGS, personal_data_of, webhook_of
from tests.mapping.strange import SAMPLES, changed_samples

TESTS = load_tests(bundled(), MAPPINGS)


def name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def translated(file: Path) -> Translation:
    webhook = webhook_of(file)
    return events_of(MAPPINGS, webhook.source, webhook.headers, webhook.body)


@pytest.mark.parametrize("file", SAMPLES, ids=name_of)
def test_no_rule_fails_on_a_sample(file: Path) -> None:
    assert [note for note in translated(file).notes if note.error] == []


@pytest.mark.parametrize("file", SAMPLES, ids=name_of)
def test_no_event_repeats_personal_data(file: Path) -> None:
    private = personal_data_of(file)
    for emission in translated(file).emissions:
        packed = encode_event(emission.event)
        assert decode_event(packed) == emission.event
        assert not [word for word in private if word in packed.lower()]


def test_the_samples_do_hold_personal_data() -> None:
    assert {file.parent.name for file in SAMPLES if personal_data_of(file)} >= {"stripe", "shopify", "paddle", "polar"}


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
async def test_the_bundled_mappings_pass_their_own_tests(test: MappingTest) -> None:
    result = await run_test(test, MAPPINGS, bundled())
    assert list(map(str, result.failures)) == []


@pytest.mark.parametrize("source", MAPPINGS.sources)
async def test_every_rule_is_reached_by_a_test(source: str) -> None:
    results = [await run_test(test, MAPPINGS, bundled()) for test in TESTS if test.source == source]
    reached = frozenset().union(*(result.reached for result in results))
    assert [rule.name for rule in MAPPINGS.sources[source].rules if rule.name not in reached] == []


def test_identity_is_hashed_and_the_visitor_is_not() -> None:
    event = translated(bundled() / "samples/shopify/orders.paid.json").emissions[0].event
    assert all(len(value) == 64 for value in event.identity["default"].values())
    assert set(event.identity["default"]) == {"email", "phone", "first_name", "last_name"}
    assert event.visitor is not None
    assert event.visitor.ids["datalyr"].visitor_id == "anon_3f0c5d2a-9b1e-4a77-8c66-0a1b2c3d4e5f"


def test_an_event_has_the_same_id_each_time_and_a_browser_can_compute_it() -> None:
    file = bundled() / "samples/stripe/checkout.session.completed.json"
    first, second = (translated(file).emissions[0].event.id for _ in range(2))
    # The UUIDv5 of stripe||pi_3SGatewayOnce0001|purchase|0 under the project's namespace.
    assert first == second == "b0938ddd-9886-55ed-be09-d883276e3bc0"


@pytest.mark.parametrize("file", SAMPLES, ids=name_of)
def test_the_same_sample_makes_the_same_ids(file: Path) -> None:
    first, second = ([each.event.id for each in translated(file).emissions] for _ in range(2))
    assert first == second
    assert first == [str(UUID(id)) for id in first]


def test_a_test_payment_is_marked() -> None:
    file = bundled() / "samples/stripe/checkout.session.completed.test.json"
    assert translated(file).emissions[0].event.test


@settings(max_examples=300, deadline=None)
@given(changed_samples())
def test_any_document_is_translated_or_refused_as_malformed(changed: tuple[Path, bytes]) -> None:
    file, body = changed
    headers = sample_headers(bundled(), file.parent.name, file.name, body, 0)
    try:
        translation = events_of(MAPPINGS, file.parent.name, headers, body)
    except MalformedWebhook as refused:
        assert str(refused)  # noqa: PT017 -- either end is right, if it says why
        return
    assert translation.emissions or translation.payments or translation.notes or translation.request
    for emission in translation.emissions:
        assert decode_event(encode_event(emission.event)) == emission.event

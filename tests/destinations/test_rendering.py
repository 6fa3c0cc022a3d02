"""What a destination's file can say: whom it needs, how events share a request, which answers are worth another try."""

from decimal import Decimal
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import msgspec
import pytest
from msgspec import structs

from gateway.deliveries import State
from gateway.delivery import DeliveryLoop
from gateway.destinations import (
    Destination,
    Outcome,
    Response,
    Unrenderable,
    compile_destination,
    judge,
    pack,
    render,
    route,
)
from gateway.documents import MappingErrors, parse
from gateway.events import Event, ProductIds, Visitor
from gateway.money import Money
from gateway.sending import HttpSender
from gateway.server import running
from gateway.store.sqlite import SqliteStore
from tests.destinations.fakes import NOW
from tests.destinations.test_collectors import SEALER, acceptance
from tests.promises.collector import Collector

HEAD = """
destination: batching
enabled_by: [SINK]
endpoint: ${SINK}
secrets: {key: "${KEY}"}
"""
BATCH = """
event: {name: name, value: minor(properties.value)}
body: {key: secrets.key, events: events}
batch: {max_events: 3, max_bytes: 60}
"""
PLAIN = """
event: {name: name}
body: event
"""


def destination(text: str, url: str = "https://sink.example/") -> Destination:
    variables = {"SINK": url, "KEY": "k_private"}
    return compile_destination(parse(HEAD + text, "d.yaml"), "v", variables.get)


def event(number: int, **changes: object) -> Event:
    defaults: dict[str, object] = {
        "id": str(uuid5(NAMESPACE_OID, str(number))),
        "name": f"event_{number}",
        "properties": {"value": Money(Decimal(f"{number}.50"), "USD")},
        "at": NOW,
        **dict.fromkeys(["source", "webhook_id", "type", "rule"], "x"),
    }
    return Event(**{**defaults, **changes})  # type: ignore[arg-type]


def rendered(each: Event, to: Destination) -> bytes:
    made = render(each, to)
    assert isinstance(made, bytes)
    return made


def test_events_share_a_request_in_their_envelope() -> None:
    to = destination(BATCH)
    parts = [rendered(event(number), to) for number in (1, 2)]
    assert parts == [b'{"name":"event_1","value":150}', b'{"name":"event_2","value":250}']
    request = pack(parts, to, "id", 0)
    assert request.body == b'{"key":"k_private","events":[' + b",".join(parts) + b"]}"


async def test_the_loop_keeps_to_the_limits_of_a_batch(tmp_path: Path) -> None:
    collector, store, sender = Collector(), SqliteStore.open(tmp_path / "g.db", SEALER.fingerprint()), HttpSender(8)
    long = event(5, name="a_name_that_is_longer_than_all_that_a_request_may_carry_by_itself")
    with running(collector.app()) as url:
        to = destination(BATCH, f"{url}/sink")
        await store.accept(acceptance([event(1), event(2), event(3), event(4), long], to))
        loop = DeliveryLoop("batching", lambda: to, store, SEALER, sender, lambda: NOW, lambda _low, high: high)
        await loop.step()
    await sender.close()
    await store.close()
    bodies = [msgspec.json.decode(body)["events"] for _, body in collector.requests]
    assert [len(events) for events in bodies] == [1, 1, 1, 1, 1]  # each is 30 bytes, and a comma: two are 62
    assert [events[0]["value"] for events in bodies] == [150, 250, 350, 450, 550]


async def test_a_batch_fails_and_comes_again_whole(tmp_path: Path) -> None:
    collector, store, sender = (
        Collector([(500, {})]),
        SqliteStore.open(tmp_path / "g.db", SEALER.fingerprint()),
        HttpSender(8),
    )
    clock = [NOW]
    with running(collector.app()) as url:
        to = structs.replace(destination(BATCH, f"{url}/sink"), max_bytes=10_000)
        receipt = await store.accept(acceptance([event(1), event(2), event(3)], to))
        loop = DeliveryLoop("batching", lambda: to, store, SEALER, sender, lambda: clock[0], lambda _low, high: high)
        await loop.step()
        clock[0] += 3_600_000
        await loop.step()
        states = [(each.state, len(each.attempts)) for each in await store.deliveries(receipt.webhook)]
    await sender.close()
    await store.close()
    assert states == [(State.SENT, 2)] * 3
    assert collector.requests[0][1] == collector.requests[1][1]


@pytest.mark.parametrize(
    ("needs", "visitor", "taken"),
    [
        ("visitor.batching", None, False),
        ("visitor.batching", Visitor({"": ProductIds("v_1")}), True),
        ("visitor.batching", Visitor({"other": ProductIds("v_1")}), False),
        ("visitor.batching || user_id", None, False),
        ("identity.email", None, False),
    ],
)
def test_an_event_without_the_person_that_is_needed_is_skipped(
    needs: str, visitor: Visitor | None, taken: bool
) -> None:
    made = render(event(1, visitor=visitor), destination(f"{PLAIN}needs: {needs}\n"))
    assert made == (b'{"name":"event_1"}' if taken else "no_person")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("event: {name: length(at_ms)}", "length"),
        ("event: {name: minor(name)}", "minor"),
    ],
)
def test_a_file_that_does_not_fit_an_event_is_unrenderable(text: str, complaint: str) -> None:
    with pytest.raises(Unrenderable) as caught:
        render(event(1), destination(f"{text}\nbody: event\n"))
    assert str(caught.value).startswith("destination `batching` cannot write event `event_1`: ")
    assert complaint in str(caught.value)


def test_names_become_the_destinations_own() -> None:
    assert rendered(event(1), destination(f"{PLAIN}names: {{event_1: Purchase}}\n")) == b'{"name":"Purchase"}'


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, b'{"ok":true}', State.SENT),
        (200, b'{"ok":false}', State.DEAD),
        (200, b"<html>", State.DEAD),
        (200, b"", State.DEAD),
        (402, b"", State.DUE),
        (503, b"", State.DUE),
        (429, b"", State.DEAD),
        (0, b"", State.DEAD),
    ],
)
def test_a_file_may_judge_answers_by_its_own_rules(status: int, body: bytes, state: State) -> None:
    to = destination(f"{PLAIN}success: status == `200` && body.ok\nretry: {{on: [402, 5xx], for: 1h}}\n")
    (outcome,) = judge(Response(status, body=body), to, 1)
    assert outcome.state == state


def test_each_event_of_a_batch_gets_its_own_outcome() -> None:
    assert len(judge(Response(200), destination(BATCH), 3)) == 3


def test_a_secret_is_in_no_print_of_a_destination_or_a_request() -> None:
    to = destination(BATCH)
    request = pack([rendered(event(1), to)], to, "id", 0)
    assert "private" not in f"{to!r} {request!r} {to.secrets}"


def test_an_endpoint_that_is_no_url_is_told() -> None:
    with pytest.raises(MappingErrors, match=r"4:11: error: the endpoint is no http\(s\) URL"):
        destination(PLAIN, "sink.example")


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_wrong_key_or_a_quota_parks(status: int) -> None:
    assert judge(Response(status), destination(PLAIN), 1) == [Outcome(State.PARKED, f"http_{status}")]


REJECTING = f"{BATCH}success: status == `200` || body.imported != `null`\nrejected: body.failed[].index\n"


def test_of_a_batch_only_the_refused_die_if_the_others_were_taken() -> None:
    outcomes = judge(Response(400, body=b'{"imported": 2, "failed": [{"index": 1}]}'), destination(REJECTING), 3)
    assert [each.state for each in outcomes] == [State.SENT, State.DEAD, State.SENT]


def test_of_a_batch_the_others_go_again_if_none_was_taken() -> None:
    outcomes = judge(Response(400, body=b'{"failed": [{"index": 0}]}'), destination(REJECTING), 2)
    assert [(each.state, each.own) for each in outcomes] == [(State.DEAD, True), (State.DUE, True)]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"failed": "no"}', b'{"failed": []}', b'{"failed": 5}'])
def test_an_answer_of_another_shape_is_judged_by_its_status(body: bytes) -> None:
    assert [each.state for each in judge(Response(500, body=body), destination(REJECTING), 2)] == [State.DUE] * 2


def test_no_answer_is_uncertain_only_if_the_request_was_sent() -> None:
    for uncertain in (True, False):
        (outcome,) = judge(Response(0, error="timeout", uncertain=uncertain), destination(PLAIN), 1)
        assert (outcome.state, outcome.uncertain) == (State.DUE, uncertain)


@pytest.mark.parametrize(
    ("keys", "skip"),
    [
        ("only: {events: [purchase]}", None),
        ("only: {events: ['pur*']}", None),
        ("only: {events: [refund]}", "not_routed"),
        ("only: {sources: [shopify]}", "not_routed"),
        ("only: {sources: [stripe], accounts: [acct_1]}", "not_routed"),
        ("except: {events: [purchase]}", "not_routed"),
        ("except: {events: [purchase], sources: [shopify]}", None),
        ("kinds: [identify]", "not_routed"),
        ("when: properties.consent", "no_consent"),
        ("when: length(properties.order_id)", "no_consent"),
        ("when: properties.consent != `false`", None),
        ("test_events: only", "not_routed"),
        ("test_events: skip", None),
    ],
)
def test_events_are_routed_by_name_source_account_and_consent(keys: str, skip: str | None) -> None:
    purchase = structs.replace(event(1), name="purchase", source="stripe", account="", properties={"order_id": 7})
    assert route(purchase, destination(f"{PLAIN}{keys}\n"), forward_tests=False) == skip


@pytest.mark.parametrize(
    ("keys", "forward", "skip"),
    [
        ("", False, "test_event"),
        ("", True, None),
        ("test_events: forward", False, None),
        ("test_events: skip", True, "test_event"),
        ("test_events: only", False, None),
    ],
)
def test_a_destination_has_its_own_word_on_tests(keys: str, forward: bool, skip: str | None) -> None:
    made = structs.replace(event(1), test=True)
    assert route(made, destination(f"{PLAIN}{keys}\n"), forward_tests=forward) == skip


def test_a_kind_has_an_endpoint_of_its_own() -> None:
    to = destination(f"{PLAIN}endpoints: {{identify: 'https://collector.example/identify'}}\n")
    urls = {kind: pack([rendered(event(1), to)], to, "id", 0, kind).url for kind in ("track", "identify")}
    assert urls["identify"] == "https://collector.example/identify" != urls["track"]


@pytest.mark.parametrize(
    ("age", "written"),
    [
        (0, b'{"v":"v-1","s":"s-1"}'),
        (86_400_000, b'{"v":"v-1","s":"s-1"}'),
        (86_400_001, b'{"v":"v-1"}'),
        (None, b'{"v":"v-1","s":"s-1"}'),
    ],
)
def test_a_visitor_lasts_and_a_session_ends(age: int | None, written: bytes) -> None:
    to = destination("event: {v: visitor.batching, s: session.batching}\nbody: event\n")
    ids = {"batching": ProductIds("v-1", "s-1")}
    visitor = Visitor(ids, linked_by="user", linked_at=None if age is None else NOW - age)
    assert rendered(event(1, visitor=visitor), to) == written

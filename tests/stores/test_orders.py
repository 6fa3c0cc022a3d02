"""What a payment is called is known to those who come later with one of its keys."""

from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, MINUTE, NOW, accept, key, report, tie


async def test_the_name_is_found_under_every_key(store: Store) -> None:
    await accept(store, report("session", "pi", "cs", order=b"sealed name"), tie("charge", "pi", "ch"))
    found = [await store.order_of([key(each)]) for each in ("pi", "cs", "ch", "other")]
    assert found == [b"sealed name", b"sealed name", b"sealed name", None]


async def test_the_purchase_names_it_whatever_else_was_claimed(store: Store) -> None:
    await accept(store, report("refund", "pi", name="refund", order=b"refund"), report("session", "pi", order=b"shop"))
    assert await store.order_of([key("other"), key("pi")]) == b"shop"


async def test_the_surer_report_names_it(store: Store) -> None:
    held = report("intent", "pi", hold=MINUTE, order=b"intent")
    await accept(store, held, report("session", "pi", order=b"session"))
    assert await store.order_of([key("pi")]) == b"session"


async def test_it_outlives_a_tie_a_crash_and_the_retention_of_its_webhook(harness: Harness) -> None:
    store = await harness.open()
    await accept(store, report("invoice", "in", order=b"invoice"), report("intent", "pi", hold=MINUTE, order=b"intent"))
    await accept(store, tie("tie", "in", "pi"))
    store = await harness.crash()
    await store.purge(NOW + 40 * DAY, 30 * DAY)
    assert await store.order_of([key("pi")]) == b"invoice"

"""Promise 1: a 2xx only after webhook and deliveries are durable; a store that is down is 503, and needs no restart."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from tests.promises.collector import Collector
from tests.promises.served import LINK_SECRET, Served, payment

LINK = {"visitor_id": "anon_1", "subjects": {"user": "user_42"}}
BACKEND = {"authorization": f"Bearer {LINK_SECRET}"}


@contextmanager
def full_disk(served: Served) -> Iterator[None]:
    """Let no file grow beyond the store's log as it is now."""
    size = served.path.with_name("gateway.db-wal").stat().st_size
    assert size > 20_000  # room enough for the log lines of this process
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_when_the_answer_arrives_webhook_and_deliveries_are_in_the_file(served: Served) -> None:
    with served.up(deliver=False):
        for number in range(5):
            assert served.post(payment(number)).status_code == 200
            assert served.rows("SELECT count(*) FROM webhook") == [(number + 1,)]
            assert served.rows("SELECT count(*) FROM delivery WHERE destination = 'webhook'") == [(number + 1,)]


def test_a_full_disk_is_503_and_once_there_is_room_it_goes_on(served: Served, collector: Collector) -> None:
    with served.up():
        assert served.post(payment(1)).is_success
        collector.wait_for(1)
        with full_disk(served):
            refused = [served.post(payment(2)), served.link(LINK, BACKEND)]
            assert served.get("/livez").status_code == 200
            unready = served.get("/readyz")
        assert served.get("/readyz").json() == {
            "ready": True,
            "checks": {"store": "ok", "mappings": "ok", "workers": "ok"},
            "warnings": [],
        }
        assert [served.post(payment(2)).status_code, served.link(LINK, BACKEND).status_code] == [200, 204]
        orders = [body["data"]["properties"]["order_id"] for body in collector.wait_for(2)]
    assert [(each.status_code, each.headers["retry-after"]) for each in refused] == [(503, "5"), (503, "5")]
    assert {each.headers["content-type"] for each in refused} == {"application/problem+json"}
    assert unready.status_code == 503
    assert unready.json()["checks"]["store"] != "ok"
    assert orders == ["order_1", "order_2"]


def test_what_was_refused_left_nothing_half_done(served: Served) -> None:
    with served.up(deliver=False):
        served.post(payment(1))
        before = served.contents()
        with full_disk(served):
            assert [served.post(payment(number)).status_code for number in (2, 3)] == [503, 503]
        assert served.contents() == before

"""Promise 3: the same webhook twice, at once or days apart, makes one set of deliveries, and suppresses none."""

import asyncio

import httpx
import pytest

from tests.promises.collector import Collector
from tests.promises.served import Served, payment

DAY = 86_400_000


async def at_once(served: Served, body: bytes, times: int) -> list[bool]:
    async with httpx.AsyncClient() as client:
        url = f"{served.url}/webhooks/stripe"
        posts = (client.post(url, content=body, headers=served.signed(body)) for _ in range(times))
        return [answer.json()["duplicate"] for answer in await asyncio.gather(*posts)]


def test_twenty_at_once_reach_the_collector_once(served: Served, collector: Collector) -> None:
    with served.up():
        told = asyncio.run(at_once(served, payment(1), 20))
        served.post(payment(2))
        orders = [body["data"]["properties"]["order_id"] for body in collector.wait_for(2)]
    assert sorted(told) == [False] + [True] * 19
    assert orders == ["order_1", "order_2"]


@pytest.mark.parametrize("days", [0, 1, 29, 89])
def test_it_is_known_after_a_restart_days_later(served: Served, collector: Collector, days: int) -> None:
    with served.up():
        served.post(payment(1))
        collector.wait_for(1)
    served.ahead = days * DAY
    with served.up():
        assert served.post(payment(1)).json()["duplicate"] is True
        served.post(payment(2))
        assert len(collector.wait_for(2)) == 2


def test_a_duplicate_does_not_suppress_what_is_not_delivered_yet(served: Served, collector: Collector) -> None:
    with served.up(deliver=False):
        served.post(payment(1))
        assert served.post(payment(1)).json()["duplicate"] is True
    with served.up():
        assert served.post(payment(1)).json()["duplicate"] is True
        assert len(collector.wait_for(1)) == 1


def test_the_same_id_of_another_type_or_account_is_another_webhook(served: Served) -> None:
    with served.up(deliver=False):
        bodies = [
            b'{"id":"evt_1","type":"a"}',
            b'{"id":"evt_1","type":"b"}',
            b'{"id":"evt_1","type":"a","account":"acct_1"}',
        ]
        assert [served.post(body).json()["duplicate"] for body in bodies] == [False] * 3

"""Whatever dies, and whenever: nothing that was accepted is missing, and what comes twice comes under the same key."""

from pathlib import Path

from gateway.deliveries import Counts
from tests.replicas.processes import SINKS
from tests.replicas.storm import storm_over_redis, until

SECONDS = 3.0
SENDERS = 8


async def test_nothing_accepted_is_missing_when_redis_syncs_always(tmp_path: Path) -> None:
    with storm_over_redis(tmp_path, "always", seed=11) as storm:
        await storm.rage([*storm.of_replicas(), *storm.of_connections(), *[storm.kill_redis] * 2], SECONDS, SENDERS)
        await storm.quiet()
        number = len(storm.accepted)
        assert number > SENDERS
        assert storm.collector.missing(storm.accepted) == set()
        assert storm.collector.under_several_keys() == []
        async with storm.store() as store:
            assert await store.counts() == dict.fromkeys(SINKS, Counts(number, number, 0, 0, 0))


async def test_what_redis_loses_in_a_power_cut_and_no_more_comes_back_when_it_is_sent_again(tmp_path: Path) -> None:
    with storm_over_redis(tmp_path, "everysec", seed=12) as storm:
        await storm.rage([*storm.of_replicas(), *storm.of_connections(), *[storm.cut_power] * 2], SECONDS, SENDERS)
        await storm.quiet()
        missing = {order for _, order in storm.collector.missing(storm.accepted)}
        async with storm.store() as store:
            assert all(each.accepted < len(storm.accepted) for each in (await store.counts()).values())
            assert [order for order in missing if await store.find(order.replace("order", "evt"))] == []
        await storm.send(missing)
        await storm.quiet()
        assert storm.collector.missing(storm.accepted) == set()
        assert storm.collector.under_several_keys() == []


async def test_who_wakes_up_after_its_lease_cannot_settle_what_another_has(tmp_path: Path) -> None:
    with storm_over_redis(tmp_path, "always", seed=13, replicas=1) as storm:
        storm.collector.holds, storm.collector.refuses = "webhook", 0
        await storm.send(["order_1"])
        asked_by_one = await storm.collector.asked()
        resume = storm.replicas[0].pause()
        storm.add_replica()
        asked_by_other = await storm.collector.asked()
        storm.collector.holds = ""
        asked_by_one.set_result(500)
        resume()
        await until(storm.replicas[0].has_lost_a_lease)
        asked_by_other.set_result(200)
        await storm.quiet()
        async with storm.store() as store:
            assert await store.counts() == dict.fromkeys(SINKS, Counts(1, 1, 0, 0, 0))
            (stored,) = await store.find("evt_1")
            attempts = [attempt for each in await store.deliveries(stored) for attempt in each.attempts]
            assert {attempt.status for attempt in attempts} == {200}

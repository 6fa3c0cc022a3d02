"""`python -m tests.benchmarks.loss [ROUNDS]`: what crashes lose, on SQLite and on Redis, counted at the collectors.

Each round is a storm of its own: gateways and Redis die at random instants while payments come in, and the collectors
refuse half of what they are sent. `missing` is what no collector has when the stores have nothing left to send, though
a sender had been told 2xx; `at last` what is still missing when senders send just that again; `repeated` what came
again after it was taken, and `other keys` how many of those under another idempotency key.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec import Struct

from tests.replicas.processes import SINKS
from tests.replicas.storm import Disaster, Storm, storm_over_redis, storm_over_sqlite

ROUNDS = 10
SECONDS = 10.0
SENDERS = 8


class Case(Struct, frozen=True):
    """What is stormed, and what befalls it."""

    title: str
    over: Callable[[Path, int], AbstractContextManager[Storm]]
    disasters: Callable[[Storm], list[Disaster]]


class Loss(Struct):
    """Webhooks that got a 2xx, and their deliveries."""

    accepted: int = 0
    delivered: int = 0
    missing: int = 0
    at_last: int = 0
    repeated: int = 0
    other_keys: int = 0


CASES = (
    Case(
        "SQLite, 1 gateway: SIGKILL, SIGSTOP",
        lambda folder, seed: storm_over_sqlite(folder, seed=seed),
        lambda storm: storm.of_replicas(),
    ),
    Case(
        "Redis always, 4 gateways: and SIGKILL of Redis",
        lambda folder, seed: storm_over_redis(folder, "always", seed=seed),
        lambda storm: [*storm.of_replicas(), *storm.of_connections(), *[storm.kill_redis] * 3],
    ),
    Case(
        "Redis everysec, 4 gateways: the same",
        lambda folder, seed: storm_over_redis(folder, "everysec", seed=seed),
        lambda storm: [*storm.of_replicas(), *storm.of_connections(), *[storm.kill_redis] * 3],
    ),
    Case(
        "Redis everysec, 4 gateways: power cuts",
        lambda folder, seed: storm_over_redis(folder, "everysec", seed=seed),
        lambda storm: [*storm.of_replicas(), *storm.of_connections(), *[storm.cut_power] * 3],
    ),
)


async def storm_once(case: Case, seed: int, loss: Loss) -> None:
    """Add what one storm does to what was counted before."""
    with tempfile.TemporaryDirectory() as folder, case.over(Path(folder), seed) as storm:
        await storm.rage(case.disasters(storm), SECONDS, SENDERS)
        await storm.quiet()
        missing = storm.collector.missing(storm.accepted)
        await storm.send({order for _, order in missing})
        await storm.quiet()
        loss.accepted += len(storm.accepted)
        loss.delivered += len(SINKS) * len(storm.accepted) - len(missing)
        loss.missing += len(missing)
        loss.at_last += len(storm.collector.missing(storm.accepted))
        loss.repeated += storm.collector.repeats()
        loss.other_keys += len(storm.collector.under_several_keys())


def main(rounds: int) -> None:
    print(f"\nLoss: {rounds} storms of {SECONDS:.0f} s, {len(SINKS)} deliveries a webhook, collectors refuse half")
    print(f"{'':48} webhooks   delivered   missing   at last   repeated   other keys")
    for case in CASES:
        loss = Loss()
        for seed in range(rounds):
            asyncio.run(storm_once(case, seed, loss))
        print(
            f"{case.title:48} {loss.accepted:8,} {loss.delivered:11,} {loss.missing:9,} {loss.at_last:9,} "
            f"{loss.repeated:10,} {loss.other_keys:12,}",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)

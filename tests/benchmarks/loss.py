"""`python -m tests.benchmarks loss [--large]`: what crashes lose, counted at the collectors.

Each round is a storm of its own: gateways and Redis die at random instants while eight senders send payments, each
until it is answered 200; the gateways' collectors refuse half of all requests. The recipe that collectors document
(Express, `fetch` not waited for) goes through storms of its own, in which only it dies. Its collectors are on the same
machine, so it has less under way when it dies than over a real network.

Missing is what no collector has when nothing is left to send, though the sender had been told 2xx; at last, what is
still missing when senders send just that again. Repeated came again after it was taken, under the same idempotency key,
by which a collector can tell; other keys, how many came under more than one.
"""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
from msgspec import Struct
from msgspec.structs import astuple

from gateway.server import running
from tests.benchmarks.recipe import installed, node
from tests.benchmarks.report import Asked, Scale, Table, asked, show, step
from tests.promises.served import SECRET
from tests.replicas.processes import PATIENCE, SINKS, Collector
from tests.replicas.storm import REFUSES, Disaster, Storm, storm_over_redis, storm_over_sqlite

SECONDS: dict[Scale, float] = {"quick": 1.0, "default": 10.0, "large": 10.0}
SENDERS = 8


class Case(Struct, frozen=True):
    """What is stormed, and what befalls it."""

    title: str
    over: Callable[[Path, int], AbstractContextManager[Storm]]
    disasters: Callable[[Storm], list[Disaster]]
    rounds: dict[Scale, int]
    quiet: Callable[[Storm], Awaitable[None]] = Storm.quiet
    """Waits until nothing is left to send."""


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
        "gateway, SQLite: SIGKILL, SIGSTOP",
        lambda folder, seed: storm_over_sqlite(folder, seed=seed),
        lambda storm: storm.of_replicas(),
        {"quick": 1, "default": 3, "large": 10},
    ),
    Case(
        "4 gateways, Redis `always`: and SIGKILL of Redis",
        lambda folder, seed: storm_over_redis(folder, "always", seed=seed),
        lambda storm: [*storm.of_replicas(), *storm.of_connections(), *[storm.kill_redis] * 3],
        {"quick": 0, "default": 1, "large": 10},
    ),
    Case(
        "4 gateways, Redis `everysec`: the same",
        lambda folder, seed: storm_over_redis(folder, "everysec", seed=seed),
        lambda storm: [*storm.of_replicas(), *storm.of_connections(), *[storm.kill_redis] * 3],
        {"quick": 0, "default": 1, "large": 10},
    ),
    Case(
        "4 gateways, Redis `everysec`: power cuts",
        lambda folder, seed: storm_over_redis(folder, "everysec", seed=seed),
        lambda storm: [*storm.of_replicas(), *storm.of_connections(), *[storm.cut_power] * 3],
        {"quick": 0, "default": 1, "large": 10},
    ),
)


def of_recipe(express: Path) -> tuple[Case, ...]:
    """Return the storms of the recipe that was installed there."""
    return tuple(
        Case(
            f"recipe: SIGKILL, collectors refuse {refused}",
            partial(storm_over_recipe, express, refuses),
            lambda storm: [storm.kill_replica] * 3,
            {"quick": 1, "default": 2, "large": 10},
            recipe_is_quiet,
        )
        for refuses, refused in ((0.0, "nothing"), (REFUSES, "half"))
    )


@contextmanager
def storm_over_recipe(express: Path, refuses: float, folder: Path, seed: int) -> Iterator[Storm]:
    """Start the recipe, and collectors that refuse so many of its requests."""
    collector = Collector(refuses, seed)
    with running(collector.app()) as url:
        settings = {"STRIPE_WEBHOOK_SECRET": SECRET, "COLLECTORS": ",".join(f"{url}/{name}" for name in SINKS)}
        with subprocess.Popen(
            [node(), "nursery.js"],
            env=os.environ | settings,
            cwd=express,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as nursery:
            storm = Storm(settings, nursery, folder, None, collector, seed)
            storm.add_replica()
            yield storm


async def recipe_is_quiet(storm: Storm) -> None:
    """Wait until the recipe has no request under way."""
    async with httpx.AsyncClient() as client, asyncio.timeout(PATIENCE):
        while (await client.get(f"{storm.replicas[0].url}/under-way")).json():  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.02)


async def storm_once(case: Case, seconds: float, seed: int, loss: Loss) -> None:
    """Add what one storm does to what was counted before."""
    with tempfile.TemporaryDirectory() as folder, case.over(Path(folder), seed) as storm:
        await storm.rage(case.disasters(storm), seconds, SENDERS)
        await case.quiet(storm)
        missing = storm.collector.missing(storm.accepted)
        await storm.send({order for _, order in missing})
        await case.quiet(storm)
        loss.accepted += len(storm.accepted)
        loss.delivered += len(SINKS) * len(storm.accepted) - len(missing)
        loss.missing += len(missing)
        loss.at_last += len(storm.collector.missing(storm.accepted))
        loss.repeated += storm.collector.repeats()
        loss.other_keys += len(storm.collector.under_several_keys())


def main(asked: Asked) -> list[Table]:
    """Storm each of the cases, and count."""
    losses: dict[str, Loss] = {}
    with ExitStack() as stack:
        recipes = of_recipe(stack.enter_context(installed())) if asked.node else ()
        for case in (*CASES, *recipes):
            for seed in range(case.rounds[asked.scale]):
                step(f"{case.title}, storm {seed + 1} of {case.rounds[asked.scale]}")
                loss = losses.setdefault(case.title, Loss())
                asyncio.run(storm_once(case, SECONDS[asked.scale], seed, loss))
    title = f"Storms of {SECONDS[asked.scale]:.0f} s, {len(SINKS)} deliveries a webhook"
    columns = ("", "accepted", "delivered", "missing", "at last", "repeated", "other keys")
    return [Table("loss", title, columns, tuple((name, *astuple(each)) for name, each in losses.items()))]


if __name__ == "__main__":
    show(main(asked()))

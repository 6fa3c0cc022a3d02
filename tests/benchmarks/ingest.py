"""`python -m tests.benchmarks ingest`: webhooks that are answered 200 a second, by one core and 32 connections.

Each webhook is a signed Stripe checkout session of 5 KB, a payment of its own, for two collectors. Server and sender
have a core each; collectors and Redis share the sender's. All servers take turns, and of the rounds the median counts.

* The bare handler only reads the body: what Litestar leaves room for.
* The gateway answers when the webhook, its events and its deliveries are on disk; once by itself, with delivery left to
  another process, and once delivering on the same core.
* The recipe that collectors document answers when the signature is right, and posts to them without waiting: it keeps
  nothing, and a crash or a collector that is down loses what it had answered.
* The other recipe posts to the collectors before it answers; Stripe's own library builds its objects.

Delivered counts until the collectors have every event, so what is left behind at the last answer counts as well. Where
no store keeps anything, a figure is no promise.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from msgspec import Struct

from tests.benchmarks.documents import session
from tests.benchmarks.load import CONNECTIONS, Load, Result, sender
from tests.benchmarks.payments import webhooks
from tests.benchmarks.recipe import installed
from tests.benchmarks.report import Asked, Cell, Scale, Table, asked, show, step
from tests.benchmarks.servers import OTHERS, Up, bare, gateway, recipe, sink, wait_for
from tests.benchmarks.stores import APPENDING, redis

WEBHOOKS: dict[Scale, int] = {"quick": 100, "default": 15_000, "large": 50_000}
ROUNDS: dict[Scale, int] = {"quick": 1, "default": 3, "large": 5}

BARE, GATEWAY, DELIVERING = "bare Litestar handler", "gateway, SQLite", "gateway, SQLite, delivering as well"
RECIPE, INLINE = (
    "recipe: Express, `constructEvent`, `fetch` not waited for",
    "recipe: FastAPI, `construct_event`, httpx",
)

Serve = Callable[[Path, Sequence[str]], AbstractContextManager[Up]]
"""Starts a server with a folder to keep things in, and the URLs of its collectors."""


class Contender(Struct, frozen=True):
    """A server that is compared. `share` is which part of the webhooks it gets, as slow ones need fewer."""

    title: str
    serve: Serve
    share: float = 1.0
    delivers: bool = False


def _bare(name: str) -> Serve:
    return partial(bare, name)


@contextmanager
def _on_sqlite(folder: Path, collectors: Sequence[str], *options: str) -> Iterator[Up]:
    with gateway(folder, f"sqlite:///{folder}/gateway.db", collectors, *options) as served:
        yield served


@contextmanager
def _on_redis(fsync: str, folder: Path, collectors: Sequence[str]) -> Iterator[Up]:
    with (
        redis(*APPENDING, fsync, core=OTHERS) as server,
        gateway(folder, server.url, collectors, "--no-deliver") as served,
    ):
        yield served


def _without_delivery(folder: Path, collectors: Sequence[str]) -> AbstractContextManager[Up]:
    return _on_sqlite(folder, collectors, "--no-deliver")


def contenders(express: Path | None) -> list[Contender]:
    """Return who is compared; the recipe for Node only if it is installed."""
    return [
        Contender(BARE, _bare("handler")),
        Contender("bare Litestar `@asgi` route", _bare("asgi"), 2.0),
        Contender(GATEWAY, _without_delivery, 0.5),
        Contender(DELIVERING, _on_sqlite, 0.25, delivers=True),
        Contender("gateway, Redis, `appendfsync everysec`", partial(_on_redis, "everysec"), 0.3),
        Contender("gateway, Redis, `appendfsync always`", partial(_on_redis, "always"), 0.3),
        *([Contender(RECIPE, partial(recipe, express), 0.25, delivers=True)] if express else []),
        Contender(INLINE, _bare("inline"), 0.04, delivers=True),
    ]


class Run(Struct, frozen=True):
    """What one server did. `delivered` is webhooks a second until the collectors had all of them."""

    answered: Result
    delivered: float | None


def measured(contender: Contender, number: int, load: Load) -> Run:
    """Start a server, warm it up, and load it."""
    warm_up = max(40, number // 10)
    requests = webhooks(warm_up + number)  # only now, as a signature is good for minutes
    with sink() as collector, tempfile.TemporaryDirectory() as folder:
        urls = [f"{collector.url}/{name}" for name in ("first", "second")]
        with contender.serve(Path(folder), urls) as served:
            load(served.port, requests[:warm_up])
            if contender.delivers:
                wait_for(collector, 2 * warm_up)
            answered = load(served.port, requests[warm_up:])
            since = time.perf_counter()
            if not contender.delivers:
                return Run(answered, None)
            wait_for(collector, 2 * len(requests))
            return Run(answered, number / (answered.took + time.perf_counter() - since))


def main(asked: Asked) -> list[Table]:
    """Measure all of them, in turns."""
    runs: dict[str, list[Run]] = {}
    with ExitStack() as stack:
        load = stack.enter_context(sender(OTHERS))
        compared = contenders(stack.enter_context(installed()) if asked.node else None)
        for number in range(ROUNDS[asked.scale]):
            for each in compared:
                step(f"round {number + 1} of {ROUNDS[asked.scale]}: {each.title}")
                run = measured(each, max(100, int(WEBHOOKS[asked.scale] * each.share)), load)
                runs.setdefault(each.title, []).append(run)
    return [_table(runs)]


def _table(runs: dict[str, list[Run]]) -> Table:
    rates = {title: statistics.median(run.answered.rate for run in each) for title, each in runs.items()}
    rows: list[tuple[Cell, ...]] = []
    for title, each in runs.items():
        delivered = [run.delivered for run in each if run.delivered is not None]
        p99 = statistics.median(run.answered.p99 for run in each)
        of_recipe = rates[title] / rates[RECIPE] if RECIPE in rates else None
        reached = statistics.median(delivered) if delivered else None
        rows.append((title, rates[title], rates[title] / rates[BARE], of_recipe, p99, reached))
    columns = ("", "webhooks/s", "of the bare handler", "of the recipe", "p99, ms", "delivered/s")
    return Table("ingest", f"{len(session()):,} bytes a webhook, {CONNECTIONS} connections", columns, tuple(rows))


if __name__ == "__main__":
    show(main(asked()))

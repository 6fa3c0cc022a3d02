"""`python -m tests.benchmarks processes`: how soon a process answers, and how much memory it takes.

A start is from the call that makes the process until `/livez` answers 200, on one core and a warm disk; the best
counts. The gateway starts with all bundled mappings, with console, API and metrics (`GATEWAY_ADMIN_TOKEN`) and without.
Memory is what is resident (`VmRSS`): when the process has just started, and when it has taken the webhooks in and
delivered them to two collectors on the same machine.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from msgspec import Struct

from tests.benchmarks.load import Load, sender
from tests.benchmarks.payments import webhooks
from tests.benchmarks.recipe import installed
from tests.benchmarks.report import Asked, Cell, Scale, Table, asked, show, step
from tests.benchmarks.servers import KEY, OTHERS, SECRET, Up, bare, gateway, recipe, sink, up, wait_for

STARTS: dict[Scale, int] = {"quick": 1, "default": 5, "large": 9}
WEBHOOKS: dict[Scale, int] = {"quick": 100, "default": 20_000, "large": 100_000}
AT_ONCE = 5_000
"""Webhooks that are signed together: a signature is good for minutes."""
POLL = 0.002
TOKEN = "a token of the benchmarks, of 32 and more"

Serve = Callable[[Path, Sequence[str]], AbstractContextManager[Up]]


class Kind(Struct, frozen=True):
    """A server: as it starts, and as it takes webhooks in and delivers them."""

    title: str
    starts: Serve
    works: Serve | None = None


@contextmanager
def _as_bundled(folder: Path, _collectors: Sequence[str], *, token: str = "") -> Iterator[Up]:
    """Start a gateway as a newcomer does: every bundled mapping, one source and one destination set up."""
    settings = {
        "GATEWAY_STORE": f"sqlite:///{folder}/gateway.db",
        "GATEWAY_SECRET_KEY": KEY,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "DATALYR_API_KEY": "none",
        **({"GATEWAY_ADMIN_TOKEN": token} if token else {}),
    }
    with up([sys.executable, "-m", "gateway", "serve", "--port"], folder, settings, poll=POLL) as served:
        yield served


@contextmanager
def _working(folder: Path, collectors: Sequence[str], *, token: str = "") -> Iterator[Up]:
    settings = {"GATEWAY_ADMIN_TOKEN": token} if token else {}
    with gateway(folder, f"sqlite:///{folder}/gateway.db", collectors, settings=settings) as served:
        yield served


def kinds(express: Path | None) -> list[Kind]:
    """Return what is compared; the recipe for Node only if it is installed."""
    found = [
        Kind("gateway", _as_bundled, _working),
        Kind("gateway, with `GATEWAY_ADMIN_TOKEN`", partial(_as_bundled, token=TOKEN), partial(_working, token=TOKEN)),
        Kind("uvicorn, Litestar with a bare handler", partial(bare, "handler", poll=POLL)),
        Kind("uvicorn, recipe for FastAPI", partial(bare, "inline", poll=POLL)),
    ]
    if express:
        found.append(Kind("node, recipe for Express", partial(recipe, express, poll=POLL), partial(recipe, express)))
    return found


def start(kind: Kind) -> tuple[float, float]:
    """Return how long a start took, in seconds, and what the process takes then, in MB."""
    with tempfile.TemporaryDirectory() as folder, kind.starts(Path(folder), ()) as served:
        return served.took, resident(served)


def after(kind: Kind, number: int, load: Load) -> float:
    """Return what a process takes after so many webhooks, in MB."""
    assert kind.works is not None
    with sink() as collector, tempfile.TemporaryDirectory() as folder:
        urls = [f"{collector.url}/{name}" for name in ("first", "second")]
        with kind.works(Path(folder), urls) as served:
            for first in range(0, number, AT_ONCE):
                load(served.port, webhooks(min(AT_ONCE, number - first), first))
            wait_for(collector, 2 * number)
            return resident(served)


def resident(served: Up) -> float:
    """Return the resident memory of a process, in MB."""
    (line,) = [each for each in Path(f"/proc/{served.pid}/status").read_text().splitlines() if "VmRSS" in each]
    return int(line.split()[1]) / 1024


def main(asked: Asked) -> list[Table]:
    """Measure starts in turns, then memory."""
    number, took = WEBHOOKS[asked.scale], dict[str, list[tuple[float, float]]]()
    rows: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        load = stack.enter_context(sender(OTHERS))
        compared = kinds(stack.enter_context(installed()) if asked.node else None)
        for turn in range(STARTS[asked.scale]):
            step(f"starts, round {turn + 1} of {STARTS[asked.scale]}")
            for kind in compared:
                took.setdefault(kind.title, []).append(start(kind))
        for kind in compared:
            step(f"memory: {kind.title}")
            seconds, idle = (min(each) for each in zip(*took[kind.title], strict=True))
            rows.append((kind.title, seconds, idle, after(kind, number, load) if kind.works else None))
    columns = ("", "start, s", "memory, MB", f"after {number:,} webhooks, MB")
    return [Table("processes", "A process: its start and its memory", columns, tuple(rows))]


if __name__ == "__main__":
    show(main(asked()))

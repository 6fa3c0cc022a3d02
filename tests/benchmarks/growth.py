"""`python -m tests.benchmarks growth`: what grows with the rules of a file, and with the body of a webhook.

(What grows with links, with a backlog and with stored webhooks is measured in the parts `links`, `stores` and `lists`.)

Rules: a source file with so many, none of which matches but the last; loaded as at a start, from YAML to functions,
each time by a new process. The best counts.

Bodies: durable ingest by the gateway on SQLite and by the handler that only reads them, as in the part `ingest`; a
checkout session with ever more custom fields.
"""

import json
import os
import re
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gateway.mappings import bundled, load_mappings
from tests.benchmarks.documents import session
from tests.benchmarks.load import Load, sender
from tests.benchmarks.payments import webhooks
from tests.benchmarks.report import Asked, Cell, Scale, Table, asked, show, step
from tests.benchmarks.servers import MEASURED, OTHERS, bare, gateway

RULES: dict[Scale, tuple[int, ...]] = {"quick": (1, 10), "default": (1, 10, 100, 1_000), "large": (1, 10, 100, 1_000)}
BODIES: dict[Scale, tuple[int, ...]] = {
    "quick": (5_000,),
    "default": (1_000, 10_000, 100_000, 1_000_000),
    "large": (1_000, 10_000, 100_000, 1_000_000),
}
BYTES: dict[Scale, int] = {"quick": 200_000, "default": 40_000_000, "large": 200_000_000}
"""How much is sent of each size, and in how many webhooks at the most."""
MOST = 4_000
ROUNDS = 3
READ = ("id", "object", "type", "created", "livemode", "data")
READ_OF_SESSION = (
    "amount_total",
    "client_reference_id",
    "currency",
    "customer",
    "id",
    "metadata",
    "mode",
    "object",
    "payment_intent",
    "payment_status",
)


def rules(scale: Scale) -> Table:
    """Measure how long a file takes to load, by its rules."""
    took: dict[int, list[float]] = {number: [] for number in RULES[scale]}
    with tempfile.TemporaryDirectory() as name:
        for number, rounds in took.items():
            step(f"loading {number:,} rules")
            folder = _with_rules(Path(name) / str(number), number)
            for _ in range(1 if scale == "quick" else ROUNDS):
                with get_context("spawn").Pool(1) as fresh:  # a second load in a process finds much of the first
                    rounds.append(fresh.apply(_milliseconds, (folder,)))
    best = {number: min(each) for number, each in took.items()}
    rows = tuple((f"{number:,}", each, each / number) for number, each in best.items())
    return Table("loading", "Loading a file, by its rules", ("rules", "ms", "ms a rule"), rows)


def _milliseconds(folder: Path) -> float:
    os.sched_setaffinity(0, {MEASURED})
    started = time.perf_counter()
    (source,) = load_mappings(folder, lambda _: None).sources.values()
    took = (time.perf_counter() - started) * 1000
    assert len(source.rules_for("checkout.session.completed")) == 1
    return took


def _with_rules(folder: Path, number: int) -> Path:
    """Write the bundled source with so many rules: the one for a paid checkout, and others like it before."""
    for name in ("sources", "destinations"):
        (folder / name).mkdir(parents=True)
    text = (bundled() / "sources" / "stripe.yaml").read_text(encoding="utf-8")
    head, _, rules = text.partition("rules:\n")
    paid = rules[rules.index("  - name: checkout paid") : rules.index("      tax:")]  # 1,000 of them fit into a file
    written = [head, "rules:"]
    for each in range(number):
        on = "checkout.session.completed" if each == number - 1 else f"other.{each}"
        own = re.sub(r"(?m)^    on: .*$", f"    on: {on}", paid).replace("checkout paid", f"paid {each}")
        written.append(own.replace("metadata.order_id", f"metadata.order_{each} || data.object.metadata.order_id"))
    (folder / "sources" / "stripe.yaml").write_text("\n".join(written), encoding="utf-8")
    return folder


def document(size: int) -> dict[str, Any]:
    """Return a checkout session of so many bytes or a little more."""
    found = json.loads(session())
    whole = found["data"]["object"]
    small = {name: whole[name] for name in READ_OF_SESSION}
    found = {name: found[name] for name in READ} | {"data": {"object": small}}
    fields = small["custom_fields"] = []
    field = {"key": "engraving", "label": {"custom": "Engraving", "type": "custom"}, "optional": True, "type": "text"}
    one = len(json.dumps(field, separators=(",", ":"))) + 1
    missing = size - len(json.dumps(found, separators=(",", ":")))
    fields += [field] * max(0, -(-missing // one))
    return found


def bodies(scale: Scale, load: Load) -> Table:
    """Measure durable ingest by the size of a webhook."""
    rows: list[tuple[Cell, ...]] = []
    for size in BODIES[scale]:
        step(f"bodies of {size:,} bytes")
        number = min(MOST, max(64, BYTES[scale] // size))
        rates: dict[str, list[float]] = {"bare": [], "gateway": []}
        for _ in range(1 if scale == "quick" else ROUNDS):
            for name, each in rates.items():
                each.append(_ingest(name, size, number, load))
        bare_rate, rate = (statistics.median(each) for each in rates.values())
        rows.append((f"{size:,}", rate, rate * size / 1e6, bare_rate, rate / bare_rate))
    columns = ("bytes", "gateway, webhooks/s", "MB/s", "bare handler, webhooks/s", "of bare")
    return Table("bodies", "Durable ingest on SQLite, by the size of a webhook", columns, tuple(rows))


def _ingest(name: str, size: int, number: int, load: Load) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        store = f"sqlite:///{folder}/gateway.db"
        urls = ("http://127.0.0.1:9/first", "http://127.0.0.1:9/second")  # nothing is delivered
        with bare("handler", path) if name == "bare" else gateway(path, store, urls, "--no-deliver") as served:
            load(served.port, webhooks(64, 10_000_000, document(size)))
            return load(served.port, webhooks(number, document=document(size))).rate


def main(asked: Asked) -> list[Table]:
    """Measure rules, then bodies."""
    with sender(OTHERS) as load:
        return [rules(asked.scale), bodies(asked.scale, load)]


if __name__ == "__main__":
    show(main(asked()))

"""The parts of the benchmarks, in the order in which they run and stand on the page; and what is kept of their runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import msgspec
from msgspec import Struct

from tests.benchmarks import (
    answers,
    delivery,
    growth,
    ingest,
    links,
    lists,
    loss,
    mapping,
    processes,
    signatures,
    stores,
)
from tests.benchmarks.machine import Machine
from tests.benchmarks.report import Asked, Scale, Table, printed

RESULTS = Path(__file__).parent / "results.json"


class Part(Struct, frozen=True):
    """What one module measures. `minutes` is how long it took where it was written, for who waits."""

    name: str
    title: str
    module: ModuleType
    minutes: float
    measure: Callable[[Asked], list[Table]]


class Ran(Struct, frozen=True):
    """A part that ran: how, where, how long it took in seconds, and what it found."""

    scale: Scale
    machine: Machine
    took: float
    tables: tuple[Table, ...]


Results = dict[str, Ran]
"""By the name of the part."""


def _lists(asked: Asked) -> list[Table]:
    return printed(partial(lists.main, large=asked.scale == "large"), "lists")


PARTS = {
    part.name: part
    for part in (
        Part("ingest", "Webhooks taken in", ingest, 2.0, ingest.main),
        Part("loss", "What a crash loses", loss, 2.5, loss.main),
        Part("answers", "Answers while a destination is dead", answers, 2.2, answers.main),
        Part("delivery", "Deliveries", delivery, 0.8, delivery.main),
        Part("processes", "Start and memory", processes, 1.5, processes.main),
        Part("signatures", "Signatures", signatures, 0.1, signatures.main),
        Part("mapping", "Mapping", mapping, 0.5, mapping.main),
        Part("stores", "Stores", stores, 2.0, stores.main),
        Part("links", "Links", links, 0.8, links.main),
        Part("lists", "Lists", lists, 2.0, _lists),
        Part("growth", "Growth with rules and bodies", growth, 1.5, growth.main),
    )
}


def read(file: Path) -> Results:
    """Return what was measured so far; nothing, if there is no such file."""
    return msgspec.json.decode(file.read_bytes(), type=Results) if file.exists() else {}


def write(file: Path, results: Results) -> None:
    """Put results in place of what was there, whole or not at all, in the order of the parts."""
    ordered = {name: results[name] for name in PARTS if name in results}
    beside = file.with_suffix(".new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")
    beside.replace(file)


def command(name: str, ran: Ran) -> str:
    """Return what measures a part as it was measured."""
    option = "" if ran.scale == "default" else f" --{ran.scale}"
    return f"uv run --group dev python -m tests.benchmarks {name}{option}"

"""The page's plots, as PNG files, from the tables of the parts. Needs matplotlib: the dependency group `benchmarks`."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks import ingest
from tests.benchmarks.parts import Ran, Results
from tests.benchmarks.report import Table

WIDE, TALL, DOTS = 9.0, 0.42, 110
"""Inches of a plot's width and of a bar, and dots an inch."""
OURS, OTHERS, BAD = "#2a6fdb", "#b8bec9", "#d1495b"


def plot(results: Results, folder: Path) -> dict[str, list[str]]:
    """Draw what the parts measured; return the files of each part, from the folder's parent.

    Raises `RuntimeError` with what to install when matplotlib is missing.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise RuntimeError(
            "matplotlib is missing: `uv run --group dev --group benchmarks python -m tests.benchmarks.page`"
        ) from None
    folder.mkdir(exist_ok=True)
    drawn: dict[str, list[str]] = {}
    for part, name, draw in PLOTS:
        if part in results and (figure := draw(pyplot, results[part])) is not None:
            figure.savefig(folder / f"{name}.png", dpi=DOTS, bbox_inches="tight", metadata={"Software": None})
            pyplot.close(figure)
            drawn.setdefault(part, []).append(f"{folder.name}/{name}.png")
    return drawn


def _table(ran: Ran, name: str) -> Table | None:
    return next((table for table in ran.tables if table.name == name), None)


def _bars(pyplot: Any, values: Mapping[str, float], title: str, unit: str = "") -> Any:
    """Draw one bar a row, ours in colour, with the figure at its end."""
    figure, axes = pyplot.subplots(figsize=(WIDE, 0.8 + TALL * len(values)))
    names = [_plain(name) for name in values]
    bars = axes.barh(names, list(values.values()), color=[OURS if "gateway" in name else OTHERS for name in names])
    axes.bar_label(bars, [f"{value:,.0f}{unit}" if value >= 10 else f"{value:.2g}{unit}" for value in values.values()])
    return _framed(figure, axes, title)


def _framed(figure: Any, axes: Any, title: str) -> Any:
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    if axes.patches:
        axes.invert_yaxis()
    return figure


def _plain(name: str) -> str:
    return name.replace("`", "")


def _column(ran: Ran, table: str, column: str) -> dict[str, float]:
    found = _table(ran, table)
    return found.column(column) if found else {}


def _ingest(pyplot: Any, ran: Ran) -> Any:
    rates = _column(ran, "ingest", "webhooks/s")
    return _bars(pyplot, rates, "Webhooks answered a second, one core, 32 connections")


def _latency(pyplot: Any, ran: Ran) -> Any:
    slow = _column(ran, "ingest", "p99, ms")
    slow.pop(ingest.INLINE, None)  # it would hide the others
    return _bars(pyplot, slow, "99 % of the answers came within, at full load", " ms")


def _loss(pyplot: Any, ran: Ran) -> Any:
    delivered, missing = (_column(ran, "loss", name) for name in ("delivered", "missing"))
    shares = {name: 100 * missing[name] / (delivered[name] + missing[name]) for name in missing}
    figure, axes = pyplot.subplots(figsize=(WIDE, 0.8 + TALL * len(shares)))
    bars = axes.barh([_plain(name) for name in shares], list(shares.values()), color=BAD)
    axes.bar_label(bars, [f" {missing[name]:,.0f} of {delivered[name] + missing[name]:,.0f}" for name in shares])
    axes.set_xlim(0, max(1.0, *shares.values()))
    return _framed(figure, axes, "Lost after a 2xx, % of the deliveries")


def _starts(pyplot: Any, ran: Ran) -> Any:
    return _bars(
        pyplot, _column(ran, "processes", "start, s"), "From the start of the process to its first answer", " s"
    )


def _memory(pyplot: Any, ran: Ran) -> Any:
    return _bars(pyplot, _column(ran, "processes", "memory, MB"), "Resident memory of an idle process", " MB")


def _mapping(pyplot: Any, ran: Ran) -> Any:
    found = _column(ran, "mapping: Stripe checkout session", "µs")
    ours = {f"gateway: {name}" if name.startswith("projected") else name: each for name, each in found.items()}
    return _bars(pyplot, ours, "Mapping a Stripe session of 5 KB, bytes to bytes", " µs")


def _by_size(table: str, title: str) -> Callable[[Any, Ran], Any]:
    """Draw each row of a table whose columns are sizes, as multiples of the smallest size."""

    def draw(pyplot: Any, ran: Ran) -> Any:
        found = _table(ran, table)
        if found is None:
            return None
        columns = [(_number(each), each) for each in found.columns[1:] if each != "ratio"]
        figure, axes = pyplot.subplots(figsize=(WIDE, 4))
        for row in found.rows:
            values = [found.column(name).get(str(row[0])) for _, name in columns]
            if None not in values and row[-1] is not None:
                base = values[0] or 1.0
                axes.plot(
                    [size for size, _ in columns],
                    [(each or 0.0) / base for each in values],
                    "o-",
                    label=_plain(str(row[0])),
                )
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        return _framed(figure, axes, title)

    return draw


def _number(title: str) -> int:
    return int(title.split(maxsplit=1)[0].replace(",", ""))


def _lines(table: str, columns: tuple[str, ...], title: str) -> Callable[[Any, Ran], Any]:
    """Draw columns of a table whose rows are sizes, both axes logarithmic."""

    def draw(pyplot: Any, ran: Ran) -> Any:
        found = _table(ran, table)
        if found is None:
            return None
        figure, axes = pyplot.subplots(figsize=(WIDE, 4))
        for name in columns:
            values = found.column(name)
            axes.plot([_number(size) for size in values], list(values.values()), "o-", label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(found.columns[0])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        return _framed(figure, axes, title)

    return draw


PLOTS: tuple[tuple[str, str, Callable[[Any, Ran], Any]], ...] = (
    ("ingest", "ingest", _ingest),
    ("ingest", "latency", _latency),
    ("loss", "loss", _loss),
    ("processes", "start", _starts),
    ("processes", "memory", _memory),
    ("mapping", "mapping", _mapping),
    ("stores", "backlog", _by_size("drains", "Deliveries a second by how many are due, against the fewest")),
    ("links", "links", _by_size("links", "What a link costs by how many there are, against the fewest")),
    ("growth", "rules", _lines("loading", ("ms",), "Loading a file, ms by its rules")),
    (
        "growth",
        "bodies",
        _lines("bodies", ("gateway, webhooks/s", "bare handler, webhooks/s"), "Webhooks a second by their size"),
    ),
)
"""The part, the file, and who draws it."""

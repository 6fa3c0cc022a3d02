"""What a part of the benchmarks is asked for, says meanwhile, and hands back: a scale, steps, tables of figures."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Literal

from msgspec import Struct

Scale = Literal["quick", "default", "large"]
"""`quick` only proves that the code works; `large` takes what minutes and memory it needs."""


class Asked(Struct, frozen=True):
    """How much is to be measured; without `node`, nothing that npm would have to install."""

    scale: Scale = "default"
    node: bool = True


Cell = int | float | str | None
"""A figure, or a text. `None` was not measured here."""


class Table(Struct, frozen=True):
    """Figures in rows. The first column names the row; `name` is what the page and its plots know the table by."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def column(self, title: str) -> dict[str, float]:
        """Return what a column says, by the name of the row; rows without a number are left out."""
        place = self.columns.index(title)
        return {str(row[0]): float(row[place]) for row in self.rows if isinstance(row[place], int | float)}  # type: ignore[arg-type]


def step(text: str) -> None:
    """Say what is measured now, to whoever watches."""
    print(f"    {text}", file=sys.stderr, flush=True)


def shown(cell: Cell) -> str:
    """Return a figure with as many digits as are worth reading: three or so."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    if abs(cell) >= 10:
        return f"{cell:.1f}"
    return f"{cell:.2f}" if abs(cell) >= 0.1 or not cell else f"{cell:.2g}"


def markdown(table: Table) -> str:
    """Return a table as Markdown, its notes below it."""
    lines = [f"### {table.title}", "", _row(table.columns), "|---" + "|---:" * (len(table.columns) - 1) + "|"]
    lines += [_row([shown(cell) for cell in row]) for row in table.rows]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def printed(measure: Callable[[], None], name: str) -> list[Table]:
    """Return the tables that a measurement prints as Markdown, `### title` above each; they are `name`, `name 2`, …"""
    said = StringIO()
    with redirect_stdout(said):
        measure()
    tables: list[Table] = []
    title, rows = "", list[tuple[str, ...]]()
    for line in [*said.getvalue().splitlines(), ""]:
        if line.startswith("### "):
            title = line.removeprefix("### ")
        elif line.startswith("|"):
            rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
        elif rows:
            columns, _, *rest = rows
            called = name if not tables else f"{name} {len(tables) + 1}"
            tables.append(Table(called, title, columns, tuple(tuple(map(_figure, row)) for row in rest)))
            rows = []
    return tables


def _figure(text: str) -> Cell:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def show(tables: Sequence[Table]) -> None:
    """Print what a part measured, when it is run alone."""
    for table in tables:
        print(f"\n{markdown(table)}", flush=True)


def asked() -> Asked:
    """Return what the command line of a part alone asks for."""
    scale: Scale = "large" if "--large" in sys.argv else "quick" if "--quick" in sys.argv else "default"
    return Asked(scale, "--without-node" not in sys.argv)

"""`python -m tests.benchmarks.page [FILE]`: write README.md beside this file, and its plots, from what was measured.

Each figure on the page is in the file of results; what a part measures and how is said by its module's docstring.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from tests.benchmarks import ingest
from tests.benchmarks.machine import Machine
from tests.benchmarks.parts import PARTS, RESULTS, Ran, Results, command, read
from tests.benchmarks.plots import plot
from tests.benchmarks.report import markdown, shown

PAGE = Path(__file__).parent / "README.md"
HEAD = """# Benchmarks

What the gateway takes in, delivers, keeps and costs, against what it could be and against what people use instead. All
of it is measured by one command, on a machine with two cores (Linux):

```sh
# {minutes:.0f} minutes here; with --large as many as millions take
uv run --group dev python -m tests.benchmarks
# this page, from results.json
uv run --group dev --group benchmarks python -m tests.benchmarks.page
```

Who compares takes turns within one run, so what holds on another machine are the ratios. This page is written by the
second command; do not edit it.
"""


class Aim(Struct, frozen=True):
    """Something that was aimed at: where it is measured, and how it is judged."""

    text: str
    part: str
    measured: Callable[[Ran], float]
    reached: Callable[[float], bool]


def _figure(table: str, row: str, column: str) -> Callable[[Ran], float]:
    return lambda ran: _table_column(ran, table, column)[row]


def _table_column(ran: Ran, name: str, column: str) -> dict[str, float]:
    (table,) = [each for each in ran.tables if each.name == name]
    return table.column(column)


AIMS = (
    Aim(
        "durable ingest on SQLite, of a bare Litestar handler: 0.55 or more",
        "ingest",
        _figure("ingest", ingest.GATEWAY, "of the bare handler"),
        lambda found: found >= 0.55,
    ),
    Aim(
        "durable ingest on SQLite, of the recipe that keeps nothing: 4 or more",
        "ingest",
        _figure("ingest", ingest.GATEWAY, "of the recipe"),
        lambda found: found >= 4,
    ),
    Aim(
        "p99 of durable ingest at 32 connections, ms: 10 or less",
        "ingest",
        _figure("ingest", ingest.GATEWAY, "p99, ms"),
        lambda found: found <= 10,
    ),
    Aim(
        "deliveries missing after SIGKILL, on SQLite: 0",
        "loss",
        _figure("loss", "gateway, SQLite: SIGKILL, SIGSTOP", "missing"),
        lambda found: found == 0,
    ),
    Aim(
        "start until the first answer, s: 1 or less",
        "processes",
        _figure("processes", "gateway", "start, s"),
        lambda found: found <= 1,
    ),
    Aim(
        "delivery one event a request, of bare httpx: 0.8 or more",
        "delivery",
        _figure("delivery", "1", "of bare"),
        lambda found: found >= 0.8,
    ),
)


def page(results: Results, plots: dict[str, list[str]]) -> str:
    """Return the page. `plots` are the files to show in each part, beside the page.

    Raises `ValueError` for what a quick run measured: such figures say nothing.
    """
    if quick := [name for name, ran in results.items() if ran.scale == "quick"]:
        raise ValueError(
            f"{', '.join(quick)}: measured with --quick, so the figures say nothing; measure again without"
        )
    sections = [_section(name, ran, plots.get(name, [])) for name, ran in results.items()]
    head = HEAD.format(minutes=sum(ran.took for ran in results.values()) / 60).rstrip()
    return "\n\n".join([head, _where(results), _aims(results), *sections]) + "\n"


def _where(results: Results) -> str:
    machines = {_of(ran.machine): ran.machine for ran in results.values()}
    lines = ["## Where"]
    for text, each in machines.items():
        lines += [text, f"Versions: {', '.join(f'{name} {number}' for name, number in each.versions.items())}."]
    return "\n\n".join(lines)


def _of(machine: Machine) -> str:
    return (
        f"{machine.processor}, {machine.cores} cores, {machine.memory:.0f} GB, {machine.system}, "
        f"{machine.disk} on its disk."
    )


def _aims(results: Results) -> str:
    rows = [
        f"| {aim.text} | {shown(found or 0)} | {_said(aim.reached(found))} |"
        for aim in AIMS
        if (found := _measured(aim, results)) is not None
    ]
    return "\n".join(["## What was aimed at", "", "| | measured | reached |", "|---|---:|---|", *rows])


def _said(reached: bool) -> str:
    return "yes" if reached else "no"


def _measured(aim: Aim, results: Results) -> float | None:
    try:
        return aim.measured(results[aim.part])
    except KeyError:  # not measured, or without Node
        return None


def _section(name: str, ran: Ran, plots: list[str]) -> str:
    part, machine = PARTS[name], ran.machine
    first, _, how = (inspect.getdoc(part.module) or "").partition("\n\n")
    what = first.partition(": ")[2].replace("\n", " ")
    when = f"{machine.date}, load average at the start {', '.join(f'{each:.1f}' for each in machine.load)}"
    when += f"; 4 KB to the disk: {shown(machine.fsync)} ms; the part took {ran.took:,.0f} s."
    return "\n\n".join(
        [
            f"## {part.title}",
            what[:1].upper() + what[1:],
            f"```sh\n{command(name, ran)}\n```",
            when,
            *(f"![{Path(plot).stem}]({plot})" for plot in plots),
            *map(markdown, ran.tables),
            *([f"<details><summary>How it is measured</summary>\n\n{how}\n\n</details>"] if how else []),
        ]
    )


def main() -> None:
    results = read(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
    if not results:
        sys.exit(f"there are no results yet: `python -m tests.benchmarks` writes {RESULTS}")
    page(results, {})  # refuses before a plot is overwritten
    written = page(results, plot(results, PAGE.parent / "plots"))
    PAGE.write_text(written, encoding="utf-8")
    print(f"{PAGE} is written")


if __name__ == "__main__":
    main()

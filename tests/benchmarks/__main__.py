"""`python -m tests.benchmarks [PART …] [--quick | --large] [--without-node] [--into FILE]`: measure all, in one run.

Each part's tables are printed when it is done, and put into FILE beside what other parts measured before. A quick run
proves that the code works; its figures are worth nothing, so they are kept only in a FILE that it is given.
"""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from tests.benchmarks.machine import machine
from tests.benchmarks.parts import PARTS, RESULTS, Ran, Results, read, write
from tests.benchmarks.report import Asked, Scale, show

CORES = 2
SLOW_DOWN = {"quick": 0.1, "default": 1.0, "large": 4.0}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them by default")
    scales = parser.add_mutually_exclusive_group()
    scales.add_argument("--quick", dest="scale", action="store_const", const="quick", help="only prove that it works")
    scales.add_argument("--large", dest="scale", action="store_const", const="large", help="with millions; takes long")
    parser.add_argument("--without-node", dest="node", action="store_false", help="leave out the recipe for Express")
    parser.add_argument("--into", type=Path, metavar="FILE", help=f"{RESULTS.name} beside this file, but for --quick")
    given = parser.parse_args()
    scale: Scale = given.scale or "default"
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    if len(os.sched_getaffinity(0)) < CORES:
        parser.error("what is measured and who asks it need a core each, and this process may use only one")
    into = given.into or (None if scale == "quick" else RESULTS)
    sys.exit(measure(given.parts or list(PARTS), Asked(scale, given.node), into))


def measure(names: list[str], asked: Asked, into: Path | None) -> int:
    """Run these parts, and keep what they find. A part that fails leaves the others alone; returns how many failed."""
    results: Results = read(into) if into else {}
    minutes = {name: _minutes(name, asked, results) for name in names}
    took: dict[str, float] = {}
    failed: list[str] = []
    began = time.monotonic()
    for place, name in enumerate(names):
        left, after = sum(minutes[each] for each in names[place:]), names[place + 1 :]
        _say(f"{name} ({place + 1} of {len(names)}): some {minutes[name]:.1f} min; {left:.0f} min left, then")
        _say(f"    {', '.join(after) or 'nothing'}")
        here, started = machine(), time.monotonic()
        try:
            tables = PARTS[name].measure(asked)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        took[name] = round(time.monotonic() - started, 1)
        results[name] = Ran(asked.scale, here, took[name], tuple(tables))
        print(f"\n## {PARTS[name].title}")
        show(tables)
        if into:
            write(into, results)
    _say(f"done in {(time.monotonic() - began) / 60:.1f} min" + (f"; the figures are in {into}" if into else ""))
    for name, seconds in took.items():
        _say(f"    {name}: {seconds:.0f} s")
    if failed:
        _say(f"failed, see above; what was measured of them before still stands: {', '.join(failed)}")
    return len(failed)


def _minutes(name: str, asked: Asked, before: Results) -> float:
    """Return how long a part may take: as long as last time, if it ran on this scale before."""
    if name in before and before[name].scale == asked.scale:
        return before[name].took / 60
    return PARTS[name].minutes * SLOW_DOWN[asked.scale]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

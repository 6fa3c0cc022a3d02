"""The benchmarks work from the command to the page. How fast anything is, is no test's business."""

import inspect
import json
import os
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from msgspec import structs

from tests.benchmarks import ingest
from tests.benchmarks.__main__ import measure
from tests.benchmarks.load import sender
from tests.benchmarks.page import AIMS, page
from tests.benchmarks.parts import PARTS, Results, command, read, write
from tests.benchmarks.recipe import DEPENDENCIES, FILES
from tests.benchmarks.report import Asked, Cell, Table, markdown, printed, shown
from tests.benchmarks.servers import MEASURED, OTHERS, bare, sink

ROOT = Path(__file__).parents[2]
QUICK = ("signatures", "links", "growth")
WITHIN = 120


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    into = tmp_path_factory.mktemp("measured") / "results.json"
    command = [sys.executable, "-m", "tests.benchmarks", *QUICK, "--quick", "--into", str(into)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WITHIN)
    assert done.returncode == 0, done.stderr
    return read(into)


def test_one_command_measures_parts_and_keeps_machine_date_and_load(results: Results) -> None:
    assert list(results) == [name for name in PARTS if name in QUICK]
    for ran in results.values():
        assert (ran.scale, ran.machine.cores) == ("quick", os.cpu_count())
        assert {"Python", "SQLite", "Redis", "litestar", "express (npm)"} <= ran.machine.versions.keys()
        assert len(ran.machine.load) == 3
        assert all(isinstance(cell, int | float) for table in ran.tables for row in table.rows for cell in row[1:2])


def test_a_part_that_is_measured_again_leaves_the_others_as_they_were(results: Results, tmp_path: Path) -> None:
    write(tmp_path / "results.json", results)
    assert measure(["signatures"], Asked("quick"), tmp_path / "results.json") == 0
    again = read(tmp_path / "results.json")
    assert {name: again[name] for name in ("links", "growth")} == {name: results[name] for name in ("links", "growth")}
    assert again["signatures"] != results["signatures"]


def test_the_page_has_each_figure_below_the_command_that_measures_it(results: Results) -> None:
    written = page({name: structs.replace(ran, scale="default") for name, ran in results.items()}, {})
    for name, ran in results.items():
        section = written.partition(f"## {PARTS[name].title}\n")[2].partition("\n## ")[0]
        assert f"python -m tests.benchmarks {name}\n" in section
        assert all(markdown(table) in section for table in ran.tables)
        assert ran.machine.date in section


def test_the_page_refuses_what_a_quick_run_measured(results: Results) -> None:
    with pytest.raises(ValueError, match="signatures"):
        page(results, {})


def test_a_delivering_server_is_measured_until_its_collectors_have_everything() -> None:
    (contender,) = [each for each in ingest.contenders(None) if each.title == ingest.DELIVERING]
    with sender(OTHERS) as load:
        run = ingest.measured(contender, 50, load)
    assert run.delivered is not None
    assert run.answered.rate >= run.delivered > 0


def test_a_webhook_that_is_refused_is_no_figure(tmp_path: Path) -> None:
    stray = b"POST /nowhere HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    refused = pytest.raises(RuntimeError, match=r"2 of 2 webhooks were refused: b'HTTP/1\.1 404")
    with bare("handler", tmp_path) as served, sender(OTHERS) as load, refused:
        load(served.port, [stray] * 2)


def test_the_sink_counts_events_however_they_are_cut_into_requests_and_packets() -> None:
    body = json.dumps({"events": [{"event_name": "purchase"}] * 3}).encode()
    with sink(MEASURED) as collector, closing(HTTPConnection("127.0.0.1", collector.port)) as connection:
        for _ in range(2):
            connection.putrequest("POST", "/first")
            connection.putheader("content-length", str(len(body)))
            connection.endheaders()
            for at in range(0, len(body), 7):
                connection.send(body[at : at + 7])
            connection.getresponse().read()
        assert collector.ask() == b"6"


@pytest.mark.parametrize("name", PARTS)
def test_a_parts_docstring_says_its_command_and_how_it_measures(name: str) -> None:
    said = inspect.getdoc(PARTS[name].module) or ""
    assert said.startswith((f"`python -m tests.benchmarks {name}", f"`python -m tests.benchmarks.{name}"))


def test_an_aim_is_about_a_part_that_there_is() -> None:
    assert {aim.part for aim in AIMS} <= PARTS.keys()


def test_the_recipe_is_locked_and_its_lock_names_no_registry() -> None:
    packages = json.loads((FILES / "package-lock.json").read_text())["packages"]
    wanted = json.loads((FILES / "package.json").read_text())["dependencies"]
    assert tuple(wanted) == DEPENDENCIES
    assert all("integrity" in each and "resolved" not in each for name, each in packages.items() if name)


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, ""), ("text", "text"), (0, "0"), (1_234, "1,234"), (1_234.5, "1,234"), (12.34, "12.3"), (0.5, "0.50")],
)
def test_a_figure_is_shown_with_as_many_digits_as_mean_something(cell: Cell, text: str) -> None:
    assert shown(cell) == text


def test_a_printed_table_is_read_back() -> None:
    table = Table("lists", "SQLite", ("", "ms"), (("by id", 1_234.0), ("by type", "0.1, 0.2"), ("by time", 0.25)))
    other = structs.replace(table, name="lists 2", title="Redis")
    assert printed(lambda: print(f"\n## Lists\n{markdown(table)}\n\nSaid.\n\n{markdown(other)}"), "lists") == [
        table,
        other,
    ]


def test_a_command_repeats_the_scale_that_was_measured(results: Results) -> None:
    large = structs.replace(results["links"], scale="large")
    assert command("links", large) == "uv run --group dev python -m tests.benchmarks links --large"

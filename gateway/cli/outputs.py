"""How commands speak: results on stdout, all else on stderr."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import rich_click as click


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with a message on stderr."""
    click.echo(message, err=True)
    sys.exit(code)


def pretty(data: bytes) -> str:
    """Return JSON as people read it."""
    import msgspec

    return msgspec.json.format(data, indent=2).decode()


def echo_json(found: object) -> None:
    """Print something as JSON."""
    import msgspec

    click.echo(pretty(msgspec.json.encode(found)))


def indented(text: str, indent: str) -> str:
    """Return a text with each line moved in."""
    return "\n".join(indent + line for line in text.splitlines())


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under the names of their columns; for a pipe one a line, with tabs between."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    if not sys.stdout.isatty():
        for line in (columns, *rows):
            click.echo("\t".join(_on_one_line(each) for each in line))
        return
    # What does not fit is folded, not cut: an id is there to be copied.
    table = Table(*(Column(each, overflow="fold") for each in columns))
    for row in rows:
        table.add_row(*map(Text, row))  # texts, as a payload may hold what looks like markup
    Console(highlight=False).print(table)


def _on_one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far long work has come. Yields what says that so much is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=total < 2 or not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda number: progress.advance(task, number)

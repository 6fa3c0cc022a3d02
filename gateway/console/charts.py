"""The charts of the first page, drawn by the gateway: two rows of bars, one for each minute of the last hour."""

from collections.abc import Callable, Sequence

from msgspec import Struct

from gateway.console.overview import Minute
from gateway.deliveries import State
from gateway.destinations import iso

HEIGHT = 100
"""Of a chart, in its own units; the page stretches it."""
STEP = 10
_GAP = 1


class Piece(Struct, frozen=True):
    """A part of a bar, from the top at `y`. `kind` says its colour."""

    kind: str
    y: float
    height: float


class Bar(Struct, frozen=True):
    """One minute: its parts from the bottom up, and what they say in words."""

    x: int
    pieces: tuple[Piece, ...]
    told: str


class Chart(Struct, frozen=True):
    """A row of bars. The scale ends at `top`, a number that is easy to halve."""

    title: str
    told: str
    top: int
    bars: tuple[Bar, ...]
    legend: tuple[str, ...]


_PENDING = (State.WAITING, State.DUE, State.LEASED, State.PARKED)
_KINDS = (("sent", (State.SENT,)), ("skipped", (State.SKIPPED,)), ("pending", _PENDING), ("dead", (State.DEAD,)))


def charts(minutes: Sequence[Minute]) -> tuple[Chart, Chart]:
    """Return the chart of what came, and that of what became of it."""

    def came(minute: Minute) -> list[tuple[str, int]]:
        return [("webhooks", minute.webhooks)]

    def became(minute: Minute) -> list[tuple[str, int]]:
        return [(kind, sum(minute.states.get(state, 0) for state in states)) for kind, states in _KINDS]

    return _chart("Webhooks per minute", minutes, came), _chart("Deliveries per minute", minutes, became)


def _chart(title: str, minutes: Sequence[Minute], parts: Callable[[Minute], list[tuple[str, int]]]) -> Chart:
    rows = [parts(minute) for minute in minutes]
    totals = [sum(number for _, number in row) for row in rows]
    top = _round_up(max(totals, default=0))
    legend = [kind for kind, _ in rows[0]] if rows and len(rows[0]) > 1 else []
    return Chart(
        title=title,
        told=f"{title}, the last hour: {sum(totals)} in all, at most {max(totals, default=0)} in a minute",
        top=top,
        bars=tuple(
            Bar(place * STEP, tuple(_pieces(row, top)), f"{iso(minute.at)[11:16]}: {_words(row)}")
            for place, (minute, row) in enumerate(zip(minutes, rows, strict=True))
        ),
        legend=tuple(kind for kind in legend if any(number for row in rows for name, number in row if name == kind)),
    )


def _pieces(row: Sequence[tuple[str, int]], top: int) -> list[Piece]:
    found, below = [], 0
    for kind, number in row:
        if number:
            below += number
            found.append(Piece(kind, round(HEIGHT - HEIGHT * below / top, 1), round(HEIGHT * number / top, 1)))
    return found


def _words(row: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in row if number) or "nothing"


def _round_up(number: int) -> int:
    """Return the next of 2, 4, 10, 20, 40, 100, …"""
    scale = 1
    while True:
        for step in (2, 4, 10):
            if number <= step * scale:
                return step * scale
        scale *= 10

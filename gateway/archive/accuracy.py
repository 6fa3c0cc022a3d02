"""Whether what arrived is what was paid: what became of the events of a day, and of the money in them."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal

import msgspec

from gateway.archive.shapes import Accuracy, DestinationAccount, SourceAccount, Sum
from gateway.deliveries import (
    Accounted,
    State,
)
from gateway.events import decode_event
from gateway.fetches import without_fetches
from gateway.money import Money, to_major
from gateway.sealing import Sealer, SealError
from gateway.store.opening import Store
from gateway.translate import Note

MAX_ACCOUNTED = 20_000
"""Webhooks of a day whose events are opened and summed."""
_AT_ONCE = 200


async def accounts(store: Store, sealer: Sealer, destinations: Iterable[str], day: date) -> Accuracy:
    """Account for the webhooks of a day (UTC), at most `MAX_ACCOUNTED` of them. Raises `StoreUnavailable`."""
    since = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    tally = Tally(sealer, frozenset(destinations))
    page: list[Accounted] = []
    async for each in store.accounted(since, since + 86_400_000):
        if tally.webhooks + len(page) == MAX_ACCOUNTED:
            tally.cut = True
            break
        page.append(each)
        if len(page) == _AT_ONCE:
            await asyncio.to_thread(tally.add, page)
            page = []
    await asyncio.to_thread(tally.add, page)
    return tally.told(day)


class _Line:
    """What became of a source's events at one destination."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.late = 0
        self.money: dict[tuple[str, str], Counter[str]] = {}


class Tally:
    """Adds up what became of webhooks."""

    def __init__(self, sealer: Sealer, destinations: frozenset[str]) -> None:
        self._sealer = sealer
        self._destinations = set(destinations)
        self._sources: dict[str, Counter[str]] = {}
        self._skips: dict[str, Counter[str]] = {}
        self._lines: dict[tuple[str, str], _Line] = {}
        self._seen: dict[str, dict[tuple[str, str], tuple[int, Decimal]]] = {}
        self._sums: dict[tuple[str, str], dict[tuple[str, str], dict[str, Decimal]]] = {}
        self.webhooks = 0
        self.cut = False

    def add(self, page: Sequence[Accounted]) -> None:
        """Add webhooks. Opens their events, so it runs beside the loop."""
        for each in page:
            self._add(each)

    def _add(self, whole: Accounted) -> None:
        each = without_fetches(whole)
        self.webhooks += 1
        source = self._sources.setdefault(each.source, Counter())
        source["webhooks"] += 1
        source["events"] += len(each.events)
        notes = msgspec.json.decode(each.notes, type=list[Note]) if each.notes else []
        source["failed"] += any(note.error for note in notes)
        self._skips.setdefault(each.source, Counter()).update(note.skip for note in notes if note.skip)
        values = {id: self._value(sealed) for id, sealed in each.events.items()}
        seen = self._seen.setdefault(each.source, {})
        for value in filter(None, values.values()):
            *kind, amount = value
            number, total = seen.get((kind[0], kind[1]), (0, Decimal(0)))
            seen[kind[0], kind[1]] = number + 1, total + amount
        met: set[tuple[bytes, str]] = set()
        for event, destination, state, reason in each.deliveries:
            self._destinations.add(destination)
            line = self._lines.setdefault((each.source, destination), _Line())
            if (event, destination) in met:  # what tells of a late link is no other payment
                line.late += 1
                continue
            met.add((event, destination))
            group = _group(state)
            line.states[group] += 1
            if group == "skipped":
                line.skipped[reason or ""] += 1
            if (found := values.get(event)) is not None:
                sums = self._sums.setdefault((each.source, destination), {}).setdefault(found[:2], {})
                place = f"skipped:{reason or ''}" if group == "skipped" else group
                sums[place] = sums.get(place, Decimal(0)) + found[2]

    def _value(self, sealed: bytes) -> tuple[str, str, Decimal] | None:
        """Return an event's name, currency and amount, if it has one."""
        try:
            event = decode_event(self._sealer.open(sealed, b"event"))
        except (SealError, msgspec.MsgspecError):
            return None
        value = event.properties.get("value")
        return (event.name, value.currency, to_major(value)) if isinstance(value, Money) else None

    def told(self, day: date) -> Accuracy:
        """Return the accounts."""
        sources = [
            SourceAccount(name, each["webhooks"], each["failed"], each["events"], dict(self._skips[name]))
            for name, each in sorted(self._sources.items())
        ]
        destinations = [
            self._told(source, destination)
            for source in sorted(self._sources)
            for destination in sorted(self._destinations)
        ]
        return Accuracy(day.isoformat(), self.webhooks, self.cut, sources, destinations)

    def _told(self, source: str, destination: str) -> DestinationAccount:
        line = self._lines.get((source, destination), _Line())
        events, accepted = self._sources[source]["events"], line.states.total()
        sent, pending, dead = line.states["sent"], line.states["pending"], line.states["dead"]
        whole = accepted == sent + pending + dead + line.skipped.total()
        sums = self._sums.get((source, destination), {})
        return DestinationAccount(
            source=source,
            destination=destination,
            events=events,
            accepted=accepted,
            sent=sent,
            pending=pending,
            dead=dead,
            skipped=dict(line.skipped),
            missing=events - accepted,
            late=line.late,
            balances=whole and events == accepted,
            money=[_sum(kind, seen, sums.get(kind, {})) for kind, seen in sorted(self._seen[source].items())],
        )


def _sum(kind: tuple[str, str], seen: tuple[int, Decimal], sums: Mapping[str, Decimal]) -> Sum:
    number, total = seen
    return Sum(
        event=kind[0],
        currency=kind[1],
        number=number,
        seen=str(total),
        sent=str(sums.get("sent", 0)),
        pending=str(sums.get("pending", 0)),
        dead=str(sums.get("dead", 0)),
        missing=str(total - sum(sums.values())),
        skipped={
            place.removeprefix("skipped:"): str(amount)
            for place, amount in sums.items()
            if place.startswith("skipped:")
        },
    )


def _group(state: State) -> str:
    return "pending" if state < State.SENT else state.name.lower()

"""Logs and metrics. A log line has a stable name and the ids to search by; nothing private goes into either.

The labels of metrics are names out of the mapping files, or of this code: never anything that a payload brings. Each
gateway has metrics of its own, which it serves at /metrics: whoever runs several has each of them scraped. Counters and
histograms say what this one did, to be added up; what is stored is the same for all that share a store.

Log lines keep only what `LOGGED` names, so that nothing gets into a log by being handed along. Of an exception they
tell the places and the type, and its words only if it is one of ours; of a library's line its own words.
"""

import asyncio
import logging
import os
import re
import sys
import traceback
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from itertools import accumulate
from time import perf_counter_ns
from typing import Any, Protocol

import structlog
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.deliveries import Acceptance, Backlog, Counts, Receipt, Settlement, State, StoreUnavailable
from gateway.events import Event, Webhook
from gateway.mappings import Mappings
from gateway.sources import Source, matches

LOOK_EVERY = 15.0
"""Seconds between two looks at the store."""
LOOK_SHARE = 20
"""A look that took long is followed by a pause that many times as long: counting costs no more than that of a core."""
OTHER = "other"
"""The label of types that no rule names."""

_OUTCOMES = {
    State.SENT: "sent",
    State.DUE: "failed",
    State.PARKED: "parked",
    State.DEAD: "dead",
    State.SKIPPED: "skipped",
}


class Shown(Protocol):
    """What is asked of a store to show what it holds."""

    async def backlog(self, now: int) -> dict[str, Backlog]:
        """Return how much waits for each destination."""
        ...

    async def counts(self) -> dict[str, Counts]:
        """Count deliveries by destination from their states."""
        ...


class Stopwatch:
    """What the way of one webhook took: each lap ends a stage and begins the next. Times are in ns."""

    __slots__ = ("began", "laps")

    def __init__(self) -> None:
        self.began = perf_counter_ns()
        self.laps: list[tuple[str, int]] = []

    def lap(self, stage: str) -> float:
        """End a stage; return the seconds that it took."""
        before = self.laps[-1][1] if self.laps else self.began
        now = perf_counter_ns()
        self.laps.append((stage, now))
        return (now - before) / 1e9

    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return (perf_counter_ns() - self.began) / 1e9


class _Count:
    """A counter by labels. Cheaper than the library's, which locks: a gateway counts on one thread, its loop's."""

    def __init__(self, name: str, told: str, *labels: str) -> None:
        self._name = name
        self._told = told
        self._labels = labels
        self.values: dict[tuple[str, ...], int] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        values = self.values
        values[labels] = values.get(labels, 0) + by

    def family(self) -> Metric:
        family = CounterMetricFamily(self._name, self._told, labels=self._labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class _Times:
    """A histogram of seconds by labels. Of each row the last is the sum, the others are how many fell into a bucket."""

    def __init__(self, name: str, told: str, buckets: Sequence[float], *labels: str) -> None:
        self._name = name
        self._told = told
        self._labels = labels
        self._buckets = buckets
        self._rows: dict[tuple[str, ...], list[float]] = {}

    def add(self, seconds: float, *labels: str) -> None:
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0.0] * (len(self._buckets) + 2)
        row[bisect_left(self._buckets, seconds)] += 1
        row[-1] += seconds

    def family(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._told, labels=self._labels)
        limits = [*map(str, self._buckets), "+Inf"]
        for labels, row in self._rows.items():
            family.add_metric(labels, list(zip(limits, accumulate(row[:-1]), strict=True)), row[-1])
        return family


class Tally(Struct, frozen=True):
    """What alerts compare over time, counted since the start.

    `dead` deliveries are by destination; by source: `events` and how many of them found a visitor, `forged` webhooks
    (a secret that is not ours had signed them) and `verified` ones.
    """

    dead: Mapping[str, int] = {}
    events: Mapping[str, tuple[int, int]] = {}
    forged: Mapping[str, int] = {}
    verified: Mapping[str, int] = {}


class Metrics(Collector):
    """What one gateway counts. Two of them in one process share nothing."""

    def __init__(self) -> None:
        self._webhooks = _Count(
            "gateway_webhooks",
            f"Webhooks by source, type (`{OTHER}`: no rule names it) and what came of them.",
            *("source", "type", "outcome"),
        )
        self._failures = _Count(
            "gateway_verification_failures",
            "Requests that did not prove that their source sent them.",
            *("source", "reason"),
        )
        self._verified = _Count(
            "gateway_verified",
            "Requests by which of the source's secrets had signed them, in their order, from 1.",
            *("source", "secret"),
        )
        self._events = _Count(
            "gateway_events",
            "Events by source, rule, and the subject that led to their visitor, or why none did: the stitch rate.",
            *("source", "rule", "linked_by", "unlinked"),
        )
        self._translations = _Times(
            "gateway_translation_seconds",
            "Time to apply a source's rules to a webhook.",
            (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25),
            "source",
        )
        self._acceptances = _Times(
            "gateway_accept_seconds",
            "Time from a webhook's last byte until it and its deliveries are durable.",
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            "source",
        )
        self._deliveries = _Count(
            "gateway_deliveries",
            "Tries of deliveries, and decisions without one, by what came of them.",
            *("destination", "outcome"),
        )
        self._late = _Count(
            "gateway_late_links",
            "Deliveries that told of a link that came after the event had gone out.",
            "destination",
        )
        self._attempts = _Times(
            "gateway_attempt_seconds",
            "Time of one request to a destination, by the class of its answer's status.",
            (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0),  # to a request's deadline
            *("destination", "status"),
        )
        self._types: dict[str, tuple[Source, frozenset[str], tuple[str, ...]]] = {}

    def collect(self) -> Iterator[Metric]:
        """Return all that was counted."""
        for each in (self._webhooks, self._failures, self._verified, self._events, self._deliveries, self._late):
            yield each.family()
        for times in (self._translations, self._acceptances, self._attempts):
            yield times.family()

    def tally(self) -> Tally:
        """Return what alerts are judged by, as of now."""
        events: dict[str, tuple[int, int]] = {}
        for (source, _, _, unlinked), number in self._events.values.items():
            before, linked = events.get(source, (0, 0))
            events[source] = before + number, linked + (0 if unlinked else number)
        verified: dict[str, int] = {}
        for (source, _), number in self._verified.values.items():
            verified[source] = verified.get(source, 0) + number
        return Tally(
            dead={name: number for (name, outcome), number in self._deliveries.values.items() if outcome == "dead"},
            events=events,
            forged={name: number for (name, why), number in self._failures.values.items() if why == "mismatch"},
            verified=verified,
        )

    # What intake tells

    def verified(self, source: Source, secret: int) -> None:
        """Count a request by the secret (from 0) that had signed it; the other secrets show as 0."""
        for number in range(1, len(source.verification.keys) + 1):
            self._verified.add(source.name, str(number), by=int(number == secret + 1))

    def refused(self, source: str, reason: str) -> None:
        """Count a request that did not prove where it came from."""
        self._failures.add(source, reason)
        self._webhooks.add(source, "", "refused")

    def not_taken(self, source: Source | None, outcome: str, type: str | None = None) -> None:
        """Count a request that is not kept. `type` is a verified webhook's; an unknown source has no name here."""
        if source is None:
            self._webhooks.add("", "", outcome)
        else:
            self._webhooks.add(source.name, "" if type is None else self.type_label(type, source), outcome)

    def translated(self, source: Source, seconds: float) -> None:
        """Note how long it took to apply a source's rules."""
        self._translations.add(seconds, source.name)

    def accepted(
        self, webhook: Webhook, source: Source, kept: Acceptance, events: Sequence[Event], receipt: Receipt, took: float
    ) -> None:
        """Count a webhook that is durable; its events and what is skipped of them too, unless it was known before."""
        name = source.name
        outcome = "duplicate" if receipt.duplicate else "accepted"
        self._webhooks.add(name, self.type_label(webhook.type, source), outcome)
        self._acceptances.add(took, name)
        if not receipt.duplicate:
            self.made(source, kept, events)

    def made(self, source: Source, kept: Acceptance, events: Sequence[Event]) -> None:
        """Count a webhook's events, and what is skipped of them."""
        for event in events:
            by = event.visitor.linked_by if event.visitor else None
            self._events.add(source.name, event.rule, by or "", event.unlinked or "")
        for each in kept.events:
            for delivery in each.deliveries:
                if delivery.skip is not None:
                    self._deliveries.add(delivery.destination, "skipped")

    def type_label(self, type: str, source: Source) -> str:
        """Return a type that a rule names, the first pattern that means it, or `OTHER`."""
        known = self._types.get(source.name)
        if known is None or known[0] is not source:
            said = [each for rule in source.rules for each in rule.on]
            names = frozenset(each for each in said if "*" not in each)
            known = self._types[source.name] = source, names, tuple(dict.fromkeys(each for each in said if "*" in each))
        _, names, patterns = known
        if type in names:
            return type
        return next((each for each in patterns if matches(type, each)), OTHER)

    # What delivery tells

    def attempted(self, destination: str, status: int, seconds: float) -> None:
        """Note a request and its answer; status 0 is none."""
        group = status // 100
        kind = "none" if status == 0 else f"{group}xx" if 1 <= group <= 5 else OTHER
        self._attempts.add(seconds, destination, kind)

    def settled(self, destination: str, settlements: Iterable[Settlement]) -> None:
        """Count what became of deliveries. One that is given back untried has become nothing yet."""
        for each in settlements:
            if each.state == State.DUE and each.attempt is None:
                continue
            self._deliveries.add(destination, _OUTCOMES[each.state])
            if each.state == State.SENT and each.lease.late:
                self._late.add(destination)


class StoreView(Collector):
    """What is stored, in force and open. While the store is away what it holds is absent, never as it was before."""

    def __init__(
        self,
        store: Shown,
        mappings: Callable[[], Mappings],
        refused_edit: Callable[[], bool],
        breakers: Callable[[], Mapping[str, bool]],
        clock: Callable[[], int],
    ) -> None:
        """`breakers` says of each destination that is delivered to whether it is left alone, as it failed so often."""
        self._store = store
        self._mappings = mappings
        self._refused_edit = refused_edit
        self._breakers = breakers
        self._clock = clock
        self._backlog: Mapping[str, Backlog] | None = None
        self._counts: Mapping[str, Counts] | None = None

    async def follow(self) -> None:
        """Look at the store again and again, until cancelled."""
        async with asyncio.TaskGroup() as looks:
            looks.create_task(_again_and_again(self.look_at_backlog))
            looks.create_task(_again_and_again(self.look_at_counts))

    async def look_at_backlog(self) -> None:
        """See what waits."""
        try:
            self._backlog = await self._store.backlog(self._clock())
        except StoreUnavailable:
            self._backlog = None

    async def look_at_counts(self) -> None:
        """See how many deliveries there are in which state. An embedded store counts each of them."""
        try:
            self._counts = await self._store.counts()
        except StoreUnavailable:
            self._counts = None

    def collect(self) -> Iterator[Metric]:
        """Return the gauges as of now."""
        yield _gauge("gateway_info", "The version of this gateway.", ["version"], [((__version__,), 1)])
        seen = self._backlog is not None
        yield _gauge("gateway_store_seen", "Whether the last look at the store found it.", [], [((), float(seen))])
        yield from self._stored()
        yield _gauge(
            "gateway_breaker_open",
            "Whether a destination failed so often that it is left alone, but for a try now and then.",
            ["destination"],
            [((name,), float(is_open)) for name, is_open in self._breakers().items()],
        )
        now = self._mappings()
        versions = [(("source", name, each.version), 1.0) for name, each in now.sources.items()]
        versions += [(("destination", name, each.version), 1.0) for name, each in now.destinations.items()]
        yield _gauge("gateway_mapping_info", "The files in force.", ["kind", "name", "version"], versions)
        refused = float(self._refused_edit())
        yield _gauge("gateway_mapping_refused", "Whether an edit is not in force, being wrong.", [], [((), refused)])

    def _stored(self) -> Iterator[Metric]:
        backlog, now = self._backlog or {}, self._clock()
        # A destination that nothing waits for shows as 0: a series that comes and goes cannot be alerted on.
        names = dict.fromkeys([*self._mappings().destinations, *backlog]) if self._backlog is not None else {}
        empty = Backlog(0, 0, None)
        held = {name: backlog.get(name, empty) for name in names}
        yield _gauge(
            "gateway_queue_deliveries",
            "Pending deliveries: due, or waiting for a link, the next try or an answer.",
            ["destination", "state"],
            [
                ((name, state), float(number))
                for name, each in held.items()
                for state, number in (("due", each.due), ("waiting", each.waiting))
            ],
        )
        yield _gauge(
            "gateway_queue_oldest_seconds",
            "How long the delivery that is due longest has been due.",
            ["destination"],
            [
                ((name,), 0.0 if each.oldest_due_at is None else max(0, now - each.oldest_due_at) / 1000)
                for name, each in held.items()
            ],
        )
        # As above: without its 0 the first delivery that dies could not be seen as one more.
        none = dict.fromkeys(self._mappings().destinations, Counts(0, 0, 0, 0, 0))
        counted = {} if self._counts is None else none | dict(self._counts)
        yield _gauge(
            "gateway_stored_deliveries",
            "Deliveries in the store by state: together, all that were accepted and are not past retention.",
            ["destination", "state"],
            [
                ((name, state), float(getattr(each, state)))
                for name, each in counted.items()
                for state in ("sent", "skipped", "pending", "dead")
            ],
        )


def _gauge(
    name: str, told: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, told, labels=labels)
    for given, value in values:
        family.add_metric(given, value)
    return family


async def _again_and_again(look: Callable[[], Coroutine[None, None, None]]) -> None:
    while True:
        began = perf_counter_ns()
        await look()
        await asyncio.sleep(max(LOOK_EVERY, (perf_counter_ns() - began) / 1e9 * LOOK_SHARE))


def metrics_route(*collectors: Collector) -> HTTPRouteHandler:
    """Return GET /metrics, in the format that the scraper asks for. On the loop, as it is there that all is counted."""
    registry = CollectorRegistry()
    for each in collectors:
        registry.register(each)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)

    @get("/metrics", sync_to_thread=False)
    def show(request: Request[Any, Any, Any]) -> Response[bytes]:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": kind})

    return show


# Logs

LOGGED = frozenset(
    {
        # what it is about, and the ids to search by
        *("address", "destination", "destinations", "event_id", "rule", "source", "sources", "type"),
        *("webhook", "webhook_id", "webhooks"),
        # what happened
        *(
            "attempt",
            "by",
            "doubt",
            "during",
            "error",
            "exception",
            "first",
            "gave_up",
            "kind",
            "mistakes",
            "next_step",
        ),
        *("again_in_ms", "number", "outcome", "path", "reason", "store", "versions", "what"),
        # what structlog puts in
        *("event", "level", "logger", "timestamp"),
    }
)
"""The keys that a line of the log may have: ids, names, and words of our own."""
LONGEST, LONGEST_TRACEBACK = 500, 20_000
"""Characters that are kept of a text."""
MOST_TOLD = 20
"""Exceptions that a traceback tells of: what led to what, and the members of groups."""

_ABOUT: ContextVar[Mapping[str, object]] = ContextVar("about", default={})  # noqa: B039 -- a Mapping: never changed
_ADDRESS = re.compile(r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")


class about:  # noqa: N801 -- reads as what it does: `with about(webhook_id=…):`
    """Puts these ids into every line that is logged meanwhile. A class, as a generator costs several times that."""

    __slots__ = ("_ids", "_token")

    def __init__(self, **ids: object) -> None:
        self._ids = ids

    def __enter__(self) -> None:
        self._token = _ABOUT.set(self._ids)

    def __exit__(self, *_: object) -> None:
        _ABOUT.reset(self._token)


def keep_private(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave out of a line what `LOGGED` does not name, and what is no plain value; say which keys those were."""
    kept = {key: _plain(value) for key, value in {**_ABOUT.get(), **line}.items() if key in LOGGED}
    if isinstance(traceback := line.get("exception"), str):
        kept["exception"] = _ADDRESS.sub("***", traceback[-LONGEST_TRACEBACK:])  # what matters comes last
    if unknown := sorted(line.keys() - LOGGED):
        kept["left_out"] = unknown
    return kept


def _plain(value: object) -> object:
    """Return a value as a line may hold it: text is cut and loses what looks like an e-mail address."""
    match value:
        case str():
            return _ADDRESS.sub("***", value[:LONGEST])
        case bool() | int() | float() | None:
            return value
        case Mapping():
            return {_plain(str(key)): _plain(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(each) for each in value]
        case _:
            return f"<{type(value).__name__}>"


def told_exception(exc_info: structlog.typing.ExcInfo) -> str:
    """Return where an exception comes from, and of what type it is, with all that led to it, the cause first.

    Never the variables of its frames. Its words only if it is one of ours, which are written for the log: those of
    others quote what they met, bodies and addresses with their secrets included.
    """
    return "".join(_told(exc_info[1], set()))


def _told(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen and len(seen) < MOST_TOLD:
        yield from _told(before, seen)
        yield "\nand then\n\n"
    yield from traceback.format_tb(error.__traceback__)
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    yield f"{name}{_words(error)}\n"
    if isinstance(error, BaseExceptionGroup):
        for number, each in enumerate(error.exceptions):
            if id(each) not in seen and len(seen) < MOST_TOLD:
                yield f"\n{number + 1} of {len(error.exceptions)}:\n"
                yield from _told(each, seen)


def _words(error: BaseException) -> str:
    if type(error).__module__.partition(".")[0] == "gateway":
        return f": {error}"
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.errno:  # else it is no errno
        return f": {os.strerror(error.errno)}"
    name = getattr(error, "sqlite_errorname", None)
    return f": {name}" if isinstance(name, str) else ""


_QUOTED = re.compile(r"[\n<('\"{`]")


def _librarys_words(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Of a library's line keep its own words and numbers: up to where it begins to quote, and texts masked before."""
    said, given = line["_record"].msg, line.pop("positional_args", ())
    if isinstance(said, BaseException):  # uvicorn's way to say that a port is taken
        line["event"] = f"{type(said).__name__}{_words(said)}"
        return line
    text = str(said)
    if isinstance(given, tuple) and given:
        try:
            text %= tuple(each if isinstance(each, int | float) else "***" for each in given)
        except (TypeError, ValueError):  # `%d` of what is no number, or too few of them: the words alone
            text = str(said)
    line["event"] = _QUOTED.split(text, maxsplit=1)[0].strip()
    return line


def configure_logs(*, json: bool, quiet: bool = False) -> None:
    """Write the process's log to stderr, as JSON for machines or as lines for people; `quiet` leaves only errors."""
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(told_exception),
        keep_private,
    ]
    level = logging.ERROR if quiet else logging.INFO
    structlog.configure(
        processors=[*processors, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        # Nothing is logged of a webhook that goes well, so a line may cost what it does; and who logged before this was
        # called would otherwise go on as before.
        cache_logger_on_first_use=False,
    )
    for chatty in ("httpx", "httpcore"):  # they tell URLs, secrets included, to whoever listens to more than warnings
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # What libraries say: nobody takes it from them, so it comes here, from warnings on.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[
                    structlog.stdlib.add_logger_name,
                    _librarys_words,
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *processors,
                ],
                processors=[render],
                use_get_message=False,
                pass_foreign_args=True,
            )
        )

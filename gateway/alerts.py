"""Tells a chat room when something needs somebody, on the conditions of the README's table of alerts.

A look every minute takes a sample; `judge` says of the samples so far, without I/O, what holds; `Said` says which of it
is news. One request carries all of a look: what begins, once a day what still holds, and once what is over. What comes
back within the hour is said again only if it still holds when the hour is up. A room that cannot be reached is tried
again at ever longer intervals, up to an hour; nothing else waits for it.

What the store knows (deliveries that are late, silent sources, the store itself) every gateway sees alike. What died,
breakers, signatures and visitors each gateway counts by itself since it started, and judges by its own share of the
traffic. `Turns` lets only the first of several gateways speak; without it, or while the store is away, each speaks for
itself. After a restart what still holds is said again.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Literal, Protocol

import msgspec
import structlog
from msgspec import Struct

from gateway.deliveries import Backlog, FoundWebhook, StoreUnavailable, Wanted
from gateway.destinations import Request, Response
from gateway.fetches import FETCH
from gateway.mappings import Mappings
from gateway.sealing import Secret
from gateway.sending import HttpSender
from gateway.telemetry import Metrics, Tally

LOOK_EVERY = 60.0
"""Seconds between two looks."""
MINUTE = 60_000
HOUR = 60 * MINUTE
REMIND = 24 * HOUR
"""After how many ms it is said again that a condition still holds."""
FINE, COARSE = HOUR + 5 * MINUTE, 7 * 24 * HOUR
"""How long every sample is kept, and one an hour."""

LATE = 10 * MINUTE
"""A delivery that has been due for longer falls behind."""
DIED_WITHIN = HOUR
FORGED, FORGED_WITHIN = 3, HOUR
"""So many signatures by an unknown secret, within so many ms, are no accident."""
RESTS = 5 * MINUTE
"""A breaker that is open for longer needs somebody."""
AWAY = MINUTE
"""A store that is away for longer than a failover takes, or a worker that has stopped."""
STANDS = 5 * MINUTE
"""Doubts about the store, and edits that are not in force, get this long to go away."""
EXPECTED = 30
"""Visitors that the events looked at should have found: with fewer, half of them may be missing by chance."""
FEWER = 0.5
"""The stitch rate fell when it is less than this share of what it was."""
BEFORE = 200
"""Events that tell what the stitch rate was."""
LATELY = 24
"""Hours that it takes at the most to see enough events."""
SILENT = 6 * HOUR
SPOKE_FOR = 28
"""A source that speaks normally was heard in each of so many times `SILENT` before it fell silent: seven days."""
SETTLING = HOUR
"""After a start senders get this long to send what they could not: their silence may have been ours."""
LISTEN_EVERY = 10 * MINUTE

LONGEST_NAME, LONGEST_TEXT = 80, 300
MOST = 20
"""Alerts that one message tells in full."""

_LOG = structlog.get_logger(__name__)

Condition = Literal[
    "dead_letters",
    "deliveries_late",
    "stitch_rate_fell",
    "source_silent",
    "breaker_open",
    "wrong_secret",
    "store_away",
    "store_doubtful",
    "edit_refused",
    "worker_stopped",
]


class Heard(Struct, frozen=True):
    """When a source's last webhook came, in ms since 1970, and whether it spoke regularly until then."""

    last: int
    regular: bool


class Sample(Struct, frozen=True, kw_only=True):
    """How things were at one moment (`at`, ms since 1970). What nobody knows, the store being away, is empty.

    `overdue` is when the delivery fell due that has been due longest, by destination; `off` are those of them that
    nothing is delivered to under the mappings in force.
    """

    at: int
    tally: Tally
    breakers: Mapping[str, bool] = {}
    overdue: Mapping[str, int] = {}
    off: frozenset[str] = frozenset()
    heard: Mapping[str, Heard] = {}
    store: str | None = None
    doubts: Sequence[str] = ()
    refused: str | None = None
    stopped: Sequence[str] = ()


class Alert(Struct, frozen=True, kw_only=True):
    """A condition that holds, and where. `what`, `next` and `over` (what to say when it has passed) are escaped."""

    condition: Condition
    about: str = ""
    what: str
    next: str
    over: str

    @property
    def key(self) -> tuple[Condition, str]:
        """What is said at most once an hour."""
        return self.condition, self.about


# What holds


def judge(samples: Sequence[Sample]) -> list[Alert]:
    """Say what holds now, the last of the samples (at least one, in order), by what was before. Pure."""
    alerts = [each for rule in _RULES for each in rule(samples)]
    return sorted(alerts, key=lambda each: each.key)


def kept(samples: Iterable[Sample], now: int) -> list[Sample]:
    """Return the samples that are still needed: all of the last hour, before that the last of each, for a week."""
    recent: list[Sample] = []
    older: dict[int, Sample] = {}
    for each in samples:
        age = now - each.at
        if 0 <= age <= FINE:
            recent.append(each)
        elif FINE < age <= COARSE:
            older[each.at // HOUR] = each
    return [*older.values(), *recent]


def _dead_letters(samples: Sequence[Sample]) -> Iterator[Alert]:
    now, before = samples[-1], _as_of(samples, DIED_WITHIN)
    for name, number in now.tally.dead.items():
        if (died := number - before.tally.dead.get(name, 0)) > 0:
            yield Alert(
                condition="dead_letters",
                about=name,
                what=f"{_many(died, 'delivery', 'deliveries')} to {_code(name)} died within the last hour",
                next=f"`gateway dead list` says why; once it is mended, {_code(f'gateway dead retry -d {name}')}",
                over=f"no delivery to {_code(name)} has died for an hour; those that did wait for "
                f"{_code(f'gateway dead retry -d {name}')}",
            )


def _deliveries_late(samples: Sequence[Sample]) -> Iterator[Alert]:
    now = samples[-1]
    for name, due_at in now.overdue.items():
        if (late := now.at - due_at) > LATE:
            why = (
                "it is off, and nothing is delivered to it: `gateway check` says which settings turn it on"
                if name in now.off
                else f"{_code(f'gateway deliveries -d {name} --state due')}, `gateway doctor`"
            )
            yield Alert(
                condition="deliveries_late",
                about=name,
                what=f"deliveries to {_code(name)} fall behind: the oldest has been due for {_lasting(late)}",
                next=why,
                over=f"deliveries to {_code(name)} are on time again",
            )


def _stitch_rate_fell(samples: Sequence[Sample]) -> Iterator[Alert]:
    for name in samples[-1].tally.events:
        if fallen := _fallen(samples, name):
            found, of, rate = fallen
            yield Alert(
                condition="stitch_rate_fell",
                about=name,
                what=f"of the last {of:,} events of {_code(name)} {found / of:.0%} found their visitor, "
                f"of those before {rate:.0%}",
                next="do your pages still load `link.js`, and does your backend still call `/link`? "
                f"{_code(f'gateway webhooks --source {name}')}, then `gateway explain` one of them",
                over=f"events of {_code(name)} find their visitors again",
            )


def _fallen(samples: Sequence[Sample], source: str) -> tuple[int, int, float] | None:
    """Return how many of the latest events found a visitor, how many those are, and the rate before; None if it holds.

    As many hours are looked at as it takes to expect `EXPECTED` visitors.
    """
    now, first = samples[-1], samples[0]
    for hours in range(1, LATELY + 1):
        then = _as_of(samples, hours * HOUR)
        before, linked_before = _grown(first, then, source)
        lately, linked = _grown(then, now, source)
        if before < BEFORE:
            return None  # and further back there are fewer
        rate = linked_before / before
        if rate * lately >= EXPECTED:
            return (linked, lately, rate) if linked < FEWER * rate * lately else None
    return None


def _grown(before: Sample, after: Sample, source: str) -> tuple[int, int]:
    events, linked = before.tally.events.get(source, (0, 0))
    events_now, linked_now = after.tally.events.get(source, (0, 0))
    return events_now - events, linked_now - linked


def _source_silent(samples: Sequence[Sample]) -> Iterator[Alert]:
    now = samples[-1]
    if now.at - samples[0].at < SETTLING:
        return
    for name, heard in now.heard.items():
        if heard.regular and now.at - heard.last > SILENT:
            yield Alert(
                condition="source_silent",
                about=name,
                what=f"{_code(name)} has fallen silent: nothing was accepted for {_lasting(now.at - heard.last)} "
                f"(since {_moment(heard.last)}), though something was in each six hours of the week before",
                next=f"see whether its webhooks fail at the sender; {_code(f'gateway check --setup {name}')} "
                "says how it is set up",
                over=f"{_code(name)} is heard again",
            )


def _breaker_open(samples: Sequence[Sample]) -> Iterator[Alert]:
    for name in samples[-1].breakers:
        if (lasts := _lasts(samples, lambda each, name=name: each.breakers.get(name, False))) >= RESTS:  # type: ignore[misc]
            yield Alert(
                condition="breaker_open",
                about=name,
                what=f"{_code(name)} has failed every request for {_lasting(lasts)}, and gets but one try now and then",
                next=f"{_code(f'gateway deliveries -d {name}')} says what it answers; nothing is lost meanwhile",
                over=f"{_code(name)} takes deliveries again",
            )


def _wrong_secret(samples: Sequence[Sample]) -> Iterator[Alert]:
    now, before = samples[-1].tally, _as_of(samples, FORGED_WITHIN).tally
    for name, number in now.forged.items():
        forged = number - before.forged.get(name, 0)
        right = now.verified.get(name, 0) - before.verified.get(name, 0)
        if forged >= FORGED:
            besides = f"besides {right:,} that were right" if right else "and none was right"
            yield Alert(
                condition="wrong_secret",
                about=name,
                what=f"{forged:,} webhooks of {_code(name)} within the last hour were signed with a secret that is not "
                f"configured, {besides}",
                next="somebody tries, or a second endpoint of yours has a secret of its own: add it, comma-separated"
                if right
                else f"the secret is another than the sender's: {_code(f'gateway check --setup {name}')}",
                over=f"no webhook of {_code(name)} was signed with a wrong secret any more",
            )


def _store_away(samples: Sequence[Sample]) -> Iterator[Alert]:
    now = samples[-1]
    lasts = _lasts(samples, lambda each: each.store is not None)
    if now.store is not None and lasts >= AWAY:
        yield Alert(
            condition="store_away",
            what=f"the store cannot be used: {_code(now.store, LONGEST_TEXT)}. Senders get 503 and send again",
            next="`gateway doctor`",
            over="the store takes webhooks again",
        )


def _store_doubtful(samples: Sequence[Sample]) -> Iterator[Alert]:
    now = samples[-1]
    if now.doubts and _lasts(samples, lambda each: bool(each.doubts)) >= STANDS:
        yield Alert(
            condition="store_doubtful",
            what=f"the store may lose data or hold up work: {_code('; '.join(now.doubts), LONGEST_TEXT)}",
            next="`gateway doctor`",
            over="there is no doubt about the store any more",
        )


def _edit_refused(samples: Sequence[Sample]) -> Iterator[Alert]:
    now = samples[-1]
    if now.refused is not None and _lasts(samples, lambda each: each.refused is not None) >= STANDS:
        yield Alert(
            condition="edit_refused",
            what=f"an edit of the mappings is not in force: {_code(now.refused, LONGEST_TEXT)}",
            next="`gateway check` shows every mistake",
            over="the mappings are in force as they are written",
        )


def _worker_stopped(samples: Sequence[Sample]) -> Iterator[Alert]:
    now = samples[-1]
    for name in now.stopped:
        if _lasts(samples, lambda each, name=name: name in each.stopped) >= AWAY:  # type: ignore[misc]
            yield Alert(
                condition="worker_stopped",
                about=name,
                what=f"the worker {_code(name)} has stopped, which is a defect",
                next="restart this gateway, and report what its log says of it",
                over=f"the worker {_code(name)} runs",
            )


_RULES = (
    _dead_letters,
    _deliveries_late,
    _stitch_rate_fell,
    _source_silent,
    _breaker_open,
    _wrong_secret,
    _store_away,
    _store_doubtful,
    _edit_refused,
    _worker_stopped,
)


def _as_of(samples: Sequence[Sample], ago: int) -> Sample:
    """Return the newest sample that is at least that old, or else the first."""
    then = samples[-1].at - ago
    return next((each for each in reversed(samples) if each.at <= then), samples[0])


def _lasts(samples: Sequence[Sample], holds: Callable[[Sample], bool]) -> int:
    """Return for how many ms something has held in each sample."""
    held = list(takewhile(holds, reversed(samples)))
    return samples[-1].at - held[-1].at if held else 0


# How it is said


def escaped(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text as a room shows it to the letter: it mentions nobody, formats nothing, and is one short line.

    Rule: Slack, "Formatting text for app surfaces", for `&`, `<` and `>`; others that take Slack's messages also read
    a bare `@here`, hence the space of no width.
    """
    plain = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    plain = plain if len(plain) <= longest else f"{plain[: longest - 1]}…"
    plain = plain.replace("`", "'").replace("@", "@\u200b")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str, longest: int = LONGEST_NAME) -> str:
    return f"`{escaped(text, longest)}`"


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _lasting(ms: int) -> str:
    if ms < 2 * HOUR:
        return f"{ms // MINUTE} min"
    return f"{ms // HOUR} h" if ms < 48 * HOUR else f"{ms // (24 * HOUR)} days"


def _moment(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def message(gateway: str, begun: Sequence[Alert], over: Sequence[Alert]) -> bytes:
    """Return what is posted: the text of one look, named after the gateway that took it."""
    told = [f":red_circle: {each.what}. Next: {each.next}." for each in begun]
    told += [f":large_green_circle: Over: {each.over}." for each in over]
    if len(told) > MOST:
        told = [*told[:MOST], f"… and {len(told) - MOST} more: see /metrics, or the console"]
    return msgspec.json.encode({"text": "\n".join([f"Gateway on {_code(gateway)}", *told])})


# What is news


class Said:
    """What the room was told, and when."""

    def __init__(self) -> None:
        self._at: dict[tuple[Condition, str], int] = {}
        self._standing: dict[tuple[Condition, str], Alert] = {}

    def news(self, alerts: Sequence[Alert], now: int) -> tuple[list[Alert], list[Alert]]:
        """Return what is to be said of what holds, and what is over."""
        holds = {each.key for each in alerts}
        begun = [each for each in alerts if self._is_news(each, now)]
        return begun, [each for key, each in self._standing.items() if key not in holds]

    def begun(self, alert: Alert, now: int) -> None:
        """Note that it was said that this holds."""
        self._at[alert.key] = now
        self._standing[alert.key] = alert

    def over(self, alert: Alert) -> None:
        """Note that it was said that this is over."""
        self._standing.pop(alert.key, None)

    def forget(self, now: int) -> None:
        """Drop what no longer keeps anything from being said."""
        self._at = {key: at for key, at in self._at.items() if key in self._standing or now - at < HOUR}

    def _is_news(self, alert: Alert, now: int) -> bool:
        if (at := self._at.get(alert.key)) is None:
            return True
        return now - at >= (REMIND if alert.key in self._standing else HOUR)


# The look


class Watched(Protocol):
    """What is asked of a store."""

    async def backlog(self, now: int) -> dict[str, Backlog]:
        """Return how much waits for each destination."""
        ...

    async def search(
        self, wanted: Wanted, *, before: int | None = None, limit: int = 50
    ) -> tuple[list[FoundWebhook], int | None]:
        """Return webhooks that fit, newest first."""
        ...

    async def probe(self) -> str | None:
        """Say why the store cannot take writes, or None."""
        ...


class Turns(Protocol):
    """Who of several gateways speaks."""

    async def take_turn(self, name: str, lasts: int) -> bool:
        """Take a name for that many ms; False when somebody has it. Raises `StoreUnavailable`."""
        ...


class Alerts:
    """Looks, judges and tells one room."""

    def __init__(
        self,
        webhook: Secret,
        gateway: str,
        store: Watched,
        metrics: Metrics,
        mappings: Callable[[], Mappings],
        breakers: Callable[[], Mapping[str, bool]],
        doubts: Callable[[], Sequence[str]],
        refused: Callable[[], str | None],
        stopped: Callable[[], Sequence[str]],
        clock: Callable[[], int],
        turns: Turns | None = None,
    ) -> None:
        """`webhook` is the room's URL, `gateway` what this one is called there. Without `turns` it is the only one.

        `doubts` are those about the store, `refused` says why an edit is not in force, `stopped` who should run.
        """
        self._webhook = webhook
        self._gateway = gateway
        self._store = store
        self._metrics = metrics
        self._mappings = mappings
        self._breakers = breakers
        self._doubts = doubts
        self._refused = refused
        self._stopped = stopped
        self._clock = clock
        self._turns = turns
        self._sender = HttpSender(1)
        self._hearing = _Hearing(store)
        self._samples: list[Sample] = []
        self._said = Said()
        self._mine: set[tuple[str, Condition, str]] = set()
        self._failures = 0
        self._again_at = 0

    async def follow(self) -> None:
        """Look every minute, until cancelled. Whatever goes wrong, the next look comes."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:
                    _LOG.exception("alerts_failed")
                await asyncio.sleep(LOOK_EVERY)
        finally:
            await self.close()

    async def close(self) -> None:
        """Let go of the connection."""
        await self._sender.close()

    async def look(self) -> None:
        """Take a sample, and tell the room what is news."""
        now = self._clock()
        self._samples = kept([*self._samples, await self._sample(now)], now)
        self._said.forget(now)
        begun, over = self._said.news(judge(self._samples), now)
        await self._tell(
            [each for each in begun if await self._speaks("begun", each, now)],
            [each for each in over if await self._speaks("over", each, now)],
            now,
        )

    async def _sample(self, now: int) -> Sample:
        mappings = self._mappings()
        problem, backlog = None, dict[str, Backlog]()
        try:
            problem = await self._store.probe()
            backlog = await self._store.backlog(now)
            await self._hearing.listen([name for name, each in mappings.sources.items() if each.verification.keys], now)
        except StoreUnavailable as error:
            problem = problem or str(error)
        overdue = {name: each.oldest_due_at for name, each in backlog.items() if each.oldest_due_at is not None}
        return Sample(
            at=now,
            tally=self._metrics.tally(),
            breakers=self._breakers(),
            overdue=overdue,
            off=frozenset(overdue.keys() - mappings.destinations.keys() - {FETCH}),
            heard=dict(self._hearing.heard),
            store=problem,
            doubts=list(self._doubts()),
            refused=self._refused(),
            stopped=list(self._stopped()),
        )

    async def _speaks(self, what: Literal["begun", "over"], alert: Alert, now: int) -> bool:
        """Whether it is this gateway that says so. If another did, that counts as said."""
        if self._turns is None or (what, *alert.key) in self._mine:
            return True
        try:
            taken = await self._turns.take_turn(f"{what}:{alert.condition}:{alert.about}", HOUR)
        except StoreUnavailable:
            return True  # twice is better than not at all
        if taken:
            self._mine.add((what, *alert.key))  # until it is said: a turn that was taken is not given again
        elif what == "begun":
            self._said.begun(alert, now)
        else:
            self._said.over(alert)
        return taken

    async def _tell(self, begun: Sequence[Alert], over: Sequence[Alert], now: int) -> None:
        if not (begun or over) or (self._failures and now < self._again_at):
            return
        response = await post(self._sender, self._webhook, message(self._gateway, begun, over))
        if failure := _failure(response):
            self._failures += 1
            pause = min(HOUR, MINUTE << min(self._failures, 6))
            self._again_at = now + pause
            _LOG.warning("alerts_not_told", reason=failure, number=len(begun) + len(over), again_in_ms=pause)
            return
        self._failures = 0
        self._mine.clear()
        for each in begun:
            self._said.begun(each, now)
            _LOG.warning("alert", kind=each.condition, what=each.about)
        for each in over:
            self._said.over(each)
            _LOG.info("alert_over", kind=each.condition, what=each.about)


async def post(sender: HttpSender, webhook: Secret, body: bytes) -> Response:
    """Post a message to a room, within the time that a delivery gets. Never raises because of the other side."""
    return await sender.send(Request(webhook.reveal(), {"Content-Type": "application/json"}, body))


async def try_out(webhook: Secret, gateway: str) -> str | None:
    """Post a message that says it is only a test. Return why that failed, without the URL; None if it went well."""
    sender = HttpSender(1)
    try:
        text = f"Gateway on {_code(gateway)}\nThis is a test: alerts get here."
        return _failure(await post(sender, webhook, msgspec.json.encode({"text": text})))
    finally:
        await sender.close()


def _failure(response: Response) -> str | None:
    """Say why a message did not arrive, None when it did."""
    if 200 <= response.status < 300:
        return None
    if not response.status:
        return response.error or "network"
    if response.status in {401, 403, 404, 410}:
        return f"http_{response.status}: is GATEWAY_ALERT_WEBHOOK still the address that the room gave you?"
    return f"http_{response.status}: {response.error}" if response.error else f"http_{response.status}"


class _Hearing:
    """When each source was heard last, as of the last time that somebody listened."""

    def __init__(self, store: Watched) -> None:
        self._store = store
        self._listened_at: int | None = None
        self._judged: dict[str, Heard] = {}
        self.heard: dict[str, Heard] = {}

    async def listen(self, sources: Iterable[str], now: int) -> None:
        """Ask the store, unless that was only just done. Raises `StoreUnavailable`."""
        if self._listened_at is not None and 0 <= now - self._listened_at < LISTEN_EVERY:
            return
        heard: dict[str, Heard] = {}
        for name in sources:
            found, _ = await self._store.search(Wanted(source=name), limit=1)
            if found:
                last = found[0].webhook.received_at
                heard[name] = await self._judge(name, last) if now - last > SILENT else Heard(last, regular=False)
        self.heard = heard
        self._listened_at = now

    async def _judge(self, source: str, last: int) -> Heard:
        """Say whether it was heard in each stretch before. Once a silence: as it goes on, what was before stays."""
        known = self._judged.get(source)
        if known is None or known.last != last:
            known = self._judged[source] = Heard(last, await self._was_regular(source, last))
        return known

    async def _was_regular(self, source: str, last: int) -> bool:
        for number in range(SPOKE_FOR):
            until = last + 1 - number * SILENT
            found, _ = await self._store.search(Wanted(source=source, since=until - SILENT, until=until), limit=1)
            if not found:
                return False
        return True

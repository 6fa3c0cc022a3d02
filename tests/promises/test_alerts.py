"""What needs somebody is told to the room that GATEWAY_ALERT_WEBHOOK names: when it begins, and when it is over."""

import asyncio
import re
import shlex
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rich_click as click
from litestar import Litestar, Request, Response, post
from structlog.testing import capture_logs

from gateway import alerts
from gateway.alerts import (
    COARSE,
    FINE,
    HOUR,
    MINUTE,
    MOST,
    REMIND,
    SILENT,
    SPOKE_FOR,
    Alert,
    Alerts,
    Heard,
    Said,
    Sample,
    escaped,
    judge,
    kept,
    message,
    try_out,
)
from gateway.cli import main
from gateway.deliveries import StoreUnavailable
from gateway.mappings import Mappings, bundled, load_mappings
from gateway.sealing import Secret
from gateway.server import running
from gateway.settings import SettingsError, load_settings
from gateway.signatures import VerifySpec, compile_verification, sign
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from gateway.telemetry import Metrics, Tally
from tests.promises.collector import Collector
from tests.promises.served import SECRET, Served, payment
from tests.stores.harness import HARNESSES
from tests.stores.reports import NOW, simple

WITHIN = 30.0
PLACE = "T0/B0/of-the-tests"


def at(minutes: float, **fields: Any) -> Sample:
    """Return a sample taken that many minutes after the start."""
    tally = Tally(**{name: fields.pop(name) for name in Tally.__struct_fields__ if name in fields})
    return Sample(at=NOW + int(minutes * MINUTE), tally=tally, **fields)


def told(*samples: Sample) -> list[tuple[str, str]]:
    return [each.key for each in judge(samples)]


# What holds


def test_all_is_well_is_no_alert() -> None:
    assert told(at(0)) == []
    assert told(at(0), at(60, dead={}, breakers={"meta": False}, heard={"stripe": Heard(NOW, regular=True)})) == []


def test_each_new_dead_letter_counts_for_an_hour() -> None:
    samples = [at(0, dead={"meta": 5}), at(10, dead={"meta": 7}), at(65, dead={"meta": 7})]
    (alert,) = judge(samples)
    assert alert.what == "2 deliveries to `meta` died within the last hour"
    assert alert.next == "`gateway dead list` says why; once it is mended, `gateway dead retry -d meta`"
    assert told(*samples, at(75, dead={"meta": 7})) == []


def test_what_died_before_the_first_sample_is_news_to_nobody() -> None:
    assert told(at(0, dead={"meta": 5}), at(1, dead={"meta": 5})) == []


def test_deliveries_fall_behind_after_ten_minutes() -> None:
    assert told(at(10, overdue={"meta": NOW})) == []
    (alert,) = judge([at(11, overdue={"meta": NOW})])
    assert alert.what == "deliveries to `meta` fall behind: the oldest has been due for 11 min"
    (off,) = judge([at(11, overdue={"meta": NOW}, off=frozenset({"meta"}))])
    assert "it is off" in off.next


def test_a_breaker_that_closed_meanwhile_is_not_open_for_long() -> None:
    flapping = [at(0, breakers={"meta": True}), at(3, breakers={"meta": False}), at(5, breakers={"meta": True})]
    assert told(*flapping) == []
    assert told(*flapping, at(9, breakers={"meta": True})) == []
    assert told(*flapping, at(9, breakers={"meta": True}), at(10, breakers={"meta": True})) == [
        ("breaker_open", "meta")
    ]


def test_a_wrong_secret_is_told_from_a_forger() -> None:
    assert told(at(0), at(5, forged={"stripe": 2})) == []
    (none_right,) = judge([at(0), at(5, forged={"stripe": 3})])
    assert "and none was right" in none_right.what
    assert none_right.next.endswith("`gateway check --setup stripe`")
    (besides,) = judge([at(0, verified={"stripe": 10}), at(5, forged={"stripe": 3}, verified={"stripe": 50})])
    assert "besides 40 that were right" in besides.what
    assert told(at(0), at(5, forged={"stripe": 3}), at(66, forged={"stripe": 3})) == []


def test_a_store_that_is_back_within_a_minute_is_a_failover() -> None:
    away = [at(0), at(1, store="it cannot be reached")]
    assert told(*away) == []
    assert told(*away, at(1.5)) == []
    assert told(*away, at(2, store="it cannot be reached")) == [("store_away", "")]


def test_what_may_go_away_by_itself_gets_five_minutes_to() -> None:
    fields = {"doubts": ["keys may be evicted"], "refused": "stripe.yaml:3:1: no such key"}
    samples = [at(0, **fields), at(4, **fields)]
    assert told(*samples) == []
    assert told(*samples, at(5, **fields)) == [("edit_refused", ""), ("store_doubtful", "")]


def test_a_doubt_whose_words_change_is_still_one() -> None:
    samples = [at(minute, doubts=[f"clocks differ by {minute}.2 s"]) for minute in range(8)]
    assert {key for end in range(6, 9) for key in told(*samples[:end])} == {("store_doubtful", "")}


def test_a_worker_that_stopped_is_named() -> None:
    (alert,) = judge([at(0, stopped=["privacy"]), at(1, stopped=["privacy"])])
    assert alert.what == "the worker `privacy` has stopped, which is a defect"


# The stitch rate


def days(rate: float, a_day: int, number: int = 7) -> list[Sample]:
    """Return a sample an hour of that many days with so many events, so many of which found their visitor."""
    events = [round(a_day * hour / 24) for hour in range(number * 24 + 1)]
    return [at(60 * hour, events={"stripe": (each, round(each * rate))}) for hour, each in enumerate(events)]


def then(samples: Sequence[Sample], hours: float, events: int, found: int) -> Sample:
    """Return a sample so much later, after so many more events."""
    last = samples[-1]
    before, linked = last.tally.events["stripe"]
    return at((last.at - NOW) / MINUTE + 60 * hours, events={"stripe": (before + events, linked + found)})


def test_a_stitch_rate_is_compared_with_its_own_average() -> None:
    week = days(0.7, 2_400)
    (alert,) = judge([*week, then(week, 1, 100, 20)])
    assert alert.key == ("stitch_rate_fell", "stripe")
    assert alert.what == "of the last 100 events of `stripe` 20% found their visitor, of those before 70%"
    assert told(*week, then(week, 1, 100, 40)) == []
    low = days(0.2, 4_800)
    assert told(*low, then(low, 1, 200, 30)) == []  # as low as ever


@pytest.mark.parametrize("events", [0, 1, 30])
def test_a_quiet_night_alerts_nobody(events: int) -> None:
    week = days(0.7, 2_400)
    last = then(week, 1, events, 0)
    assert told(*week, last, then([last], 1, 0, 0)) == []


def test_a_small_shop_is_judged_by_a_longer_stretch() -> None:
    week = days(0.7, 72)
    for hour in range(1, 24):
        week.append(then(week, 1, 3, 0))
        assert (told(*week) == [("stitch_rate_fell", "stripe")]) == (hour >= 8), hour  # of 15, half of them


def test_a_rate_that_nobody_knows_yet_has_not_fallen() -> None:
    young = days(1.0, 150, number=1)
    assert told(*young, then(young, 1, 100, 0)) == []


# Silence


def test_a_source_that_normally_speaks_is_missed_after_six_hours() -> None:
    start, heard = at(-600), {"stripe": Heard(NOW, regular=True), "paddle": Heard(NOW, regular=False)}
    assert told(start, at(360, heard=heard)) == []
    (alert,) = judge([start, at(361, heard=heard)])
    assert alert.about == "stripe"
    assert "nothing was accepted for 6 h (since 2027-01-15 08:00 UTC)" in alert.what


def test_a_gateway_that_just_started_was_perhaps_the_silent_one() -> None:
    heard = {"stripe": Heard(NOW - 2 * SILENT, regular=True)}
    assert told(at(0, heard=heard), at(59, heard=heard)) == []
    assert told(at(0, heard=heard), at(60, heard=heard)) == [("source_silent", "stripe")]


# What is kept, and what is news


def test_a_month_of_samples_takes_the_room_of_a_week() -> None:
    samples: list[Sample] = []
    for minute in range(0, 30 * 24 * 60, 2):
        samples = kept([*samples, at(minute)], NOW + minute * MINUTE)
    assert len(samples) <= FINE // MINUTE / 2 + COARSE / HOUR + 2
    assert samples[-1].at - samples[0].at >= COARSE - 2 * HOUR
    assert [each.at for each in samples] == sorted(each.at for each in samples)


def test_samples_of_a_clock_that_was_set_back_are_dropped() -> None:
    assert kept([at(0), at(100), at(1)], NOW + MINUTE) == [at(0), at(1)]


def an_alert(about: str = "meta") -> Alert:
    return Alert(condition="breaker_open", about=about, what=f"{about} fails", next="wait", over=f"{about} is back")


def test_each_condition_is_said_once_then_daily_and_once_when_it_is_over() -> None:
    said, alert = Said(), an_alert()
    assert said.news([alert, an_alert("ga4")], NOW) == ([alert, an_alert("ga4")], [])
    said.begun(alert, NOW)
    assert said.news([alert], NOW + REMIND - 1) == ([], [])
    assert said.news([alert], NOW + REMIND) == ([alert], [])
    assert said.news([], NOW + MINUTE) == ([], [alert])
    said.over(alert)
    assert said.news([], NOW + 2 * MINUTE) == ([], [])


def test_what_comes_back_within_the_hour_is_said_when_the_hour_is_up() -> None:
    said, alert = Said(), an_alert()
    said.begun(alert, NOW)
    said.over(alert)
    for now, news in ((NOW + HOUR - 1, []), (NOW + HOUR, [alert])):
        said.forget(now)
        assert said.news([alert], now) == (news, [])


# What it says


def test_no_name_can_mention_format_or_link() -> None:
    text = escaped("<!channel> <@U1> @here `x` <https://evil|click> & *b*\r\n\x1b[31m\u202eno")
    assert text == ("&lt;!channel&gt; &lt;@\u200bU1&gt; @\u200bhere 'x' &lt;https://evil|click&gt; &amp; *b* [31m no")


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    assert escaped("<" * 100, 5) == "&lt;&lt;&lt;&lt;…"


def test_names_are_escaped_wherever_they_are_said() -> None:
    name = "<!everyone>`@here`"
    for each in judge(everything(name)):
        shown = f"{each.what} {each.next} {each.over}"
        assert "<" not in shown, each
        assert "@here" not in shown, each
        assert "``" not in shown, each


def test_a_message_names_the_gateway_and_what_is_over() -> None:
    body = msgspec.json.decode(message("pod<1>", [an_alert()], [an_alert("ga4")]))
    assert body == {
        "text": "Gateway on `pod&lt;1&gt;`\n"
        ":red_circle: meta fails. Next: wait.\n"
        ":large_green_circle: Over: ga4 is back."
    }


def test_a_message_is_bounded_whatever_happens_at_once() -> None:
    text = msgspec.json.decode(message("pod", [an_alert(str(number)) for number in range(500)], []))["text"]
    assert text.count("\n") == MOST + 1
    assert text.endswith("… and 480 more: see /metrics, or the console")


def everything(name: str = "stripe") -> list[Sample]:
    """Return samples under which every condition holds, of something that is called so."""
    bad = {
        "breakers": {name: True},
        "overdue": {name: NOW - HOUR},
        "heard": {name: Heard(NOW - SILENT, regular=True)},
        "store": f"it is full {name}",
        "doubts": [f"doubt {name}"],
        "refused": f"refused {name}",
        "stopped": [name],
    }
    return [
        at(-180, events={name: (0, 0)}),
        at(0, events={name: (1000, 900)}, **bad),
        at(60, events={name: (1100, 910)}, dead={name: 1}, forged={name: 3}, **bad),
    ]


def test_every_command_that_an_alert_names_can_be_run() -> None:
    found = judge(everything())
    assert len(found) == 10
    text = " ".join(f"{each.next} {each.over}" for each in found)
    commands = set(re.findall(r"`gateway ([^`]+)`", text))
    assert len(commands) >= 6
    for command in commands:
        parse(main, shlex.split(command))


def parse(group: click.Group, words: list[str]) -> None:
    """Parse a command, or raise what click says against it."""
    command = group.commands[words[0]]
    if isinstance(command, click.Group):
        parse(command, words[1:])
    elif words[1:]:  # else it is named without what it is to be run on
        command.make_context(words[0], words[1:]).close()


# The room


class Room:
    """A chat that takes Slack's messages, and answers as the test says, then `ok`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.asked = 0
        self.answers: list[int] = []
        self.url = ""
        self._arrived = threading.Condition()

    def app(self) -> Litestar:
        @post(f"/services/{PLACE}", status_code=200)
        async def take(request: Request[Any, Any, Any]) -> Response[str]:
            body = msgspec.json.decode(await request.body(), type=dict[str, str])
            status = self.answers.pop(0) if self.answers else 200
            with self._arrived:
                self.asked += 1
                if status == 200:
                    self.texts.append(body["text"])
                self._arrived.notify_all()
            return Response("ok", status_code=status)

        return Litestar([take], openapi_config=None, logging_config=None)

    def wait_for(self, text: str) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: any(text in each for each in self.texts), WITHIN), self.texts


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    with running(room.app()) as url:
        room.url = f"{url}/services/{PLACE}"
        yield room


@pytest.fixture(params=HARNESSES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteStore | RedisStore]:
    harness = HARNESSES[request.param](tmp_path)
    store = await harness.open()
    assert isinstance(store, SqliteStore | RedisStore)
    yield store
    await harness.close()


@pytest.fixture(scope="module")
def mappings(tmp_path_factory: pytest.TempPathFactory) -> Mappings:
    folder = tmp_path_factory.mktemp("mappings")
    (folder / "sources").mkdir()
    shutil.copy(bundled() / "sources/stripe.yaml", folder / "sources")
    return load_mappings(folder, {"STRIPE_WEBHOOK_SECRET": SECRET}.get)


class Gateway:
    """What one gateway would tell a room. The test says what it sees; `now` is its clock."""

    def __init__(self, room: Room, store: Any, mappings: Mappings, turns: Any = None) -> None:
        self.now = NOW
        self.doubts: list[str] = []
        self.refused: str | None = None
        self.metrics = Metrics()
        self.alerts = Alerts(
            Secret(room.url),
            "pod-1",
            store,
            self.metrics,
            lambda: mappings,
            dict,
            lambda: self.doubts,
            lambda: self.refused,
            list,
            lambda: self.now,
            turns,
        )

    async def look(self, minutes: float = 1) -> None:
        """Look after so many minutes."""
        self.now += int(minutes * MINUTE)
        await self.alerts.look()


@pytest.fixture
async def gateway(room: Room, store: SqliteStore | RedisStore, mappings: Mappings) -> AsyncIterator[Gateway]:
    gateway = Gateway(room, store, mappings)
    yield gateway
    await gateway.alerts.close()


async def test_late_deliveries_are_told_and_so_is_their_end(
    gateway: Gateway, room: Room, store: SqliteStore | RedisStore
) -> None:
    await store.accept(simple("a", at=NOW))
    await gateway.look(9)
    assert room.texts == []
    for _ in range(5):
        await gateway.look(2)
    assert [("`sink` fall behind" in text, "it is off" in text) for text in room.texts] == [(True, True)]
    leases, _ = await store.lease("sink", 1, gateway.now, gateway.now + HOUR)
    assert leases
    await gateway.look()
    await gateway.look()
    assert [text.splitlines()[1:] for text in room.texts[1:]] == [
        [":large_green_circle: Over: deliveries to `sink` are on time again."]
    ]


@pytest.mark.parametrize("left_out", [None, 3], ids=["always", "but for once"])
async def test_whether_a_source_speaks_normally_is_in_the_store(
    gateway: Gateway, room: Room, store: SqliteStore | RedisStore, left_out: int | None
) -> None:
    for number in range(SPOKE_FOR, -1, -1):
        if number != left_out:
            await store.accept(simple(f"w{number}", at=NOW - number * SILENT, skip="no_person"))
    await gateway.look(0)
    await gateway.look(355)
    assert room.texts == []
    await gateway.look(20)
    await gateway.look(600)
    silences = [text for text in room.texts if "`stripe` has fallen silent" in text]
    assert len(silences) == (1 if left_out is None else 0)
    await store.accept(simple("again", at=gateway.now, skip="no_person"))
    await gateway.look(15)
    assert any("Over: `stripe` is heard again" in text for text in room.texts) == (left_out is None)


async def test_a_room_that_fails_is_tried_ever_less_often_and_told_in_the_end(gateway: Gateway, room: Room) -> None:
    room.answers = [500, 404, 302]
    gateway.refused = "stripe.yaml:1:1: wrong"
    with capture_logs() as lines:
        for _ in range(30):
            await gateway.look()
    failures = [(line["reason"][:8], line["again_in_ms"]) for line in lines if line["event"] == "alerts_not_told"]
    assert failures == [("http_500", 2 * MINUTE), ("http_404", 4 * MINUTE), ("http_302", 8 * MINUTE)]
    assert (room.asked, len(room.texts)) == (4, 1)
    assert PLACE not in str(lines)


async def test_a_room_that_is_away_is_no_error_of_the_gateway(room: Room, mappings: Mappings) -> None:
    room.url = f"http://127.0.0.1:9/{PLACE}"
    gateway = Gateway(room, Broken(), mappings)
    with capture_logs() as lines:
        for _ in range(3):
            await gateway.look()
    assert [line["event"] for line in lines] == ["alerts_not_told"]
    assert lines[0]["reason"].startswith("network: ")
    assert PLACE not in str(lines)
    await gateway.alerts.close()


class Broken:
    """A store that is away."""

    async def backlog(self, now: int) -> Any:
        raise StoreUnavailable(f"it was away at {now}")

    async def search(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("it is away")

    async def probe(self) -> str | None:
        return None


async def test_a_store_that_is_away_is_told_and_nothing_is_made_up(room: Room, mappings: Mappings) -> None:
    gateway = Gateway(room, Broken(), mappings)
    for _ in range(10):
        await gateway.look()
    await gateway.alerts.close()
    (text,) = room.texts
    assert ":red_circle: the store cannot be used: `it was away at " in text


# Several gateways


@pytest.fixture
async def both(room: Room, mappings: Mappings, tmp_path: Path) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Return two gateways that share a Redis."""
    harness = HARNESSES["redis"](tmp_path)
    store = await harness.open()
    assert isinstance(store, RedisStore)
    pair = (Gateway(room, store, mappings, store), Gateway(room, store, mappings, store))
    yield pair
    for each in pair:
        await each.alerts.close()
    await harness.close()


async def test_of_several_gateways_one_speaks(both: tuple[Gateway, Gateway], room: Room) -> None:
    for refused in ("wrong", None):
        for each in both:
            each.refused = refused
        for _ in range(10):
            for each in both:
                await each.look()
    assert [("is not in force" in text, "Over: the mappings" in text) for text in room.texts] == [
        (True, False),
        (False, True),
    ]


async def test_who_took_a_turn_and_could_not_be_heard_speaks_later(both: tuple[Gateway, Gateway], room: Room) -> None:
    room.answers = [500]
    for each in both:
        each.refused = "wrong"
    for _ in range(12):
        for each in both:
            await each.look()
    assert (room.asked, len(room.texts)) == (2, 1)


async def test_a_turn_ends_by_itself(both: tuple[Gateway, Gateway]) -> None:
    turns = both[0].alerts._turns
    assert turns is not None
    assert await turns.take_turn("a", 30_000)
    assert not await turns.take_turn("a", 30_000)
    assert await turns.take_turn("b", 1)
    deadline = time.monotonic() + WITHIN
    while not await turns.take_turn("b", 1):
        assert time.monotonic() < deadline


# All of it together


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "LOOK_EVERY", 0.05)


@pytest.mark.usefixtures("often")
def test_a_gateway_tells_of_dead_letters_and_of_a_wrong_secret(
    served: Served, collector: Collector, room: Room
) -> None:
    wrong = compile_verification(VerifySpec(scheme="stripe", secrets="whsec_other"))
    collector.answer((400, {}))
    with served.up(GATEWAY_ALERT_WEBHOOK=room.url):
        assert served.post(payment(1)).is_success
        room.wait_for("1 delivery to `webhook` died within the last hour")
        for number in range(3):
            body = payment(number)
            assert served.post(body, sign(wrong, body, time.time())).status_code == 401
        room.wait_for("3 webhooks of `stripe` within the last hour were signed with a secret that is not configured")
        served.ahead += 2 * HOUR
        room.wait_for("Over: no delivery to `webhook` has died for an hour")
        room.wait_for("Over: no webhook of `stripe` was signed with a wrong secret any more")


@pytest.mark.usefixtures("often")
def test_a_dead_room_disturbs_nobody(served: Served, collector: Collector) -> None:
    collector.answer((400, {}))
    with served.up(GATEWAY_ALERT_WEBHOOK=f"http://127.0.0.1:9/{PLACE}"):
        for number in range(5):
            assert served.post(payment(number)).is_success
        collector.wait_for(5)
        assert served.get("/readyz").json()["ready"]


def test_a_test_message_says_why_it_failed_but_not_where(room: Room) -> None:
    room.answers = [410]
    gone = asyncio.run(try_out(Secret(room.url), "pod-1"))
    assert gone == "http_410: is GATEWAY_ALERT_WEBHOOK still the address that the room gave you?"
    assert asyncio.run(try_out(Secret(room.url), "pod-1")) is None
    assert room.texts == ["Gateway on `pod-1`\nThis is a test: alerts get here."]


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",
        "ftp://127.0.0.1/x",
        "http://127.0.0.1.example.com/x",
        "http://2130706433.example/x",
        "https://",
        "https://host:99999/x",
        "https://host:0/x",
        "https://[::1/x",
        "https://ho st/x",
        "https://host/\x00x",
        "hooks.example.com/x",
    ],
)
def test_an_address_that_would_give_it_away_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"GATEWAY_ALERT_WEBHOOK": url})
    assert str(refused.value) == (
        "GATEWAY_ALERT_WEBHOOK: write https://…, as your chat gives it; http only to this machine"
    )


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com/x", "http://127.0.0.2:1/x", "http://[::1]/", "http://localhost"]
)
def test_the_address_of_the_room_is_a_secret(url: str) -> None:
    settings = load_settings({"GATEWAY_ALERT_WEBHOOK": url})
    assert settings.alert_webhook.reveal() == url
    assert url not in repr(settings)

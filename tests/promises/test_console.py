"""The console shows all that became of a webhook, to operators alone, and runs nothing that anybody else wrote."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html import unescape
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import msgspec
import pytest
from litestar import Litestar, Response, post
from litestar.testing import TestClient
from structlog.testing import capture_logs

from gateway.app import create_app
from gateway.console import pages, tail
from gateway.mapping_tests import load_tests, run_test
from gateway.mappings import bundled
from gateway.server import running
from gateway.settings import load_settings
from tests.mapping.people import MAPPINGS, personal_data_of
from tests.mapping.strange import put
from tests.promises.collector import Collector
from tests.promises.console import CHANGES, PAGES, TOKEN, Console, Read, pages_of, preformatted, until
from tests.promises.served import LINK_SECRET, Served, document_of, encoded, payment
from tests.stores.servers import Server

HOUR = 3_600_000
KEY = "b3BlcmF0b3JzIG9mIHRoZSB0ZXN0cyAzMiBieXRlcyE="
HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}</pre></textarea>"
BACKEND = {"authorization": f"Bearer {LINK_SECRET}"}
SESSION = bundled() / "samples/stripe/checkout.session.completed.json"


@pytest.fixture
def served(served: Served) -> Served:
    served.environment["GATEWAY_ADMIN_TOKEN"] = TOKEN
    return served


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a gateway that is up, with a payment that arrived: for tests that change nothing."""
    collector = Collector()
    with running(collector.app()) as sink:
        sinks = {"WEBHOOK_URL": f"{sink}/sink", "WEBHOOK_SECRET": "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ="}
        served = Served(tmp_path_factory.mktemp("shown"), GATEWAY_ADMIN_TOKEN=TOKEN, **sinks)
        with served.up():
            assert served.post(SESSION.read_bytes()).is_success
            collector.wait_for(1)
            yield served


@pytest.fixture
def console(shown: Served) -> Console:
    return signed_in(shown)


_SIGNED_IN: WeakKeyDictionary[Served, int] = WeakKeyDictionary()


def signed_in(served: Served) -> Console:
    if _SIGNED_IN.get(served, 0) > 5:  # people may not try so often in a minute
        served.ahead += 60_000
        _SIGNED_IN.pop(served)
    _SIGNED_IN[served] = _SIGNED_IN.get(served, 0) + 1
    console = Console(served)
    assert console.sign_in().status_code == 303
    return console


def stripes(folder: Path) -> Path:
    """Make a mappings folder of one source and one destination."""
    shutil.copytree(bundled() / "samples/stripe", folder / "samples/stripe")
    for name in ("sources/stripe.yaml", "destinations/webhook.yaml"):
        (folder / name).parent.mkdir()
        shutil.copy(bundled() / name, folder / name)
    return folder


# who may


def test_without_a_token_configured_there_is_no_console(tmp_path: Path) -> None:
    with Served(tmp_path).up(deliver=False) as served:
        for path in ("", "/sign-in", "/static/console.css", "/webhooks"):
            assert Console(served).client.get(path).status_code == 404
        assert Console(served).sign_in("").status_code == 404


def test_whoever_is_not_signed_in_is_sent_to_the_door(shown: Served) -> None:
    stranger = Console(shown)
    for path in (*PAGES, "/numbers", "/tail", "/dead/download"):
        answer = stranger.client.get(path)
        assert (answer.status_code, answer.text) == (303, "")
        assert answer.headers["location"].startswith("/console/sign-in")


def test_whoever_is_not_signed_in_changes_nothing(shown: Served) -> None:
    stranger = Console(shown)
    for path in CHANGES:
        answer = stranger.client.post(path, data={"subject": "user", "value": "user_42", "sure": "yes"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in")
    assert shown.contents()["event"] == 1


@pytest.mark.parametrize("token", ["", "guessed", TOKEN[:-1], TOKEN + "x", HOSTILE])
def test_a_wrong_token_opens_no_session(shown: Served, token: str) -> None:
    shown.ahead += 60_000
    answer = Console(shown).sign_in(token)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "GATEWAY_ADMIN_TOKEN" in Read(answer.text).text


def test_whoever_guesses_often_is_not_listened_to_for_a_minute(shown: Served) -> None:
    shown.ahead += 60_000
    console = Console(shown)
    assert {console.sign_in("guessed").status_code for _ in range(10)} == {401}
    refused = console.sign_in()
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60
    shown.ahead += 60_000
    assert console.sign_in().status_code == 303


def test_the_cookie_is_for_this_site_this_path_and_no_script(console: Console, shown: Served) -> None:
    shown.ahead += 60_000
    cookie = Console(shown).sign_in().headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/console", "max-age=43200"} <= set(cookie.split("; "))
    assert "secure" not in cookie
    assert TOKEN not in cookie


def test_over_https_the_cookie_goes_over_nothing_else(tmp_path: Path) -> None:
    settings = load_settings({"GATEWAY_STORE": f"sqlite:///{tmp_path}/g.db", "GATEWAY_ADMIN_TOKEN": TOKEN})
    with TestClient(create_app(settings, deliver=False), base_url="https://gateway.example") as client:
        answer = client.post("/console/sign-in", data={"token": TOKEN}, follow_redirects=False)
    assert "secure" in answer.headers["set-cookie"].lower().split("; ")


def test_a_session_ends_after_half_a_day(shown: Served) -> None:
    console = signed_in(shown)
    shown.ahead += 11 * HOUR
    console.get("/links")
    shown.ahead += HOUR
    assert console.client.get("/links").headers["location"].startswith("/console/sign-in")


def test_who_signed_out_is_out_also_with_a_copy_of_the_cookie(shown: Served) -> None:
    console = signed_in(shown)
    copy = dict(console.client.cookies)
    console.post("/sign-out")
    assert not console.client.cookies
    assert Console(shown, copy).client.get("/links").status_code == 303


def test_who_signed_out_is_out_at_every_gateway(served: Served, tmp_path: Path) -> None:
    other = Served(tmp_path, **served.environment)
    server = Server().start()
    environment = {"GATEWAY_STORE": server.url, "GATEWAY_SECRET_KEY": KEY}
    with served.up(deliver=False, **environment), other.up(deliver=False, **environment):
        console = signed_in(served)
        elsewhere = Console(other, dict(console.client.cookies))
        elsewhere.get("/links")
        console.post("/sign-out")
        assert elsewhere.client.get("/links").headers["location"].startswith("/console/sign-in")
    server.remove()


def test_another_token_ends_all_sessions(served: Served) -> None:
    with served.up(deliver=False):
        cookies = dict(signed_in(served).client.cookies)
    with served.up(deliver=False):
        assert Console(served, cookies).client.get("/links").status_code == 200
    with served.up(deliver=False, GATEWAY_ADMIN_TOKEN="another token 0123456789abcdef0123456789"):
        assert Console(served, cookies).client.get("/links").status_code == 303


def test_no_altered_cookie_is_a_session(shown: Served, console: Console) -> None:
    (cookie,) = dict(console.client.cookies).values()
    middle = len(cookie) // 2
    other = "A" if cookie[middle] != "A" else "B"
    for bad in ("", "x", cookie[:-4], cookie[:middle] + other + cookie[middle + 1 :], cookie * 5, "é"):
        sent = {b"cookie": f"gateway_console={bad}".encode()}
        assert Console(shown).client.get("/links", headers=sent).status_code == 303


@pytest.mark.parametrize(
    "after",
    [
        "//evil.example",
        "https://evil.example",
        "/console/\\evil.example",
        "/consolex",
        "/x",
        "javascript:1",
        "/console//evil.example",
        "/console/\t/evil",
        "/console\n",
    ],
)
def test_signing_in_leads_nowhere_else(shown: Served, after: str) -> None:
    shown.ahead += 60_000
    assert Console(shown).sign_in(next=after).headers["location"] == "/console"


def test_signing_in_leads_to_the_page_that_was_asked_for(shown: Served) -> None:
    shown.ahead += 60_000
    console = Console(shown)
    door = console.client.get("/webhooks?source=stripe").headers["location"]
    (wanted,) = [
        each["value"] for tag, each in Read(httpx.get(shown.url + door).text).tags if each.get("name") == "next"
    ]
    assert console.sign_in(next=str(wanted)).headers["location"] == "/console/webhooks?source=stripe"


def test_no_other_site_can_send_a_form(shown: Served, console: Console) -> None:
    fields = {"subject": "user", "value": "user_42", "sure": "yes"}
    for form in ({}, {"csrf": ""}, {"csrf": signed_in(shown).csrf()}, {"csrf": "é"}):
        for path in CHANGES:
            assert console.client.post(path, data={**form, **fields}).status_code == 403
    console.get("/links")
    assert shown.contents()["event"] == 1


# what a page may run


def test_every_answer_allows_only_what_the_console_brings(shown: Served, console: Console) -> None:
    stranger = Console(shown)
    answers = [console.client.get(path) for path in (*PAGES, "/numbers", "/nowhere", "/webhooks/99", "/dead/download")]
    answers += [stranger.client.get(""), stranger.sign_in("guessed"), stranger.client.get("/sign-in")]
    answers += [
        console.client.delete("/links"),
        console.client.post("/links"),
        console.client.get("/static/console.js"),
    ]
    answers += [console.client.get("/webhooks?since=never"), console.client.get("/webhooks/" + "9" * 30)]
    for each in answers:
        policy = each.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert each.headers["x-content-type-options"] == "nosniff"
    assert {each.status_code for each in answers} == {200, 303, 400, 401, 403, 404, 405}


def test_no_page_has_scripts_or_styles_of_its_own(console: Console) -> None:
    for path in PAGES:
        page = Read(console.get(path))
        assert page.active() == []
        assert len([tag for tag, _ in page.tags if tag == "script"]) == 2 + path.startswith("/playground")


def test_pages_are_not_kept_by_caches_and_files_are(console: Console) -> None:
    assert console.client.get("/webhooks/1").headers["cache-control"] == "no-store"
    page = console.client.get("/links")
    (script,) = re.findall(r'src="(/console/static/htmx[^"]+)"', page.text)
    assert "immutable" in console.client.get(script.removeprefix("/console")).headers["cache-control"]


# what senders write


def texts_of(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    for key, each in inside:
        if isinstance(each, dict | list):
            yield from texts_of(each, (*path, key))
        elif isinstance(each, str):
            yield (*path, key)


def test_no_text_of_a_payload_runs(served: Served) -> None:
    document = document_of("checkout.session.completed")
    for place in texts_of(document):
        if place not in {("type",), ("object",), ("data", "object", "object"), ("data", "object", "payment_status")}:
            document = put(document, place, f"{HOSTILE}{place[-1]}")
    document["data"]["object"]["mode"], document["data"]["object"]["currency"] = "payment", "usd"
    document["data"]["object"][HOSTILE] = {HOSTILE: HOSTILE}
    with served.up():
        body = encoded(document)
        headers = {"x-hostile": HOSTILE, "stripe-version": HOSTILE, "user-agent": HOSTILE}
        assert served.post(body, served.signed(body) | headers).is_success
        assert served.post(encoded({**document, "id": "evt_2", "type": HOSTILE})).is_success
        console = signed_in(served)
        console.until("", "checkout.session.completed")
        for path in (*PAGES, *pages_of(2)):
            page = Read(console.client.get(path).text)
            assert page.active() == [], path
            assert "49</pre>" not in page.text
        assert HOSTILE in Read(console.get("")).text


def test_no_answer_with_markup_runs(served: Served) -> None:
    @post("/sink", status_code=400)
    async def refuse() -> Response[str]:
        return Response(HOSTILE, status_code=400, media_type="text/html")

    app = Litestar([refuse], openapi_config=None, logging_config=None)
    with running(app) as sink, served.up(WEBHOOK_URL=f"{sink}/sink"):
        assert served.post(payment(1)).is_success
        page = signed_in(served).until("/webhooks/1", "http_400")
    assert Read(page).active() == []
    assert HOSTILE in preformatted(page)


def test_no_subject_and_no_error_text_runs(shown: Served, console: Console) -> None:
    asked = [
        console.post("/links", 200, subject="user", value=HOSTILE),
        console.post("/links", 400, subject="email", value=HOSTILE),
        console.post("/links", 400, subject=HOSTILE, value=""),
        console.post("/webhooks/find", 400, subject="phone", value=HOSTILE),
        console.post("/dead/retry", 400, after=HOSTILE),
        console.post("/dead/retry-some", 400, place=HOSTILE),
        console.post("/playground", 404, source=HOSTILE, mapping="x"),
    ]
    for each in asked:
        assert Read(each.text).active() == []
        assert "<img" not in each.text


@pytest.mark.parametrize("path", ["/sign-in", *CHANGES])
def test_a_form_has_a_size(console: Console, path: str) -> None:
    size = 500_000 if path == "/playground" else 20_000
    answer = console.client.post(path, data={"csrf": console.csrf(), "subject": "user", "value": "x" * size})
    assert answer.status_code == 413


def test_a_cookie_that_somebody_planted_becomes_no_session(shown: Served) -> None:
    planted = dict(signed_in(shown).client.cookies)["gateway_console"]
    shown.ahead += 60_000
    answer = httpx.post(
        f"{shown.url}/console/sign-in", data={"token": TOKEN}, headers={"cookie": "gateway_console=planted"}
    )
    assert answer.cookies["gateway_console"] not in {"planted", planted}
    assert Console(shown, {"gateway_console": "planted"}).client.get("/links").status_code == 303


def test_no_answer_of_a_collector_runs(served: Served, collector: Collector) -> None:
    collector.answer((400, {"x-hostile": "yes"}))
    with served.up():
        assert served.post(payment(1)).is_success
        console = signed_in(served)
        page = console.until("/webhooks/1", "http_400")
    assert Read(page).active() == []
    assert "answer" in preformatted(page)


def test_nothing_that_is_searched_for_runs(console: Console) -> None:
    for name in ("id", "source", "type", "since", "until", "state", "who", "after"):
        page = console.client.get("/webhooks", params={name: HOSTILE})
        assert page.status_code in {200, 400}
        assert Read(page.text).active() == []
        assert "<img" not in page.text


@pytest.mark.parametrize(
    "path",
    ["/{}", "/dead/list?destination={}&reason={}", "/accuracy?day={}", "/playground?source={}", "/sign-in?next={}"],
)
def test_nothing_in_an_address_runs(console: Console, path: str) -> None:
    page = console.client.get(path.replace("{}", str(httpx.QueryParams({"": HOSTILE}))[1:]))
    assert page.status_code in {200, 400, 404}
    assert Read(page.text).active() == []


def test_no_name_in_the_mappings_folder_runs(served: Served, tmp_path: Path) -> None:
    folder = stripes(tmp_path / "mappings")
    hostile = HOSTILE.replace("/", "")
    shutil.copy(SESSION, folder / "samples/stripe" / f"{hostile}.json")
    mapping = folder / "sources/stripe.yaml"
    mapping.write_text(
        mapping.read_text().replace("name: checkout paid", f"name: {msgspec.json.encode(HOSTILE).decode()}")
    )
    with served.up(deliver=False, GATEWAY_MAPPINGS=str(folder)):
        assert served.post(SESSION.read_bytes()).is_success
        console = signed_in(served)
        for path in (*PAGES, str(httpx.URL("/playground", params={"source": "stripe", "sample": hostile}))):
            page = Read(console.get(path))
            assert page.active() == []
    assert hostile in [each.get("value") for tag, each in page.tags if each.get("name") == "sample"]


@pytest.mark.parametrize(
    "text", [HOSTILE, f"source: {HOSTILE!r}", "source: stripe\nrules: [</textarea><script>]", "", "\0"]
)
def test_no_mapping_that_is_tried_runs(console: Console, text: str) -> None:
    fields = {"source": "stripe", "sample": "invoice.paid", "mapping": text}
    page = Read(console.post("/playground", 200, **fields).text)
    assert page.active() == []
    assert "Mistakes" in page.text


@pytest.mark.parametrize(
    "name", ["../stripe/invoice.paid", "..", "/etc/passwd", "invoice.paid\0", "../../sources/stripe"]
)
def test_no_sample_outside_its_folder_is_read(console: Console, name: str) -> None:
    console.get("/playground", 404, source="stripe", sample=name)
    console.post("/playground", 404, source="stripe", sample=name, mapping="x")
    console.get("/playground", 404, source=name, sample="invoice.paid")


@pytest.mark.parametrize(
    "path", ["..%2fpages.py", "%2e%2e/pages.py", "..%5cpages.py", "../session.py", "htmx.min.js%00"]
)
def test_no_file_but_the_consoles_own_is_served(shown: Served, path: str) -> None:
    assert httpx.get(f"{shown.url}/console/static/{path}").status_code == 404


# what pages tell


def test_no_page_tells_who_somebody_is(console: Console) -> None:
    private = personal_data_of(SESSION)
    assert private
    for path in set(PAGES) - {"/playground"}:  # which shows a sample, and the sample is of nobody
        told = console.get(path).lower().encode()
        assert [each for each in private if each in told] == [], path


def test_a_webhooks_page_shows_its_whole_way(console: Console) -> None:
    told = Read(console.get("/webhooks/1")).text
    for step in (
        "evt_1SGateway0001Sample",
        "checkout finished without payment",
        "filtered",
        "purchase",
        "http_200",
        "ms",
    ):
        assert step in told, step
    assert "Idempotency-Key" in Read(console.get("/webhooks/1/requests")).text
    assert "checkout paid" in Read(console.get("/webhooks/1/explained")).text


def test_the_overview_counts_what_came(served: Served) -> None:
    with served.up(deliver=False):
        assert served.post(payment(0)).is_success
        served.link({"subjects": {"user": "user_42"}, "visitor_id": "v-1"}, BACKEND)
        for number in range(1, 4):
            assert served.post(payment(number)).is_success
        page = Read(signed_in(served).get("/numbers"))
    told = " ".join(page.text.split())
    assert "Webhooks, last hour4" in told
    assert "75 % 3 of 4 events have a visitor" in told
    bars = [str(each["class"]) for tag, each in page.tags if tag == "rect"]
    assert {"bar webhooks", "bar pending"} == set(bars) - {"hit"}
    assert "Webhooks per minute, the last hour: 4 in all" in str(page.tags)


def lasting(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def quickest(console: Console, path: str) -> float:
    return min(lasting(lambda: console.get(path)) for _ in range(3))


def test_a_megabyte_of_a_hundred_thousand_keys_is_shown_folded(served: Served) -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"]["metadata"] |= {f"{number:x}": 10 for number in range(100_000)}
    body = encoded(document)
    assert 1_000_000 < len(body) < 1_048_576
    with served.up(deliver=False):
        taken = lasting(lambda: served.post(body))
        assert served.post(payment(2)).is_success
        console = signed_in(served)
        words = "/playground/words?source=stripe&webhook="
        for huge, small in zip((*pages_of(1), f"{words}1"), (*pages_of(2), f"{words}2"), strict=True):
            assert len(console.get(huge)) < 300_000, huge
            # Taking it in is 0.35 s on a slow machine; what its size adds to a page is measured by that.
            more = quickest(console, huge) - quickest(console, small)
            assert more < 2 * taken, huge
        assert re.search(r"99.9\d\d entries folded", console.get("/webhooks/1"))


def test_webhooks_are_found_by_all_that_the_form_asks(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 3)
    with served.up():
        for number in range(4):
            assert served.post(payment(number)).is_success
        assert served.post(encoded(document_of("customer.created"))).is_success
        console = signed_in(served)
        console.until("/webhooks?state=sent", "customer.created")
        for query, number in (("id=evt_2", 1), ("type=customer.created", 1), ("state=dead", 0), ("since=1h", 3)):
            assert console.get(f"/webhooks?{query}").count("<time") == number, query
        older = re.search(r'href="/console(/webhooks\?[^"]*after=[^"]*)"', console.get("/webhooks?source=stripe"))
        assert older
        assert console.get(unescape(older[1])).count("<time") == 2


def test_whose_webhooks_are_looked_for_stands_in_no_address(console: Console) -> None:
    answer = console.post("/webhooks/find", subject="user", value="user_42")
    assert "user_42" not in answer.headers["location"]
    assert console.get(answer.headers["location"].removeprefix("/console")).count("<time") == 1
    nobody = console.post("/webhooks/find", subject="user", value="user_43").headers["location"]
    assert console.get(nobody.removeprefix("/console")).count("<time") == 0


def rows_of(lines: Iterator[str], told: str) -> list[str]:
    """Return the rows that a tail sends, up to one that tells something."""
    rows: list[str] = []
    for line in lines:
        rows += [line] if line.startswith("data: <tr") else []
        if rows and told in rows[-1]:
            return rows
    raise AssertionError(f"the tail ended before it told {told}: {rows}")


def test_the_tail_tells_of_what_comes_and_of_what_becomes_of_it(served: Served, collector: Collector) -> None:
    collector.answer((400, {}))
    with served.up():
        console = signed_in(served)
        with console.client.stream("GET", "/tail") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: alive"
            assert served.post(payment(1)).is_success
            row = rows_of(lines, ">dead 1<")[-1]
    assert "evt_1" in row
    assert Read(row).active() == []


def test_who_comes_back_to_the_tail_is_told_what_is_newest(served: Served) -> None:
    with served.up(deliver=False):
        for number in range(tail.ROWS + 2):
            assert served.post(payment(number)).is_success
        console = signed_in(served)
        for _ in range(2):
            with console.client.stream("GET", "/tail") as stream:
                rows = rows_of(stream.iter_lines(), f"evt_{tail.ROWS + 1}<")
            assert len(rows) == tail.ROWS


def test_a_tail_ends_with_its_session(served: Served) -> None:
    with served.up(deliver=False):
        console = signed_in(served)
        with console.client.stream("GET", "/tail") as stream:
            lines = stream.iter_lines()
            next(lines)
            console.post("/sign-out")
            for _ in lines:
                """What was under way is told; then it ends."""


def test_a_tail_ends_whole_when_the_gateway_stops(served: Served) -> None:
    with ExitStack() as up:
        up.enter_context(served.up())
        console = signed_in(served)
        with console.client.stream("GET", "/tail") as stream:
            lines = stream.iter_lines()
            next(lines)
            stop = threading.Thread(target=up.close)
            stop.start()
            list(lines)  # one that is cut off instead raises
            stop.join()


def test_only_so_many_follow_the_tail(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_LISTENERS", 1)
    with served.up(deliver=False):
        console = signed_in(served)
        with console.client.stream("GET", "/tail") as stream:
            lines = stream.iter_lines()  # to let go of it would hang up
            next(lines)
            assert console.client.get("/tail").status_code == 204
        until(lambda: str(listening(console)), lambda told: told == "200")


def listening(console: Console) -> int:
    with console.client.stream("GET", "/tail") as stream:
        return stream.status_code


# repairs


def test_a_replay_is_shown_before_it_is_done(served: Served, collector: Collector) -> None:
    collector.answer((400, {}))
    with served.up():
        assert served.post(payment(1)).is_success
        console = signed_in(served)
        console.until("/webhooks/1", "http_400")
        assert "dead: http_400" in Read(console.get("/webhooks/1/replay")).text
        assert len(collector.requests) == 1
        with capture_logs() as logs:
            assert console.post("/webhooks/1/replay").headers["location"] == "/console/webhooks/1"
            collector.wait_for(2)
    assert [each["what"] for each in logs if each["event"] == "operator_did"] == ["replay"]


def test_dead_deliveries_are_retried_in_steps_that_show_how_far_it_is(
    served: Served, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STEP", 2)
    collector.answer(*[(400, {})] * 5)
    with served.up():
        for number in range(5):
            assert served.post(payment(number)).is_success
        console = signed_in(served)
        page = console.until("/dead", "Retry all 5")
        fields = {"destination": "webhook", "reason": "http_400", "total": "5"}
        shown = []
        while fields:
            page = console.post("/dead/retry", 200, **fields).text
            shown += [each["value"] for tag, each in Read(page).tags if tag == "progress"]
            hidden = [each for _, each in Read(page).tags if each.get("type") == "hidden" and each["name"] != "csrf"]
            fields = {str(each["name"]): str(each["value"]) for each in hidden}
        collector.wait_for(10)
        console.until("/dead", "Nothing is dead")
    assert shown == ["2", "4", "5"]


def test_some_dead_deliveries_are_chosen_and_retried(served: Served, collector: Collector) -> None:
    collector.answer(*[(400, {})] * 3)
    with served.up():
        for number in range(3):
            assert served.post(payment(number)).is_success
        console = signed_in(served)
        console.until("/dead", "Retry all 3")
        places = [
            str(each["value"]) for tag, each in Read(console.get("/dead/list")).tags if each.get("name") == "place"
        ]
        assert len(places) == 3
        console.client.post("/dead/retry-some", data={"csrf": console.csrf(), "place": places[:2]})
        collector.wait_for(5)
        console.until("/dead", "Retry all 1")
        assert len(console.get("/dead/download").splitlines()) == 1


def test_a_delivery_is_retried_from_its_webhooks_page(served: Served, collector: Collector) -> None:
    collector.answer((400, {}))
    with served.up():
        assert served.post(payment(1)).is_success
        console = signed_in(served)
        page = Read(console.until("/webhooks/1", "http_400"))
        (action,) = [str(each["action"]) for tag, each in page.tags if "/retry" in (each.get("action") or "")]
        console.post(action.removeprefix("/console"))
        collector.wait_for(2)
        console.until("/webhooks/1", "http_200")
        console.post(action.removeprefix("/console"), 409)


def test_a_person_is_found_and_forgotten_for_good(served: Served) -> None:
    with served.up(deliver=False):
        served.link(
            {"subjects": {"user": "user_42"}, "visitor_id": "v-of-42"}, {"authorization": f"Bearer {LINK_SECRET}"}
        )
        assert served.post(SESSION.read_bytes()).is_success
        console = signed_in(served)
        who = {"subject": "user", "value": "user_42"}
        assert "v-of-42" in console.post("/links", 200, **who).text
        console.post("/links/forget", 400, **who)
        assert "Erased" in console.post("/links/forget", 200, sure="yes", **who).text
        assert "v-of-42" not in console.post("/links", 200, **who).text
        assert served.contents()["event"] == 0


async def test_copied_tests_pass(served: Served, tmp_path: Path) -> None:
    names = (
        "checkout.session.completed",
        "refund.created",
        "invoice.paid",
        "customer.created",
        "charge.dispute.created",
    )
    folder = tmp_path / "mappings/tests/stripe"
    folder.mkdir(parents=True)
    with served.up(deliver=False):
        console = signed_in(served)
        for number, name in enumerate(names, 1):
            assert served.post(encoded(document_of(name))).is_success
            (text,) = preformatted(console.get(f"/webhooks/{number}/test"))
            (folder / f"{name}.yaml").write_text(text)
    found = load_tests(tmp_path / "mappings", MAPPINGS)
    assert len(found) == len(names)
    for test in found:
        result = await run_test(test, MAPPINGS, tmp_path / "mappings")
        assert (result.failures, result.ran, bool(result.events)) == ((), True, True), test.name


# the playground


def test_the_playground_shows_events_and_requests_of_a_sample(console: Console) -> None:
    page = console.get("/playground", source="stripe", sample="checkout.session.completed")
    assert "In order." in page
    event, *requests = preformatted(page)
    assert msgspec.json.decode(event)["properties"]["value"] == 110
    assert any(each.startswith("POST ") and '"purchase"' in each for each in requests)


def test_the_playground_points_at_mistakes(console: Console) -> None:
    text = (bundled() / "sources/stripe.yaml").read_text()
    line = text[: text.index("occurred_at: created")].count("\n") + 1
    broken = text.replace("occurred_at: created", "occurred_at: created ||")
    page = console.post("/playground", 200, source="stripe", sample="invoice.paid", mapping=broken).text
    assert f"Line {line}, column" in Read(page).text
    assert any("occurred_at: created ||" in each for each in preformatted(page))


def test_the_playground_sends_stores_and_writes_nothing(served: Served, collector: Collector) -> None:
    before = (bundled() / "sources/stripe.yaml").read_bytes()
    with served.up():
        console = signed_in(served)
        text = before.decode().replace("emit: purchase", "emit: sale")
        page = console.post("/playground", 200, source="stripe", sample="checkout.session.completed", mapping=text).text
        assert '"sale"' in "".join(preformatted(page))
        assert served.contents()["webhook"] == 0
    assert collector.requests == []
    assert (bundled() / "sources/stripe.yaml").read_bytes() == before


def test_a_broken_edit_that_is_not_in_force_is_told_on_every_page(tmp_path: Path) -> None:
    folder = stripes(tmp_path / "mappings")
    environment = {"GATEWAY_STORE": f"sqlite:///{tmp_path}/g.db", "GATEWAY_MAPPINGS": str(folder)}
    app = create_app(load_settings({**environment, "GATEWAY_ADMIN_TOKEN": TOKEN}), deliver=False)
    with TestClient(app) as client:
        client.post("/console/sign-in", data={"token": TOKEN})
        assert "not in force" not in client.get("/console").text
        (folder / "sources/stripe.yaml").write_text("source: stripe\nwhatever: 1\n")
        app.state.mappings.ask()
        page = until(lambda: client.get("/console/links").text, lambda told: "not in force" in told)
    assert "stripe.yaml:" in Read(page).text


def test_a_store_that_is_away_is_said_and_not_shown_as_empty(tmp_path: Path) -> None:
    server = Server().start()
    served = Served(tmp_path, GATEWAY_STORE=server.url, GATEWAY_SECRET_KEY=KEY, GATEWAY_ADMIN_TOKEN=TOKEN)
    with served.up(deliver=False):
        console = signed_in(served)
        assert "There is no such webhook" in console.get("/webhooks")
        server.kill()
        page = console.get("/webhooks", 503)
    server.remove()
    assert "the store cannot be read now" in page
    assert "There is no such webhook" not in page

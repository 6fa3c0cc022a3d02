"""The console in a real browser: on both stores, light and dark, at a desk and in a hand, with and without scripts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from gateway.console import pages
from gateway.server import running
from tests.promises.collector import Collector
from tests.promises.console import PLAIN, TOKEN, Console, pages_of
from tests.promises.served import LINK_SECRET, Served, document_of, encoded, payment
from tests.stores.servers import Server

WITHIN = 30_000
AXE = (Path(__file__).parent / "axe.min.js").read_text()
SIZES = {"desk": (1280, 800), "hand": (390, 844)}
KEY = "b3BlcmF0b3JzIG9mIHRoZSB0ZXN0cyAzMiBieXRlcyE="


@pytest.fixture(scope="module")
def collector() -> Collector:
    return Collector()


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def served(
    request: pytest.FixtureRequest, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Return a gateway with a payment that was sent, one that is dead, and one that nobody is linked to."""
    server = Server().start() if request.param == "redis" else None
    store = {"GATEWAY_STORE": server.url, "GATEWAY_SECRET_KEY": KEY} if server else {}
    with running(collector.app()) as sink:
        sinks = {"WEBHOOK_URL": f"{sink}/sink", "WEBHOOK_SECRET": "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ="}
        served = Served(tmp_path_factory.mktemp("console"), GATEWAY_ADMIN_TOKEN=TOKEN, **sinks, **store)
        with served.up():
            backend = {"authorization": f"Bearer {LINK_SECRET}"}
            served.link({"subjects": {"user": "user_42"}, "visitor_id": "v-1"}, backend)
            assert served.post(encoded(document_of("checkout.session.completed"))).is_success
            collector.wait_for(1)
            collector.answer((400, {}))
            assert served.post(payment(1)).is_success
            collector.wait_for(2)
            assert served.post(encoded(document_of("customer.created"))).is_success
            console = Console(served)
            console.sign_in()
            console.until("/dead", "Retry all 1")
            yield served
    if server:
        server.remove()


@pytest.fixture
def open_console(chromium: Browser, served: Served) -> Iterator[Any]:
    """Return what opens the console in a browser of its own, signed in; nothing in it may throw or be refused."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def note(told: ConsoleMessage) -> None:
        # What is not found is asked for by the tests; all else that a browser complains about is a fault.
        if told.type == "error" and "the server responded with" not in told.text:
            complaints.append(told.text)

    def opened(size: str = "desk", scheme: Any = "light", **options: Any) -> Page:
        width, height = SIZES[size]
        served.ahead += 60_000  # tests sign in more often in a minute than people may
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, base_url=served.url, **options
        )
        context.set_default_timeout(WITHIN)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(error.message))
        page.on("console", note)
        page.goto("/console/webhooks?source=stripe")
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/console/webhooks?source=stripe")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def all_pages(page: Page) -> Iterator[str]:
    """Open one page after the other; yields what it is called."""
    dead = ("/dead/list?destination=webhook&reason=http_400", "/webhooks?state=dead", "/nowhere")
    for path in (*PLAIN, *(each for number in oldest(page) for each in pages_of(number)), *dead):
        answer = page.goto(f"/console{path}")
        assert answer is not None
        assert answer.status == (404 if path == "/nowhere" else 200), path
        yield path


def oldest(page: Page) -> list[int]:
    """Return the numbers of the two webhooks that came first: each store counts in its own way."""
    page.goto("/console/webhooks")
    links = page.locator("tbody a").all()
    return [int(str(each.get_attribute("href")).rpartition("/")[2]) for each in links[:-3:-1]]


def faults(page: Page) -> list[object]:
    """Return what axe finds that keeps somebody out."""
    found: Any = page.evaluate(AXE + "; axe.run(document, {resultTypes: ['violations']})")
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
    ]


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("hand", "dark")])
def test_every_page_fits_and_keeps_nobody_out(open_console: Any, size: str, scheme: str) -> None:
    page = open_console(size, scheme)
    for path in all_pages(page):
        assert page.locator("h1").count() == 1, path
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], path
        assert faults(page) == [], path
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin token")).to_be_focused()
    assert faults(page) == []


@pytest.mark.parametrize(("size", "scheme"), [("desk", "dark"), ("hand", "light")])
def test_colours_and_sizes_do_not_depend_on_each_other(open_console: Any, size: str, scheme: str) -> None:
    page = open_console(size, scheme)
    for path in all_pages(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], path
    page.goto(f"/console/webhooks/{oldest(page)[0]}")
    assert faults(page) == []


def test_a_wrong_token_is_said_to_be_wrong(chromium: Browser, served: Served) -> None:
    served.ahead += 60_000
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"{served.url}/console")
        page.get_by_label("Admin token").fill("guessed")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("not the GATEWAY_ADMIN_TOKEN")
        assert context.cookies() == []
        assert faults(page) == []


def test_what_comes_is_there_without_asking(open_console: Any, served: Served) -> None:
    page = open_console()
    page.goto("/console")
    expect(page.get_by_text("live", exact=True)).to_be_visible(timeout=WITHIN)
    body = encoded(document_of("refund.created") | {"id": f"evt_live_{served.ahead}"})
    assert served.post(body).is_success
    expect(page.locator("#tail tr").first).to_contain_text(f"evt_live_{served.ahead}", timeout=WITHIN)


def test_what_is_folded_is_fetched_when_it_is_opened(open_console: Any) -> None:
    page = open_console()
    page.goto(f"/console/webhooks/{oldest(page)[0]}")
    page.get_by_text("What each expression gives").click()
    expect(page.locator(".steps").first).to_contain_text("checkout.session.completed", timeout=WITHIN)
    page.get_by_text("The requests, as they are made now").click()
    expect(page.locator(".request pre").first).to_contain_text("Idempotency-Key", timeout=WITHIN)


def test_the_playground_follows_what_is_typed(open_console: Any) -> None:
    page = open_console()
    page.goto("/console/playground?source=stripe&sample=checkout.session.completed")
    editor = page.get_by_label("Mapping of stripe")
    text = editor.input_value()
    editor.fill(text.replace("emit: purchase", "emit: sale"))
    expect(page.locator("#outcome summary").first).to_have_text("sale", timeout=WITHIN)
    editor.fill(text.replace("occurred_at: created", "occurred_at: created ||"))
    page.locator("#outcome a[data-line]").first.click(timeout=WITHIN)
    chosen = "(e => e.value.slice(e.selectionStart, e.selectionEnd))(document.getElementById('mapping'))"
    assert page.evaluate(chosen).strip() == "occurred_at: created ||"


COMPLETED = [
    ("source: stripe\n", "veri", "verify: "),
    ("verify:\n  ", "sche", "scheme: "),
    ("verify:\n  scheme: ", "stand", "standard-webhooks"),
    ("rules:\n  - ", "em", "emit: "),
    ("rules:\n  - on: x\n    emit: ", "purch", "purchase"),
    ("rules:\n  - emit: purchase\n    on: ", "refund.cr", "refund.created"),
    ("rules:\n  - on: x\n    properties:\n      value: ", "money_m", "money_minor("),
    ("rules:\n  - on: x\n    properties:\n      value: ", "amount_tot", "data.object.amount_total"),
]


def test_the_editor_completes_keys_values_functions_and_paths(open_console: Any) -> None:
    page = open_console()
    page.goto("/console/playground?source=stripe&sample=checkout.session.completed")
    expect(page.locator("#code")).to_have_attribute("data-ready", "yes", timeout=WITHIN)
    editor = page.get_by_label("Mapping of stripe")
    for before, typed, completed in COMPLETED:
        editor.fill(before)
        editor.press_sequentially(typed)
        expect(page.locator("#offers")).to_be_visible(timeout=WITHIN)
        editor.press("Enter")
        expect(editor).to_have_value(before + completed, timeout=WITHIN)
        expect(page.locator("#offers")).to_be_hidden()


def test_completion_needs_no_mouse_and_keeps_nobody_out(open_console: Any) -> None:
    page = open_console()
    page.goto("/console/playground?source=stripe")
    expect(page.locator("#code")).to_have_attribute("data-ready", "yes", timeout=WITHIN)
    editor = page.get_by_label("Mapping of stripe")
    editor.fill("")
    editor.press("Control+ ")
    editor.press("ArrowDown")
    chosen = page.locator("#offers li[aria-selected=true]")
    expect(chosen).to_have_count(1)
    expect(editor).to_have_attribute("aria-activedescendant", str(chosen.get_attribute("id")))
    assert faults(page) == []
    editor.press("Escape")
    expect(page.locator("#offers")).to_be_hidden()
    editor.press("Tab")  # which leaves the editor, as in any form
    expect(editor).not_to_be_focused()


def test_nothing_that_is_offered_runs(open_console: Any, served: Served) -> None:
    document = document_of("checkout.session.completed")
    document["id"], document["data"]["object"]["id"] = f"evt_offer_{served.ahead}", "<img src=x onerror=alert(1)>"
    assert served.post(encoded(document)).is_success
    page = open_console()
    page.goto(f"/console/webhooks?id={document['id']}")
    page.locator("tbody a").first.click()
    page.get_by_text("Open in the playground").click()
    expect(page.locator("#code")).to_have_attribute("data-ready", "yes", timeout=WITHIN)
    editor = page.get_by_label("Mapping of stripe")
    editor.fill("webhook:\n  id: ")
    editor.press_sequentially("data.obj")
    offered = page.locator("#offers li")
    expect(offered.first).to_contain_text("data.obj", timeout=WITHIN)
    assert "<img" not in " ".join(offered.all_text_contents())  # what a person wrote is masked
    assert page.locator("#offers img").count() == 0


def test_a_mistake_stands_at_its_line(open_console: Any) -> None:
    page = open_console()
    page.goto("/console/playground?source=stripe")
    editor = page.get_by_label("Mapping of stripe")
    editor.fill("source: stripe\nrulez: []\n")
    expect(page.locator(".lines i:nth-child(2)")).to_have_class("wrong", timeout=WITHIN)
    assert page.locator(".lines i").count() == 3


def test_the_playground_takes_another_sample(open_console: Any) -> None:
    page = open_console()
    page.goto("/console/playground?source=stripe")
    page.get_by_label("Sample").select_option("refund.created")
    expect(page.locator("#outcome summary").first).to_have_text("refund", timeout=WITHIN)
    page.get_by_label("Source").select_option("shopify")
    expect(page.get_by_label("Mapping of shopify")).to_be_visible(timeout=WITHIN)


def test_an_address_is_copied(open_console: Any, served: Served) -> None:
    page = open_console(permissions=["clipboard-read", "clipboard-write"])
    page.goto("/console/set-up")
    page.get_by_role("button", name="Copy URL").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible(timeout=WITHIN)
    assert page.evaluate("navigator.clipboard.readText()") == f"{served.url}/webhooks/stripe"


def test_the_dead_are_retried_step_by_step(
    open_console: Any, served: Served, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STEP", 1)
    known, console = len(collector.requests), Console(served)
    page = open_console()
    console.client.cookies.update({each["name"]: each["value"] for each in page.context.cookies()})
    dead = dead_in(console) + 2
    collector.answer((400, {}), (400, {}))
    for number in range(2):
        assert served.post(payment(served.ahead * 10 + number)).is_success
    console.until("/dead", f"Retry all {dead}")
    page.goto("/console/dead")
    page.get_by_role("button", name=f"Retry all {dead}").click()
    expect(page.get_by_text(f"{dead} of {dead} started again: done")).to_be_visible(timeout=WITHIN)
    collector.wait_for(known + 2 + dead)
    page.get_by_text("See what is left").click()
    expect(page.get_by_text("Nothing is dead")).to_be_visible(timeout=WITHIN)


def test_without_javascript_pages_read_and_repair_as_well(
    open_console: Any, served: Served, collector: Collector
) -> None:
    page = open_console(java_script_enabled=False)
    console = Console(served)
    console.client.cookies.update({each["name"]: each["value"] for each in page.context.cookies()})
    dead = dead_in(console) + 1
    collector.answer((400, {}))
    assert served.post(payment(served.ahead * 10 + 7)).is_success
    console.until("/dead", f"Retry all {dead}")
    page.goto("/console/dead")
    page.get_by_role("button", name=f"Retry all {dead}").click()
    expect(page.get_by_text(f"{dead} of {dead} started again: done")).to_be_visible()
    page.goto("/console/playground")
    page.get_by_label("Mapping of stripe").fill("nonsense")
    page.get_by_role("button", name="Try").click()
    expect(page.get_by_role("heading", name="Mistakes")).to_be_visible()


def dead_in(console: Console) -> int:
    """Return how many deliveries are dead: the tests of this file share a gateway."""
    found = re.search(r"Retry all ([0-9]+)", console.get("/dead"))
    return int(found[1]) if found else 0

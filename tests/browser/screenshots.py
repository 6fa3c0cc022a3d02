"""Renew the pictures of the console in the README: `python -m tests.browser.screenshots`, with Debian's `chromium`."""

import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import ARGS
from tests.browser.shop import an_hour
from tests.promises.console import TOKEN, Console
from tests.promises.served import Served

FOLDER = Path(__file__).parent / "screenshots"
MAX_SIZE = 150_000
"""Bytes of a picture: it is part of every checkout."""
MAPPING = """\
source: stripe
verify:
  scheme: stripe
  secrets: ${STRIPE_WEBHOOK_SECRET}
webhook:
  id: id
  type: type
  occurred_at: created
rules:
  - on: checkout.session.completed
    emit: purchase
    once: data.object.payment_intent
    properties:
      order_id: data.object.metadata.order_id
      currency: upper(data.object.currency)
      value: money_minor("""
DESK, HAND = (1280, 800), (390, 844)


def main() -> None:
    """Take all pictures of a gateway that has an hour of trade behind it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit(
            "the pictures are taken in a real browser: install the package `chromium` (apt-get install -y chromium)"
        )
    with TemporaryDirectory() as folder, an_hour(Path(folder)) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        light, dark, hand = (
            _page(browser, served, DESK),
            _page(browser, served, (1280, 480), "dark"),
            _page(browser, served, HAND),
        )
        _take(light, "overview", "")
        _take(light, "webhook", f"/webhooks/{_refund(served)}", whole=True)
        light.goto("/console/playground?source=stripe&sample=checkout.session.completed")
        _complete(light)
        _take(light, "playground")
        _take(dark, "dead-letters", "/dead")
        _take(hand, "phone", "")
        browser.close()


def _page(browser: Browser, served: Served, size: tuple[int, int], scheme: Literal["light", "dark"] = "light") -> Page:
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, base_url=served.url)
    page = context.new_page()
    page.goto("/console")
    page.get_by_label("Admin token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console")
    return page


def _refund(served: Served) -> int:
    """Return the number of a webhook that one collector refused."""
    console = Console(served)
    console.sign_in()
    found = re.search(r"/console/webhooks/([0-9]+)", console.get("/webhooks?type=refund.created"))
    assert found, "the shop pays something back within its hour"
    return int(found[1])


def _complete(page: Page) -> None:
    """Write a small mapping, up to where the editor offers what may follow and says what is wrong as yet."""
    page.locator("#code[data-ready=yes]").wait_for()
    editor = page.get_by_label("Mapping of stripe")
    editor.fill(MAPPING)
    editor.press_sequentially("data.object.amount_t")
    page.locator("#offers li").first.wait_for()
    page.locator(".lines .wrong").wait_for()
    page.evaluate("scrollTo(0, 0)")


def _take(page: Page, name: str, path: str | None = None, *, whole: bool = False) -> None:
    if path is not None:
        page.goto(f"/console{path}")
    if path == "":
        page.get_by_text("live", exact=True).wait_for()
    file = FOLDER / f"{name}.png"
    page.screenshot(path=file, full_page=whole, animations="disabled", caret="hide")
    if (size := file.stat().st_size) > MAX_SIZE:
        sys.exit(f"{file.name} has {size:,} bytes, more than {MAX_SIZE:,}: take less of the page")


if __name__ == "__main__":
    main()

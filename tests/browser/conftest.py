"""One real Chromium a module, and fresh loopback servers a test."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright

from tests.browser.pages import Site, served

ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "these tests drive a real browser: install the package `chromium` (apt-get install -y chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(chromium: Browser) -> Iterator[Page]:
    with chromium.new_context() as context:
        context.set_default_timeout(30_000)
        yield context.new_page()


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """A tab that knows nothing of the tests before, and in which nothing may throw.

    Each test's sites have ports of their own, and so storages of their own; cookies are shared by ports, and cleared.
    """
    errors: list[str] = []

    def note(error: Error) -> None:
        errors.append(error.message)

    tab.on("pageerror", note)
    yield tab
    tab.remove_listener("pageerror", note)
    tab.context.clear_cookies()
    assert errors == []


@pytest.fixture
def profile(page: Page) -> BrowserContext:
    return page.context


@pytest.fixture
def shop() -> Iterator[Site]:
    """The site whose pages carry the script."""
    with served() as site:
        yield site


@pytest.fixture
def gateway() -> Iterator[Site]:
    """On another origin than the shop: serves the script and records what is posted to /link."""
    with served() as site:
        yield site

"""A browser without JavaScript: it signs in to the console, fills in forms, and goes where it is sent."""

import re
import time
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser

import httpx

from tests.promises.served import Served

TOKEN = "operators_of_the_console_tests_0123456789"
WITHIN = 30.0
PLAIN = ("", "/webhooks", "/dead", "/dead/list", "/accuracy", "/links", "/set-up", "/playground")
OF_ONE = ("", "/explained", "/requests", "/replay", "/test")


def pages_of(webhook: int) -> tuple[str, ...]:
    """Return every page there is of a webhook."""
    return (*(f"/webhooks/{webhook}{each}" for each in OF_ONE), f"/playground?webhook={webhook}")


PAGES = (*PLAIN, *pages_of(1))
"""Every page, when there is a webhook; SQLite numbers them from 1."""
CHANGES = (
    "/sign-out",
    "/webhooks/find",
    "/webhooks/1/replay",
    "/deliveries/1/0/retry",
    "/dead/retry",
    "/dead/retry-some",
    "/links",
    "/links/forget",
    "/playground",
)
"""Everything that takes a form of a session."""


class Console:
    """One browser."""

    def __init__(self, served: Served, cookies: dict[str, str] | None = None) -> None:
        # Nobody closes it, so it keeps no connection; and it needs no certificates, which take long to read.
        self.client = httpx.Client(
            base_url=f"{served.url}/console",
            cookies=cookies,
            timeout=WITHIN,
            limits=httpx.Limits(max_keepalive_connections=0),
            verify=False,
        )

    def sign_in(self, token: str = TOKEN, next: str = "") -> httpx.Response:
        return self.client.post("/sign-in", data={"token": token, "next": next})

    def get(self, path: str, status: int = 200, **query: str | int) -> str:
        answer = self.client.get(path, params=query) if query else self.client.get(path)
        assert answer.status_code == status, (path, answer.text)
        return answer.text

    def post(self, path: str, status: int = 303, **fields: str) -> httpx.Response:
        """Send a form of this session."""
        answer = self.client.post(path, data={"csrf": self.csrf(), **fields})
        assert answer.status_code == status, answer.text
        return answer

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', self.get("/links"))
        assert found
        return found[1]

    def until(self, path: str, told: str) -> str:
        """Return a page once it says something."""
        return until(lambda: self.get(path), lambda page: told in page)


def until(look: Callable[[], str], holds: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + WITHIN
    while not holds(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


class Read(HTMLParser):
    """What a page consists of: its tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def active(self) -> list[object]:
        """Return what runs or loads something, but for the console's own files."""
        found: list[object] = []
        for tag, attributes in self.tags:
            address = attributes.get("src") or (attributes.get("href") if tag in {"link", "base"} else None) or ""
            foreign = tag in {"script", "link", "img", "iframe", "base"} and not address.startswith("/console/static/")
            inline = [name for name in attributes if name.startswith(("on", "hx-on")) or name in {"style", "srcdoc"}]
            steals = (attributes.get("href") or "").lower().startswith(("javascript:", "data:"))
            if foreign or inline or steals or tag in {"style", "object", "embed"}:
                found.append((tag, attributes))
        return found


def preformatted(page: str) -> list[str]:
    """Return the texts of a page's <pre>s."""
    return [unescape(each) for each in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]

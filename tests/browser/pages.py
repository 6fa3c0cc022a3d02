"""Pages on loopback, the gateway's script for them, and whoever records what they post. Nothing leaves the machine."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import msgspec
from msgspec import Struct

from gateway.link_script import link_script

WITHIN = 30.0
UUID_1 = "11111111-1111-4111-8111-111111111111"
UUID_2 = "22222222-2222-4222-8222-222222222222"
CART = "Z2NwLWV1cm9wZS13ZXN0MTowMUpBQkNERUY"
CHECKOUT = "cs_test_a1b2c3d4e5f6g7h8i9j0"
SUBJECT = f"document.cookie = 'cart={CART}%3Fkey%3Dabcdef';"

STORAGE = {
    "nexly": f"""
        localStorage.trk_visitor_id = '{UUID_1}'; localStorage.trk_session_id = '{UUID_2}';
        localStorage.trk_session_ts = Date.now() - 60000;""",
    "datalyr": f"""
        document.cookie = '__dl_visitor_id=anon_{UUID_1}; path=/';
        localStorage.dl_dl_anonymous_id = '"anon_{UUID_2}"';
        localStorage.dl_dl_session_data = JSON.stringify(
            {{id: 'sess_{UUID_2}', lastActivity: Date.now() - 60000, isActive: true}});""",
    "databuddy": f"""
        localStorage.did = 'anon_{UUID_1}'; sessionStorage.did_session = 'sess_{UUID_2}';
        sessionStorage.did_session_timestamp = Date.now() - 60000;""",
    "analyse": f"""
        localStorage.analyse_anon_id = '{UUID_1}'; localStorage.analyse_session_id = '{UUID_2}';
        localStorage.analyse_session_ts = Date.now() - 60000;""",
}
"""How each product's own script leaves the storage of a browser."""


class Post(Struct, frozen=True):
    path: str
    headers: dict[str, str]
    body: Any


class Site:
    """Serves `pages` (path to HTML, `{site}` being its own URL), and keeps what is posted to it.

    `answers` are the statuses of the next posts, then 204; `headers` are sent with every page.
    """

    def __init__(self) -> None:
        self.url = ""
        self.pages: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.answers: list[int] = []
        self.posts: list[Post] = []
        self.preflights = 0
        self.arrived = threading.Condition()

    def page(self, script: str = "", *, path: str = "/", tag: str = "", after: str = "", gateway: "Site") -> str:
        """Make a page that runs `script`, then loads the gateway's; return its URL."""
        tag = tag or f'<script src="{gateway.url}/link.js"></script>'
        self.pages[path] = f"<!doctype html><meta charset=utf-8><script>{script}</script>{tag}<script>{after}</script>"
        return self.url + path

    def links(self, number: int = 1) -> list[Any]:
        """Return the bodies posted to /link once there are that many. Fails when more came, or too few in time."""
        with self.arrived:
            self.arrived.wait_for(lambda: len(self.posts) >= number, WITHIN)
            bodies = [post.body for post in self.posts if post.path == "/link"]
        assert len(bodies) == number, bodies
        return bodies

    def record(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        with self.arrived:
            self.posts.append(Post(path, {name.lower(): value for name, value in headers.items()}, decoded(body)))
            self.arrived.notify_all()
            return self.answers.pop(0) if self.answers else 204


def decoded(body: bytes) -> Any:
    return msgspec.json.decode(body) if body else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def site(self) -> Site:
        return cast("_Server", self.server).site

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/link.js":
            self._answer(200, link_script().body, "text/javascript")
        elif path in self.site.pages:
            self._answer(200, self.site.pages[path].replace("{site}", self.site.url).encode(), "text/html")
        else:
            self._answer(404, b"", "text/plain")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(self.site.record(self.path, dict(self.headers.items()), body), b"", "text/plain")

    def do_OPTIONS(self) -> None:
        self.site.preflights += 1
        self._answer(204, b"", "text/plain")

    def _answer(self, status: int, body: bytes, type: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": type, "Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"}
        for name, value in (headers | self.site.headers).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: object) -> None:
        """Say nothing: a test's output is its failures."""


@contextmanager
def served() -> Iterator[Site]:
    site = Site()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.site = site
        site.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield site
        server.shutdown()
        thread.join()

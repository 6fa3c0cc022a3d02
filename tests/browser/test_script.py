"""The script as the gateway serves it."""

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from gateway.link_script import link_script, script_route

SCRIPT = link_script()


@pytest.fixture
def client() -> Iterator[TestClient[Any]]:
    with TestClient(Litestar([script_route()], openapi_config=None, logging_config=None)) as client:
        yield client


def test_any_origin_may_load_it_and_keep_it_for_an_hour(client: TestClient[Any]) -> None:
    answer = client.get("/link.js")
    assert (answer.status_code, answer.content) == (200, SCRIPT.body)
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_address_with_its_hash_may_be_kept_for_ever(client: TestClient[Any]) -> None:
    answer = client.get(SCRIPT.pinned)
    assert answer.content == SCRIPT.body
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert SCRIPT.hash == hashlib.sha256(answer.content).hexdigest()[:16]
    assert SCRIPT.integrity == f"sha384-{base64.b64encode(hashlib.sha384(answer.content).digest()).decode()}"


def test_the_address_of_another_version_is_not_found(client: TestClient[Any]) -> None:
    assert client.get(f"/link.{'0' * 16}.js").status_code == 404


@pytest.mark.parametrize("known", ["{}", "W/{}", '"other", W/{}', "*"])
def test_who_has_it_is_told_so(client: TestClient[Any], known: str) -> None:
    answer = client.get("/link.js", headers={"If-None-Match": known.format(f'"{SCRIPT.hash}"')})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == SCRIPT.etag
    assert answer.headers["cache-control"] == "public, max-age=3600"


def test_who_has_another_one_gets_it(client: TestClient[Any]) -> None:
    assert client.get("/link.js", headers={"If-None-Match": '"0123456789abcdef"'}).status_code == 200


def test_it_is_small_and_compressed_only_for_who_asks(client: TestClient[Any]) -> None:
    with client.stream("GET", "/link.js", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(raw) == SCRIPT.body
    assert len(raw) < 5000
    plain: httpx.Response = client.get("/link.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_it_needs_no_charset_and_no_newer_syntax_than_es2017() -> None:
    text = SCRIPT.body.decode("ascii")
    for newer in (
        r"\?\.[a-z(]",
        r"\?\?",
        r"\{\s*\.\.\.",
        r"catch\s*\{",
        r"\.flat\(",
        r"\.finally\(",
        r"\*\*",
        r"\\p\{",
    ):
        assert re.search(newer, text) is None, newer

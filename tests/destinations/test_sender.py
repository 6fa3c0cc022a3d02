"""Whatever the other side does, sending ends in a response that says what happened, in a few words and no secret."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec import structs

from gateway.deliveries import State
from gateway.destinations import MAX_RESPONSE, Destination, Request, Response, judge, pack
from gateway.mappings import bundled, load_mappings
from gateway.sealing import Secret
from gateway.sending import HttpSender

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(behave: Behaviour, requests: list[bytes] | None = None) -> AsyncIterator[str]:
    """Run a server that reads a request's head, behaves, and hangs up. Yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if requests is not None:
                requests.append(head)
            await behave(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}/collect"


def saying(answer: bytes) -> Behaviour:
    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return behave


async def sent_to(url: str, headers: dict[str, str] | None = None) -> Response:
    sender = HttpSender(2)
    try:
        return await sender.send(Request(url, headers or {}, b"{}"))
    finally:
        await sender.close()


def destination() -> Destination:
    settings = {"DATALYR_API_KEY": "dk_1", "DATALYR_HOST": "https://collector.example/track"}
    return load_mappings(bundled(), settings.get).destinations["datalyr"]


def verdict(response: Response) -> tuple[State, str]:
    (outcome,) = judge(response, destination(), 1)
    return outcome.state, outcome.reason


async def test_an_endless_body_is_read_to_a_limit() -> None:
    written = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 16_384)
            await writer.drain()
            written += 16_384

    async with serving(endless) as url:
        response = await sent_to(url)
    assert (response.status, len(response.body)) == (200, MAX_RESPONSE)
    assert written < 64 * MAX_RESPONSE  # it was hung up on, and not read to its end
    assert verdict(response) == (State.SENT, "http_200")


async def test_a_redirect_is_not_followed() -> None:
    requests: list[bytes] = []
    answer = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with serving(saying(answer), requests) as url:
        response = await sent_to(url)
    assert (response.status, response.error) == (302, "a redirect within the host is not followed")
    assert verdict(response)[0] == State.DEAD
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("location", "to"),
    [
        (b"http://169.254.169.254/latest/meta-data?key=dk_private", "http://169.254.169.254"),
        (b"https://user:dk_private@Collector.example:8443/", "https://collector.example"),
        (b"//169.254.169.254/dk_private", "169.254.169.254"),
        (b"http://[fd00:ec2::254]/", "http://fd00:ec2::254"),
        (b"file:///etc/passwd", "file://"),
        (b"gopher://169.254.169.254/_dk_private", "gopher://169.254.169.254"),
        (b"http://[dk_private", "an address that cannot be read"),
        (b"http://dk_private\xe9/", "an address that cannot be read"),
        (b"http://" + b"x" * 300 + b"/", "an address that cannot be read"),
    ],
    ids=repr,
)
async def test_of_a_redirect_only_its_host_is_told(location: bytes, to: str) -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
    async with serving(saying(answer)) as url:
        response = await sent_to(url)
    assert (response.status, response.error) == (302, f"a redirect to {to} is not followed")


async def test_no_cookie_is_taken() -> None:
    requests: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: seen=1\r\nContent-Length: 0\r\n\r\n"
    sender = HttpSender(1)
    async with serving(saying(answer), requests) as url:
        for _ in range(2):
            await sender.send(Request(url, {}, b"{}"))
    await sender.close()
    assert [b"cookie:" in each.lower() for each in requests] == [False, False]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>ok</html>", "http_200"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "http_204"),
        (b"HTTP/1.0 202 Accepted\r\n\r\n", "http_202"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "http_200"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "http_200"),
    ],
    ids=["html", "nothing", "http-1.0", "continue", "not-really-gzip"],
)
async def test_a_2xx_is_sent_whatever_its_body(answer: bytes, expected: str) -> None:
    async with serving(saying(answer)) as url:
        assert verdict(await sent_to(url)) == (State.SENT, expected)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "network: the connection was dropped before an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "network: the connection was dropped before an answer"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "network: the answer is not HTTP"),
        (b"HTTP/1.1 99999 What\r\n\r\n", "network: the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n", "network: the answer's head is too long"),
    ],
    ids=["nothing", "half-a-head", "no-http", "no-status", "huge-head"],
)
async def test_no_answer_is_told_and_tried_again(answer: bytes, error: str) -> None:
    async with serving(saying(answer)) as url:
        response = await sent_to(url)
    assert response == Response(0, error=error, uncertain=True)  # it may have counted before it broke off
    assert verdict(response) == (State.DUE, error)


async def test_nobody_listening_is_told_and_tried_again() -> None:
    async with serving(saying(b"")) as url:
        pass
    response = await sent_to(url)
    refused = "network: the connection was refused: nothing listens on this port"
    assert response == Response(0, error=refused)
    assert verdict(response) == (State.DUE, refused)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/collect",
        "https://",
        "http://[bad",
        "ftp://collector.example/",
        "file:///etc/passwd",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "http://collector.example/\0",
    ],
)
async def test_a_url_that_is_none_is_told(url: str) -> None:
    assert await sent_to(url) == Response(0, error="network: the endpoint is no URL that can be posted to")


@pytest.mark.parametrize("secret", ["dk_private\r\nX-More: 1", "dk_private\n", "dk_private\0", "dk_privaté\u2028"])
async def test_a_secret_that_no_header_can_hold_is_told_without_it(secret: str) -> None:
    requests: list[bytes] = []
    to = structs.replace(destination(), secrets={"api_key": Secret(secret)})
    async with serving(saying(b"HTTP/1.1 200 OK\r\n\r\n"), requests) as url:
        request = pack([b"{}"], structs.replace(to, url=url), "evt_1", 0)
        response = await sent_to(url, dict(request.headers))
    unsendable = "network: a header or the host has a character that none can hold: look at the secrets and settings"
    assert response == Response(0, error=unsendable)
    assert "private" not in str(response.error) + repr(request)
    assert requests == []


async def test_header_names_of_an_answer_are_in_lower_case() -> None:
    async with serving(saying(b"HTTP/1.1 429 Slow\r\nRETRY-After: 7\r\nContent-Length: 0\r\n\r\n")) as url:
        response = await sent_to(url)
    assert response.headers["retry-after"] == "7"
    assert verdict(response) == (State.DUE, "http_429")

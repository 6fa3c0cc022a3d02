"""One request of a delivery over the wire, and what came of it. Bounded in time and in what is read."""

import asyncio

import httpx

from gateway import __version__
from gateway.destinations import MAX_RESPONSE, Request, Response

USER_AGENT = f"gateway/{__version__}"
"""Never httpx's own: collectors take it for a bot, and drop the event with a 2xx."""
DEADLINE = 15.0
"""Seconds from the first byte sent to the last byte read."""


class HttpSender:
    """Sends over pooled connections. Follows no redirects, reads at most `MAX_RESPONSE` bytes, ends by `DEADLINE`."""

    def __init__(self, concurrency: int) -> None:
        self._client = httpx.AsyncClient(
            headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(10.0, connect=5.0),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            follow_redirects=False,
        )

    async def send(self, request: Request) -> Response:
        """Post the request. A failure to get an answer is a response with status 0."""
        try:
            async with (
                asyncio.timeout(DEADLINE),
                self._client.stream("POST", request.url, headers=dict(request.headers), content=request.body) as answer,
            ):
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Response(answer.status_code, headers, await _read(answer))
        except TimeoutError:
            return Response(0, error="timeout", uncertain=True)
        except httpx.TimeoutException as error:
            return Response(0, error=f"timeout ({type(error).__name__})", uncertain=not isinstance(error, _NOT_SENT))
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError) as error:
            # The type alone: some messages quote the headers they object to, secrets included.
            return Response(0, error=f"network ({type(error).__name__})", uncertain=not isinstance(error, _NOT_SENT))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
    UnicodeError,
)
"""Failures after which the other side has seen nothing."""


async def _read(answer: httpx.Response) -> bytes:
    body = b""
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) >= MAX_RESPONSE:
            break
    return body[:MAX_RESPONSE]

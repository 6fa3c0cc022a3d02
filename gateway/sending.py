"""One request of a delivery over the wire, and what came of it. Bounded in time and in what is read.

Why no answer came is told in words of our own, found by the types of the errors, `errno`, and OpenSSL's codes. No
message of an error is quoted: some hold the URL, or the header that they object to, secrets included.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from enum import IntEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import httpx

from gateway import __version__
from gateway.destinations import MAX_RESPONSE, Request, Response

USER_AGENT = f"gateway/{__version__}"
"""Never httpx's own: collectors take it for a bot, and drop the event with a 2xx."""
DEADLINE = 15.0
"""Seconds from when a request is handed over to the last byte read."""
CONNECT = 5.0
"""Seconds to find a host and connect to it, and as many again for TLS."""
SILENCE = 10.0
"""Seconds that the other side may neither take nor send a byte."""


class HttpSender:
    """Sends over pooled connections. Follows no redirects, reads a bounded answer, ends by its deadline."""

    def __init__(self, concurrency: int, *, deadline: float = DEADLINE, connect: float = CONNECT) -> None:
        self._deadline = deadline
        self._client = httpx.AsyncClient(
            headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
            # A collector that sets cookies would have each request carry all that it ever set.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(SILENCE, connect=connect),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            follow_redirects=False,
        )

    async def send(self, request: Request, *, method: str = "POST", most: int = MAX_RESPONSE) -> Response:
        """Send the request; read `most` bytes of the answer. A failure to get one is a response with status 0.

        An answer whose head came and whose body did not is one too, unless it is a 2xx: that may depend on its body.
        """
        if not _is_address(request.url):
            return Response(0, error=_NO_ADDRESS)
        way = _Way()
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self._deadline),
                self._client.stream(
                    method,
                    request.url,
                    headers=dict(request.headers),
                    content=request.body,
                    extensions={"trace": way.passed},
                ) as answer,
            ):
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) >= most:
                        break
        except TimeoutError:
            error = _late(way, self._deadline)
        except httpx.TimeoutException as late:
            connecting = isinstance(late, httpx.ConnectTimeout)
            error = _late(way, (self._client.timeout.connect if connecting else SILENCE) or 0)
        except _AnsweredBefore:
            error = "network: the answer came before the request: it was another request's"
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError) as broken:
            error = _broken(way, broken)
            if isinstance(broken, httpx.LocalProtocolError):
                way.step = Step.WAIT  # refused on our side, before its first byte
        else:
            return Response(way.status, way.headers, bytes(body[:most]), _redirect(way))
        if way.status >= 300:
            return Response(way.status, way.headers, bytes(body[:most]), _redirect(way) or error)
        return Response(0, error=error, uncertain=way.step >= Step.SEND)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


_NO_ADDRESS = "network: the endpoint is no URL that can be posted to"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535: one event loop raises nothing of its own, the other takes it modulo 65536
        return False


class Step(IntEnum):
    """How far a request came. From `SEND` on the other side may have seen it."""

    WAIT = 0
    CONNECT = 1
    TLS = 2
    SEND = 3
    ANSWER = 4
    BODY = 5


_STARTED = {
    "connection.connect_tcp.started": Step.CONNECT,
    "connection.start_tls.started": Step.TLS,
    "http11.send_request_headers.started": Step.SEND,
    "http11.receive_response_headers.started": Step.ANSWER,
    "http11.receive_response_headers.complete": Step.BODY,
}


class _AnsweredBefore(Exception):
    """The answer was there before its request was written."""


class _Way:
    """What httpcore tells of a request on its way, and the head of the answer as soon as it is there.

    A collector that answers twice leaves its second answer in the connection's buffer, and the next request on it
    would take that for its own. To read from the network takes a turn of the event loop, to read a buffer does not.
    """

    def __init__(self) -> None:
        self.step = Step.WAIT
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._turned = False

    async def passed(self, event: str, info: Mapping[str, Any]) -> None:
        request = info.get("request")
        if event not in _STARTED or (request is not None and request.method == b"CONNECT"):  # that is for a proxy
            return
        if event.endswith("receive_response_headers.started"):
            asyncio.get_running_loop().call_soon(self._turn)
        if event.endswith("receive_response_headers.complete") and not self._turned:
            raise _AnsweredBefore
        self.step = _STARTED[event]
        if self.step == Step.BODY:
            _, self.status, _, headers = info["return_value"]
            self.headers = {name.lower(): value for name, value in httpx.Headers(headers).items()}

    def _turn(self) -> None:
        self._turned = True


def _late(way: _Way, seconds: float) -> str:
    missing = {
        Step.WAIT: "no connection was free",
        Step.CONNECT: "no connection",
        Step.TLS: "no TLS handshake",
        Step.SEND: "the request was not taken",
        Step.ANSWER: "no answer",
        Step.BODY: f"answered {way.status}, but not to its end",
    }
    return f"timeout: {missing[way.step]} within {seconds:g} s"


def _broken(way: _Way, error: Exception) -> str:
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return _NO_ADDRESS
    if isinstance(error, httpx.LocalProtocolError | UnicodeError):
        return "network: a header or the host has a character that none can hold: look at the secrets and settings"
    if isinstance(error, httpx.ProxyError):
        return "network: the proxy did not connect"
    causes = list(_causes(error))
    if way.step <= Step.TLS:
        return _unconnected(way, causes)
    if way.step <= Step.ANSWER:
        if not _is_malformed(causes):
            return "network: the connection was dropped before an answer"
        too_long = any(getattr(cause, "error_status_hint", 0) == 431 for cause in causes)
        return "network: the answer's head is too long" if too_long else "network: the answer is not HTTP"
    what = "is malformed" if _is_malformed(causes) else "was dropped"
    return f"network: answered {way.status}, then the answer {what}"


def _unconnected(way: _Way, causes: list[BaseException]) -> str:
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and cause.reason != "UNEXPECTED_EOF_WHILE_READING":
            return f"TLS: {_tls(cause)}"
        if isinstance(cause, socket.gaierror):
            unknown = cause.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
            return "DNS: there is no such host" if unknown else "DNS: no name server answers for this host"
    if way.step == Step.TLS:
        return "TLS: the connection was dropped during the handshake"
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if errno.ECONNREFUSED in numbers:
        return "network: the connection was refused: nothing listens on this port"
    if numbers & _NO_WAY:
        return "network: there is no way to this host: a firewall, or only IPv6 addresses and none here"
    return "network: no connection"


_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EACCES, errno.EPERM}

_CERTIFICATE = {
    9: "certificate is not valid yet",
    10: "certificate has expired",
    18: "certificate is self-signed",
    19: "certificate is signed by an authority that is not trusted here",
    20: "certificate's issuer is not known here, or its chain is not sent whole",
    21: "certificate's issuer is not known here, or its chain is not sent whole",
    23: "certificate has been revoked",
    62: "certificate is for another host",
    64: "certificate is for another address",
}
"""By OpenSSL's verify codes. Its own words for the last two name the host."""


def _tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CERTIFICATE.get(error.verify_code, f"certificate is refused (verify code {error.verify_code})")
    reason = error.reason or "unknown"
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "the other side does not speak it on this port"
    return f"the handshake failed ({reason.lower()})"


def _is_malformed(causes: list[BaseException]) -> bool:
    """Say whether what came could not be read, or only ended early. The errors of httpcore's parser carry a hint."""
    return any(hasattr(cause, "error_status_hint") and "closed connection" not in str(cause) for cause in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that led to it."""
    if error is None:
        return
    yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    yield from _causes(error.__cause__ or error.__context__)


def _redirect(way: _Way) -> str | None:
    """Say where a redirect leads: its host alone, as the rest of the address may hold what was sent to it."""
    location = way.headers.get("location")
    if way.status // 100 != 3 or location is None:
        return None
    try:
        to = urlsplit(location)
        host = to.hostname or ""
    except ValueError:
        return "a redirect to an address that cannot be read is not followed"
    if not to.scheme and not host:
        return "a redirect within the host is not followed"
    if not (host + to.scheme).isascii() or not (host + to.scheme).isprintable() or len(host) > 253:
        return "a redirect to an address that cannot be read is not followed"
    return f"a redirect to {f'{to.scheme}://' if to.scheme else ''}{host} is not followed"

"""Whatever a collector does, an operator reads in the store what came of it, and nothing waits for it without end.

A real loop over a real store delivers to a server of raw sockets that follows a script.
"""

import asyncio
import contextlib
import errno
import gzip
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.deliveries import State
from gateway.delivery import DeliveryLoop
from gateway.destinations import MAX_RESPONSE, Destination, Request
from gateway.sealing import Sealer
from gateway.sending import HttpSender
from gateway.settings import load_settings
from gateway.store.sqlite import SqliteStore
from gateway.stored import StoredRequests
from tests.destinations.fakes import NOW
from tests.destinations.test_collectors import SEALER, acceptance
from tests.destinations.test_rendering import PLAIN, destination, event
from tests.promises.collector import Collector
from tests.promises.served import Served, payment

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WITHIN = 30.0


class Told(NamedTuple):
    """What the store says of a delivery after one try. `answer` is the part of the response that was kept."""

    state: State
    reason: str | None
    status: int
    outcome: str
    answer: bytes | None
    took: int


def to_sink(url: str, keys: str = "") -> Destination:
    """Return a destination where what may have arrived waits for somebody to decide; what did not is due again."""
    return destination(PLAIN + "uncertain: park\n" + keys, url)


@asynccontextmanager
async def serving(script: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a server that follows the script with each connection; hangs up where the script ends."""
    connections: set[asyncio.Task[None]] = set()

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(follow(reader, writer)))

    server = await asyncio.start_server(connected, host, ssl=tls)
    address, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"{'https' if tls else 'http'}://{f'[{address}]' if ':' in address else address}:{port}"
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + await reader.readexactly(int(lengths[0].split(b":")[1]))


def saying(*parts: bytes, then: Callable[[], Awaitable[None]] | None = None) -> Script:
    """Take the request, write the parts one by one, and after `then` hang up."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then is not None:
            await then()

    return script


def repeating(head: bytes, part: bytes) -> Script:
    """Take the request, and after the head write the part for as long as anybody reads."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()

    return script


async def for_ever() -> None:
    await asyncio.Event().wait()


async def told(folder: Path, to: Destination | str, sender: HttpSender | None = None) -> Told:
    """Try once to deliver an event; return what the store says of it."""
    store = SqliteStore.open(folder / "bad.db", SEALER.fingerprint())
    to = to_sink(to) if isinstance(to, str) else to
    sender = sender or HttpSender(2)
    began = time.monotonic()

    def now() -> int:
        return NOW + int((time.monotonic() - began) * 1000)

    try:
        receipt = await store.accept(acceptance([event(1)], to))
        await DeliveryLoop(to.name, lambda: to, store, SEALER, sender, now, lambda _low, high: high).step()
        (delivery,) = await store.deliveries(receipt.webhook)
    finally:
        await sender.close()
        await store.close()
    (attempt,) = delivery.attempts
    answer = None if attempt.response is None else SEALER.open(attempt.response, b"response")
    return Told(delivery.state, delivery.reason, attempt.status, attempt.outcome, answer, attempt.took)


def is_uncertain(it: Told, reason: str) -> bool:
    return it[:5] == (State.PARKED, f"uncertain: {reason}", 0, reason, None)


def is_certain(it: Told, reason: str) -> bool:
    return it[:5] == (State.DUE, reason, 0, reason, None)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HTML = b"<html><h1>We are down for maintenance</h1></html>"
ERROR = b'{"ok": false, "error": "no such project"}'


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    lines = (b"HTTP/1.1 %d Any" % status, b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join([*lines, b"", body])


async def test_a_page_in_html_is_kept_to_be_read(tmp_path: Path) -> None:
    async with serving(saying(answer(502, HTML, b"Content-Type: text/html"))) as url:
        it = await told(tmp_path, url)
    assert it[:5] == (State.DUE, "http_502", 502, "http_502", HTML)


@pytest.mark.parametrize("body", [HTML, ERROR, b"", b'{"ok": true', b"[" * 5_000], ids=repr)
async def test_a_200_whose_body_is_no_success_is_dead_with_its_body_kept(tmp_path: Path, body: bytes) -> None:
    async with serving(saying(answer(200, body))) as url:
        it = await told(tmp_path, to_sink(url, "success: status == `200` && body.ok\n"))
    assert it[:5] == (State.DEAD, "http_200", 200, "http_200", body or None)


@pytest.mark.parametrize(
    "script",
    [
        saying(answer(500, b"x" * MAX_RESPONSE * 4)),
        repeating(b"HTTP/1.1 500 No\r\nContent-Length: 10737418240\r\n\r\n", b"x" * MAX_RESPONSE),
        repeating(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 1000),
        repeating(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 0x1000 + b"\r\n"),
    ],
    ids=["long", "10-gb", "endless", "endless-chunks"],
)
async def test_of_a_body_64_kib_are_read_and_kept(tmp_path: Path, script: Script) -> None:
    async with serving(script) as url:
        it = await told(tmp_path, url)
    assert it[:4] == (State.DUE, "http_500", 500, "http_500")
    assert it.answer == b"x" * MAX_RESPONSE


async def test_what_is_compressed_though_nobody_asked_is_not_expanded(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))
        writer.write(answer(500, bomb, b"Content-Encoding: gzip"))
        await writer.drain()

    async with serving(script) as url:
        it = await told(tmp_path, url)
    assert b"\r\naccept-encoding: identity\r\n" in requests[0].lower()
    assert (it.outcome, it.answer) == ("http_500", bomb[:MAX_RESPONSE])


REDIRECTS = [
    (301, b"http://169.254.169.254/latest/meta-data/iam?key=dk_private"),
    (302, b"http://user:dk_private@169.254.169.254:8080/"),
    (303, b"//169.254.169.254/dk_private"),
    (307, b"file:///etc/passwd#dk_private"),
    (308, b"http://[dk_private"),
    (302, b"http://dk_private\xff\xfe/"),
    (302, b"/dk_private"),
]


@pytest.mark.parametrize(("status", "location"), REDIRECTS, ids=repr)
async def test_a_redirect_is_an_outcome_and_is_not_followed(tmp_path: Path, status: int, location: bytes) -> None:
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request_of(reader))
        writer.write(answer(status, b"moved", b"Location: " + location))
        await writer.drain()

    async with serving(script) as url:
        it = await told(tmp_path, url)
    assert (it.state, it.status, len(requests)) == (State.DEAD, status, 1)
    assert it.outcome.startswith(f"http_{status}")
    assert "private" not in str(it.reason) + it.outcome


DROPPED = "network: the connection was dropped before an answer"
NOT_HTTP = "network: the answer is not HTTP"
TOO_LONG = "network: the answer's head is too long"
CUT = "network: answered 200, then the answer was dropped"
MALFORMED = "network: answered 200, then the answer is malformed"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (saying(), DROPPED),
        (saying(HEAD + b"Content-Le"), DROPPED),
        (saying(b"HTTP/1.1 100 Continue\r\n\r\n"), DROPPED),
        (saying(HEAD + b"Content-Length: 100\r\n\r\nhalf"), CUT),
        (saying(CHUNKED + b"4\r\nhalf\r\n"), CUT),
        (saying(CHUNKED + b"5"), CUT),
        (saying(CHUNKED + b"0\r\nX-Trailer: 1\r\n"), CUT),
        (saying(CHUNKED + b"no-size\r\n"), MALFORMED),
        (repeating(CHUNKED + b"0\r\n", b"X-Trailer: " + b"x" * 1000 + b"\r\n"), MALFORMED),
        (saying(HEAD + b"Content-Length: -1\r\n\r\nok"), NOT_HTTP),
        (saying(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nok"), NOT_HTTP),
        (saying(HEAD + b"X-Dk\0private: 1\r\n\r\n"), NOT_HTTP),
        (saying(b"220 mail.example ESMTP dk_private\r\n\r\n"), NOT_HTTP),
        (repeating(HEAD, b"X-More: " + b"x" * 1000 + b"\r\n"), TOO_LONG),
        (repeating(HEAD + b"X-One: ", b"x" * 100_000), TOO_LONG),
    ],
    ids=[
        "nothing",
        "half-a-head",
        "only-1xx",
        "half-a-body",
        "half-the-chunks",
        "half-a-chunk-size",
        "half-the-trailers",
        "no-chunk-size",
        "endless-trailers",
        "negative-length",
        "two-lengths",
        "nul-in-a-name",
        "another-protocol",
        "endless-headers",
        "endless-header",
    ],
)
async def test_what_breaks_off_or_is_not_http_may_have_arrived(tmp_path: Path, script: Script, reason: str) -> None:
    async with serving(script) as url:
        it = await told(tmp_path, url)
    assert is_uncertain(it, reason), it


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_counts_though_its_body_breaks_off(tmp_path: Path, status: int) -> None:
    refusal = b"HTTP/1.1 %d No\r\nRetry-After: 60\r\nContent-Length: 100\r\n\r\nslow down" % status
    async with serving(saying(refusal)) as url:
        it = await told(tmp_path, url)
    assert (it.state, it.status, it.answer) == (State.DUE, status, b"slow down")
    assert it.outcome.startswith(f"http_{status}")


async def test_trailers_after_chunks_are_read_over(tmp_path: Path) -> None:
    async with serving(saying(CHUNKED + b"2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n")) as url:
        it = await told(tmp_path, url)
    assert it[:5] == (State.SENT, None, 200, "http_200", None)


async def test_an_answer_before_the_request_is_read_counts(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(413, b"too large"))
        await reader.read()

    async with serving(script) as url:
        it = await told(tmp_path, url)
    assert it[:5] == (State.DEAD, "http_413", 413, "http_413", b"too large")


async def test_the_second_of_two_answers_is_not_taken_for_the_next_requests(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK + OK)
        await request_of(reader)  # is never answered
        await for_ever()

    sender = HttpSender(1)
    async with serving(script) as url:
        first = await sender.send(Request(url, {}, b"{}"))
        second = await told(tmp_path, url, sender)
    assert first.status == 200
    assert is_uncertain(second, "network: the answer came before the request: it was another request's"), second


async def test_time_runs_out_at_each_step(tmp_path: Path) -> None:
    drip = iter(lambda: 1, 0)

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n")
        for _ in drip:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    scripts = {
        "silent": (saying(then=for_ever), "timeout: no answer within 2 s"),
        "half-a-head": (saying(HEAD, then=for_ever), "timeout: no answer within 2 s"),
        "accepted": (
            saying(HEAD + b"Content-Length: 2\r\n\r\n", then=for_ever),
            "timeout: answered 200, but not to its end within 2 s",
        ),
        "byte-by-byte": (slowly, "timeout: answered 200, but not to its end within 2 s"),
        "1xx-flood": (
            repeating(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
            "timeout: no answer within 2 s",
        ),
    }

    async def one(name: str, script: Script) -> Told:
        (tmp_path / name).mkdir()
        async with serving(script) as url:
            return await told(tmp_path / name, url, HttpSender(1, deadline=2.0))

    given = await asyncio.gather(*(one(name, script) for name, (script, _) in scripts.items()))
    for it, (name, (_, reason)) in zip(given, scripts.items(), strict=True):
        assert is_uncertain(it, reason), (name, it)
        assert it.took >= 1_900, name


async def test_a_host_that_takes_no_connection_has_seen_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as held:
        address = full.getsockname()
        for _ in range(4):  # the system takes a few that nobody accepts, then drops the rest
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        it = await told(tmp_path, f"http://127.0.0.1:{address[1]}", HttpSender(1, connect=0.5))
    assert is_certain(it, "timeout: no connection within 0.5 s"), it
    assert it.took >= 400


async def test_a_port_that_nobody_listens_on_is_told(tmp_path: Path) -> None:
    async with serving(saying()) as url:
        pass
    assert is_certain(await told(tmp_path, url), "network: the connection was refused: nothing listens on this port")


async def test_a_name_that_dns_does_not_know_is_told(tmp_path: Path) -> None:
    # A machine without a name server says so late: the connection's time is not what this is about.
    sender = HttpSender(1, deadline=2 * WITHIN, connect=2 * WITHIN)
    it = await told(tmp_path, "http://collector.invalid/?key=dk_private", sender)
    assert it.outcome in {"DNS: there is no such host", "DNS: no name server answers for this host"}
    assert is_certain(it, it.outcome)


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            assert error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # noqa: PT017 -- anything else is a defect
            return False
    return True


async def test_a_host_with_only_ipv6_is_reached_or_told(tmp_path: Path) -> None:
    if has_ipv6():
        async with serving(saying(OK), "::1") as url:
            assert url.startswith("http://[::1]:")
            it = await told(tmp_path, url)
        assert it[:4] == (State.SENT, None, 200, "http_200")
    else:
        no_way = "network: there is no way to this host: a firewall, or only IPv6 addresses and none here"
        assert is_certain(await told(tmp_path, "http://[::1]:9"), no_way)


async def test_a_host_with_only_ipv4_is_not_reached_by_its_ipv6_address(tmp_path: Path) -> None:
    async with serving(saying(OK)) as url:
        it = await told(tmp_path, f"http://[::1]:{url.rpartition(':')[2]}")
    assert (it.state, it.status) == (State.DUE, 0)
    assert it.outcome.startswith(("network: the connection was refused", "network: there is no way to this host"))


class Authority:
    """A certificate authority, and the certificates that it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / "authority.pem"
        self.certificate = self._signed("Authority of the tests", self.key, self.key, authority=True)
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def serving(self, host: str, *, days: tuple[int, int] = (-1, 1), self_signed: bool = False) -> ssl.SSLContext:
        """Return what a server needs to show a certificate for the host, valid between these days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(host, key, key if self_signed else self.key, days=days)
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _signed(
        self,
        host: str,
        key: ec.EllipticCurvePrivateKey,
        by: ec.EllipticCurvePrivateKey,
        *,
        days: tuple[int, int] = (-1, 1),
        authority: bool = False,
    ) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        now = datetime.now(UTC)
        try:
            names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            names = x509.DNSName("authority.example" if authority else host)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name if by is key else self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days[0]))
            .not_valid_after(now + timedelta(days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([names]), critical=False)
            .sign(by, hashes.SHA256())
        )


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Return an authority that the gateway trusts, as an operator would have it do."""
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


async def test_a_certificate_that_is_in_order_is_taken(tmp_path: Path, authority: Authority) -> None:
    async with serving(saying(OK), tls=authority.serving("127.0.0.1")) as url:
        it = await told(tmp_path, url)
    assert it[:4] == (State.SENT, None, 200, "http_200")


@pytest.mark.parametrize(
    ("host", "days", "self_signed", "reason"),
    [
        ("127.0.0.1", (-1, 1), True, "TLS: certificate is self-signed"),
        ("127.0.0.1", (-2, -1), False, "TLS: certificate has expired"),
        ("127.0.0.1", (1, 2), False, "TLS: certificate is not valid yet"),
        ("127.0.0.2", (-1, 1), False, "TLS: certificate is for another address"),
    ],
)
async def test_a_certificate_that_is_not_in_order_is_told(
    tmp_path: Path, authority: Authority, host: str, days: tuple[int, int], self_signed: bool, reason: str
) -> None:
    async with serving(saying(OK), tls=authority.serving(host, days=days, self_signed=self_signed)) as url:
        it = await told(tmp_path, url)
    assert is_certain(it, reason), it


async def test_a_certificate_for_another_host_is_told_without_naming_either(
    tmp_path: Path, authority: Authority
) -> None:
    async with serving(saying(OK), tls=authority.serving("collector.example")) as url:
        it = await told(tmp_path, url.replace("127.0.0.1", "localhost"))
    assert is_certain(it, "TLS: certificate is for another host"), it


async def test_a_certificate_of_an_unknown_authority_is_told(tmp_path: Path) -> None:
    async with serving(saying(OK), tls=Authority(tmp_path).serving("127.0.0.1")) as url:
        it = await told(tmp_path, url)
    assert is_certain(it, "TLS: certificate's issuer is not known here, or its chain is not sent whole"), it


async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(answer(400, b"speak plain HTTP"))
    await writer.drain()


async def hanging_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (plain, "TLS: the other side does not speak it on this port"),
        (hanging_up, "TLS: the connection was dropped during the handshake"),
    ],
)
async def test_a_handshake_that_fails_has_sent_nothing(tmp_path: Path, script: Script, reason: str) -> None:
    async with serving(script) as url:
        it = await told(tmp_path, url.replace("http:", "https:"))
    assert is_certain(it, reason), it


async def test_a_handshake_that_does_not_end_has_sent_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        it = await told(tmp_path, f"https://127.0.0.1:{silent.getsockname()[1]}", HttpSender(1, connect=0.5))
    assert is_certain(it, "timeout: no TLS handshake within 0.5 s"), it


def test_an_operator_reads_the_outcome_beside_a_gateway(served: Served, collector: Collector) -> None:
    collector.answer((302, {"location": "http://169.254.169.254/latest"}))
    with served.up():
        assert served.post(payment(1)).is_success
        collector.wait_for(1)
    settings = load_settings(served.environment)
    with StoredRequests(settings) as stored:
        ((webhook, _),) = stored.newest(1)
        (delivery,) = stored.deliveries(webhook.webhook)
    (attempt,) = delivery.attempts
    assert (delivery.state, attempt.status) == (State.DEAD, 302)
    assert str(delivery.reason).startswith("http_302")
    assert attempt.response is not None
    assert Sealer(settings.master_key()).open(attempt.response, b"response") == b"answer"

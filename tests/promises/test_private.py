"""Promise 10: no raw personal data and no secret in the outbox, the logs, an answer, or at a collector."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from gateway import demo
from gateway.mappings import bundled, load_mappings, minified, sample_headers
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import sign
from tests.mapping.people import personal_data_of
from tests.mapping.strange import SAMPLES
from tests.promises.collector import Collector

PRIVATE = tuple(sorted({text for file in SAMPLES for text in personal_data_of(file)} | {b"@example.com"}))
OTHERS = {
    "PADDLE_WEBHOOK_SECRET": "private_paddle",
    "LEMONSQUEEZY_WEBHOOK_SECRET": "private_lemon",
    "WOOCOMMERCE_WEBHOOK_SECRET": "private_woo",
    "POLAR_WEBHOOK_SECRET": "whsec_cHJpdmF0ZSBwb2xhciBzZWNyZXQ=",
    "STANDARD_WEBHOOK_SECRET": "whsec_cHJpdmF0ZSBzdGFuZGFyZA==",
    "SQUARE_WEBHOOK_SECRET": "private_square",
    "SQUARE_WEBHOOK_URL": "https://gateway.example/webhooks/square",
    "REVENUECAT_WEBHOOK_SECRET": "private_revenuecat",
    "CHARGEBEE_WEBHOOK_SECRET": "private:chargebee",
}
SECRETS = tuple(
    secret.encode().lower()
    for secret in (
        *(demo.STRIPE_SECRET, demo.SHOPIFY_SECRET, demo.LINK_SECRET, demo.SIGNING_SECRET, "nx_demo", "dk_demo"),
        *(secret for name, secret in OTHERS.items() if name.endswith("_SECRET")),
    )
)


class Ran:
    """A gateway that took every sample, each also forged and broken; and all that it said and kept."""

    def __init__(self, folder: Path) -> None:
        collector = Collector([(500, {}), (400, {})])
        with running(collector.app()) as sink:
            environment = (
                demo.environment(folder, sink)
                | OTHERS
                | {
                    "WEBHOOK_URL": f"{sink}/sink",
                    "NEXLY_COLLECT_URL": f"{sink}/sink",
                    "DATALYR_HOST": "http://127.0.0.1:9/nobody",
                }
            )
            self.answers = _run(environment, folder / "log")
        self.log = (folder / "log").read_bytes().lower()
        self.stored = b"".join(file.read_bytes() for file in folder.glob("gateway.db*")).lower()
        self.delivered = b"".join(body for _, body in collector.requests).lower()


def _run(environment: dict[str, str], log: Path) -> bytes:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=stream)
        try:
            return _send_all(f"http://127.0.0.1:{port}", environment)
        finally:
            process.terminate()
            process.wait(30)


def _send_all(url: str, environment: dict[str, str]) -> bytes:
    settings = load_settings(environment)
    sources = load_mappings(settings.mappings, settings.environment).sources
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/livez")
            break
        except httpx.TransportError:
            time.sleep(0.05)
    answers = b""
    for file in sorted((bundled() / "samples").glob("*/*.json")):
        source, body = file.parent.name, minified(file.read_bytes())
        for sent in (body, body[:-1]):
            headers = sample_headers(bundled(), source, file.name, body, time.time()) | sign(
                sources[source].verification, sent, time.time(), f"msg_{file.stem}"
            )
            answers += httpx.post(f"{url}/webhooks/{source}", content=sent, headers=headers).content
        answers += httpx.post(f"{url}/webhooks/{source}", content=body, headers={"stripe-signature": "x"}).content
    return answers.lower()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("private"))


def found(words: tuple[bytes, ...], text: bytes) -> list[bytes]:
    return [word for word in words if word in text]


def test_the_store_holds_neither(ran: Ran) -> None:
    assert len(ran.stored) > 100_000
    assert found(PRIVATE + SECRETS, ran.stored) == []


def test_the_log_says_what_went_wrong_and_holds_neither(ran: Ran) -> None:
    assert b"delivery_failed" in ran.log
    assert b"webhook_refused" in ran.log
    assert found(PRIVATE + SECRETS, ran.log) == []


def test_no_answer_holds_either(ran: Ran) -> None:
    assert b"malformed_signature" in ran.answers
    assert found(PRIVATE + SECRETS, ran.answers) == []


def test_no_collector_gets_personal_data(ran: Ran) -> None:
    assert b"purchase" in ran.delivered
    assert found(PRIVATE, ran.delivered) == []

"""Promise 6: a slow or dead destination never slows the webhook answer or another destination."""

import socket
import time
from pathlib import Path

import httpx

from gateway import demo
from gateway.app import create_app
from gateway.mappings import bundled, minified, sample
from gateway.sending import DEADLINE
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import VerifySpec, compile_verification, sign
from tests.promises.collector import Collector


def test_a_destination_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    stripe = compile_verification(VerifySpec(scheme="stripe", secrets=demo.STRIPE_SECRET))
    collector = Collector()
    with running(collector.app()) as sink, socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}/"  # takes connections and never answers
        environment = demo.environment(tmp_path, hanging) | {"DATALYR_HOST": f"{sink}/sink", "NEXLY_APP_ID": ""}
        with running(create_app(load_settings(environment))) as url:
            started = time.monotonic()
            for name in ("checkout.session.completed", "customer.subscription.deleted", "refund.created"):
                body = sample(bundled(), "stripe", name)
                assert body is not None
                body = minified(body)
                answer = httpx.post(f"{url}/webhooks/stripe", content=body, headers=sign(stripe, body, time.time()))
                assert answer.is_success
            collector.wait_for(3)
            assert time.monotonic() - started < DEADLINE / 2  # the hanging requests are still under way
            silent.close()

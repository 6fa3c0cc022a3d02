"""Several gateways over one Redis are one gateway: nothing counts twice, and each knows what the others were told."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest
from click.testing import CliRunner

from gateway.browser import make_token
from gateway.cli import main
from gateway.sealing import Secret
from gateway.server import running
from gateway.signatures import sign
from tests.promises.served import LINK_SECRET, STRIPE, payment
from tests.replicas.processes import ACME_SECRET, ROOT, SINKS, Collector, Gateway, counts, environment, gateways
from tests.stores.servers import Server, eventually, free_port

DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
SERVED_AT_BOTH = range(1, 21)


class Replicas:
    """Two replicas, the settings that they share, and who listens to them."""

    def __init__(self, shared: dict[str, str], both: list[Gateway], collector: Collector) -> None:
        self.environment = shared
        self.one, self.other = both
        self.collector = collector

    def delivered(self, *orders: str) -> None:
        """Wait until each collector has them."""
        eventually(lambda: not self.collector.missing(set(orders)))

    def settled(self) -> None:
        """Wait until nothing is on its way."""
        eventually(lambda: all(each.pending == 0 for each in counts(self.environment).values()))

    def command(self, *words: str) -> tuple[int, str]:
        """Run a command of an operator's; return its exit code and what it said."""
        cleared = dict.fromkeys(name for name in os.environ if name not in self.environment)
        result = CliRunner().invoke(main, words, env={**cleared, **self.environment})
        return result.exit_code, result.output


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder, server, collector = tmp_path_factory.mktemp("replicas"), Server(*DURABLE).start(), Collector()
    with running(collector.app()) as url:
        shared = environment(server.url, folder, url)
        with gateways(shared, folder, "serve", "serve") as both:
            yield Replicas(shared, both, collector)
    server.remove()


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def sink(collector: Collector) -> Iterator[str]:
    with running(collector.app()) as url:
        yield url


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(*DURABLE)
    yield server
    server.remove()


def pay(gateway: Gateway, body: bytes) -> httpx.Response:
    return gateway.http.post("/webhooks/stripe", content=body, headers=sign(STRIPE, body, time.time()))


def again(body: bytes, id: str) -> bytes:
    """The same payment in a webhook of its own."""
    return msgspec.json.encode(msgspec.json.decode(body) | {"id": id})


def acme(gateway: Gateway, order: str, user: str) -> None:
    """Report a payment of a user that waits for the user to be linked."""
    body = {"id": order, "type": "paid", "order": order, "user": user}
    answer = gateway.http.post("/webhooks/acme", json=body, headers={"X-Token": ACME_SECRET})
    assert answer.is_success, answer.text


def link(gateway: Gateway, user: str, visitor: str) -> None:
    token = make_token(user, Secret(LINK_SECRET), int(time.time()), 600)
    answer = gateway.http.post("/link", json={"token": token, "visitor_id": visitor})
    assert answer.status_code == 204, answer.text


def test_the_same_webhook_at_both_at_once_makes_one_set_of_deliveries(replicas: Replicas) -> None:
    bodies = [payment(number) for number in SERVED_AT_BOTH]
    with ThreadPoolExecutor(8) as senders:
        pairs = [
            (senders.submit(pay, replicas.one, body), senders.submit(pay, replicas.other, body)) for body in bodies
        ]
    assert [sorted(each.result().json()["duplicate"] for each in pair) for pair in pairs] == [[False, True]] * len(
        pairs
    )
    orders = {f"order_{number}" for number in SERVED_AT_BOTH}
    replicas.delivered(*orders)
    replicas.settled()
    assert {replicas.collector.taken[sink, order].total() for sink in SINKS for order in orders} == {1}


def test_a_payment_told_to_one_and_again_to_the_other_counts_once(replicas: Replicas) -> None:
    body = payment(100)
    assert pay(replicas.one, body).json()["duplicate"] is False
    assert pay(replicas.other, again(body, "evt_other")).json()["duplicate"] is False
    replicas.delivered("order_100")
    replicas.settled()
    assert {replicas.collector.came[sink, "order_100"].total() for sink in SINKS} == {1}
    assert "duplicate_payment" in replicas.command("explain", "evt_other")[1]


def test_a_link_made_at_one_resolves_at_the_other(replicas: Replicas) -> None:
    link(replicas.one, "early", "anon_early")
    acme(replicas.other, "of_early", "early")
    replicas.delivered("of_early")
    assert {replicas.collector.visitors[sink, "of_early"] for sink in SINKS} == {"anon_early"}


def test_a_link_made_at_one_releases_what_the_other_took_in_to_wait_for_it(replicas: Replicas) -> None:
    acme(replicas.one, "of_late", "late")
    assert {each.pending for each in counts(replicas.environment).values()} == {1}
    link(replicas.other, "late", "anon_late")
    replicas.delivered("of_late")
    assert {replicas.collector.visitors[sink, "of_late"] for sink in SINKS} == {"anon_late"}


def test_an_operator_looks_at_the_shared_store_beside_its_gateways(replicas: Replicas) -> None:
    link(replicas.one, "seen", "anon_seen")
    acme(replicas.one, "of_seen", "seen")
    replicas.delivered("of_seen")
    replicas.settled()
    code, told = replicas.command("doctor")
    assert code == 0, told
    assert "takes writes" in told
    assert "deliveries to nexly" in told
    assert "anon_seen" in replicas.command("links", "show", "user=seen")[1]
    code, told = replicas.command("explain", "of_seen")
    assert (code, "nexly: sent" in told, "webhook: sent" in told) == (0, True, True), told


def test_a_webhook_that_is_replayed_is_delivered_by_a_running_gateway(replicas: Replicas) -> None:
    pay(replicas.one, payment(200))
    replicas.delivered("order_200")
    code, told = replicas.command("replay", "evt_200")
    assert (code, "replayed 1 webhook;" in told) == (0, True), told
    assert replicas.command("replay", "evt_of_nobody")[0] == 1
    replicas.settled()
    assert {len(replicas.collector.came[sink, "order_200"]) for sink in SINKS} == {1}


def test_who_is_forgotten_by_a_command_is_forgotten_by_all(replicas: Replicas) -> None:
    link(replicas.one, "gone", "anon_gone")
    acme(replicas.other, "of_gone", "gone")
    replicas.delivered("of_gone")
    replicas.settled()
    # Not beside the tests: it sets the logs of its process.
    done = command(replicas.environment, "forget", "--subject", "user=gone")
    assert done.returncode == 0, done.stderr
    assert replicas.command("links", "show", "user=gone")[0] == 1
    assert replicas.command("explain", "of_gone")[0] == 1
    acme(replicas.one, "again_of_gone", "gone")
    assert {each.pending for each in counts(replicas.environment).values()} == {1}
    link(replicas.one, "gone", "anon_new")
    replicas.delivered("again_of_gone")


def command(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_one_takes_in_and_another_delivers(server: Server, collector: Collector, sink: str, tmp_path: Path) -> None:
    shared = environment(server.start().url, tmp_path, sink)
    with gateways(shared, tmp_path, "serve --no-deliver", "deliver") as (taking_in, delivering):
        assert pay(taking_in, payment(1)).is_success
        eventually(lambda: not collector.missing({"order_1"}))
        assert pay(delivering, payment(2)).status_code == 404
        assert delivering.http.post("/link", json={}).status_code == 404
        assert [delivering.http.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
        assert delivering.stop() == 0
        assert pay(taking_in, payment(3)).is_success
        assert taking_in.stop() == 0
    assert {each.pending for each in counts(shared).values()} == {1}
    assert collector.came.keys() == {(sink, "order_1") for sink in SINKS}


def test_an_embedded_store_has_no_deliverer_of_its_own(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["deliver"], env={"GATEWAY_STORE": f"sqlite:///{tmp_path / 'gateway.db'}"})
    assert (result.exit_code, "an embedded store is one process's own" in result.output) == (2, True)


def test_a_gateway_waits_for_its_redis_whenever_it_is_away(sink: str, collector: Collector, tmp_path: Path) -> None:
    server = Server("--appendonly", "no", "--save", "", "--maxmemory-policy", "allkeys-lru", port=free_port())
    with Gateway(environment(server.url, tmp_path, sink), tmp_path / "log", "serve") as gateway:

        def warnings() -> str:
            return " ".join(gateway.until().json()["warnings"])

        eventually(lambda: "store_unavailable" in gateway.log())
        server.start()
        eventually(lambda: "it keeps nothing on disk" in (told := warnings()) and "policy is allkeys-lru" in told)
        server.kill()
        assert "cannot be reached" in gateway.until(503).json()["checks"]["store"]
        refused = pay(gateway, payment(1))
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert gateway.http.get("/livez").status_code == 200
        server.start()
        gateway.until()
        assert pay(gateway, payment(1)).is_success
        eventually(lambda: not collector.missing({"order_1"}))
    server.remove()


def test_a_gateway_with_another_key_does_not_start(replicas: Replicas) -> None:
    done = command(replicas.environment | {"GATEWAY_SECRET_KEY": "A" * 43}, "serve", "--port", str(free_port()))
    assert done.returncode == 2, done.stderr
    assert "was written under another GATEWAY_SECRET_KEY" in done.stderr
    assert "Traceback" not in done.stderr

"""`gateway demo`: the whole way on one machine, with a collector that stands for the destinations.

Everything is real but the money: the gateway serves on a port, on a SQLite store in a temporary folder, the
samples are signed and posted over HTTP, and what the collector shows is what Nexly, Datalyr and your own endpoint
would get.
"""

import queue
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from litestar import Litestar, Request, post
from litestar.params import FromPath
from msgspec import Struct
from rich.console import Console
from rich.panel import Panel

from gateway.app import create_app
from gateway.mappings import bundled, load_mappings, minified, sample, sample_headers
from gateway.server import running
from gateway.settings import Settings, load_settings
from gateway.signatures import VerifySpec, compile_verification, sign, verify

STRIPE_SECRET = "whsec_demo_only_not_a_secret"  # noqa: S105 -- it protects nothing
SHOPIFY_SECRET = "demo_only_not_a_secret"  # noqa: S105
LINK_SECRET = "demo_only_link_secret_of_32_characters"  # noqa: S105
SIGNING_SECRET = "whsec_ZGVtby1vbmx5LW5vdC1hLXNlY3JldC0="  # noqa: S105
VISITOR = "anon_7d1c2f9e-0b1a-4c55-9f0e-demo00000042"
SESSION = "sess_5a0e3b6c-2222-4222-8222-demo00000042"
WAIT = 30.0
"""Seconds within which all that is expected must arrive."""
QUIET = 1.5
"""Seconds without a request after which nothing more is expected."""
DESTINATIONS = ("nexly", "datalyr", "webhook")


class Seen(Struct, frozen=True):
    """One request as the collector got it, in the words of the demo."""

    destination: str
    event: str
    order: str
    value: str
    visitor: str
    identity: str
    key: str


class Step(Struct, frozen=True):
    """One webhook of the story, the answer that is expected, and the events that come of it."""

    title: str
    source: str
    sample: str
    status: int
    events: tuple[str, ...] = ()
    duplicate: bool = False
    forged: bool = False


STORY = (
    Step("Stripe: user_42 pays at Checkout", "stripe", "checkout.session.completed", 200, ("purchase",)),
    Step("Stripe sends the same webhook again", "stripe", "checkout.session.completed", 200, duplicate=True),
    Step("Stripe reports the same payment as a payment intent", "stripe", "payment_intent.succeeded", 200),
    Step("Somebody forges a webhook", "stripe", "invoice.paid", 401, forged=True),
    Step("Shopify: an order from the linked cart is paid", "shopify", "orders.paid", 200, ("purchase",)),
    Step("Stripe: part of the payment is refunded", "stripe", "refund.created", 200, ("refund",)),
)


def environment(folder: Path, collector: str) -> dict[str, str]:
    """Return the settings of the demo's gateway."""
    return {
        "GATEWAY_STORE": f"sqlite:///{folder / 'gateway.db'}",
        "GATEWAY_LINK_SECRET": LINK_SECRET,
        "STRIPE_WEBHOOK_SECRET": STRIPE_SECRET,
        "SHOPIFY_WEBHOOK_SECRET": SHOPIFY_SECRET,
        "NEXLY_APP_ID": "app_demo",
        "NEXLY_INGEST_KEY": "nx_demo",
        "NEXLY_COLLECT_URL": f"{collector}/nexly",
        "DATALYR_API_KEY": "dk_demo",
        "DATALYR_HOST": f"{collector}/datalyr",
        "WEBHOOK_URL": f"{collector}/webhook",
        "WEBHOOK_SECRET": SIGNING_SECRET,
    }


def run(port: int, *, once: bool, console: Console) -> bool:
    """Tell the story. Returns whether all that was expected happened, and nothing else.

    Without `once` the gateway goes on until Ctrl-C, showing what it is sent.
    """
    arrived: queue.Queue[Seen] = queue.Queue()
    with (
        tempfile.TemporaryDirectory(prefix="gateway-demo-") as folder,
        running(collector_app(arrived)) as collector,
    ):
        settings = load_settings(environment(Path(folder), collector))
        with running(create_app(settings), port=port) as gateway:
            console.print(Panel(f"gateway   {gateway}\ncollector {collector}", title="gateway demo", expand=False))
            good = _tell(gateway, settings, arrived, console)
            verdict = (
                "[green]All expected deliveries arrived, and nothing else.[/]" if good else "[red]Not as expected.[/]"
            )
            console.print(f"\n{verdict}")
            if not once:
                _go_on(gateway, arrived, console)
    return good


def collector_app(arrived: "queue.Queue[Seen]") -> Litestar:
    """Return the collector: it takes anything and hands on what it saw."""
    signing = compile_verification(VerifySpec(scheme="standard-webhooks", secrets=SIGNING_SECRET))

    @post("/{destination:str}", status_code=200)
    async def collect(destination: FromPath[str], request: Request[object, object, object]) -> dict[str, bool]:  # type: ignore[type-var]
        body = await request.body()
        if destination == "webhook":
            headers = {name.lower(): value for name, value in request.headers.items()}
            verify(signing, headers, body, time.time())
        arrived.put(_seen(destination, msgspec.json.decode(body), request.headers.get("idempotency-key", "")))
        return {"ok": True}

    return Litestar([collect], openapi_config=None, logging_config=None)


def _seen(destination: str, body: Any, key: str) -> Seen:
    match destination:
        case "nexly":
            event, properties, visitor = body["event_name"], body["data"], body["context"].get("visitor_id")
            identity = None
        case "datalyr":
            event, properties, visitor = body["event"], body["properties"], body["anonymousId"]
            identity, key = None, str(body["eventId"])
        case _:
            data = body["data"]
            event, properties, visitor = body["type"], data["properties"], data.get("visitor_id")
            identity = data["identity"].get("email")
    value = f"{properties['value']:.2f} {properties['currency']}" if "value" in properties else ""
    return Seen(
        destination,
        str(event),
        str(properties.get("order_id", "")),
        value,
        str(visitor or ""),
        str(identity or ""),
        key,
    )


def _tell(gateway: str, settings: Settings, arrived: "queue.Queue[Seen]", console: Console) -> bool:
    good = _link(gateway, console)
    wanted: dict[str, int] = {}
    for step in STORY:
        good &= _send(gateway, settings, step, console)
        for event in step.events:
            for destination in DESTINATIONS:
                wanted[f"{destination}/{event}"] = wanted.get(f"{destination}/{event}", 0) + 1
    console.print("\n[bold]What reaches the collectors[/] (the visitor goes as it is, identity only hashed)")
    keys: set[tuple[str, str]] = set()
    for seen in _arriving(arrived, sum(wanted.values())):
        _show(seen, console)
        wanted[f"{seen.destination}/{seen.event}"] = wanted.get(f"{seen.destination}/{seen.event}", 0) - 1
        good &= bool(seen.visitor) and (seen.destination, seen.key) not in keys
        keys.add((seen.destination, seen.key))
    for name, number in wanted.items():
        if number:
            console.print(f"[red]{abs(number)} {'missing' if number > 0 else 'too many'}: {name}[/]")
    return good and not any(wanted.values())


def _link(gateway: str, console: Console) -> bool:
    console.print("\n[bold]A page links its visitor[/] (POST /link)")
    body: dict[str, object] = {
        "ids": {name: {"visitor_id": VISITOR, "session_id": SESSION} for name in ("nexly", "datalyr")},
        "visitor_id": VISITOR,
        "session_id": SESSION,
    }
    backend = {"Authorization": f"Bearer {LINK_SECRET}"}
    cart = _cart()
    links: list[tuple[str, dict[str, object], dict[str, str]]] = [
        ("its backend names the user: user_42", {**body, "subjects": {"user": "user_42"}}, backend),
        (f"by itself, for its unguessable cart: {cart[:12]}…", {**body, "subjects": {"shopify_cart": cart}}, {}),
    ]
    good = True
    for title, content, headers in links:
        answer = httpx.post(f"{gateway}/link", json=content, headers=headers)
        console.print(f"  {answer.status_code}  {title}")
        good &= answer.status_code == httpx.codes.NO_CONTENT
    return good


def _cart() -> str:
    order = msgspec.json.decode(_sample("shopify", "orders.paid"))
    return str(order["cart_token"])


def _sample(source: str, name: str) -> bytes:
    body = sample(bundled(), source, name)
    if body is None:
        raise FileNotFoundError(f"the bundled sample {source}/{name} is missing: install the gateway again")
    return minified(body)


def _send(gateway: str, settings: Settings, step: Step, console: Console) -> bool:
    body = _sample(step.source, step.sample)
    source = load_mappings(settings.mappings, settings.environment).sources[step.source]
    now = time.time()
    headers = sample_headers(bundled(), step.source, step.sample, body, now) | sign(source.verification, body, now)
    answer = httpx.post(f"{gateway}/webhooks/{step.source}", content=body + b" " * step.forged, headers=headers)
    told = msgspec.json.decode(answer.content)
    note = "duplicate" if told.get("duplicate") else str(told.get("reason", ""))
    console.print(f"\n[bold]{step.title}[/]\n  {answer.status_code}  {step.sample}  [dim]{note}[/]")
    return answer.status_code == step.status and told.get("duplicate", False) == step.duplicate


def _arriving(arrived: "queue.Queue[Seen]", expected: int) -> Iterator[Seen]:
    """Yield what arrives: until all that is expected came and then nothing for a while, or time is up."""
    deadline = time.monotonic() + WAIT
    while (left := deadline - time.monotonic()) > 0:
        try:
            yield arrived.get(timeout=left if expected > 0 else min(left, QUIET))
        except queue.Empty:
            return
        expected -= 1


def _show(seen: Seen, console: Console) -> None:
    identity = f"  email sha256:{seen.identity[:8]}…" if seen.identity else ""
    line = f"{seen.event:<22} {seen.value:>12}  visitor {seen.visitor[:13]}…{identity}"
    console.print(f"  [cyan]{seen.destination:<8}[/] {line}", soft_wrap=True)


def _go_on(gateway: str, arrived: "queue.Queue[Seen]", console: Console) -> None:
    console.print(
        Panel(
            "Send it another webhook, from a second terminal:\n\n"
            f"  gateway send stripe invoice.paid.renewal --url {gateway} --secret {STRIPE_SECRET}\n"
            f"  gateway send shopify refunds.create --url {gateway} --secret {SHOPIFY_SECRET}\n\n"
            "Look at what a mapping makes of a payload, without sending anything:\n\n"
            "  gateway translate stripe checkout.session.completed --destination datalyr\n\n"
            "Run it for real: the README says how, from `gateway serve` on. Ctrl-C stops the demo.",
            title="what to try next",
            expand=False,
        )
    )
    try:
        while True:
            _show(arrived.get(), console)
    except KeyboardInterrupt:
        console.print("stopped")

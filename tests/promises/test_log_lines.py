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
from textwrap import dedent
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

import gateway
from gateway.app import create_app
from gateway.mappings import bundled
from gateway.server import running
from gateway.settings import load_settings
from gateway.telemetry import LOGGED, LONGEST, MOST_TOLD, about, keep_private, told_exception
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
    others = [each["event"] for each in lines if each not in about_it]
    # The files that nothing is set up for are read beside the start, whenever that is done.
    assert [each for each in others if each != "mappings_in_force"] == ["started", "webhook_refused", "stopped"]
    assert [each for each in lines if "left_out" in each] == []


def test_what_a_library_logs_comes_as_a_line_like_any_other() -> None:
    (told,) = logged_by("""
        logging.getLogger('some.library').info('unheard')
        logging.getLogger('some.library').error('no answer for %s within %d s', 'ada', 5)
    """)
    assert (told["event"], told["level"], told["logger"]) == ("no answer for *** within 5 s", "error", "some.library")


def logged_by(code: str) -> list[dict[str, Any]]:
    """Return the lines that a process logs that has our log and runs this code."""
    code = f"import logging; from gateway.telemetry import configure_logs\nconfigure_logs(json=True)\n{dedent(code)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout
    return [json.loads(each) for each in done.stderr.splitlines()]


def test_a_library_cannot_quote_what_it_met() -> None:
    lines = logged_by("""
        log = logging.getLogger('uvicorn.error')
        log.error('Exception in ASGI application\\n', exc_info=ValueError('ada'))
        log.error(f"Exception in callback on('ada')")
        log.error('%d of %s', 'ada', 'ada')
        log.error(OSError(98, 'address already in use: ada'))
        log.error('as said: %(who)s', {'who': 'ada'})
    """)
    assert [line["event"] for line in lines] == [
        "Exception in ASGI application",
        "Exception in callback on",
        "%d of %s",
        "OSError: Address already in use",
        "as said: %",
    ]
    assert lines[0]["exception"] == "ValueError\n"
    assert "ada" not in str(lines)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_that_meets_a_failure_does_not_quote_it(loop: str) -> None:
    lines = logged_by(f"""
        import gc, {loop}
        from asyncio import create_task, get_running_loop, sleep
        async def fail(who):
            raise ValueError(who)
        def called(who):
            raise ValueError(who)
        async def run():
            task = create_task(fail(chr(97) + 'da'), name='ada')
            get_running_loop().call_soon(called, 'ada')
            while not task.done():
                await sleep(0)
            del task
            gc.collect()
        {loop}.run(run())
    """)
    assert {line["event"][:21] for line in lines} == {"Exception in callback", "Task exception was ne"}
    assert all("in fail" in line["exception"] or "in called" in line["exception"] for line in lines)
    assert "ada" not in str(lines)


def test_urls_that_a_client_tells_are_not_heard_by_any_handler() -> None:
    lines = logged_by("""
        import httpx, sys
        class Loud(logging.Handler):
            def emit(self, record):
                print(record.getMessage())
        logging.getLogger().addHandler(Loud())
        logging.getLogger().setLevel(logging.DEBUG)
        with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
            client.get('http://collector/?api_secret=s3cr3t')
    """)
    assert lines == []


class OwnFailureTold(Exception):
    """Stands for one of the gateway's."""


OwnFailureTold.__module__ = "gateway.tests"


def traceback_of(error: BaseException) -> str:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        fail()
    return told_exception((type(error), error, error.__traceback__))


def test_an_exception_is_told_by_its_type_and_place_with_words_only_of_our_own() -> None:
    private = "ada" + "lovelace"
    cause = ValueError(private)
    cause.add_note(private)
    error = KeyError(private)
    error.__cause__ = cause
    group = ExceptionGroup(private, [error, OwnFailureTold("the store is away"), OSError(28, private)])
    text = traceback_of(group)
    assert private not in text
    for told in ("in fail", "ValueError\n", "KeyError\n", "OwnFailureTold: the store is away", "No space left"):
        assert told in text


def test_a_chain_of_exceptions_without_an_end_is_told_in_part() -> None:
    first = last = ValueError()
    for _ in range(5_000):
        last.__context__ = last = ValueError()
    last.__context__ = first
    assert traceback_of(first).count("ValueError") == MOST_TOLD


def test_the_start_names_the_address_and_only_sources_that_can_be_verified(served: Served) -> None:
    app = create_app(load_settings(served.environment), deliver=False, address="http://[::1]:8080")
    with capture_logs() as lines, running(app):
        pass
    (started,) = [line for line in lines if line["event"] == "started"]
    assert (started["address"], started["sources"]) == ("http://[::1]:8080", ["stripe"])

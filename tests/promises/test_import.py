"""Exported webhooks go through the mappings as if they came now: each once, whatever stops it, in bounded memory."""

import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from gateway import importing
from gateway.cli.history import import_command
from gateway.destinations import iso
from gateway.importing import BadLine, Bookmark, Progress, foresee, lines, request_of
from tests.promises.past import Gateway, loaded
from tests.promises.served import payment
from tests.stores.servers import Server

PATIENCE = 30.0
MAX_BODY = 1_048_576
SHOPIFY = {"X-Shopify-Topic": "orders/paid", "X-Shopify-Shop-Domain": "demo-shop.myshopify.com"}


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    server = Server().start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "redis"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Gateway:
    if request.param == "sqlite":
        return Gateway(tmp_path)
    server: Server = request.getfixturevalue("redis")
    with server.client() as client:
        client.flushall()
    return Gateway(tmp_path, GATEWAY_STORE=server.url, GATEWAY_SECRET_KEY="A" * 43 + "=")


@pytest.fixture
def embedded(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def last(result: Result) -> str:
    return str(result.stdout.splitlines()[-1])


def record(body: object, **changed: object) -> bytes:
    return msgspec.json.encode({"source": "stripe", "headers": {}, "body": body} | changed)


def test_history_is_taken_in_once_however_often_it_is_imported(gateway: Gateway) -> None:
    first = gateway.imported(*map(payment, range(3)))
    assert (first.exit_code, last(first)) == (0, "3 lines: 3 new, 0 known before, 0 bad")
    assert last(gateway.imported(*map(payment, range(4)))) == "4 lines: 1 new, 3 known before, 0 bad"
    assert [each["id"] for each in gateway.listed("webhooks")] == ["evt_0", "evt_1", "evt_2", "evt_3"]
    assert [each["state"] for each in gateway.listed("deliveries")] == ["due"] * 4


def test_history_beside_a_running_gateway_is_the_same_as_what_it_took(embedded: Gateway) -> None:
    with embedded.served.up(deliver=False):
        assert embedded.served.post(payment(0)).status_code == 200
        assert last(embedded.imported(payment(0), payment(1))) == "2 lines: 1 new, 1 known before, 0 bad"
        assert embedded.served.post(payment(1)).status_code == 200
    assert len(embedded.listed("webhooks")) == len(embedded.listed("deliveries")) == 2


def test_webhook_keeps_the_time_when_it_happened(embedded: Gateway) -> None:
    old = json.loads(payment(0)) | {"created": 1_600_000_000}
    embedded.imported(json.dumps(old).encode())
    (webhook,) = embedded.listed("webhooks")
    assert webhook["occurred_at"] == iso(1_600_000_000_000)
    assert webhook["received_at"] > "2026"


def test_line_may_say_its_source_and_headers_and_its_body_to_the_byte(embedded: Gateway) -> None:
    order = {
        "id": 1,
        "financial_status": "paid",
        "total_price": "5.00",
        "current_total_price": "5.00",
        "currency": "EUR",
    }
    shopify = {"source": "shopify", "headers": SHOPIFY | {"X-SHOPIFY-EVENT-ID": "e1"}, "received_at": 5}
    result = embedded.imported(record(payment(0).decode()), record(order, **shopify), words=())
    assert last(result) == "2 lines: 2 new, 0 known before, 0 bad"
    assert [(each["source"], each["type"], each["id"]) for each in embedded.listed("webhooks")] == [
        ("stripe", "checkout.session.completed", "evt_0"),
        ("shopify", "orders/paid", "e1"),
    ]


def test_bad_lines_are_told_with_their_number_and_the_rest_is_taken_in(embedded: Gateway) -> None:
    result = embedded.imported(b"{", payment(0), b"", b'{"type": "x"}', b"[1]", payment(1))
    assert (result.exit_code, last(result)) == (1, "6 lines: 2 new, 0 known before, 3 bad")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["line 1", "line 4", "line 5"]
    assert "line 4: it has no id: check the `webhook:` block of its source" in result.stderr


def test_only_the_first_bad_lines_are_told_one_by_one(embedded: Gateway) -> None:
    result = embedded.imported(*[b"ada@example.com"] * 50)
    assert last(result) == "50 lines: 0 new, 0 known before, 50 bad"
    assert len(result.stderr.splitlines()) == 21
    assert "ada@example.com" not in result.output


def test_dry_run_prints_what_would_come_out_and_stores_nothing(embedded: Gateway) -> None:
    other = json.loads(payment(2)) | {"type": "nobody.maps.it"}
    result = embedded.imported(
        payment(0), payment(1), json.dumps(other).encode(), words=("--source", "stripe", "--dry-run")
    )
    _, *cells = [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]
    assert cells == [["stripe", "(no event: nobody.maps.it)", "1", ""], ["stripe", "purchase", "2", "220.00 USD"]]
    assert last(result) == "3 lines: 3 would be taken in, 0 bad"
    assert not embedded.served.path.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--source", "strpe"], "error: there is no source `strpe`; did you mean `stripe`?"),
        (["--source", "x"], "error: there is no source `x`; there are: "),
        (["--source", "shopify", "--from-line", "0"], "--from-line"),
    ],
)
def test_source_that_is_none_is_told_before_anything_is_read(embedded: Gateway, words: list[str], told: str) -> None:
    embedded.file.write_bytes(payment(0))
    result = embedded.run(import_command, str(embedded.file), *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_stdin_is_read_from_the_line_that_is_asked_for(embedded: Gateway) -> None:
    data = b"\n".join(map(payment, range(3)))
    result = embedded.run(import_command, "-", "--source", "stripe", "--from-line", "2", input=data)
    assert last(result) == "3 lines: 2 new, 0 known before, 0 bad"
    assert [each["id"] for each in embedded.listed("webhooks")] == ["evt_1", "evt_2"]


def test_pipe_is_read_as_stdin_is(embedded: Gateway) -> None:
    pipe = embedded.file.with_name("pipe")
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"cat > {pipe}"], stdin=subprocess.PIPE) as writer:
        assert writer.stdin
        writer.stdin.write(payment(0))
        writer.stdin.close()
        result = embedded.run(import_command, str(pipe), "--source", "stripe")
    assert last(result) == "1 line: 1 new, 0 known before, 0 bad"


def test_import_that_is_stopped_goes_on_where_it_was(embedded: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Bookmark.save

    def save_and_stop(bookmark: Bookmark, progress: Progress) -> None:
        save(bookmark, progress)
        monkeypatch.setattr(Bookmark, "save", save)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Bookmark, "save", save_and_stop)
    monkeypatch.setattr(importing, "SAVE_EVERY", 20)
    stopped = embedded.imported(b"{", *map(payment, range(29)))
    assert stopped.exit_code == 130
    assert "stopped; 20 lines are done, and the same command goes on after them" in stopped.stderr
    assert len(embedded.listed("webhooks")) == 19
    again = embedded.run(import_command, str(embedded.file), "--source", "stripe")
    assert "going on after line 20" in again.stderr
    assert (again.exit_code, last(again)) == (1, "30 lines: 29 new, 0 known before, 1 bad")
    assert not Path(f"{embedded.file}.progress").exists()


def test_progress_of_another_file_or_store_is_not_gone_by(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(payment(0))
    with file.open("rb") as opened:
        Bookmark.of(file, opened, "sqlite:///one", "stripe").save(Progress(1, 10))
    for content, told in ((payment(0), "sqlite:///other"), (payment(1), "sqlite:///one"), (payment(0)[:9], "x")):
        file.write_bytes(content)
        with file.open("rb") as opened:
            assert Bookmark.of(file, opened, told, "stripe").load() == Progress()
    file.write_bytes(payment(0))
    with file.open("rb") as opened:
        assert Bookmark.of(file, opened, "sqlite:///one", "stripe").load() == Progress(1, 10)


def test_interrupt_while_it_waits_for_a_line_says_where_to_go_on(embedded: Gateway) -> None:
    script = "from gateway.cli.history import import_command; import_command()"
    command = [sys.executable, "-c", script, "-", "--source", "stripe"]
    environment = {**os.environ, **embedded.environment}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(b"".join(payment(number) + b"\n" for number in range(3)) + b"{\n")
        process.stdin.flush()
        assert process.stderr.readline().startswith(b"line 4: it cannot be read")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130  # while its stdin is still open
        told = process.stderr.read().decode()
    # The bad line is counted just after it is told: at most it is told again.
    assert told in {f"stopped; {done} lines are done: go on with --from-line {done + 1}\n" for done in (3, 4)}
    assert len(embedded.ids()) == 3


class Endless(io.RawIOBase):
    """A file of so many lines that is nowhere whole."""

    def __init__(self, line: bytes, number: int) -> None:
        self._line = line
        self._left = len(line) * number
        self._place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._left, 1 << 16)
        repeated = self._line * (2 + size // len(self._line))
        begin = self._place % len(self._line)
        buffer[:size] = repeated[begin : begin + size]
        self._left -= size
        self._place += size
        return size


def test_hundred_thousand_lines_are_held_no_longer_than_one() -> None:
    line = b'{"id": "evt_1", "type": "nobody.maps.it", "object": "event", "created": 1793001058}\n'
    file, progress, held = io.BufferedReader(Endless(line, 100_000)), Progress(), list[int]()
    mappings, before = loaded(), sys.getallocatedblocks()
    foresee(
        file,
        mappings,
        "stripe",
        MAX_BODY,
        progress,
        0,
        tell=lambda *_: None,
        step=lambda _: held.append(sys.getallocatedblocks()),
    )
    assert (progress.new, progress.line, progress.offset) == (100_000, 100_000, 100_000 * len(line))
    assert max(held) - before < 20_000


def test_line_without_an_end_is_passed_over_without_being_held() -> None:
    file, progress = io.BufferedReader(Endless(b"x" * 1024, 64 * 1024)), Progress()
    mappings = loaded()
    tracemalloc.start()
    try:
        foresee(file, mappings, "stripe", 10_000, progress, 0, tell=lambda *_: None, step=lambda _: None)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert (progress.line, progress.bad, progress.offset) == (1, 1, 64 * 1024 * 1024)


def test_lines_are_cut_at_their_ends_whatever_their_length() -> None:
    data = b"a\n\n" + b"b" * 10 + b"\n" + b"c" * 11 + b"\n" + b"d" * 200_000 + b"\ne"
    found = [(each.number, each.end, each.data) for each in lines(io.BytesIO(data), 11)]
    assert [each[2] for each in found] == [b"a\n", b"\n", b"b" * 10 + b"\n", b"c" * 11 + b"\n", None, b"e"]
    assert [each[1] for each in found] == [2, 3, 14, 26, 200_027, 200_028]
    assert [each.data for each in lines(io.BytesIO(data[14:]), 11, 3, 14)] == [each[2] for each in found[3:]]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"source": "stripe", "body": {}, "more": 1}', "it is no record (Object contains unknown field `more`): "),
        (b'{"source": "stripe", "body": {}, "headers": {"a": 1}}', "it is no record (Expected `str`, got `int`"),
        (b'{"source": "stripe", "body": {"a": "' + b"x" * 2_000 + b'"}}', "its body is longer than a webhook may be"),
        (b'{"body":' + b"[" * 5_000, "it cannot be read: "),
        (b'"\xff"', "it "),
    ],
)
def test_line_that_is_no_record_is_told_without_being_quoted(line: bytes, told: str) -> None:
    with pytest.raises(BadLine) as raised:
        request_of(importing.Line(1, 1, line), None, 1_000)
    assert str(raised.value).startswith(told)
    assert "xxx" not in str(raised.value)


def test_record_of_another_source_than_the_one_that_is_said_is_bad() -> None:
    with pytest.raises(BadLine, match="it is of source `shopify`, and --source says `stripe`"):
        request_of(importing.Line(1, 1, record({}, source="shopify")), "stripe", 1_000)


def test_time_when_it_came_elsewhere_counts_for_a_sender_that_does_not_say(embedded: Gateway) -> None:
    order = {"id": 1, "financial_status": "pending", "total_price": "5.00", "currency": "EUR"}
    headers = SHOPIFY | {"X-Shopify-Event-Id": "e1"}
    embedded.imported(record(order, source="shopify", headers=headers, received_at="2025-01-02T03:04:05Z"), words=())
    (webhook,) = embedded.listed("webhooks")
    assert webhook["occurred_at"] == "2025-01-02T03:04:05.000Z"
    assert webhook["received_at"] > "2026"

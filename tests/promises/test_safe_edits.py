"""Promise 9: a broken edit of a mapping changes nothing and says where it is broken; a good one takes its place."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree

import pytest
from litestar import Litestar

from gateway.app import create_app
from gateway.mappings import bundled
from gateway.server import running
from gateway.settings import load_settings
from tests.promises.collector import WITHIN, Collector
from tests.promises.served import Served, document_of, encoded

RENAMED = ("emit: refund\n", "emit: money_back\n")
BROKEN = ("money_minor(data.object.amount,", "monye(data.object.amount,")


class Edited:
    """A gateway over a mappings folder of its own, and refunds to see which mapping is in force."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served = served
        self.file = folder / "sources/stripe.yaml"
        self.text = self.file.read_text()
        self.sent = 0

    def edit(self, change: tuple[str, str]) -> None:
        assert change[0] in self.text
        self.file.write_text(self.text.replace(*change))

    def emitted(self, collector: Collector) -> str:
        """Send a refund and return the name of the event it became."""
        self.sent += 1
        document = document_of("refund.created")
        document["id"] = document["data"]["object"]["id"] = f"re_{self.sent}"
        assert self.served.post(encoded(document)).status_code == 200
        return str(collector.wait_for(self.sent)[-1]["type"])

    def mappings(self) -> str:
        answer = self.served.get("/readyz")
        assert answer.status_code == 200  # a broken edit stops nothing
        return str(answer.json()["checks"]["mappings"])

    def until(self, holds: Callable[[str], bool]) -> str:
        """Wait for what /readyz says of the mappings."""
        deadline = time.monotonic() + WITHIN
        while not holds(told := self.mappings()):
            assert time.monotonic() < deadline, told
            time.sleep(0.02)
        return told


@pytest.fixture
def edited(served: Served, tmp_path: Path) -> Edited:
    copytree(bundled(), tmp_path / "mappings")
    served.environment["GATEWAY_MAPPINGS"] = str(tmp_path / "mappings")
    return Edited(served, tmp_path / "mappings")


def test_an_edit_takes_the_old_mappings_place_and_a_broken_one_does_not(edited: Edited, collector: Collector) -> None:
    app = create_app(load_settings(edited.served.environment), edited.served.now, watch=True)
    with running(app) as edited.served.url:
        versions = [app.state.mappings().sources["stripe"].version]
        assert edited.emitted(collector) == "refund"
        edited.edit(BROKEN)
        told = edited.until(lambda told: told != "ok")
        assert told.startswith(f"an edit is not in force: {edited.file}:")
        assert "unknown function `monye`; did you mean `money`?" in told
        assert edited.emitted(collector) == "refund"
        edited.edit(RENAMED)
        edited.until(lambda told: told == "ok")
        versions.append(app.state.mappings().sources["stripe"].version)
        assert edited.emitted(collector) == "money_back"
    assert versions[0] != versions[1]
    assert edited.served.rows("SELECT mapping FROM webhook") == [(versions[0],), (versions[0],), (versions[1],)]


def all_read(app: Litestar) -> None:
    """Wait until a gateway that has just started has read what is not set up as well."""
    deadline = time.monotonic() + WITHIN
    while not app.state.mappings.all_read.is_set():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_watching_an_edit_waits_until_it_is_asked_for(edited: Edited, collector: Collector) -> None:
    app = create_app(load_settings(edited.served.environment), edited.served.now)
    with running(app) as edited.served.url:
        all_read(app)
        edited.edit(RENAMED)
        assert edited.emitted(collector) == "refund"
        app.state.mappings.ask()
        deadline = time.monotonic() + WITHIN
        while edited.emitted(collector) != "money_back":
            assert time.monotonic() < deadline


def test_a_destination_comes_and_goes_with_its_file(edited: Edited, collector: Collector) -> None:
    app = create_app(load_settings(edited.served.environment), edited.served.now, watch=True)
    second = edited.file.parents[1] / "destinations/second.yaml"
    first = (second.parent / "webhook.yaml").read_text()
    with running(app) as edited.served.url:
        second.write_text(first.replace("destination: webhook", "destination: second"))
        deadline = time.monotonic() + WITHIN
        while "second" not in app.state.mappings().destinations:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        edited.emitted(collector)
        assert len(collector.wait_for(2)) == 2
        second.unlink()
        while "second" in app.state.mappings().destinations:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        edited.sent = 2
        edited.emitted(collector)
    assert edited.served.rows("SELECT destination, count(*) FROM delivery GROUP BY 1") == [
        ("second", 1),
        ("webhook", 2),
    ]


def test_a_folder_that_is_replaced_as_a_whole_is_read_again(edited: Edited, collector: Collector) -> None:
    app = create_app(load_settings(edited.served.environment), edited.served.now, watch=True)
    folder = edited.file.parents[1]
    with running(app) as edited.served.url:
        assert edited.emitted(collector) == "refund"
        folder.rename(folder.with_name("before"))
        copytree(bundled(), folder.with_name("after"))
        (folder.with_name("after") / "sources/stripe.yaml").write_text(edited.text.replace(*RENAMED))
        folder.with_name("after").rename(folder)
        deadline = time.monotonic() + WITHIN
        while edited.emitted(collector) != "money_back":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_secret_that_cannot_be_read_ends_no_reload(edited: Edited, collector: Collector, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(edited.served.environment.pop("STRIPE_WEBHOOK_SECRET"))
    edited.served.environment["STRIPE_WEBHOOK_SECRET_FILE"] = str(secret)
    app = create_app(load_settings(edited.served.environment), edited.served.now)
    with running(app) as edited.served.url:
        kept = secret.read_text()
        secret.unlink()
        app.state.mappings.ask()
        assert "STRIPE_WEBHOOK_SECRET" in edited.until(lambda told: told != "ok")
        assert edited.emitted(collector) == "refund"
        secret.write_text(kept)
        app.state.mappings.ask()
        edited.until(lambda told: told == "ok")
        assert edited.emitted(collector) == "refund"


def test_a_folder_without_sources_is_refused(edited: Edited, collector: Collector) -> None:
    app = create_app(load_settings(edited.served.environment), edited.served.now)
    with running(app) as edited.served.url:
        all_read(app)
        for file in edited.file.parent.iterdir():
            file.unlink()
        app.state.mappings.ask()
        assert "there is no source in this folder" in edited.until(lambda told: told != "ok")
        assert edited.emitted(collector) == "refund"


def test_sighup_has_the_mappings_read_again(edited: Edited) -> None:
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0"]
    environment = {**os.environ, **edited.served.environment}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            _line_with(process.stderr, "started")
            edited.edit(BROKEN)
            process.send_signal(signal.SIGHUP)
            assert "did you mean `money`?" in _line_with(process.stderr, "mappings_refused")
            edited.edit(RENAMED)
            process.send_signal(signal.SIGHUP)
            assert "stripe" in _line_with(process.stderr, "mappings_in_force")
        finally:
            process.terminate()
        assert process.wait(WITHIN) == 0


def _line_with(lines: Iterator[str], word: str) -> str:
    return next(line for line in lines if word in line)

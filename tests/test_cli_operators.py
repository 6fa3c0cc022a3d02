"""The commands of operators: what the API shows and repairs, from a shell beside the gateway or without it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.mappings import copy_bundled
from gateway.server import running
from tests.promises.collector import Collector
from tests.promises.served import Served, payment

PATIENCE = 30.0


class Store:
    """What a gateway left: payment 0 was sent, 1 and 2 died, and 3 came while the destination was off."""

    def __init__(self, served: Served) -> None:
        self.environment = served.environment
        self.served = served

    def __call__(self, *words: str, **environment: str) -> Result:
        cleared = dict.fromkeys(name for name in os.environ if "GATEWAY" in name or "STRIPE" in name)
        return CliRunner().invoke(main, words, env={**cleared, "COLUMNS": "200", **self.environment, **environment})

    def json(self, *words: str) -> Any:
        result = self(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def states(self) -> list[tuple[str, str]]:
        return [(each["id"], each["state"]) for each in reversed(self.json("deliveries"))]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a store as a gateway left it."""
    folder = tmp_path_factory.mktemp("left")
    collector = Collector([(200, {}), (400, {}), (410, {})])
    with running(collector.app()) as sink:
        served = Served(folder, WEBHOOK_URL=f"{sink}/sink", WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=")
        with served.up():
            for number in range(3):
                served.post(payment(number))
                deadline = time.monotonic() + PATIENCE
                while len(served.rows("SELECT 1 FROM delivery WHERE state >= 10")) <= number:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
    with served.up(deliver=False, WEBHOOK_URL=""):
        served.post(payment(3))
    return folder


@pytest.fixture
def store(left: Path, tmp_path: Path) -> Store:
    for name in ("gateway.db", "gateway.key"):
        (tmp_path / name).write_bytes((left / name).read_bytes())
    return Store(
        Served(tmp_path, WEBHOOK_URL="http://127.0.0.1:9/sink", WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=")
    )


DIED = [("evt_0", "sent"), ("evt_1", "dead"), ("evt_2", "dead")]


def test_webhooks_are_listed_newest_first(store: Store) -> None:
    assert [each["id"] for each in store.json("webhooks")] == ["evt_3", "evt_2", "evt_1", "evt_0"]
    columns, *lines = [line.split("\t") for line in store("webhooks").stdout.splitlines()]
    assert len(lines) == 4
    assert dict(zip(columns, lines[1], strict=True))["type"] == "checkout.session.completed"
    assert dict(zip(columns, lines[1], strict=True))["deliveries"] == "1 dead"


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--state", "dead"], ["evt_2", "evt_1"]),
        (["--id", "evt_1"], ["evt_1"]),
        (["--type", "checkout.session.completed", "--limit", "2"], ["evt_3", "evt_2"]),
        (["--source", "shopify"], []),
        (["--subject", "user:user_42", "--state", "sent"], ["evt_0"]),
        (["--until", "2020-01-01"], []),
    ],
)
def test_webhooks_are_filtered_as_in_the_api(store: Store, options: list[str], ids: list[str]) -> None:
    assert [each["id"] for each in store.json("webhooks", *options)] == ids


def test_one_webhook_shows_its_way_masked_unless_revealed(store: Store) -> None:
    shown = store("webhooks", "2")
    assert shown.exit_code == 0
    assert "purchase for webhook: dead: http_400" in shown.stdout
    assert "http_400 after" in shown.stdout
    assert "@example.com" not in shown.stdout
    assert "@example.com" in store("webhooks", "2", "--reveal").stdout
    assert store.json("webhooks", "2")["deliveries"][0]["state"] == "dead"


def test_deliveries_are_listed_and_filtered(store: Store) -> None:
    assert store.states() == DIED
    assert [each["id"] for each in store.json("deliveries", "--reason", "http_410")] == ["evt_2"]
    assert [each["id"] for each in store.json("deliveries", "--state", "sent", "-d", "webhook")] == ["evt_0"]
    assert "http_410" in store("deliveries").stdout


def test_the_dead_are_counted_and_downloaded_without_personal_data(store: Store) -> None:
    groups = store.json("dead", "list")["groups"]
    assert sorted((each["reason"], each["number"]) for each in groups) == [("http_400", 1), ("http_410", 1)]
    downloaded = store("dead", "download", "--reason", "http_410").stdout
    (line,) = map(json.loads, downloaded.splitlines())
    assert (line["delivery"]["id"], line["event"]["name"], line["attempts"][0]["status"]) == ("evt_2", "purchase", 410)
    assert "@example.com" not in store("dead", "download").stdout


@pytest.mark.parametrize(
    ("words", "told", "states"),
    [
        (["--all"], "2 deliveries", ["sent", "due", "due"]),
        (["--reason", "http_400"], "1 delivery", ["sent", "due", "dead"]),
        (["--destination", "nexly"], "nothing", ["sent", "dead", "dead"]),
        (["3", "0"], "1 delivery", ["sent", "dead", "due"]),
    ],
)
def test_the_dead_are_retried(store: Store, words: list[str], told: str, states: list[str]) -> None:
    result = store("dead", "retry", *words)
    assert (result.exit_code, told in result.stdout) == (0, True), result.output
    assert [state for _, state in store.states()] == states


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["dead", "retry"], 2),
        (["dead", "retry", "3"], 2),
        (["dead", "retry", "3", "0", "--all"], 2),
        (["dead", "retry", "1", "0"], 1),
        (["dead", "retry", "99", "0"], 1),
        (["webhooks", "99"], 1),
        (["webhooks", "--since", "yesterday"], 2),
        (["webhooks", "--subject", "user"], 2),
        (["replay"], 2),
        (["replay", "evt_nobody"], 1),
        (["replay", "--since", "yesterday"], 2),
    ],
)
def test_what_cannot_be_done_says_so_and_changes_nothing(store: Store, words: list[str], code: int) -> None:
    result = store(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert store.states() == DIED


def test_a_selection_is_replayed(store: Store) -> None:
    result = store("replay", "--dead", "--type", "checkout.session.completed", "--since", "1h")
    assert result.stdout == "replayed 2 webhooks; a running gateway delivers what is due\n"
    assert [state for _, state in store.states()] == ["sent", "due", "due"]


def test_a_dry_run_tells_what_a_replay_would_change_and_changes_nothing(store: Store) -> None:
    result = store("replay", "--source", "stripe", "--dry-run")
    assert result.exit_code == 0
    assert result.stderr == "4 webhooks would be replayed; nothing was changed\n"
    assert result.stdout.splitlines() == [
        "evt_3",
        "  + event 1: purchase 110.00",
        "  purchase for webhook: nothing -> due",
        "evt_2",
        "  purchase for webhook: dead: http_410 -> due",
        "evt_1",
        "  purchase for webhook: dead: http_400 -> due",
    ]
    assert store.states() == DIED


def test_a_dry_run_shows_what_an_edited_mapping_makes_otherwise(store: Store, tmp_path: Path) -> None:
    copy_bundled(tmp_path / "edited")
    file = tmp_path / "edited" / "sources" / "stripe.yaml"
    file.write_text(file.read_text().replace("checkout_id:", "session:"))
    result = store("replay", "evt_0", "--dry-run", GATEWAY_MAPPINGS=str(tmp_path / "edited"))
    assert "  event 1, properties.session: nothing -> cs_0" in result.stdout
    assert "example.com" not in result.stdout


def test_without_a_store_it_says_where_it_looked(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["webhooks"], env={"GATEWAY_STORE": f"sqlite:///{tmp_path}/none.db"})
    assert result.exit_code == 2
    assert f"there is no store at {tmp_path}/none.db" in result.stderr
    assert not list(tmp_path.iterdir())

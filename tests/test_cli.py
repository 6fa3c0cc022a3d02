"""The command line: what it prints where, and exit codes that mean something."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner, Result

from gateway import demo
from gateway.app import create_app
from gateway.cli import main
from gateway.mappings import bundled
from gateway.server import running
from gateway.settings import load_settings

LINK_SECRET = "link_secret_of_the_tests_0123456789abcdef"


def gateway(*words: str, **environment: str) -> Result:
    """Run a command in an environment of its own."""
    cleared = dict.fromkeys(name for name in os.environ if "GATEWAY" in name or "STRIPE" in name)
    return CliRunner().invoke(main, words, env={**cleared, **environment})


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself_and_is_in_the_readme(command: str) -> None:
    result = gateway(command, "--help")
    assert result.exit_code == 0
    assert main.commands[command].help
    assert f"gateway {command}" in (Path(__file__).parents[1] / "README.md").read_text()


def test_check_says_what_is_on_and_what_is_missing() -> None:
    result = gateway("check", DATALYR_API_KEY="dk")
    assert result.exit_code == 0
    lines = {line.split()[1]: line for line in result.stdout.splitlines()}
    assert lines["stripe"].endswith("no secret: every webhook gets 401")
    assert lines["datalyr"].endswith(" on")
    assert lines["nexly"].endswith("off: set NEXLY_APP_ID, NEXLY_INGEST_KEY")


def test_check_points_at_every_mistake(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    good = (bundled() / "sources/shopify.yaml").read_text()
    broken = good.replace("money(total_price", "monye(total_price").replace("hold:", "hodl:")
    (tmp_path / "sources/shopify.yaml").write_text(broken)
    result = gateway("check", str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path}/sources/shopify.yaml:" in result.stderr
    assert "unknown function `monye`" in result.stderr
    assert "money" in result.stderr
    assert result.stderr.rstrip().endswith(f"2 mistakes in {tmp_path}")


def test_serve_names_every_setting_that_is_not_right() -> None:
    result = gateway("serve", GATEWAY_RETENTION="soon", GATEWAY_MAX_BODY="big", GATEWAY_LINK_SECRET="short")
    assert result.exit_code == 2
    for name in ("GATEWAY_RETENTION", "GATEWAY_MAX_BODY", "GATEWAY_LINK_SECRET"):
        assert name in result.stderr


def test_translate_prints_the_events_of_a_sample_and_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_bytes((bundled() / "samples/stripe/refund.created.json").read_bytes())
    assert '"name": "purchase"' in gateway("translate", "stripe", "checkout.session.completed").stdout
    result = gateway("translate", "stripe", str(file))
    assert result.exit_code == 0
    assert '"value": 20.00' in result.stdout


def test_translate_prints_the_request_without_its_secrets() -> None:
    result = gateway(
        "translate", "stripe", "refund.created", "--destination", "datalyr", DATALYR_API_KEY="dk_very_secret"
    )
    assert result.stdout.startswith("POST https://ingest.datalyr.com/track\n")
    assert "X-API-Key: ***" in result.stdout
    assert "dk_very_secret" not in result.output


def test_translate_says_why_there_is_no_event() -> None:
    result = gateway("translate", "stripe", "charge.succeeded")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "rule `*` skipped: unmapped \n"


def test_an_unknown_name_gets_a_suggestion() -> None:
    result = gateway("translate", "strip", "refund.created")
    assert (result.exit_code, result.stderr) == (2, "error: there is no source `strip`; did you mean `stripe`?\n")


def test_send_signs_and_posts_a_sample(tmp_path: Path) -> None:
    environment = {"GATEWAY_STORE": f"sqlite:///{tmp_path / 'g.db'}", "STRIPE_WEBHOOK_SECRET": "whsec_x"}
    with running(create_app(load_settings(environment))) as url:
        good = gateway("send", "stripe", "refund.created", "--url", url, "--secret", "whsec_x")
        again = gateway("send", "stripe", "refund.created", "--url", url, STRIPE_WEBHOOK_SECRET="whsec_x")
        bad = gateway("send", "stripe", "refund.created", "--url", url, "--secret", "whsec_y")
    assert (good.exit_code, again.exit_code, bad.exit_code) == (0, 0, 1)
    assert '"duplicate":true' in again.stdout
    assert bad.stdout.startswith("401 ")


def test_send_says_what_is_missing() -> None:
    assert "give --secret" in gateway("send", "stripe", "refund.created").stderr
    nobody = gateway("send", "stripe", "refund.created", "--url", "http://127.0.0.1:9", "--secret", "whsec_x")
    assert "is `gateway serve` running there?" in nobody.stderr


def test_a_link_token_names_its_user_for_a_while() -> None:
    token = gateway("link-token", "42", "--minutes", "5", GATEWAY_LINK_SECRET=LINK_SECRET).stdout.strip()
    claims = jwt.decode(token, LINK_SECRET, ["HS256"], audience="gateway")
    assert claims["sub"] == "42"
    assert 290 < claims["exp"] - time.time() <= 300


def test_a_webhook_that_failed_is_replayed_once_the_mapping_is_mended(tmp_path: Path) -> None:
    environment = demo.environment(tmp_path, "http://127.0.0.1:9")
    mappings = tmp_path / "mappings"
    (mappings / "sources").mkdir(parents=True)
    good = (bundled() / "sources/stripe.yaml").read_text()
    (mappings / "sources/stripe.yaml").write_text(good.replace("emit: refund\n", "emit: refund\n    at: data.object\n"))
    with running(create_app(load_settings({**environment, "GATEWAY_MAPPINGS": str(mappings)}))) as url:
        sent = gateway("send", "stripe", "refund.created", "--url", url, "--secret", demo.STRIPE_SECRET)
        assert sent.exit_code == 0
    event_id = sent.stdout.split('"id":"')[1].split('"')[0]
    result = gateway("replay", event_id, **environment)
    assert result.stdout.startswith("replayed 1 webhook;")
    assert "there is no webhook evt_none" in gateway("replay", "evt_none", **environment).stderr


def test_the_demo_tells_its_story_and_ends_well() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "gateway", "demo", "--once"], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stdout
    assert "All expected deliveries arrived, and nothing else." in finished.stdout
    assert "ada@example.com" not in finished.stdout

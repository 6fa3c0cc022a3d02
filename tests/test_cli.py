"""The command line: what it prints where, and exit codes that mean something."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import jwt
import msgspec
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
    assert lines["stripe"].endswith("off, every webhook gets 401: set STRIPE_WEBHOOK_SECRET")
    assert lines["datalyr"].endswith(" on")
    assert lines["nexly"].endswith("off: set NEXLY_APP_ID, NEXLY_INGEST_KEY")


ACME = """
source: acme
verify: {scheme: token, header: X-Token}
webhook: {id: id, type: kind}
rules:
  - on: paid
    emit: purchase
    once: id
    hodl: 2m
    properties:
      value: monye(amount, currency)
      currency: currency
      plan: pro
"""
CHECKED = """\
{0}/sources/acme.yaml:9:11: error: unknown key `hodl`
    9 |     hodl: 2m
      |           ^
  hint: did you mean `hold`?
{0}/sources/acme.yaml:11:14: error: unknown function `monye`; did you mean `money`?
   11 |       value: monye(amount, currency)
      |              ^
2 mistakes in {0}
"""


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """Return a mappings folder of one source, with mistakes in it, and a sample."""
    folder = tmp_path / "acme"
    for name, text in {
        "sources/acme.yaml": ACME,
        "samples/acme/paid.json": '{"id": "1", "kind": "paid", "amount": "5.00", "currency": "EUR"}',
        "tests/acme/paid.yaml": "tests:\n  - {name: paid, sample: paid, expect: [{name: purchase}]}\n",
    }.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return folder


def mended(folder: Path, *changes: tuple[str, str]) -> Path:
    file = folder / "sources/acme.yaml"
    text = file.read_text().replace("hodl", "hold").replace("monye", "money")
    for old, new in changes:
        text = text.replace(old, new)
    file.write_text(text)
    return folder


def test_check_pictures_every_mistake(acme: Path) -> None:
    result = gateway("check", str(acme))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", CHECKED.format(acme))


def test_check_tells_what_is_most_likely_not_meant(acme: Path) -> None:
    result = gateway("check", str(mended(acme)))
    assert result.exit_code == 1
    assert (
        f"{acme}/sources/acme.yaml:13:13: error: no sample has a field `pro`\n   13 |       plan: pro\n"
        in result.stderr
    )
    assert "{const: pro}" in result.stderr
    assert gateway("check", str(mended(acme, ("plan: pro", "plan: {const: pro}")))).exit_code == 0


def test_check_tells_editors_too(acme: Path) -> None:
    told = msgspec.json.decode(gateway("check", str(acme), "--format", "json").stdout)
    assert [(each["line"], each["column"], each["severity"]) for each in told] == [(9, 11, "error"), (11, 14, "error")]
    assert told[0]["hint"] == "did you mean `hold`?"
    assert gateway("check", "--format", "json").stdout == "[]\n"


def test_check_says_how_a_sender_is_set_up() -> None:
    told = gateway("check", "--setup", "stripe", "--url", "https://pay.example/").stdout
    assert "do not leave out invoice_payment.paid: since API version 2025-03-31" in told
    assert "stripe webhook_endpoints create --url https://pay.example/webhooks/stripe \\\n" in told
    assert '-d "enabled_events[]=refund.created"' in told
    assert "must send invoice_payment.paid" in gateway("check", STRIPE_WEBHOOK_SECRET="whsec_x").stdout


def test_tests_that_pass_are_told_by_file_with_the_rules_that_none_reaches(acme: Path) -> None:
    more = "  - {name: given back, on: back, emit: refund, once: id}\n"
    (acme / "sources/acme.yaml").write_text(mended(acme).joinpath("sources/acme.yaml").read_text() + more)
    result = gateway("test", str(acme))
    assert (result.exit_code, result.stdout) == (
        0,
        "ok    tests/acme/paid.yaml  1 of 1\nno test reaches these rules of acme: given back\n",
    )


def test_a_test_that_fails_says_what_differs_and_can_be_rewritten(acme: Path) -> None:
    mended(acme)
    file = acme / "tests/acme/paid.yaml"
    file.write_text(BEFORE)
    failed = gateway("test", str(file))
    assert failed.exit_code == 1
    assert f"{file}:6:29: error: event 1, properties.value: expected 6, got 5.00\n" in failed.stdout
    assert "an event too many: `purchase` of 5.00, made by the rule `purchase on paid`" in failed.stdout
    assert gateway("test", str(acme), "--update").exit_code == 0
    assert file.read_text() == AFTER
    assert gateway("test", str(acme)).exit_code == 0


BEFORE = """\
tests:
  - name: paid      # one
    sample: paid
    expect:
      - name: purchase
        properties: {value: 6}

  # another
  - {name: as it is, sample: paid, expect: [{name: purchase}]}
  - name: nothing
    sample: paid
    expect: []
    skips: []   # none
"""
AFTER = """\
tests:
  - name: paid      # one
    sample: paid
    expect:
      - name: purchase
        properties:
          value: 5.0

  # another
  - {name: as it is, sample: paid, expect: [{name: purchase}]}
  - name: nothing
    sample: paid
    expect:
      - name: purchase
        properties:
          value: 5.0
          currency: EUR
    skips: []   # none
"""


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("sample: paid, expect: []", "an event too many: `purchase` of 5.00, made by the rule `purchase on paid`"),
        ("sample: paid, expect: [{name: purchase}, {name: refund}]", "expected the event `refund`, got none"),
        ("sample: piad, expect: []", "there is no sample `piad` of acme\n      hint: did you mean `paid`?"),
        ("expect: []", "a webhook is either a `sample` or a `payload`"),
        ("payload: [1], expect: []", "the webhook is refused as malformed: it has no id"),
        ("sample: paid, with: {amount: x}, expect: []", "rule `purchase on paid` failed: `money`: "),
        ("sample: paid, expect: [{name: purchase}], skips: [{reason: filtered}]", "skipped were: nothing"),
        ("sample: paid, exact: true, expect: [{name: purchase}]", "event 1, id: not expected, got"),
        ("webhooks: [{sample: paid, after: soon}], expect: []", "`soon` is not a duration"),
    ],
)
def test_a_test_says_what_is_wrong_with_it(acme: Path, test: str, told: str) -> None:
    mended(acme)
    (acme / "tests/acme/paid.yaml").write_text(f"tests:\n  - {{name: it, {test}}}\n")
    result = gateway("test", str(acme))
    assert result.exit_code == 1
    assert told in result.stdout


def test_init_writes_a_folder_that_is_right_and_overwrites_none(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert gateway("init", str(folder)).exit_code == 0
    assert gateway("check", str(folder)).exit_code == 0
    assert gateway("test", str(folder), "-k", "shopify").exit_code == 0
    assert (folder / "README.md").is_file()
    again = gateway("init", str(folder))
    assert (again.exit_code, again.stderr) == (
        2,
        f"error: {folder} is there already; name a folder that is new or empty\n",
    )


def test_schema_prints_one_and_writes_all(tmp_path: Path) -> None:
    assert msgspec.json.decode(gateway("schema", "source").stdout)["$schema"].startswith("https://json-schema.org/")
    assert len(gateway("schema", "--write", str(tmp_path)).stdout.splitlines()) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["destination.json", "source.json", "tests.json"]


NO_DELIVERY = "  no delivery: no rule made an event, or no destination was on (then `gateway replay` it)\n"


@pytest.fixture
def taken(tmp_path: Path) -> dict[str, str]:
    """Return the settings of a gateway that took two webhooks and a link, and is gone."""
    environment = {
        "GATEWAY_STORE": f"sqlite:///{tmp_path / 'g.db'}",
        "GATEWAY_LINK_SECRET": LINK_SECRET,
        "STRIPE_WEBHOOK_SECRET": "whsec_x",
    }
    with running(create_app(load_settings(environment))) as url:
        link = {"visitor_id": "anon_1", "subjects": {"user": "user_42"}}
        httpx.post(f"{url}/link", json=link, headers={"authorization": f"Bearer {LINK_SECRET}"}).raise_for_status()
        for name in ("checkout.session.completed", "refund.created"):
            assert gateway("send", "stripe", name, "--url", url, **environment).exit_code == 0
    return environment


def test_explain_tells_of_a_stored_webhook_which_subject_resolved(taken: dict[str, str]) -> None:
    told = gateway("explain", "evt_1SGateway0001Sample", **taken)
    assert told.exit_code == 0
    assert "anon_1" in told.stdout
    assert "checkout paid: matched, makes purchase" in told.stdout
    assert told.stdout.endswith("what became of it, as stored\n" + NO_DELIVERY)
    assert "ada@example.com" not in told.stdout
    missing = gateway("explain", "evt_none", **taken)
    assert (missing.exit_code, missing.stderr[:48]) == (1, "error: there is no webhook evt_none in the store")


def test_explain_tells_of_a_sample_why_a_rule_did_not_match() -> None:
    told = gateway("explain", "stripe", "checkout.session.completed").stdout
    assert "checkout finished without payment" in told
    assert "data.object.payment_status != 'paid'" in told


def test_translate_tells_what_an_edit_changes_over_what_is_stored(taken: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    gateway("init", str(folder))
    file = folder / "sources/stripe.yaml"
    file.write_text(file.read_text().replace("emit: refund\n", "emit: money_back\n"))
    told = gateway("translate", "--diff", str(bundled()), "--mappings", str(folder), **taken)
    assert told.exit_code == 0
    assert told.stdout.splitlines()[0] == "stripe refund.created evt_1SGateway0004Sample"
    assert "  event 1, name: refund -> money_back" in told.stdout
    assert told.stderr == "1 of 2 webhooks differ\n"
    same = gateway("translate", "stripe", "refund.created", "--diff", str(bundled()), **taken)
    assert (same.stdout, same.stderr) == ("", "0 of 1 webhooks differ\n")


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
    result = gateway("translate", "stripe", "charge.refunded")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "rule `*` skipped: unmapped\n"


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


@pytest.mark.parametrize("name", ["GATEWAY_LINK_SECRET", "GATEWAY_ADMIN_TOKEN"])
def test_a_secret_that_could_be_guessed_is_refused(name: str) -> None:
    result = gateway("check", **{name: "swordfish"})
    assert result.exit_code == 2
    assert f"{name}: shorter than 32 characters" in result.stderr
    assert "swordfish" not in result.output


@pytest.mark.parametrize("setting", ["STRIPE_WEBHOOK_SECRET", "DATALYR_API_KEY"])
def test_an_example_in_the_place_of_a_secret_is_refused(setting: str) -> None:
    result = gateway("check", **{setting: "dk_…"})
    assert result.exit_code == 1
    assert f"what is set for ${{{setting}}} holds `…`" in result.stderr

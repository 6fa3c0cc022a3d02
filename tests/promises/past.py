"""A store, whatever it is, seen and changed through commands. Nothing delivers, so all stays as it was accepted."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.cli.history import import_command
from gateway.mappings import Mappings, bundled, load_mappings
from tests.promises.served import Served


@cache
def mappings_of_two() -> Path:
    """Return the bundled mappings without senders and collectors that do not matter here: commands begin quicker."""
    folder = Path(tempfile.mkdtemp(prefix="mappings-"))
    atexit.register(shutil.rmtree, folder)
    for name in ("sources/stripe.yaml", "sources/shopify.yaml", "destinations/webhook.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(bundled() / name, folder / name)
    return folder


@cache
def loaded() -> Mappings:
    """Return those mappings, as without any setting."""
    return load_mappings(mappings_of_two(), lambda _: None)


class Gateway:
    """`served` is the gateway over the same store, not up; `file` is one to import."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.file = folder / "history.jsonl"
        self.served = Served(
            folder,
            GATEWAY_MAPPINGS=str(mappings_of_two()),
            WEBHOOK_URL="http://127.0.0.1:9/sink",
            WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=",
            **environment,
        )
        self.environment = self.served.environment

    def run(self, command: Any, *words: str, input: bytes | None = None, **environment: str) -> Result:
        """Run a command in an environment of its own."""
        known = ("GATEWAY", "STRIPE", "SHOPIFY", "WEBHOOK")
        cleared: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith(known))
        every = {**cleared, "COLUMNS": "160", **self.environment, **environment}
        return CliRunner().invoke(command, words, input=input, env=every)

    def imported(self, *written: bytes, words: tuple[str, ...] = ("--source", "stripe")) -> Result:
        """Import these lines from a file."""
        self.file.write_bytes(b"".join(each + b"\n" for each in written))
        return self.run(import_command, str(self.file), *words)

    def take(self, body: bytes, source: str = "stripe", headers: Mapping[str, str] | None = None) -> None:
        """Let a webhook come, as it came from its sender."""
        record = {"source": source, "headers": headers or {}, "body": msgspec.Raw(body)}
        assert self.imported(msgspec.json.encode(record), words=()).exit_code == 0

    def listed(self, what: str) -> list[Any]:
        """Return the webhooks or the deliveries, oldest first."""
        result = self.run(main, what, "--json", "--limit", "1000")
        assert result.exit_code == 0, result.output
        return list(json.loads(result.stdout))[::-1]

    def ids(self) -> list[str]:
        """Return the ids of the webhooks, oldest first."""
        return [each["id"] for each in self.listed("webhooks")]

    def purchases(self) -> list[str]:
        """Return the state of each purchase, or why it is skipped."""
        found = [each for each in self.listed("deliveries") if each["event"] == "purchase"]
        return sorted(each["reason"] or each["state"] for each in found)

"""The chart's README: every value is in its table, and what can be copied from it works."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from gateway.cli import main
from tests.helm.engine import CHART, Helm, Thing, container, documents

README = (CHART / "README.md").read_text()
ALERTS = (CHART / "files/alerts.yaml").read_text()
ROW = re.compile(r"^\| `(?P<name>[\w.]+)` \| `(?P<default>.+?)` \|", re.MULTILINE)
BLOCK = re.compile(r"^ *```(?P<kind>sh|yaml)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [found["text"] for found in BLOCK.finditer(README) if found["kind"] == kind]


def commands() -> Iterator[list[str]]:
    """Yield each command of the README, its continued lines joined, as words."""
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = next((at for at, word in enumerate(words) if word in {"&&", "|"}), len(words))
                yield words[:end]
                words = words[end + 1 :]


def leaves(values: Thing, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values' names, as long as they are in the table, with their defaults."""
    for name, value in values.items():
        if isinstance(value, dict) and value and f"{path}{name}" not in WHOLE:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


WHOLE = {
    *("resources", "store.trial.resources", "podSecurityContext", "monitoring.dashboard.labels"),
    *(f"probes.{each}" for each in ("startup", "liveness", "readiness")),
}
"""What the table shows in one row."""


def test_the_table_names_every_value_with_its_default_in_their_order() -> None:
    (values,) = documents((CHART / "values.yaml").read_text())
    rows = [(row["name"], yaml.safe_load(row["default"])) for row in ROW.finditer(README)]
    assert rows == list(leaves(values))


def test_the_table_of_alerts_names_each_one() -> None:
    (alerts,) = documents(ALERTS)
    assert re.findall(r"^\| `(Gateway\w+)` \|", README, re.MULTILINE) == [each["alert"] for each in alerts["rules"]]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_values_that_the_readme_shows_can_be_installed(helm: Helm, block: str) -> None:
    assert helm.template(yaml.safe_load(block))


def test_all_that_the_readme_sets_on_the_command_line_are_values(helm: Helm) -> None:
    given = [words[at + 1] for words in commands() for at, word in enumerate(words) if word == "--set"]
    given += re.findall(r"--set ([^`\s]+)", README)
    assert "store.kind=trial" in given
    for each in given:
        assert helm.template(nested(each)), each


def nested(given: str) -> Thing:
    """Return what `--set` makes of a text."""
    made: Thing = {}
    for pair in given.split(","):
        name, _, value = pair.partition("=")
        *path, last = name.split(".")
        at = made
        for each in path:
            at = at.setdefault(each, {})
        at[last] = value
    return made


def gateways(words: list[str]) -> list[str] | None:
    """Return what is said to the gateway by a command, also by one that runs it in a pod."""
    if words[:1] == ["gateway"]:
        return words[1:]
    return words[words.index("--") + 2 :] if words[:1] == ["kubectl"] and "--" in words else None


def test_the_gateway_takes_each_command_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-mappings").mkdir()
    monkeypatch.chdir(tmp_path)
    shown = [said for words in commands() if (said := gateways(words)) is not None]
    shown += [shlex.split(each)[1:] for each in re.findall(r"`(gateway [^`]+)`", f"{README}{ALERTS}")]
    assert len(shown) >= 15
    for said in shown:
        takes(shlex.split(re.sub(r"{{.*?}}", "meta", " ".join(said))))


def takes(said: list[str]) -> None:
    """Have the command line parse the words, without running anything. Raises click's `UsageError`."""
    command: click.Command = main
    context: click.Context | None = None
    rest = said
    while True:
        name = command.name or ""
        context = command.make_context(name, rest, parent=context)
        rest = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not rest:
            return
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found


def test_what_the_readme_runs_is_named_as_the_chart_names_it(helm: Helm) -> None:
    made = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in helm.template()}
    named = {word for words in commands() for word in words if re.fullmatch(r"(deployment|service)/\S+", word)}
    assert named == {"deployment/gateway", "service/gateway"} <= made


def test_the_secret_that_the_readme_makes_has_what_the_pods_wait_for(helm: Helm) -> None:
    (made,) = [words for words in commands() if "secret" in words and "create" in words]
    given = [word.removeprefix("--from-literal=") for word in made if word.startswith("--from-literal=")]
    waited = [each["valueFrom"]["secretKeyRef"] for each in container(helm.template())["env"] if "valueFrom" in each]
    assert {each["key"] for each in waited} <= {each.partition("=")[0] for each in given}
    assert {each["name"] for each in waited} == {"gateway"} <= set(made)
